"""What one vendor's library says of a node's GPUs, as it travels from the child process to the agent.

The child imports neither pydantic nor the catalogue, which keeps it small and quick to start; None is: not said.
"""

from typing import Literal

import msgspec

Kind = Literal["ok", "absent", "failed"]
LinkKind = Literal["nvlink", "xgmi", "pcie", "host", "numa"]


class Profile(msgspec.Struct, frozen=True, gc=False):
    """A MIG profile that the driver offers on one GPU."""

    name: str
    size: int
    """Placement units."""
    starts: tuple[int, ...]
    """Placement units at which an instance may begin on the empty GPU."""
    most: int
    """Instances of it that the GPU holds at once."""


class Instance(msgspec.Struct, frozen=True, gc=False):
    """A MIG instance that exists."""

    profile: str
    uuid: str | None = None
    start: int | None = None
    size: int | None = None
    memory_mib: int | None = None


class Errors(msgspec.Struct, frozen=True, gc=False):
    """Memory errors, and what was retired for them."""

    corrected: int | None = None
    uncorrected: int | None = None
    """Since the GPU was made (NVIDIA), since the driver was loaded (AMD)."""
    retired: int | None = None
    pending: bool | None = None
    remap_failed: bool | None = None


class Gpu(msgspec.Struct, frozen=True, gc=False):
    """One device that the library lists."""

    index: int
    uuid: str | None = None
    names: tuple[str, ...] = ()
    """What the device plugin may call it besides its UUID."""
    pci_bus_id: str | None = None
    pci_device_id: str | None = None
    """Four hex digits in lower case."""
    product: str | None = None
    target: str | None = None
    compute_units: int | None = None
    memory_mib: int | None = None
    memory_used_mib: int | None = None
    numa_node: int | None = None
    lost: str | None = None
    """The library's words for why it does not answer for this device."""
    problems: tuple[str, ...] = ()
    xids: tuple[int, ...] = ()
    """Critical XIDs since the last reading."""
    errors: Errors | None = None
    throttling: tuple[str, ...] = ()
    temperature_c: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    mig: bool | None = None
    """Whether MIG is on; None: the device has none."""
    instances: tuple[Instance, ...] = ()
    profiles: tuple[Profile, ...] = ()
    compute_mode: str | None = None
    memory_mode: str | None = None
    """AMD partition modes, `CPX` and `NPS4`."""


class Link(msgspec.Struct, frozen=True, gc=False):
    """What joins two devices, by their `index`."""

    one: int
    other: int
    kind: LinkKind
    count: int | None = None


class Reading(msgspec.Struct, frozen=True, gc=False):
    """All that one library says."""

    driver: str | None = None
    runtime: str | None = None
    gpus: tuple[Gpu, ...] = ()
    links: tuple[Link, ...] = ()


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What came of asking: a reading, or that there is no such library here, or why it failed."""

    kind: Kind
    reading: Reading | None = None
    text: str = ""
    unloaded: bool = False
    """Whether the driver is not loaded: what it remembered of errors is gone with it."""


class LibraryAbsentError(Exception):
    """The vendor's library is not on this machine."""


class LibraryError(Exception):
    """The library is there and does not answer; the text is its own."""

    def __init__(self, text: str, *, unloaded: bool = False) -> None:
        super().__init__(text)
        self.unloaded = unloaded
