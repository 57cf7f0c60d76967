"""Which tags of a repository are a logical image's variants, one for each GPU vendor.

A tag is a variant of `app:v1` when taking one group of vendor words out of it leaves exactly `v1`: `v1-nvidia`,
`v1-cuda12.4`, `v1-rocm6.2-mi30x`, `amd-v1`. With anything else left (`v1-dev-nvidia`, `v1.2-nvidia`) it is another
image. An untagged image, which is Docker's `latest`, is also met by tags of nothing but vendor words: `nvidia`,
`rocm6.2`. For a tagged one these are the last resort, since nothing says that they are that version.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from images import tags as names

DEFAULT_TAG = "latest"

_ARTEFACT = re.compile(r"sha256-[0-9a-f]{64}(\..*)?|.*\.(sig|att|sbom)")
_TITLES: dict[names.GpuVendor, str] = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}
_RUNTIMES = {"cuda": "CUDA", "rocm": "ROCm", "oneapi": "oneAPI", "openvino": "OpenVINO"}
_Fit = Literal["exact", "vendor only"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One tag for one vendor."""

    tag: str
    variant: names.Variant
    why: str

    @property
    def targets(self) -> tuple[str, ...]:
        """What the devices must be: see `tags.covers`; empty: any of the vendor's."""
        return self.variant.targets


@dataclass(frozen=True, slots=True)
class _Candidate:
    tag: str
    variant: names.Variant
    fit: _Fit
    engine: bool
    numbered: bool
    """The tag gives its runtime a number, even where it is not clear which version that is."""

    @property
    def order(self) -> tuple[bool, bool, bool, bool, tuple[int, ...], int, str]:
        """Smaller is better; `_REASONS` says what each place means."""
        version = self.variant.version
        # The last 1 puts 12.4 before a bare 12, of which nobody knows more, and both before what is unclear.
        newest = (*(-int(part) for part in (version or "").split(".") if part), 1)
        return (
            self.fit != "exact",
            bool(self.variant.targets),
            self.engine,
            self.numbered,
            newest,
            len(self.tag),
            self.tag,
        )


_REASONS = (
    "the version that was asked for",
    "for any device",
    "the plain build",
    "the publisher's default, without a runtime version",
    "the newest runtime",
    "the shortest tag",
    "first in the alphabet",
)


def explicit(wanted: str | None, repository: str) -> tuple[names.GpuVendor, Choice] | None:
    """The vendor that the logical image itself names, in its tag or its repository, and that very tag."""
    tag = wanted or DEFAULT_TAG
    variant = names.decode(tag, repository)
    vendor = gpu_vendor(variant)
    if vendor is None or variant.basis == "default":
        return None
    where = "tag" if variant.basis == "tag" else "repository"
    why = f"the {where} asked for is {_described(vendor, variant)} itself, so no other vendor's image was looked for"
    return vendor, Choice(tag, variant, why)


def candidates(tags: Collection[str], wanted: str | None, repository: str) -> dict[names.GpuVendor, Choice]:
    """The best variant of a logical tag (None: untagged) for each GPU vendor that has one among a repository's tags.

    The order: the version asked for before vendor-only tags; tags for any device before those for some; the vendor's
    plain build before an engine's (TensorRT, OpenVINO); a tag without a runtime version, which is the publisher's
    default, before those with one; then the newest runtime, the shortest tag, the alphabet.
    """
    named = explicit(wanted, repository)
    if named is not None and named[1].tag in tags:
        return dict([named])
    if named is not None and named[1].variant.basis == "tag":
        return {}
    if named is None and not _may_have_variants(wanted, repository):
        return {}
    found: defaultdict[names.GpuVendor, list[_Candidate]] = defaultdict(list)
    for vendor, candidate in _matching(tags, wanted, names.Names(repository)):
        found[vendor].append(candidate)
    chosen: dict[names.GpuVendor, Choice] = {}
    for vendor in names.GPU_VENDORS:
        ranked = sorted(found[vendor], key=lambda candidate: candidate.order)
        if ranked:
            chosen[vendor] = Choice(ranked[0].tag, ranked[0].variant, _why(ranked, vendor, wanted))
    return chosen


def gpu_vendor(variant: names.Variant) -> names.GpuVendor | None:
    """The GPU vendor of a variant; None where it is undecided or no GPU's."""
    return next((vendor for vendor in names.GPU_VENDORS if vendor == variant.vendor), None)


def is_artefact(tag: str) -> bool:
    """Whether a tag holds a signature, an attestation or another referrer, no image to run."""
    return _ARTEFACT.fullmatch(tag) is not None


def _may_have_variants(wanted: str | None, repository: str) -> bool:
    """False where the image says itself that it is for CPUs or another kind of device."""
    variant = names.decode(wanted or DEFAULT_TAG, repository)
    return variant.vendor is None or variant.basis == "default"


def _matching(
    tags: Iterable[str], wanted: str | None, known: names.Names
) -> Iterator[tuple[names.GpuVendor, _Candidate]]:
    logical = wanted or DEFAULT_TAG
    head, tail = re.split("[-_]", logical)[0], re.split("[-_]", logical)[-1]
    for tag in set(tags):
        # Cheap first: a variant keeps the logical tag's start or its end, or is nothing but vendor words.
        if not (tag.startswith(head) or tag.endswith(tail) or known.opens(tag)) or is_artefact(tag):
            continue
        words = known.words(tag)
        fit = _fit(tag, words, logical)
        if fit is None:
            continue
        variant = known.judge(tag, words)
        vendor = gpu_vendor(variant)
        if vendor is not None:
            engine = any(word.row.engine for word in words)
            numbered = any(word.row.runtime and re.search(r"\d", tag[word.start : word.end]) for word in words)
            yield vendor, _Candidate(tag, variant, fit, engine, numbered)


def _fit(tag: str, words: Sequence[names.Word], logical: str) -> _Fit | None:
    """How a tag meets the logical one once its vendor words are taken out."""
    if tag == logical:
        return "exact"
    rests = set(_rests(tag, words))
    if logical in rests:
        return "exact"
    if "" in rests:
        return "exact" if logical == DEFAULT_TAG else "vendor only"
    return None


def _rests(tag: str, words: Sequence[names.Word]) -> Iterator[str]:
    """What is left of a tag without its group of vendor words, with and without the fillers (`gpu`) at its ends."""
    removable = [index for index, word in enumerate(words) if word.row.part == "vendor"]
    if not removable or any(word.row.vendor and word.row.part == "flavour" for word in words):
        return
    first, last = removable[0], removable[-1]
    if any(
        words[index].end + 1 != words[index + 1].start or words[index + 1].row.part == "flavour"
        for index in range(first, last)
    ):
        return
    for low in _edges(words, first, -1):
        for high in _edges(words, last, 1):
            yield from _without(tag, words[low].start, words[high].end)


def _edges(words: Sequence[names.Word], index: int, step: int) -> Iterator[int]:
    """The word at `index` and then the fillers next to it, going outwards."""
    yield index
    while 0 <= index + step < len(words):
        near, far = sorted((index, index + step))
        if words[index + step].row.part != "filler" or words[near].end + 1 != words[far].start:
            return
        index += step
        yield index


def _without(tag: str, start: int, end: int) -> Iterator[str]:
    left, right = tag[:start], tag[end:]
    if (left and left[-1] not in "-_") or (right and right[0] not in "-_"):
        return
    if left and right:
        yield left + right[1:]
        yield left[:-1] + right
    else:
        yield left[:-1] + right[1:]


def _why(ranked: Sequence[_Candidate], vendor: names.GpuVendor, wanted: str | None) -> str:
    best = ranked[0]
    what = f"{best.tag} is {_described(vendor, best.variant)}"
    if best.fit == "vendor only":
        return (
            f"{what}, but no tag {wanted}-… for {_TITLES[vendor]} exists and this one names no version: "
            f"nothing says that it is {wanted}"
        )
    if best.variant.basis == "default":
        return f"{what} by its publisher's documentation: the plain tag"
    if len(ranked) == 1:
        return f"{what}, the only one for {wanted or 'the untagged image'}"
    second = ranked[1]
    pairs = zip(_REASONS, best.order, second.order, strict=True)
    reason = next(reason for reason, ours, theirs in pairs if ours != theirs)
    more = f" and {len(ranked) - 2} more" if len(ranked) > 2 else ""
    return f"{what}, taken before {second.tag}{more}: {reason}"


def _described(vendor: names.GpuVendor, variant: names.Variant) -> str:
    runtime = _RUNTIMES.get(variant.runtime or "", variant.runtime)
    text = " ".join(part for part in (runtime, variant.version) if part)
    only = f" for {', '.join(variant.targets)} only" if variant.targets else ""
    return f"{_TITLES[vendor]}'s{f' ({text})' if text else ''}{only}"
