"""NodeGPUs objects -> what a node's agent says of its GPUs: what they are, how they are cut, whether they are healthy.

Only what decisions read is kept, in plain values: what changes with every beat (memory in use, temperature, power) is
left out, so that a beat which brings nothing new changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import pydantic

from capability_db import errors, resources
from capability_db.sku import VendorName

MAX_PROBLEM = 100


class Metadata(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """What of a NodeGPUs's metadata matters."""

    name: str = ""
    resource_version: str | None = None


class NodeGPUs(msgspec.Struct, frozen=True, kw_only=True):
    """A NodeGPUs as the API sends it, the status as it stands: one bad object must not stop the others."""

    metadata: Metadata = Metadata()
    status: Any = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One MIG instance."""

    profile: str
    start: int | None
    """Placement unit where it begins; None: unknown."""
    memory_mib: int | None
    uuid: str | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one partition of an AMD GPU, as its driver lists it."""

    vendor: VendorName
    name: str
    """As texts call it: its UUID, else its PCI address, else its place."""
    ids: frozenset[str]
    """UUID and PCI address, in the form of `ids`."""
    pci_device_id: str | None
    product: str | None
    sku: str | None
    """The SKU that the agent's own DB knows it as."""
    memory_mib: int | None
    compute_units: int | None
    problem: str | None
    """Why it is not healthy; None: it is."""
    instances: tuple[Instance, ...] | None
    """Its MIG instances; None: MIG is off."""
    profiles: tuple[str, ...]
    """The MIG profiles that its driver offers; empty: it did not say."""
    mode: str | None
    """An AMD GPU's partition modes: `cpx_nps4`, or `cpx` alone."""


@dataclass(frozen=True, slots=True)
class Report:
    """A node's GPUs, in the agent's order."""

    gpus: tuple[Gpu, ...] = ()
    errors: tuple[tuple[VendorName, str], ...] = ()
    """Why a vendor's devices could not be read; of them the report has what was seen last."""

    def of(self, vendor: VendorName) -> tuple[Gpu, ...]:
        """The GPUs of one vendor."""
        return tuple(gpu for gpu in self.gpus if gpu.vendor == vendor)


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of one node by its agent."""

    report: Report | None
    """The last good report; None: there was none."""
    heartbeat: str | None
    """When the agent last looked (RFC 3339)."""
    problem: str | None
    """Why the newest object is not used; None: it is."""
    version: str | None
    """The newest object's resourceVersion."""


def read(status: Any) -> tuple[Report, str | None]:
    """A status's report and heartbeat; raises ReportError naming the field that is wrong."""
    try:
        found = resources.NodeGPUsStatus.model_validate({} if status is None else status)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "status"
        raise errors.ReportError(f"{where}: {first['msg']}") from error
    gpus = tuple(_gpu(device) for device in found.devices)
    broken = tuple((each.vendor, _one_line(each.error)) for each in found.drivers if each.error)
    return Report(gpus, broken), found.heartbeat


def hear(found: NodeGPUs, before: Heard | None) -> Heard:
    """What is known of the node after an object, given what was known before it: the last good report stays."""
    version = found.metadata.resource_version
    if before is not None and version is not None and before.version == version:
        return before
    try:
        report, heartbeat = read(found.status)
    except errors.ReportError as error:
        return Heard(before.report if before else None, before.heartbeat if before else None, str(error), version)
    if before is not None and before.report == report:
        report = before.report  # equal reports are one object, which is quick to compare
    return Heard(report, heartbeat, None, version)


def ids(uuids: Iterable[str | None], pci_addresses: Iterable[str | None]) -> frozenset[str]:
    """The ways of naming one GPU in one form; some libraries write the PCI domain with eight digits, some with four."""
    named = [each.lower() for each in uuids if each]
    return frozenset([*named, *(each.lower()[-len("0000:00:00.0") :] for each in pci_addresses if each)])


def _gpu(device: resources.Device) -> Gpu:
    mig, partition = device.mig, device.partition
    cut = mig is not None and mig.enabled
    return Gpu(
        vendor=device.vendor,
        name=device.uuid or device.pci_bus_id or f"GPU {device.index}",
        ids=ids([device.uuid], [device.pci_bus_id]),
        pci_device_id=device.pci_device_id,
        product=device.product,
        sku=device.sku,
        memory_mib=device.memory_mib,
        compute_units=device.compute_units,
        problem=None if device.healthy else _one_line(", ".join(device.problems)) or "unhealthy",
        instances=tuple(Instance(each.profile, each.start, each.memory_mib, each.uuid) for each in mig.instances)
        if mig and cut
        else None,
        profiles=tuple(each.profile for each in mig.placements) if mig and cut else (),
        mode="_".join(each.lower() for each in (partition.compute, partition.memory) if each) if partition else None,
    )


def _one_line(text: str) -> str:
    """A text that may stand in an event: short, without percent signs, which the event recorder formats."""
    return " ".join(text.replace("%", "％").split())[:MAX_PROBLEM]
