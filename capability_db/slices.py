"""ResourceSlices of DRA drivers -> what GPUs a node offers, and which of them claims leave free.

Not read: counters that devices share (a GPU and the MIG instances that could be cut from it are published together, and
counted as if all could be had), taints set by DeviceTaintRules, consumable capacities other than memory, and slices
that do not name one node. kube-scheduler, which allocates, reads them all.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from capability_db import errors, quantities, reported, reports, trust, vendors
from capability_db.catalogue import Catalogue
from capability_db.node_facts import DeviceClass, Kind, Pool

PCI_ADDRESS = "resource.kubernetes.io/pciBusID"

Key = tuple[str, str, str]
"""Driver, pool and name: what tells one DRA device of a cluster from all others."""


class Base(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """An immutable piece of a resource.k8s.io/v1 object; field names are the API's."""


class Attribute(Base, frozen=True):
    """A device's attribute; those of other types than string read as none."""

    string: str | None = None


class ValidRange(Base, frozen=True):
    """How much of a capacity one request may take."""

    max: str | int | None = None


class RequestPolicy(Base, frozen=True):
    """How requests take part of a capacity."""

    valid_values: list[str | int] | None = None
    valid_range: ValidRange | None = None


class Capacity(Base, frozen=True):
    """A device's capacity; quantities as the API writes them."""

    value: str | int = 0
    request_policy: RequestPolicy | None = None


class Taint(Base, frozen=True):
    """A device's taint."""

    key: str = ""
    value: str | None = None
    effect: str = ""


class Device(Base, frozen=True):
    """One device of a slice."""

    name: str = ""
    attributes: dict[str, Attribute] | None = None
    capacity: dict[str, Capacity] | None = None
    allow_multiple_allocations: bool | None = None
    taints: list[Taint] | None = None


class PoolName(Base, frozen=True):
    """The pool a slice is part of; of several generations the newest counts, once all its slices are there."""

    name: str = ""
    generation: int = 0
    resource_slice_count: int = 1


class Spec(Base, frozen=True):
    """What of a slice's spec matters."""

    driver: str = ""
    node_name: str | None = None
    pool: PoolName = PoolName()
    devices: list[Device] | None = None


class Metadata(Base, frozen=True):
    """What of a slice's metadata matters."""

    name: str = ""
    resource_version: str | None = None


class ResourceSlice(Base, frozen=True):
    """Some devices of one pool of one driver."""

    metadata: Metadata = Metadata()
    spec: Spec = Spec()


@dataclass(frozen=True, slots=True)
class Published:
    """One device as its driver publishes it."""

    device: DeviceClass
    problem: str | None
    """Why kube-scheduler may not allocate it, or should not: a taint, a pool that is not complete; None: it may."""
    memory_bytes: int | None
    """The whole device's memory, of which claims take parts where they may share it; None: unknown."""
    ids: frozenset[str] = frozenset()
    """The GPU's UUID and PCI address (of a part, its whole's), in lower case."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One device, or part of one, that a claim was allocated."""

    key: Key
    memory_bytes: int | None = None
    """The memory it takes of a device that others may share; None: none is counted."""


def devices(slices: Iterable[ResourceSlice], catalogue: Catalogue) -> dict[Key, Published]:
    """The GPUs of known drivers in the newest generation of each pool, in a stable order."""
    pools: dict[tuple[str, str], list[ResourceSlice]] = {}
    for each in slices:
        name = (each.spec.driver, each.spec.pool.name)
        newest = pools.get(name, [])
        if newest and each.spec.pool.generation > newest[0].spec.pool.generation:
            newest = []
        if not newest or each.spec.pool.generation == newest[0].spec.pool.generation:
            pools[name] = [*newest, each]
    found: dict[Key, Published] = {}
    for (driver, pool), members in sorted(pools.items()):
        vendor = vendors.of_driver(driver)
        if vendor is None:
            continue
        complete = len(members) == members[0].spec.pool.resource_slice_count
        for device in (device for each in sorted(members, key=_name) for device in each.spec.devices or ()):
            published = _published(device, vendor, catalogue, complete=complete)
            if published is not None:
                found[driver, pool, device.name] = published
    return found


def checked(
    published: Mapping[Key, Published], report: reports.Report | None, catalogue: Catalogue
) -> tuple[dict[Key, Published], tuple[str, ...]]:
    """The published devices with what the node's agent says of them, and what the two say differently.

    Where both name a model the agent's counts; health is the worse of both.
    """
    if report is None:
        return dict(published), ()
    by_id = {name: gpu for gpu in report.gpus for name in gpu.ids}
    found: dict[Key, Published] = {}
    conflicts: list[str] = []
    for key, each in published.items():
        gpu = next((by_id[name] for name in sorted(each.ids) if name in by_id), None)
        if gpu is not None and gpu.vendor == each.device.vendor:
            model, device = reported.model(gpu, catalogue), each.device
            if model is not None and device.skus and model not in device.skus:
                conflicts.append(f"{key[2]}: {model.id} by the agent, {trust.models(device.skus)} by its ResourceSlice")
                device = dataclasses.replace(device, skus=(model,))
            elif device.kind == "whole" and not gpu.mode and trust.differ(gpu.memory_mib, device.memory_mib):
                conflicts.append(
                    f"{key[2]}: {gpu.memory_mib} MiB by the agent, {device.memory_mib:.0f} MiB by its ResourceSlice"
                )
            each = dataclasses.replace(each, device=device, problem=each.problem or gpu.problem)
        found[key] = each
    return found, tuple(conflicts)


def pools(slices: Iterable[ResourceSlice], catalogue: Catalogue) -> tuple[Pool, ...]:
    """One node's GPUs, given its slices: a pool for each distinct model, kind, mode and memory.

    Several pools then have one resource name, the driver's: devices that are taken are counted by `free`.
    """
    return grouped(devices(slices, catalogue))


def grouped(published: Mapping[Key, Published]) -> tuple[Pool, ...]:
    """The pools that published devices make."""
    classes: dict[DeviceClass, list[tuple[str, Published]]] = {}
    for (_, _, name), each in published.items():
        classes.setdefault(each.device, []).append((name, each))
    return tuple(
        Pool(
            device,
            sum(each.problem is None for _, each in alike),
            len(alike),
            (len(alike),) * len(device.skus),
            tuple(f"{name}: {each.problem}" for name, each in alike if each.problem is not None),
        )
        for device, alike in classes.items()
    )


def free(
    published: Mapping[Key, Published], taken: Iterable[Taken], memory_bytes: int | None = None
) -> dict[DeviceClass, int]:
    """Devices of each class that claims leave for a pod that asks so much memory of one device.

    A device that pods share is free while it has that much left; where nobody asks memory or states it, kube-scheduler
    alone knows.
    """
    used: dict[Key, int] = {}
    for part in taken:
        used[part.key] = used.get(part.key, 0) + (part.memory_bytes or 0)
    left: dict[DeviceClass, int] = {}
    for key, each in published.items():
        if each.device.kind != "shared":
            fits = key not in used
        else:
            fits = each.memory_bytes is None or used.get(key, 0) + (memory_bytes or 0) <= each.memory_bytes
        left[each.device] = left.get(each.device, 0) + (each.problem is None and fits)
    return left


def _name(part: ResourceSlice) -> str:
    return part.metadata.name


def _published(device: Device, vendor: vendors.Vendor, catalogue: Catalogue, *, complete: bool) -> Published | None:
    driver = vendor.driver
    domain = f"{driver.name}/"
    attributes = {
        name.removeprefix(domain): each.string
        for name, each in (device.attributes or {}).items()
        if each.string is not None
    }
    capacity, units = (
        (device.capacity or {}).get(name) or (device.capacity or {}).get(domain + name)
        for name in (driver.memory, driver.compute_units)
    )
    total = (_bytes(capacity.value) if capacity else 0) or None
    compute_units = (_bytes(units.value) if units else 0) or None
    shared = bool(device.allow_multiple_allocations)
    most = _most(capacity, total) if shared and capacity and total else total
    memory_mib = None if most is None else most / quantities.MIB
    identity = vendor.identify_published(attributes, memory_mib, compute_units, catalogue)
    if identity is None:
        return None
    kind: Kind = "shared" if shared else "slice" if identity.mode else "whole"
    found = DeviceClass(
        resource=driver.name,
        vendor=vendor.name,
        kind=kind,
        skus=identity.skus,
        memory_mib=identity.memory_mib,
        memory_reported=identity.memory_mib is not None,
        mode=identity.mode,
        # A part of a shared device has the memory that it asks; nothing bounds what the others do with the rest.
        memory_share=None if shared else identity.memory_share,
        compute_share=None if shared else identity.compute_share,
        replicas=None if shared else 1,
        evidence=identity.evidence,
        problem=None if shared and identity.mode else identity.problem,
        dra=True,
    )
    taints = [taint for taint in device.taints or () if taint.effect in ("NoSchedule", "NoExecute")]
    problem = None if complete else "the ResourceSlices of its pool are not all there"
    if taints:
        problem = ", ".join(taint.key + (f"={taint.value}" if taint.value else "") for taint in taints) or "tainted"
    named = (attributes.get("parentUUID"), attributes.get("uuid"))
    where = (attributes.get("parentPciAddr"), attributes.get("pciAddr"), attributes.get(PCI_ADDRESS))
    return Published(found, problem, total, reports.ids(named, where))


def _most(capacity: Capacity, total: int) -> int:
    """The most that one request may take of a shared device's capacity (CapacityRequestPolicy)."""
    policy = capacity.request_policy
    if policy is not None and policy.valid_values:
        return min(total, max(_bytes(value) for value in policy.valid_values))
    if policy is not None and policy.valid_range is not None and policy.valid_range.max is not None:
        return min(total, _bytes(policy.valid_range.max))
    return total


def _bytes(text: str | int) -> int:
    """A quantity in its unit, bytes for memory; what is none reads as 0: one bad device must not stop all."""
    try:
        return max(0, quantities.units(text))
    except errors.QuantityError:
        return 0
