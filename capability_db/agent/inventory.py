"""Answers of the vendors' libraries and of the kubelet -> a NodeGPUs status; pure.

What was seen last stays listed: a GPU that its library no longer lists, and all GPUs of a library that does not answer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from capability_db import partitions, resources, vendors
from capability_db.agent import devices, mig, reading
from capability_db.catalogue import Catalogue

MAX_TEXT: Final = 253
MAX_ERROR: Final = 1024
MAX_DEVICES: Final = 128
MAX_PROBLEMS: Final = 32

Holders = Mapping[str, tuple[resources.Holder, ...]]
"""Device id, as the kubelet has it -> the containers that hold it."""

READY, HOLDERS, GEOMETRY = "Ready", "HoldersKnown", "GeometryMatches"
LIBRARIES: Final[dict[devices.Vendor, str]] = {"nvidia": "libnvidia-ml.so.1", "amd": "libamd_smi.so"}
VOLATILE: Final = ("temperature_c", "power_watts", "memory_used_mib")
ROUTINE_THROTTLES: Final = frozenset({"power cap"})
"""A busy GPU meets its power cap all the time."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen last of one vendor's GPUs."""

    driver: resources.Driver | None = None
    devices: tuple[resources.Device, ...] = ()
    links: tuple[reading.Link, ...] = ()
    """By place in `devices`."""
    xids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Critical XIDs of a GPU, by its key, since the driver was loaded or the GPU came back."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the device plugin may call a device, by its key."""
    own: bool = False
    """Whether this process saw it; else it is what an earlier one reported."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known from one look to the next."""

    seen: Mapping[devices.Vendor, Seen] = field(default_factory=dict)
    conditions: tuple[resources.Condition, ...] = ()
    holders: Holders | None = None
    """The kubelet's last answer."""

    @classmethod
    def of(cls, status: resources.NodeGPUsStatus) -> "Memory":
        """What an earlier process reported: shown until the libraries answer this one."""
        seen = {}
        for vendor in devices.VENDORS:
            places = [place for place, each in enumerate(status.devices) if each.vendor == vendor]
            if not places:
                continue
            links = tuple(
                reading.Link(places.index(one), places.index(other), link.kind, link.count)
                for link in status.links
                for one, other in (link.between,)
                if one in places and other in places
            )
            driver = next((each for each in status.drivers if each.vendor == vendor), None)
            seen[vendor] = Seen(driver, tuple(status.devices[place] for place in places), links)
        return cls(seen, status.conditions)


def look(
    before: Memory,
    answers: Mapping[devices.Vendor, reading.Answer],
    holders: Holders | str,
    catalogue: Catalogue,
    now: str,
) -> tuple[Memory, resources.NodeGPUsStatus]:
    """What to remember, and the node's status, at a time (RFC 3339); `holders` is a text where there are none."""
    seen = dict(before.seen)
    for vendor, answer in answers.items():
        found = _vendor(vendor, before.seen.get(vendor, Seen()), answer, catalogue)
        if found is not None:
            seen[vendor] = found
    known = before.holders if isinstance(holders, str) else holders
    held = [
        _held(device, each.names, known)
        for vendor in devices.VENDORS
        if (each := seen.get(vendor))
        for device in each.devices
    ]
    listed, links = held[:MAX_DEVICES], _links(seen)
    conditions = [
        _ready(answers, now),
        _condition(HOLDERS, not isinstance(holders, str), "Listed", "KubeletSilent", holders, now),
        *_geometry(listed, catalogue, now),
    ]
    stable = tuple(_since(each, before.conditions) for each in conditions)
    status = resources.NodeGPUsStatus(
        conditions=stable,
        drivers=tuple(each.driver for each in seen.values() if each.driver is not None),
        devices=tuple(listed),
        links=tuple(link for link in links if max(link.between) < len(listed)),
        heartbeat=now,
    )
    return Memory(seen, stable, known), status


def essence(status: resources.NodeGPUsStatus) -> Any:
    """What of a status is worth a write when it changes: all but figures that change all the time."""

    def calm(device: resources.Device) -> resources.Device:
        ecc = device.ecc and device.ecc.model_copy(update={"corrected": None})
        held = tuple(each for each in device.throttling if each not in ROUTINE_THROTTLES)
        return device.model_copy(update={**dict.fromkeys(VOLATILE), "ecc": ecc, "throttling": held})

    return status.model_copy(update={"heartbeat": None, "devices": tuple(map(calm, status.devices))})


# --- one vendor -------------------------------------------------------------------------------------------------------


def _vendor(vendor: devices.Vendor, before: Seen, answer: reading.Answer, catalogue: Catalogue) -> Seen | None:
    found = answer.reading
    if answer.kind == "absent" and not before.devices:
        return None
    if found is None:
        driver = before.driver or resources.Driver(vendor=vendor)
        kept = {} if answer.kind == "absent" or answer.unloaded else before.xids
        return replace(
            before, driver=driver.model_copy(update={"error": answer.text[:MAX_ERROR] or "unknown"}), xids=kept
        )
    last = before.devices if before.own else ()
    places: dict[int, int] = {}
    listed: list[resources.Device] = []
    xids: dict[str, tuple[int, ...]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for gpu in found.gpus:
        places[gpu.index] = len(listed)
        if gpu.lost is not None:
            listed.append(_lost(_remembered(gpu, last, found.gpus), gpu.lost, gpu, vendor))
            continue
        device = _device(vendor, gpu, catalogue)
        key = _key(device)
        was_lost = any(_key(each) == key and _is_lost(each) for each in last)
        new = tuple(dict.fromkeys((*(() if was_lost else before.xids.get(key, ())), *gpu.xids)))
        if new:
            xids[key] = new
        names[key] = gpu.names
        listed.append(_judged(device, gpu, new))
    there = {_key(device) for device in listed}
    for device in last:
        if _key(device) not in there and not _repartitioned(device, listed):
            listed.append(_lost(device, "its driver lists it no more", None, vendor))
            names[_key(device)] = before.names.get(_key(device), ())
    links = tuple(
        reading.Link(places[link.one], places[link.other], link.kind, link.count)
        for link in found.links
        if link.one in places and link.other in places
    )
    driver = resources.Driver(vendor=vendor, version=_text(found.driver), runtime=_text(found.runtime))
    return Seen(driver, tuple(listed), links, xids, names, own=True)


def _device(vendor: devices.Vendor, gpu: reading.Gpu, catalogue: Catalogue) -> resources.Device:
    part = gpu.compute_mode is not None and gpu.compute_mode.upper() != "SPX"
    # A partition has a part of the memory: that tells no two models apart.
    named = vendors.Named(gpu.product, gpu.pci_device_id, None if part else gpu.memory_mib, gpu.compute_units)
    sku = vendors.VENDORS[vendor].recognise(named, catalogue)
    return resources.Device(
        index=gpu.index,
        vendor=vendor,
        uuid=_text(gpu.uuid),
        pciBusID=_text(gpu.pci_bus_id),
        pciDeviceID=gpu.pci_device_id,
        product=_text(gpu.product),
        sku=sku.id if sku else None,
        target=_text(gpu.target),
        compute_units=gpu.compute_units or None,
        memoryMiB=gpu.memory_mib or None,
        memoryUsedMiB=gpu.memory_used_mib,
        numa_node=gpu.numa_node,
        ecc=_ecc(gpu.errors),
        throttling=gpu.throttling,
        temperature_c=gpu.temperature_c,
        power_watts=gpu.power_watts,
        power_limit_watts=gpu.power_limit_watts,
        mig=_mig(gpu),
        partition=resources.Partition(compute=gpu.compute_mode, memory=_text(gpu.memory_mode))
        if gpu.compute_mode
        else None,
    )


def _mig(gpu: reading.Gpu) -> resources.Mig | None:
    if gpu.mig is None:
        return None
    return resources.Mig(
        enabled=gpu.mig,
        instances=tuple(
            resources.MigInstance(
                profile=each.profile, uuid=each.uuid, start=each.start, size=each.size, memoryMiB=each.memory_mib
            )
            for each in gpu.instances
        ),
        placements=tuple(
            resources.MigPlacement(
                profile=each.name,
                starts=each.starts,
                size=each.size,
                free=mig.free_starts(each, gpu.instances) if gpu.mig else (),
            )
            for each in gpu.profiles
        ),
    )


def _ecc(errors: reading.Errors | None) -> resources.Ecc | None:
    if errors is None:
        return None
    return resources.Ecc(
        corrected=errors.corrected,
        uncorrected=errors.uncorrected,
        retired=errors.retired,
        pending=errors.pending,
        remap_failed=errors.remap_failed,
    )


def _judged(device: resources.Device, gpu: reading.Gpu, xids: Iterable[int]) -> resources.Device:
    problems = (*gpu.problems, *(f"XID {each}" for each in xids))[:MAX_PROBLEMS]
    return device.model_copy(update={"healthy": not problems, "problems": tuple(each[:MAX_TEXT] for each in problems)})


LOST: Final = "lost: "


def _lost(last: resources.Device | None, why: str, gpu: reading.Gpu | None, vendor: devices.Vendor) -> resources.Device:
    known = last or resources.Device(
        index=gpu.index if gpu else 0, vendor=vendor, pciBusID=_text(gpu.pci_bus_id) if gpu else None
    )
    gone = {**dict.fromkeys(VOLATILE), "throttling": (), "healthy": False, "problems": ((LOST + why)[:MAX_TEXT],)}
    return known.model_copy(update=gone)


def _is_lost(device: resources.Device) -> bool:
    return any(each.startswith(LOST) for each in device.problems)


def _remembered(
    gpu: reading.Gpu, last: Iterable[resources.Device], listed: Iterable[reading.Gpu]
) -> resources.Device | None:
    """What was known of a GPU that is now only a number: of those not seen elsewhere, the one at its place."""
    elsewhere = {_key(each) for each in listed if each.lost is None}
    left = [each for each in last if _key(each) not in elsewhere]
    by_address = [each for each in left if gpu.pci_bus_id and each.pci_bus_id == gpu.pci_bus_id]
    return next(iter(by_address or [each for each in left if each.index == gpu.index]), None)


def _repartitioned(device: resources.Device, listed: Iterable[resources.Device]) -> bool:
    """Whether the device is a partition of a GPU that is cut another way now, and so no more."""
    if device.partition is None or device.pci_bus_id is None:
        return False
    slot = device.pci_bus_id.rpartition(".")[0]
    return any(
        each.partition is not None
        and each.partition.compute != device.partition.compute
        and (each.pci_bus_id or "").rpartition(".")[0] == slot
        for each in listed
    )


def _key(device: resources.Device | reading.Gpu) -> str:
    # Partitions of one AMD GPU may share its UUID.
    return " ".join(filter(None, (device.uuid, device.pci_bus_id))) or f"index {device.index}"


def _text(value: str | None) -> str | None:
    return value[:MAX_TEXT] if value else None


# --- all of them ------------------------------------------------------------------------------------------------------


def _held(device: resources.Device, names: Mapping[str, tuple[str, ...]], holders: Holders | None) -> resources.Device:
    """The device with who holds it; as it was where the kubelet never said."""
    if holders is None:
        return device
    own = [device.uuid, *names.get(_key(device), ())]
    found = tuple(dict.fromkeys(holder for name in own if name for holder in holders.get(name, ())))[:MAX_DEVICES]
    update: dict[str, Any] = {"holders": found}
    if device.mig is not None and device.mig.instances:
        instances = tuple(
            each.model_copy(update={"holders": holders.get(each.uuid or "", ())[:MAX_DEVICES]})
            for each in device.mig.instances
        )
        update["mig"] = device.mig.model_copy(update={"instances": instances})
    return device.model_copy(update=update)


def _links(seen: Mapping[devices.Vendor, Seen]) -> list[resources.NodeLink]:
    found, first = [], 0
    for vendor in devices.VENDORS:
        each = seen.get(vendor, Seen())
        found += [
            resources.NodeLink(between=(first + link.one, first + link.other), kind=link.kind, count=link.count)
            for link in each.links
        ]
        first += len(each.devices)
    return found


def _ready(answers: Mapping[devices.Vendor, reading.Answer], now: str) -> resources.Condition:
    if all(answer.kind == "absent" for answer in answers.values()):
        missing = " nor ".join(LIBRARIES[vendor] for vendor in answers)
        text = (
            f"neither {missing} is here: no GPUs, or their driver is not installed"
            if len(answers) > 1
            else (f"{missing} is not here: no GPUs, or their driver is not installed")
        )
        return _condition(READY, False, "", "NoDriver", text, now)
    failed = [f"{vendor}: {answer.text}" for vendor, answer in answers.items() if answer.kind == "failed"]
    return _condition(READY, not failed, "DevicesRead", "DriverFailed", "; ".join(failed), now)


def _geometry(listed: Iterable[resources.Device], catalogue: Catalogue, now: str) -> list[resources.Condition]:
    """Whether the MIG profiles that drivers offer are those that the DB knows of the SKU; nothing without MIG."""
    wrong, looked = [], False
    for device in listed:
        sku = catalogue.get(device.sku) if device.sku else None
        if device.mig is None or not device.mig.placements or sku is None or sku.mig is None:
            continue
        looked = True
        for placement in device.mig.placements:
            profile = partitions.mig_profile(sku.mig, placement.profile)
            if profile is None:
                wrong.append(f"{sku.id}: {placement.profile} is not known")
            elif (profile.size, tuple(profile.starts)) != (placement.size, placement.starts):
                wrong.append(f"{sku.id}: {placement.profile} is {placement.size} units at {list(placement.starts)}")
    text = "; ".join(dict.fromkeys(wrong))[:MAX_ERROR]
    return [_condition(GEOMETRY, not wrong, "AsKnown", "OtherThanKnown", text, now)] if looked else []


def _condition(kind: str, holds: bool, reason: str, otherwise: str, text: object, now: str) -> resources.Condition:
    status: Literal["True", "False"] = "True" if holds else "False"
    message = text if isinstance(text, str) and not holds else ""
    return resources.Condition(
        type=kind, status=status, reason=reason if holds else otherwise, message=message, last_transition_time=now
    )


def _since(condition: resources.Condition, before: Iterable[resources.Condition]) -> resources.Condition:
    """The condition with the time since which it has had its status."""
    same = (each for each in before if (each.type, each.status) == (condition.type, condition.status))
    found = next(same, None)
    return (
        condition
        if found is None
        else condition.model_copy(update={"last_transition_time": found.last_transition_time})
    )
