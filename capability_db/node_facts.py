"""Node labels, resources and its agent's report -> what GPUs the node offers, and under which resource names."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from capability_db import reports, trust, vendors
from capability_db.catalogue import Catalogue
from capability_db.sku import Sku, VendorName

Kind = Literal["whole", "slice", "shared"]

SKU_LABEL = "anygpu.io/sku."
"""`anygpu.io/sku.<id>: "<count>"`, kept on nodes by the service."""
PARTITION_LABEL = "anygpu.io/partition"
"""Set where the vendor's plain resource name stands for anything but whole devices of one model: `1g.10gb`, `cpx_nps4`,
`shared-4`, `mi300x.mi325x`."""
MAX_LABEL = 63
MAX_REASONS = 2
"""Reasons for unhealthy devices that a text lists."""


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """All that devices under one resource name have in common; nodes share these, so decisions are made per class."""

    resource: str
    vendor: VendorName
    kind: Kind
    skus: tuple[Sku, ...]
    """Every model that a pod may be given under this name (the kubelet's plugin picks); empty: unknown model."""
    memory_mib: float | None
    """What a pod gets of one device; None: unknown."""
    memory_reported: bool
    """Whether the node itself reports the memory (else it is the capability DB's figure)."""
    mode: str | None
    """MIG profile or AMD partition mode of a slice."""
    memory_share: float | None
    compute_share: float | None
    """Part of the whole device's bandwidth and TFLOPS that a pod gets; None: unknown."""
    replicas: int | None
    """Pods that time-share one device; 1 where nothing is shared; None: unknown."""
    evidence: str
    problem: str | None = None
    dra: bool = False
    """Whether a DRA driver, whose name stands as the resource, allocates the devices; else a device plugin does."""
    price_usd_hour: float | None = None
    """USD an hour of the whole device on the nodes that offer it; None: unknown."""

    def __hash__(self) -> int:
        """Hash by the few fields that tell classes apart in practice: SKUs are large."""
        return hash((self.resource, self.kind, self.memory_mib, self.mode, tuple(sku.id for sku in self.skus)))

    @property
    def label(self) -> str:
        """The class as tables show it: `h100-sxm`, `a100-sxm4-80gb 1g.10gb`, `t4 shared by 4`, `unknown`."""
        name = "/".join(sku.id for sku in self.skus) or "unknown"
        if self.mode:
            name += f" {self.mode}"
        if self.kind == "shared":
            name += f" shared by {self.replicas or 'unknown'}"
        return name

    @property
    def partition(self) -> str | None:
        """Value of the label that says the name stands for anything but whole devices of one model; None: it does not.

        Devices of several models are one class, which may not fit where one of its models alone would.
        """
        parts = [sku.id for sku in self.skus] if len(self.skus) > 1 else []
        if self.kind == "shared":
            parts.append(f"shared-{self.replicas or 'unknown'}")
        elif self.kind == "slice":
            parts.append((self.mode or "unknown").replace("+", "."))
        text = ".".join(parts)
        if len(text) > MAX_LABEL:
            text = f"models-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        return text or None


@dataclass(frozen=True, slots=True)
class Pool:
    """Devices of one class on one node."""

    device: DeviceClass
    allocatable: int
    """Healthy devices."""
    capacity: int
    """All devices, the unhealthy ones too."""
    sku_counts: tuple[int, ...]
    """Devices of each of the class's models, where the node tells them apart; else its capacity for each."""
    unhealthy: tuple[str, ...] = ()
    """Why devices are not healthy, as far as a source says: `GPU-5ab1: XID 79`."""
    withheld: int = 0
    """Unhealthy devices that the device plugin offers nevertheless."""
    fits: tuple[tuple[str, int], ...] = ()
    """MIG profile -> how many more instances of it alone fit beside what lies on the node's GPUs of the class's models;
    empty: nothing reports where instances lie."""

    @property
    def sickness(self) -> str | None:
        """How many devices are not healthy and why: `2 of 8 unhealthy (GPU-5ab1: XID 79)`; None: all are healthy."""
        count = self.capacity - self.allocatable
        if count <= 0:
            return None
        shown = "; ".join(self.unhealthy[:MAX_REASONS])
        if len(self.unhealthy) > MAX_REASONS:
            shown += f"; {len(self.unhealthy) - MAX_REASONS} more"
        return f"{count} of {self.capacity} unhealthy" + (f" ({shown})" if shown else "")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The GPUs of one node, from its object alone."""

    pools: tuple[Pool, ...]
    present: tuple[VendorName, ...]
    """Vendors whose hardware the agent or the node's PCI labels show, whether or not a device plugin publishes it."""
    versions: tuple[tuple[str, str], ...]
    """Driver and runtime labels."""
    conflicts: tuple[str, ...] = ()
    """What sources say differently."""


def read(
    labels: Mapping[str, str],
    allocatable: Mapping[str, int],
    capacity: Mapping[str, int],
    catalogue: Catalogue,
    *,
    taints: Collection[str] = (),
    report: reports.Report | None = None,
) -> NodeFacts:
    """The node's pools, from its labels, taint keys and integer resource counts, and what its agent reports if any.

    A resource at 0 of 0 is no pool. Which source counts where several speak: `trust`.
    """
    pools: list[Pool] = []
    conflicts: list[str] = []
    names = sorted({*allocatable, *capacity})
    for vendor in vendors.VENDORS.values():
        for resource in names:
            if not vendor.owns(resource):
                continue
            healthy, total = allocatable.get(resource, 0), capacity.get(resource, allocatable.get(resource, 0))
            here = max(healthy, total)
            if here > 0:
                question = trust.Question(vendor, resource, names, here)
                pool, differences = _pool(question, healthy, labels, catalogue, taints, report)
                pools.append(pool)
                conflicts += differences
    present = tuple(
        vendor.name
        for vendor in vendors.VENDORS.values()
        if _on_pci_bus(labels, vendor.pci_vendor) or (report is not None and report.of(vendor.name))
    )
    versions = tuple(
        (key, labels[key]) for vendor in vendors.VENDORS.values() for key in vendor.compute_keys if key in labels
    )
    return NodeFacts(tuple(pools), present, versions, tuple(dict.fromkeys(conflicts)))


def anew(
    facts: NodeFacts,
    names: Collection[str],
    labels: Mapping[str, str],
    catalogue: Catalogue,
    *,
    taints: Collection[str] = (),
    report: reports.Report | None = None,
) -> NodeFacts:
    """What `read` finds by another catalogue, where it found these facts on the same node of these resource names."""
    pools: list[Pool] = []
    conflicts: list[str] = []
    for each in facts.pools:
        vendor = vendors.VENDORS[each.device.vendor]
        question = trust.Question(vendor, each.device.resource, names, each.capacity)
        offered = each.allocatable + each.withheld
        pool, differences = _pool(question, offered, labels, catalogue, taints, report)
        pools.append(pool)
        conflicts += differences
    return dataclasses.replace(facts, pools=tuple(pools), conflicts=tuple(dict.fromkeys(conflicts)))


def _pool(
    question: trust.Question,
    offered: int,
    labels: Mapping[str, str],
    catalogue: Catalogue,
    taints: Collection[str],
    report: reports.Report | None,
) -> tuple[Pool, tuple[str, ...]]:
    """The pool of one resource name, of which the device plugin offers so many, and what sources say differently."""
    found = trust.settle(question, labels, taints, report, catalogue)
    identity = found.identity
    sound = offered if found.healthy is None else min(offered, found.healthy)
    counts = identity.counts or (question.count,) * len(identity.skus)
    price = catalogue.price(identity.skus, labels)
    device = _device_class(question.resource, question.vendor.name, identity, price)
    pool = Pool(device, sound, question.count, counts, found.unhealthy, offered - sound, found.fits)
    return pool, found.conflicts


def priced(device: DeviceClass, labels: Mapping[str, str], catalogue: Catalogue) -> DeviceClass:
    """The class with what its devices cost on a node with these labels."""
    price = catalogue.price(device.skus, labels)
    return device if price == device.price_usd_hour else dataclasses.replace(device, price_usd_hour=price)


def node_labels(facts: NodeFacts) -> dict[str, str]:
    """The `anygpu.io/` labels that the node should carry, and no others of these two kinds."""
    counts: dict[str, int] = {}
    partition: set[str] = set()
    for pool in facts.pools:
        for sku, count in zip(pool.device.skus, pool.sku_counts, strict=True):
            counts[sku.id] = counts.get(sku.id, 0) + count
        if pool.device.resource in vendors.VENDORS[pool.device.vendor].resources and pool.device.partition:
            partition.add(pool.device.partition)
    labels = {f"{SKU_LABEL}{sku_id}": str(count) for sku_id, count in sorted(counts.items())}
    if partition:
        labels[PARTITION_LABEL] = "_".join(sorted(partition))
    return labels


def is_ours(label: str) -> bool:
    """Whether a node label is one that `node_labels` decides."""
    return label.startswith(SKU_LABEL) or label == PARTITION_LABEL


def _device_class(resource: str, vendor: VendorName, identity: vendors.Identity, price: float | None) -> DeviceClass:
    kind: Kind = "shared" if identity.replicas != 1 else "slice" if identity.mode else "whole"
    memory, reported = identity.memory_mib, identity.memory_mib is not None
    if memory is None and identity.skus and identity.memory_share is not None:
        memory = min(sku.memory_mib for sku in identity.skus) * identity.memory_share
    shares = [identity.memory_share, identity.compute_share]
    if kind == "shared":
        divide_by = identity.replicas
        memory = memory / divide_by if memory and divide_by else None
        shares = [share / divide_by if share and divide_by else None for share in shares]
    return DeviceClass(
        resource=resource,
        vendor=vendor,
        kind=kind,
        skus=identity.skus,
        memory_mib=memory,
        memory_reported=reported,
        mode=identity.mode,
        memory_share=shares[0],
        compute_share=shares[1],
        replicas=identity.replicas,
        evidence=identity.evidence,
        problem=identity.problem,
        price_usd_hour=price,
    )


def _on_pci_bus(labels: Mapping[str, str], pci_vendor: str) -> bool:
    prefix = "feature.node.kubernetes.io/pci-"
    return any(
        key.startswith(prefix)
        and key.endswith(".present")
        and value == "true"
        and _names_gpu(key.removeprefix(prefix).removesuffix(".present").split("_"), pci_vendor)
        for key, value in labels.items()
    )


def _names_gpu(fields: list[str], pci_vendor: str) -> bool:
    """Whether `[class, ]vendor[, ...]` of an NFD label is the vendor's display or accelerator, no network card."""
    if fields[0] == pci_vendor:
        return True
    return pci_vendor in fields[1:2] and fields[0].startswith(("03", "0b40", "12"))
