"""From a logical image to images by digest for each GPU vendor, remembered for a short while."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

from images import choose, errors, reference, tags

NEGATIVE_SECONDS: Final = 10.0
_ROUNDS = 3
_TAGS_SHOWN = 8


class Lookup(Protocol):
    """What is asked of a registry; `registry.Registry` is one."""

    async def tags(self, image: reference.Reference) -> tuple[str, ...]:
        """All tags of the image's repository."""

    async def digest(self, image: reference.Reference) -> str:
        """The digest that the image's tag has now."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """One image of a vendor."""

    image: str
    """`repo@sha256:…`, with the repository as the user wrote it."""
    tag: str | None
    """The tag that the digest was read from; None: the user gave the digest alone."""
    variant: tags.Variant
    why: str

    def runs_on(self, target: str) -> bool:
        """Whether it is for devices of a compute capability (`9.0`) or compiler target (`gfx942`)."""
        return tags.covers(self.variant.targets, target)

    def runs_on_all(self, targets: Collection[str]) -> bool:
        """Whether it is for devices of each of some targets."""
        return all(self.runs_on(target) for target in targets)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a logical image stands for."""

    requested: str
    by_vendor: Mapping[tags.GpuVendor, Pinned]
    """The best for each vendor. A vendor that is missing has no variant: its GPUs cannot run the image."""
    pinned_by_user: bool
    """The user gave a digest, so that the image is as it is for every vendor that it may be for."""
    options: Mapping[tags.GpuVendor, tuple[Pinned, ...]] = field(default_factory=dict)
    """All for each vendor, the best first; none given: those of `by_vendor`. Several are for some devices each, and the
    first that runs on a device is the device's."""

    def __post_init__(self) -> None:
        options = self.options or {vendor: (pinned,) for vendor, pinned in self.by_vendor.items()}
        object.__setattr__(self, "options", MappingProxyType(dict(options)))


@dataclass(frozen=True, slots=True)
class _Entry:
    expires: float
    answer: Resolved | errors.ImageError


class Resolver:
    """Resolves logical images; one object serves one event loop.

    Answers are kept for `ttl_seconds`, failures for at most 10 s. However many ask for an image at once, the registry
    is asked once: for its tags and for the digests of the chosen ones.
    """

    def __init__(
        self,
        registry: Lookup,
        ttl_seconds: float = 60.0,
        now: Callable[[], float] = time.monotonic,
        *,
        negative_ttl_seconds: float = NEGATIVE_SECONDS,
        capacity: int = 1024,
    ) -> None:
        self._registry = registry
        self._ttl_seconds = ttl_seconds
        self._negative_seconds = min(negative_ttl_seconds, ttl_seconds, NEGATIVE_SECONDS)
        self._capacity = capacity
        self._now = now
        self._kept: OrderedDict[str, _Entry] = OrderedDict()
        self._asked: dict[str, asyncio.Task[_Entry]] = {}

    async def variants(self, image: str) -> Resolved:
        """The variants of a logical image.

        Raises BadReference; NoVariant where the image does not exist or none of its tags is for a GPU;
        RegistryUnreachable, RegistryDenied or another RegistryError where that cannot be known.
        """
        entry = self._kept.get(image)
        if entry is None or entry.expires <= self._now():
            entry = await self._ask(image)
        if isinstance(entry.answer, Resolved):
            return entry.answer
        # A new error each time: raising a kept one again would grow its traceback for as long as it is kept.
        raise type(entry.answer)(*entry.answer.args) from entry.answer.__cause__

    async def _ask(self, image: str) -> _Entry:
        asked = self._asked.get(image)
        if asked is None:
            parsed = reference.parse(image)  # nothing to ask or to keep where it is none
            asked = asyncio.create_task(self._fill(image, parsed))
            self._asked[image] = asked
            asked.add_done_callback(lambda _: self._asked.pop(image, None))
        # One who gives up waiting must not take the answer from the others.
        return await asyncio.shield(asked)

    async def _fill(self, image: str, parsed: reference.Reference) -> _Entry:
        try:
            answer: Resolved | errors.ImageError = await self._resolve(image, parsed)
            seconds = self._ttl_seconds
        except errors.ImageError as error:
            answer = error.with_traceback(None)
            seconds = self._negative_seconds
        entry = _Entry(self._now() + seconds, answer)
        self._kept[image] = entry
        self._kept.move_to_end(image)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return entry

    async def _resolve(self, image: str, parsed: reference.Reference) -> Resolved:
        if parsed.digest is not None:
            return _as_pinned(image, parsed)
        named = choose.explicit(parsed.tag, parsed.name)
        if named is not None:
            vendor, choice = named
            try:
                digest = await self._registry.digest(parsed.with_tag(choice.tag))
            except errors.NotFound as error:
                if choice.variant.basis == "tag":
                    raise _missing(parsed, error) from error
                # The repository's name is a weaker word than its tags: nvidia/app may hold v1-nvidia and v1-amd.
            else:
                return _resolved(image, {vendor: (_pinned(parsed, choice, digest),)})
        return await self._by_convention(image, parsed)

    async def _by_convention(self, image: str, parsed: reference.Reference) -> Resolved:
        try:
            there = await self._registry.tags(parsed)
        except errors.NotFound as error:
            raise _missing(parsed, error) from error
        left = set(there)
        for _ in range(_ROUNDS):
            chosen = choose.candidates(left, parsed.tag, parsed.name)
            if not chosen:
                raise errors.NoVariant(_nothing(parsed, there))
            pinned, gone = await self._pin(parsed, chosen)
            if not gone:
                return _resolved(image, pinned)
            left -= gone  # deleted since the list was made: the next best
        raise errors.RegistryUnreachable(f"registry {parsed.registry}: {parsed}: its tags change all the time")

    async def _pin(
        self, parsed: reference.Reference, chosen: Mapping[tags.GpuVendor, Sequence[choose.Choice]]
    ) -> tuple[dict[tags.GpuVendor, tuple[Pinned, ...]], set[str]]:
        """The chosen tags by digest, and those that are gone."""
        wanted = [choice.tag for choices in chosen.values() for choice in choices]
        digests = [self._registry.digest(parsed.with_tag(tag)) for tag in wanted]
        answers = dict(zip(wanted, await asyncio.gather(*digests, return_exceptions=True), strict=True))
        there: dict[str, str] = {}
        gone: set[str] = set()
        for tag, answer in answers.items():
            if isinstance(answer, errors.NotFound):
                gone.add(tag)
            elif isinstance(answer, BaseException):
                # Leaving out this tag would read as "has no such variant", which nobody knows.
                raise answer
            else:
                there[tag] = answer
        pinned = {
            vendor: tuple(_pinned(parsed, choice, there[choice.tag]) for choice in choices if choice.tag in there)
            for vendor, choices in chosen.items()
        }
        return pinned, gone


def _as_pinned(image: str, parsed: reference.Reference) -> Resolved:
    """The very image that the user pinned, for every vendor that its name does not rule out."""
    variant = tags.read(parsed)
    if variant.vendor is None:
        vendors, why = tags.GPU_VENDORS, "pinned by the user; its name does not say for which vendor it is"
    else:
        named = choose.gpu_vendor(variant)
        if named is None:
            raise errors.NoVariant(f"image {parsed} is for {variant.vendor}, not for a GPU; pin a GPU vendor's image")
        vendors, why = (named,), f"pinned by the user; its name says {named}"
    return _resolved(image, {vendor: (Pinned(image, parsed.tag, variant, why),) for vendor in vendors}, by_user=True)


def _resolved(image: str, options: dict[tags.GpuVendor, tuple[Pinned, ...]], *, by_user: bool = False) -> Resolved:
    by_vendor = {vendor: pinned[0] for vendor, pinned in options.items()}
    return Resolved(image, MappingProxyType(by_vendor), by_user, options)


def _pinned(parsed: reference.Reference, choice: choose.Choice, digest: str) -> Pinned:
    return Pinned(parsed.pinned(digest), choice.tag, choice.variant, choice.why)


def _missing(parsed: reference.Reference, error: errors.NotFound) -> errors.NoVariant:
    return errors.NoVariant(f"image {parsed} does not exist: {error}")


def _nothing(parsed: reference.Reference, there: Collection[str]) -> str:
    """What was looked for, what is there, and what would help."""
    variant = tags.read(parsed)
    name, tag = parsed.written or parsed.name, parsed.tag
    seen = [each for each in sorted(there) if not choose.is_artefact(each)]
    seen.sort(key=lambda each: not each.startswith(tag or choose.DEFAULT_TAG))
    more = f" and {len(seen) - _TAGS_SHOWN} more" if len(seen) > _TAGS_SHOWN else ""
    listed = ", ".join(seen[:_TAGS_SHOWN]) + more if seen else "none"
    prefix = "" if tag in (None, choose.DEFAULT_TAG) else f"{tag}-"
    remedy = f"push {name}:{prefix}nvidia or {name}:{prefix}amd"
    if variant.vendor in ("cpu", "other") and variant.basis != "default":
        remedy = f"its own name says {variant.vendor}; name the image that GPU variants are of"
    return f"image {parsed} has no variant for any GPU vendor; tags there: {listed}; {remedy}"
