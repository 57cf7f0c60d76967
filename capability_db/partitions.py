"""How GPUs are cut: MIG geometries (NVIDIA) and partition modes (AMD), and what a part has of the whole."""

import functools
import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, TypeAdapter, model_validator

from capability_db import errors
from capability_db.sku import Frozen, Sku, VendorName

Count = Annotated[int, Field(ge=1)]


class Profile(Frozen):
    """One kind of MIG instance."""

    name: Annotated[str, Field(pattern=r"^[1-9]g\.[1-9][0-9]*gb(\+me|\+me\.all|\+gfx|-me)?$")]
    """With `+` as nvidia-smi writes it: `1g.10gb+me`."""
    size: Count
    """Placement units."""
    starts: Annotated[tuple[int, ...], Field(min_length=1)]
    """Placement units at which an instance may begin."""
    compute: Count
    """Compute slices."""
    max: Count
    """Instances of it that one GPU holds at most."""
    memory_mib: Count | None = None
    """What drivers were seen to report for an instance; None: not seen."""
    media: bool = False
    """Whether the instance has the media extensions, which few instances of a GPU can have."""
    graphics: bool = False
    """Whether graphics APIs work in the instance."""

    @property
    def resource_form(self) -> str:
        """The name as resource names and product labels write it: `1g.10gb.me`."""
        return self.name.replace("+", ".")


class Geometry(Frozen):
    """How one kind of GPU can be cut into MIG instances."""

    memory_slices: Count
    """Placement units of the whole GPU."""
    compute_slices: Count
    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> "Geometry":
        names = [profile.name for profile in self.profiles]
        if len({*names}) < len(names):
            raise ValueError(f"a profile is listed twice: {names}")
        for profile in self.profiles:
            if min(profile.starts) < 0 or max(profile.starts) + profile.size > self.memory_slices:
                raise ValueError(f"{profile.name} reaches beyond the {self.memory_slices} placement units")
            if profile.compute > self.compute_slices or profile.max > len(profile.starts):
                raise ValueError(f"{profile.name} takes more than the GPU has")
        return self


@dataclass(frozen=True, slots=True)
class Share:
    """A part of one device, as fractions of the whole."""

    memory: float
    """Of memory and of its bandwidth."""
    compute: float
    """Of TFLOPS."""


@dataclass(frozen=True, slots=True)
class AmdMode:
    """Compute and memory partition mode of an AMD GPU, in capitals: `CPX`, `NPS4`."""

    compute: str
    memory: str


class _AmdRow(Frozen):
    parts: Count
    memory: tuple[str, ...]


class _AmdFamily(Frozen):
    skus: tuple[str, ...]
    modes: dict[str, _AmdRow]


def load_data(name: str) -> Any:
    """The parsed YAML file `capability_db/data/NAME`."""
    text = importlib.resources.files("capability_db").joinpath("data", name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=yaml.CSafeLoader)


# --- MIG --------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _geometries() -> dict[str, Geometry]:
    return TypeAdapter(dict[str, Geometry]).validate_python(load_data("mig.yaml"))


@functools.lru_cache(maxsize=1)
def _profiles() -> dict[tuple[str, str], Profile]:
    return {
        (key, name): profile
        for key, geometry in _geometries().items()
        for profile in geometry.profiles
        for name in (profile.name, profile.resource_form)
    }


def mig_keys() -> tuple[str, ...]:
    """The keys of all geometries, in file order."""
    return tuple(_geometries())


def mig_geometry(key: str) -> Geometry:
    """The geometry of a key; raises CatalogueError for an unknown one."""
    try:
        return _geometries()[key]
    except KeyError:
        raise errors.CatalogueError(
            f"no MIG geometry is called {key!r}; known are {', '.join(_geometries())}"
        ) from None


def mig_profile(key: str, name: str) -> Profile | None:
    """The profile by its name, `1g.10gb+me` or as in resource names `1g.10gb.me`; None: the geometry has none such."""
    return _profiles().get((key, name))


@functools.lru_cache(maxsize=1)
def all_mig_profiles() -> frozenset[str]:
    """The names of all profiles of all geometries, with `+`."""
    return frozenset(profile.name for profile in _profiles().values())


def mig_share(geometry: Geometry, profile: Profile) -> Share:
    """What an instance has of the whole GPU: `size / memory_slices` and `compute / compute_slices`.

    NVIDIA's guide states both so; SM counts lie some percent off (`data/mig.yaml`).
    """
    return Share(
        memory=profile.size / geometry.memory_slices,
        compute=profile.compute / geometry.compute_slices,
    )


def mig_memory_mib(sku_memory_mib: float, geometry: Geometry, profile: Profile) -> int:
    """MiB of an instance on a GPU of `sku_memory_mib`: as seen of drivers, else its part of the GPU's, rounded down."""
    return profile.memory_mib or int(sku_memory_mib * profile.size // geometry.memory_slices)


Placed = tuple[Profile, int]
"""One MIG instance: its profile, and the placement unit where it begins."""


def free_starts(geometry: Geometry, occupied: Sequence[Placed]) -> dict[str, tuple[int, ...]]:
    """By profile, the placement units at which an instance of it may begin beside those that are there.

    Two instances never share a placement unit (which also bounds their compute slices, as the test enumerates); of a
    profile there are `max` at most, and one instance of a GPU has the media extensions. What RTX PRO 6000's `+me.all`
    leaves to others is not published: beside it every profile without media extensions counts as possible.
    """
    taken = {unit for profile, start in occupied for unit in range(start, start + profile.size)}
    media = any(profile.media for profile, _ in occupied)
    found: dict[str, tuple[int, ...]] = {}
    for profile in geometry.profiles:
        full = _there(profile, occupied) >= profile.max or (media and profile.media)
        starts = () if full else profile.starts
        found[profile.name] = tuple(each for each in starts if taken.isdisjoint(range(each, each + profile.size)))
    return found


def still_fit(geometry: Geometry, occupied: Sequence[Placed]) -> dict[str, int]:
    """By profile, how many more instances of it alone fit beside those that are there."""
    found: dict[str, int] = {}
    for name, starts in free_starts(geometry, occupied).items():
        profile = next(each for each in geometry.profiles if each.name == name)
        count, end = 0, 0
        for start in sorted(starts):  # of intervals of one size the earliest that fits leaves room for most
            if start >= end:
                count, end = count + 1, start + profile.size
        found[name] = min(count, profile.max - _there(profile, occupied))
    return found


def _there(profile: Profile, occupied: Sequence[Placed]) -> int:
    return sum(each.name == profile.name for each, _ in occupied)


# --- AMD --------------------------------------------------------------------------------------------------------------

_AMD_MODE: Final = re.compile(r"([sdtqc]px)_(nps[1248])", re.IGNORECASE | re.ASCII)


@functools.lru_cache(maxsize=1)
def _amd_rows() -> dict[tuple[str, str], _AmdRow]:
    families = TypeAdapter(tuple[_AmdFamily, ...]).validate_python(load_data("amd_partitions.yaml"))
    return {
        (sku_id, compute): row for family in families for sku_id in family.skus for compute, row in family.modes.items()
    }


def amd_mode(text: str) -> AmdMode | None:
    """The mode in `cpx_nps4`, in any case; None: the text is no mode."""
    found = _AMD_MODE.fullmatch(text)
    return AmdMode(compute=found[1].upper(), memory=found[2].upper()) if found else None


def amd_parts(sku: Sku, compute: str) -> int | None:
    """Into how many devices a compute mode (`CPX`) cuts a GPU of the model; None: the model is not known to have it."""
    row = _amd_rows().get((sku.id, compute.upper()))
    return row.parts if row else None


def amd_memory_modes(sku: Sku, compute: str) -> tuple[str, ...]:
    """The memory modes that some source pairs with a compute mode of the model; empty: none is known."""
    row = _amd_rows().get((sku.id, compute.upper()))
    return row.memory if row else ()


def all_modes(vendor: VendorName) -> list[str]:
    """Every partition mode of a vendor's GPUs, as resource names carry it: `1g.10gb.me`, `cpx_nps4`."""
    if vendor == "nvidia":
        return sorted({profile.resource_form for profile in _profiles().values()})
    if vendor == "amd":
        pairs = {(compute, memory) for (_, compute), row in _amd_rows().items() for memory in row.memory}
        return sorted(f"{compute}_{memory}".lower() for compute, memory in pairs)
    return []
