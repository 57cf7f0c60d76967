"""What a tag and a repository's name say about the GPUs an image is for.

Names are read by the table in `data/tags.yaml`: words, and what some repositories mean by theirs. What the table does
not know stays undecided (None), and so does a name that speaks of two vendors.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal, get_args

import msgspec

from capability_db import sku
from images import reference

GpuVendor = sku.VendorName
GPU_VENDORS: Final[tuple[GpuVendor, ...]] = get_args(GpuVendor)
Vendor = Literal["nvidia", "amd", "intel", "cpu", "other"]
Basis = Literal["tag", "repository", "default"]

_START = r"(?<![^-_./+:])"
# A dot before a digit goes on with a version: cuda12.4 is never read as cuda12.
_END = r"(?=[-_/+:]|\.(?!\d)|$)"
_APPLICATION_VERSION = re.compile(
    r"^(?:latest|v?\d+(?:\.\d+)*(?:[.-]?(?:rc|post|dev|alpha|beta|a|b)\.?\d+)?)(?=[-_.+]|$)", re.IGNORECASE
)
_LEADING_VERSION = re.compile(r"(\d+\.\d+(?:\.\d+)?)(?=[-_]|$)")


@dataclass(frozen=True, slots=True)
class Variant:
    """What an image's name says; None: it does not say."""

    vendor: Vendor | None = None
    runtime: str | None = None
    """`cuda`, `rocm`, `oneapi`, `openvino`."""
    version: str | None = None
    """The runtime's, as far as the name tells it: `12`, `12.4`, `12.4.1`."""
    targets: tuple[str, ...] = ()
    """All it is built for: `sm86`, `gfx942`, a family (`gfx120X`), a platform (`l4t`); empty: not told."""
    flavour: str | None = None
    """What else the tag says, without the application's version in front."""
    basis: Basis | None = None
    """Where the vendor was read: in the tag, in the repository's name, or in the publisher's word on plain tags."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of word; the fields are told in `data/tags.yaml`."""

    match: str
    seen: str
    vendor: Vendor | None = None
    runtime: str | None = None
    targets: tuple[str, ...] = ()
    repository: bool = False
    owner: bool = False
    part: Literal["vendor", "filler", "flavour"] = "vendor"
    engine: bool = False


class Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What tags without any token are in one repository."""

    tag: str
    vendor: Vendor
    runtime: str | None = None
    targets: tuple[str, ...] = ()


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one repository means by its names."""

    repository: str
    seen: str
    vendor: Vendor | None = None
    runtime: str | None = None
    version: Literal["leading"] | None = None
    plain: Plain | None = None
    tokens: tuple[Row, ...] = ()


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `data/tags.yaml`."""

    tokens: tuple[Row, ...]
    families: tuple[Family, ...]


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of a name that a row reads."""

    start: int
    end: int
    row: Row
    version: str | None
    targets: tuple[str, ...]


class _Reader:
    """Rows as one regular expression: finds the words of a name in one pass."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)
        self._patterns = tuple(re.compile(f"(?:{row.match}){_END}", re.IGNORECASE) for row in self._rows)
        alternatives = "|".join(f"({_without_groups(row.match)})" for row in self._rows)
        self._any = re.compile(f"{_START}(?:{alternatives}){_END}", re.IGNORECASE)

    def words(self, text: str) -> tuple[Word, ...]:
        return tuple(self._word(text, found) for found in self._any.finditer(text))

    def reads(self, text: str) -> tuple[Word, ...]:
        """The one word that is the whole text, or nothing."""
        return tuple(word for word in self.words(text) if word.end - word.start == len(text))

    def opens(self, text: str) -> bool:
        return self._any.match(text) is not None

    def _word(self, text: str, found: re.Match[str]) -> Word:
        # The first group that took part tells the row: groups inside the rows are gone.
        index = (found.lastindex or 1) - 1
        row, parts = self._rows[index], {}
        again = self._patterns[index].match(text, found.start())
        if again is not None:
            parts = again.groupdict()
        numbers = [parts.get(name) for name in ("major", "minor", "patch")]
        version = ".".join(number for number in numbers if number) or None
        target = parts.get("target")
        targets = row.targets if target is None else (_target(target),)
        return Word(found.start(), found.end(), row, version, targets)


class Names:
    """Reads the tags of one repository."""

    def __init__(self, repository: str) -> None:
        registry, path = reference.split(repository)
        full = f"{registry}/{path}"
        self._family, self._reader = _family(full)
        self._repository = self._read_repository(path)

    def words(self, tag: str) -> tuple[Word, ...]:
        """The words of a tag that the table knows, in order."""
        return self._reader.words(tag)

    def opens(self, tag: str) -> bool:
        """Whether a tag starts with such a word; much cheaper than `words`."""
        return self._reader.opens(tag)

    def decode(self, tag: str | None) -> Variant:
        """What the tag (None: not known) says, then the repository's name, then the publisher's word on plain tags."""
        return self.judge(tag or "", self.words(tag or ""))

    def judge(self, tag: str, words: Sequence[Word]) -> Variant:
        """`decode` of a tag whose words are known already."""
        flavour = _flavour(tag, words)
        if len({word.row.vendor for word in words if word.row.vendor}) > 1:
            return Variant(flavour=flavour)
        said, known = _summary(words, "tag", flavour), self._repository
        if said.vendor is None and known.vendor is None:
            return self._plain(tag, flavour)
        version = said.version
        if self._family.version == "leading" and said.vendor in (None, self._family.vendor):
            leading = _LEADING_VERSION.match(tag)
            version = version or (leading[1] if leading else None)
        if said.vendor is None:
            return Variant(known.vendor, known.runtime, version or known.version, known.targets, flavour, "repository")
        if said.vendor != known.vendor:
            return said
        same_runtime = said.runtime in (None, known.runtime)
        return Variant(
            said.vendor,
            said.runtime or known.runtime,
            version or (known.version if same_runtime else None),
            said.targets or known.targets,
            flavour,
            "tag",
        )

    def _plain(self, tag: str, flavour: str | None) -> Variant:
        plain = self._family.plain
        if plain is None or not re.fullmatch(plain.tag, tag):
            return Variant(flavour=flavour)
        return Variant(plain.vendor, plain.runtime, None, plain.targets, flavour, "default")

    def _read_repository(self, path: str) -> Variant:
        if self._family.vendor is not None:
            return Variant(self._family.vendor, self._family.runtime, basis="repository")
        *owners, last = path.split("/")
        words = [word for word in self._reader.words(last) if word.row.repository]
        for owner in owners:
            words += [word for word in self._reader.reads(owner) if word.row.owner]
        if len({word.row.vendor for word in words}) > 1:
            return Variant()
        return _summary(words, "repository", None)


def decode(tag: str | None, repository: str = "") -> Variant:
    """What a tag in a repository (`registry/path`, or as Docker shortens it) says; undecided is None, never a guess."""
    return Names(repository).decode(tag)


def read(image: reference.Reference) -> Variant:
    """What a reference says; without tag and digest it means `latest`, and a digest alone is no word on its tag."""
    return decode(image.tag or (None if image.digest else "latest"), image.name)


def covers(targets: Sequence[str], device: str) -> bool:
    """Whether an image built for these targets runs on a device of a compute capability (`8.6`) or target (`gfx942`).

    No targets: no limit told. CUDA code for one compute capability runs on the same major and a higher minor one (CUDA
    C programming guide, binary compatibility), that for `90a` on 9.0 only. A target that nothing here knows covers
    nothing.
    """
    return not targets or any(_covers(target, device) for target in targets)


def _covers(target: str, device: str) -> bool:
    if target.endswith("X"):
        return re.fullmatch(rf"{target[:-1]}[0-9a-f]", device) is not None
    cubin = re.fullmatch(r"sm(\d+)(\d)([af]?)", target)
    capability = re.fullmatch(r"(\d+)\.(\d)", device)
    if cubin is None or capability is None:
        return target == device
    same_major = cubin[1] == capability[1]
    return same_major and (cubin[2] == capability[2] if cubin[3] else int(cubin[2]) <= int(capability[2]))


def _summary(words: Sequence[Word], basis: Basis, flavour: str | None) -> Variant:
    """What words of at most one vendor say together."""
    vendor = next((word.row.vendor for word in words if word.row.vendor), None)
    if vendor is None:
        return Variant(flavour=flavour)
    runtimes = {word.row.runtime for word in words if word.row.runtime}
    runtime = runtimes.pop() if len(runtimes) == 1 else None
    versions = {word.version for word in words if word.version}
    longest = max(versions, key=len, default=None)
    agreed = longest is not None and all(f"{longest}.".startswith(f"{version}.") for version in versions)
    targets = tuple(dict.fromkeys(target for word in words for target in word.targets))
    return Variant(vendor, runtime, longest if agreed and runtime else None, targets, flavour, basis)


def _flavour(tag: str, words: Sequence[Word]) -> str | None:
    rest, end = "", 0
    for word in words:
        if word.row.part != "flavour":
            rest += tag[end : word.start]
            end = word.end
    rest += tag[end:]
    rest = re.sub(r"([-_.+]){2,}", r"\1", rest).strip("-_.+")
    return _APPLICATION_VERSION.sub("", rest, count=1).strip("-_.+") or None


def _target(text: str) -> str:
    lower = text.lower().replace("_", "")
    return lower[:-1] + "X" if lower.endswith("x") else lower


def _without_groups(pattern: str) -> str:
    return re.sub(r"\(\?P<\w+>", "(?:", pattern)


def _load() -> Table:
    text = resources.files("images").joinpath("data/tags.yaml").read_bytes()
    return msgspec.yaml.decode(text, type=Table)


TABLE: Final = _load()
_COMMON: Final = (Family(repository="", seen=""), _Reader(TABLE.tokens))
_FAMILIES: Final = tuple(
    (re.compile(family.repository), family, _Reader((*family.tokens, *TABLE.tokens)) if family.tokens else _COMMON[1])
    for family in TABLE.families
)


def _family(repository: str) -> tuple[Family, _Reader]:
    for pattern, family, reader in _FAMILIES:
        if pattern.fullmatch(repository):
            return family, reader
    return _COMMON
