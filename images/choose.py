"""Which tags of a repository are a logical image's variants, one for each GPU vendor.

A tag is a variant of `app:v1` when taking one group of vendor words out of it leaves exactly `v1`: `v1-nvidia`,
`v1-cuda12.4`, `v1-rocm6.2-mi30x`, `amd-v1`. With anything else left (`v1-dev-nvidia`, `v1.2-nvidia`) it is another
image. Tags of nothing but vendor words (`nvidia`, `rocm6.2`) are a version's last resort, vendor by vendor, since
nothing says that they are that version. An untagged image and `latest`, which Docker takes for the same, are met by
both forms, the untagged one by vendor words rather than by `latest-nvidia`, `latest` the other way round. The two may
be different builds, so all vendors get the same form wherever every one of them has it.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from images import tags as names

DEFAULT_TAG = "latest"
MAX_OPTIONS = 16
"""Variants of one vendor at most: each costs a request."""

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


_Order = tuple[bool, bool, bool, bool, tuple[int, ...], list[tuple[int, bool]], int, str]


@dataclass(frozen=True, slots=True)
class _Form:
    """The fit that comes first, and the reason for it."""

    fit: _Fit
    reason: str

    def order(self, candidate: _Candidate) -> _Order:
        """Smaller is better; `_REASONS` says what each place but the first means."""
        variant = candidate.variant
        # The last 1 puts 12.4 before a bare 12, of which nobody knows more, and both before what is unclear.
        newest = (*(-int(part) for part in (variant.version or "").split(".") if part), 1)
        return (
            candidate.fit != self.fit,
            bool(variant.targets),
            candidate.engine,
            candidate.numbered,
            newest,
            sorted(map(_breadth, variant.targets)),
            len(candidate.tag),
            candidate.tag,
        )


_REASONS = (
    "for any device",
    "the plain build",
    "the publisher's default, without a runtime version",
    "the newest runtime",
    "the narrower architecture",
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


def candidates(tags: Collection[str], wanted: str | None, repository: str) -> dict[names.GpuVendor, tuple[Choice, ...]]:
    """The variants of a logical tag (None: untagged) for each GPU vendor that has any among a repository's tags.

    The order of preference: the version asked for before vendor-only tags (for `latest` and untagged images see the
    module); tags for any device before those for some; the vendor's plain build before an engine's (TensorRT,
    OpenVINO); a tag without a runtime version, which is the publisher's default, before those with one; then the
    newest runtime, the narrower architecture, the shortest tag, the alphabet.

    A vendor has one choice where its best is for any device. Else it has the best for each set of targets, of the same
    form as the best of all and at most `MAX_OPTIONS`: the first whose targets cover a device is the device's.
    """
    named = explicit(wanted, repository)
    if named is not None and named[1].tag in tags:
        return {named[0]: (named[1],)}
    if named is not None and named[1].variant.basis == "tag":
        return {}
    if named is None and not _may_have_variants(wanted, repository):
        return {}
    found: defaultdict[names.GpuVendor, list[_Candidate]] = defaultdict(list)
    for vendor, candidate in _matching(tags, wanted, names.Names(repository)):
        found[vendor].append(candidate)
    form = _form(wanted, found.values())
    return {
        vendor: tuple(_choices(found[vendor], form, vendor, wanted)) for vendor in names.GPU_VENDORS if vendor in found
    }


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
    return "vendor only" if "" in rests else None


def _form(wanted: str | None, found: Collection[Sequence[_Candidate]]) -> _Form:
    """Which form of tag comes first, for all vendors alike."""
    if wanted not in (None, DEFAULT_TAG):
        return _Form("exact", "the version that was asked for")
    latest, words = _Form("exact", "latest, as it was asked for"), _Form("vendor only", "asked for without a tag")
    preferred, other = (words, latest) if wanted is None else (latest, words)
    for form in (preferred, _Form(other.fit, "the form that every vendor has")):
        if all(any(candidate.fit == form.fit for candidate in each) for each in found):
            return form
    return preferred


def _choices(
    candidates: Iterable[_Candidate], form: _Form, vendor: names.GpuVendor, wanted: str | None
) -> Iterator[Choice]:
    """One vendor's variants, best first."""
    ranked = sorted(candidates, key=form.order)
    best = ranked[0]
    if not best.variant.targets:
        yield Choice(best.tag, best.variant, _why(ranked, form, vendor, wanted))
        return
    by_targets: defaultdict[frozenset[str], list[_Candidate]] = defaultdict(list)
    for candidate in ranked:
        if candidate.fit == best.fit:
            by_targets[frozenset(candidate.variant.targets)].append(candidate)
    # Another form may be another build: it is beaten, whatever its targets.
    beaten = [candidate for candidate in ranked if candidate.fit != best.fit]
    for group in itertools.islice(by_targets.values(), MAX_OPTIONS):
        why = _why([*group, *beaten], form, vendor, wanted, alone=len(by_targets) == 1)
        yield Choice(group[0].tag, group[0].variant, why)


def _breadth(target: str) -> tuple[int, bool]:
    """Smaller for what fewer devices run, as far as targets overlap: sm90a, sm90; sm86, sm80; gfx1201, gfx120X."""
    cubin = re.fullmatch(r"sm(\d+)([af]?)", target)
    return (0, target.endswith("X")) if cubin is None else (-int(cubin[1]), not cubin[2])


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


def _why(
    ranked: Sequence[_Candidate], form: _Form, vendor: names.GpuVendor, wanted: str | None, *, alone: bool = True
) -> str:
    """Why the first is taken; `alone`: the vendor has no other choice beside it."""
    best = ranked[0]
    what = f"{best.tag} is {_described(vendor, best.variant)}"
    if best.fit == "vendor only" and wanted not in (None, DEFAULT_TAG):
        return (
            f"{what}, but no tag {wanted}-… for {_TITLES[vendor]} exists and this one names no version: "
            f"nothing says that it is {wanted}"
        )
    if best.variant.basis == "default":
        return f"{what} by its publisher's documentation: the plain tag"
    if len(ranked) == 1:
        return f"{what}, the only one for {wanted or 'the untagged image'}{'' if alone else ' with these targets'}"
    second = ranked[1]
    places = zip((form.reason, *_REASONS), form.order(best), form.order(second), strict=True)
    reason = next(reason for reason, ours, theirs in places if ours != theirs)
    more = f" and {len(ranked) - 2} more" if len(ranked) > 2 else ""
    return f"{what}, taken before {second.tag}{more}: {reason}"


def _described(vendor: names.GpuVendor, variant: names.Variant) -> str:
    runtime = _RUNTIMES.get(variant.runtime or "", variant.runtime)
    text = " ".join(part for part in (runtime, variant.version) if part)
    only = f" for {', '.join(variant.targets)} only" if variant.targets else ""
    return f"{_TITLES[vendor]}'s{f' ({text})' if text else ''}{only}"
