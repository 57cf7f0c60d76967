"""What a node's agent reports -> which GPUs, or which parts of them, stand behind each of the node's resource names."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from capability_db import partitions, reports, vendors
from capability_db.catalogue import Catalogue
from capability_db.sku import Sku, VendorName

WHOLE = partitions.Share(memory=1.0, compute=1.0)
UNKNOWN_MODE = "unknown"


@dataclass(frozen=True, slots=True)
class Unit:
    """One device as a resource name offers it: a GPU, or a part of one."""

    gpu: reports.Gpu
    sku: Sku | None
    mode: str | None = None
    """MIG profile or AMD partition mode; None: the whole GPU."""
    memory_mib: float | None = None
    share: partitions.Share | None = WHOLE
    """None: unknown."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A resource name of a node."""

    resource: str
    mode: str | None
    """The partition mode that it carries."""
    partitioned: bool
    """Whether the node lists a name that carries a partition mode."""
    strategy: str | None
    """What a label says of how partitions are named."""
    count: int
    """Devices under the name; those that time-share one GPU count once."""


def model(gpu: reports.Gpu, catalogue: Catalogue) -> Sku | None:
    """The GPU's model, by its driver's words, else by what the agent's own DB made of them; None: unknown."""
    named = vendors.Named(gpu.product, gpu.pci_device_id, None if gpu.mode else gpu.memory_mib, gpu.compute_units)
    sku = vendors.VENDORS[gpu.vendor].recognise(named, catalogue)
    if sku is None and gpu.sku is not None:
        sku = catalogue.get(gpu.sku)
    return sku if sku is not None and sku.vendor == gpu.vendor else None


def evidence(gpu: reports.Gpu) -> str | None:
    """What the driver calls the model, for texts; None: it names none."""
    return gpu.product or (f"PCI id {gpu.pci_device_id}" if gpu.pci_device_id else None)


def blind(gpu: reports.Gpu) -> bool:
    """Whether nothing is known of a GPU but that something is wrong with it: lost before the agent ever read it."""
    return gpu.problem is not None and gpu.sku is None and evidence(gpu) is None


def units(offered: Offered, gpus: Sequence[reports.Gpu], catalogue: Catalogue) -> tuple[Unit, ...]:
    """What stands behind a resource name, of one vendor's GPUs; empty: the report shows nothing there."""
    models: dict[tuple[object, ...], Sku | None] = {}  # GPUs of one node are mostly alike
    known = []
    for gpu in gpus:
        if blind(gpu):
            continue
        words = (gpu.product, gpu.pci_device_id, gpu.sku, gpu.memory_mib, gpu.compute_units, gpu.mode)
        if words not in models:
            models[words] = model(gpu, catalogue)
        known.append(Unit(gpu, models[words], memory_mib=gpu.memory_mib))
    behind = tuple(_BEHIND[gpus[0].vendor](offered, known)) if known else ()
    if offered.mode is None and all(each.mode is None for each in behind):
        behind += tuple(Unit(gpu, None) for gpu in gpus if blind(gpu))  # one of the whole GPUs that are offered
    return behind


def fits(gpus: Iterable[reports.Gpu], skus: Collection[Sku], catalogue: Catalogue) -> tuple[tuple[str, int], ...]:
    """MIG profile -> how many more instances of it alone fit on the healthy MIG GPUs of some models.

    A GPU of which it is not known where its instances lie counts as full.
    """
    total: dict[str, int] = {}
    for gpu in gpus:
        if gpu.instances is None or gpu.problem is not None:
            continue
        sku = model(gpu, catalogue)
        if sku is None or sku.mig is None or sku not in skus:
            continue
        there: list[partitions.Placed] = []
        for each in gpu.instances:
            profile = partitions.mig_profile(sku.mig, each.profile)
            if profile is None or each.start is None:
                break
            there.append((profile, each.start))
        else:
            left = partitions.still_fit(partitions.mig_geometry(sku.mig), there)
            for name, count in left.items():
                if not gpu.profiles or name in gpu.profiles:
                    total[name] = total.get(name, 0) + count
    return tuple(total.items())


# --- NVIDIA: k8s-device-plugin, MIG strategies none, single and mixed ------------------------------------------------


def _nvidia(offered: Offered, gpus: Sequence[Unit]) -> Iterable[Unit]:
    if offered.mode is not None:
        wanted = vendors.mode_key(offered.mode)
        return (each for each in _instances(gpus) if vendors.mode_key(each.mode or "") == wanted)
    whole = [each for each in gpus if each.gpu.instances is None]
    if len(whole) == len(gpus) or offered.partitioned or offered.strategy == "mixed":
        return whole
    instances = list(_instances(gpus))
    if not whole and (offered.strategy == "single" or len(instances) == offered.count):
        return instances
    if whole and len(whole) == offered.count:
        return whole
    # Strategy none: whole GPUs are offered, and who gets one in MIG mode sees one of its instances.
    return (replace(each, mode=UNKNOWN_MODE, memory_mib=None, share=None) for each in gpus)


def _instances(gpus: Iterable[Unit]) -> Iterator[Unit]:
    for each in gpus:
        for instance in each.gpu.instances or ():
            sku = each.sku
            profile = partitions.mig_profile(sku.mig, instance.profile) if sku and sku.mig else None
            if sku is None or sku.mig is None or profile is None:
                yield Unit(each.gpu, sku, instance.profile, instance.memory_mib, None)
                continue
            geometry = partitions.mig_geometry(sku.mig)
            memory = instance.memory_mib or partitions.mig_memory_mib(sku.memory_mib, geometry, profile)
            yield Unit(each.gpu, sku, profile.name, memory, partitions.mig_share(geometry, profile))


# --- AMD: k8s-device-plugin, resource_naming_strategy single and mixed -----------------------------------------------


def _amd(offered: Offered, gpus: Sequence[Unit]) -> Iterable[Unit]:
    if offered.mode is not None:
        mode = vendors.mode_key(offered.mode)
        behind = [each for each in gpus if each.gpu.mode in (mode, mode.partition("_")[0])]
        behind = [replace(each, gpu=replace(each.gpu, mode=mode)) for each in behind]
    elif offered.partitioned:
        behind = [each for each in gpus if each.gpu.mode is None]
    else:
        behind = list(gpus)
    alike = offered.count // len(behind) if behind and offered.count % len(behind) == 0 else 0
    return itertools.chain.from_iterable(_parts(each, alike) for each in behind)


def _parts(unit: Unit, alike: int) -> list[Unit]:
    """The devices that a GPU is offered as; `alike`: so many for each that is listed, if all are cut alike."""
    mode, sku, memory = unit.gpu.mode, unit.sku, unit.memory_mib
    compute = (mode or "spx").partition("_")[0]
    if compute == "spx":
        return [unit]
    parts = partitions.amd_parts(sku, compute) if sku else None
    whole = memory is None or sku is None or memory > 0.75 * sku.memory_mib
    if parts is None:
        return [replace(unit, mode=mode, memory_mib=None if whole else memory, share=None)] * max(1, alike)
    if whole and sku is not None:
        memory = (memory or sku.memory_mib) / parts
    share = partitions.Share(memory=1 / parts, compute=1 / parts)
    # A report may list each part as a device of its own already.
    return [replace(unit, mode=mode, memory_mib=memory, share=share)] * (parts if whole and alike != 1 else 1)


# --- Intel: a driver's devices are those of its resource names -------------------------------------------------------


def _intel(offered: Offered, gpus: Sequence[Unit]) -> Iterable[Unit]:
    return (
        each for each in gpus if each.sku is None or not each.sku.resources or offered.resource in each.sku.resources
    )


_BEHIND: dict[VendorName, Callable[[Offered, Sequence[Unit]], Iterable[Unit]]] = {
    "nvidia": _nvidia,
    "amd": _amd,
    "intel": _intel,
}
