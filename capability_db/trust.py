"""Which source counts where several speak of the same devices, and what they say differently.

For what the devices behind a resource name are (model, memory, partition mode), in this order:

1. the node's agent (NodeGPUs): it asks the driver of every single device, so that it alone can tell several models
   apart that stand behind one name;
2. the ResourceSlices of a DRA driver, which asks the same driver; claims are allocated by what they say, so that a
   device whose model they do not name stays unknown;
3. the vendor's labels (GPU feature discovery, AMD's node labeller, Intel's NFD rules): of one model, and stale after a
   change until their maker runs again;
4. the cloud's labels, which name an instance type's usual GPU.

A source that names no model leaves it to the next; one that names a model the DB does not know does not: the model is
unknown then, never guessed. How many devices there are the device plugin says (allocatable, capacity): the kubelet
gives no more. Sources of health (agent, node labels, taints) can only take from that: of a plugin's devices as many
count as every source calls healthy, so that what the plugin itself withholds is not taken off twice.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from capability_db import partitions, reported, reports, vendors
from capability_db.catalogue import Catalogue
from capability_db.sku import Sku

TOLERANCE = 0.05
"""Part by which two sources' memory figures may differ: drivers keep some for themselves, labels round."""


@dataclass(frozen=True, slots=True)
class Question:
    """One resource name of a node."""

    vendor: vendors.Vendor
    resource: str
    names: Collection[str]
    """All resource names of the node."""
    count: int
    """Devices of the name, the unhealthy ones too."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What is taken for true of the devices behind a resource name."""

    identity: vendors.Identity
    healthy: int | None
    """Devices that no source calls unhealthy; None: no source but the device plugin speaks of health."""
    unhealthy: tuple[str, ...]
    """Why devices are not healthy."""
    fits: tuple[tuple[str, int], ...]
    """MIG profile -> how many more instances fit on the GPUs."""
    conflicts: tuple[str, ...]


def settle(
    question: Question,
    labels: vendors.Labels,
    taints: Collection[str],
    report: reports.Report | None,
    catalogue: Catalogue,
) -> Settled:
    """What holds of one resource name, by all sources that speak of the node."""
    vendor, resource, count = question.vendor, question.resource, question.count
    mode = vendor.mode_in(resource)
    labelled = vendor.identify(resource, mode, labels, count, catalogue)
    conflicts = _cloud_conflict(question, labelled, labels, catalogue)
    healthy, unhealthy = _labelled_health(question, labelled, labels, taints)
    gpus = report.of(vendor.name) if report is not None else ()
    if not gpus:
        return Settled(labelled, healthy, unhealthy, (), tuple(conflicts))
    shared = labelled.replicas or 1
    offered = reported.Offered(
        resource=resource,
        mode=mode,
        partitioned=any(vendor.owns(name) and vendor.mode_in(name) for name in question.names),
        strategy=labels.get("nvidia.com/mig.strategy"),
        count=count // shared if count % shared == 0 else count,
    )
    units = reported.units(offered, gpus, catalogue)
    if not units:
        conflicts.append(f"{resource}: {count} by the device plugin, none of them seen by the agent")
        return Settled(labelled, healthy, unhealthy, (), tuple(conflicts))
    replicas = _replicas(labelled, labels, len(units), count) if vendor.shares else labelled.replicas
    identity = _identity(units, labelled, replicas)
    conflicts += _conflicts(question, labelled, identity, len(units) * (replicas or 1))
    counted = labels.get("nvidia.com/gpu.count", "")
    # Of several models the label counts one; beside MIG profiles' names it may count GPUs that are cut too.
    alike = len(identity.skus) == 1 and resource == "nvidia.com/gpu" and not offered.partitioned
    if alike and not conflicts and counted.isdecimal() and counted != str(len(units)):
        conflicts.append(f"{resource}: {len(units)} GPUs by the agent, {counted} by labels")
    sound = sum(each.gpu.problem is None for each in units) * (replicas or max(1, count // len(units)))
    sick = tuple(f"{gpu.name}: {gpu.problem}" for gpu in dict.fromkeys(each.gpu for each in units) if gpu.problem)
    unseen = count - len(units) * (replicas or max(1, count // len(units)))
    if unseen > 0:
        sick = (*sick, f"{unseen} not listed by the agent")
    return Settled(
        identity,
        sound if healthy is None else min(sound, healthy),
        (*sick, *unhealthy),
        reported.fits(gpus, identity.skus, catalogue),
        tuple(conflicts),
    )


def differ(one: float | None, other: float | None) -> bool:
    """Whether two memory figures cannot be of the same device; one that is unknown never differs."""
    return one is not None and other is not None and abs(one - other) > TOLERANCE * max(one, other)


def _replicas(labelled: vendors.Identity, labels: vendors.Labels, seen: int, count: int) -> int | None:
    """How many pods time-share one device; None: shared by an unknown number."""
    by_count = count // seen if count % seen == 0 else None
    if labelled.replicas is None:
        return by_count if by_count != 1 else None
    # What GPU feature discovery labels says whether devices are shared; else the counts may.
    if labelled.replicas == 1 and by_count is not None and "nvidia.com/gpu.product" not in labels:
        return by_count  # more devices than the driver has: each is offered several times
    return labelled.replicas


def _identity(units: Sequence[reported.Unit], labelled: vendors.Identity, replicas: int | None) -> vendors.Identity:
    """What the reported devices are, all together: what holds of whichever of them a pod is given."""
    units = [each for each in units if not reported.blind(each.gpu)] or units
    skus: dict[str, tuple[Sku, int]] = {}
    for each in units:
        if each.sku is not None:
            skus[each.sku.id] = (each.sku, skus.get(each.sku.id, (each.sku, 0))[1] + 1)
    unknown = [each for each in units if each.sku is None]
    found = tuple(sku for sku, _ in skus.values())
    names = list(dict.fromkeys(name for each in units if (name := reported.evidence(each.gpu))))
    evidence = "agent: " + ", ".join(names) if names else labelled.evidence
    if unknown and not names and not skus:
        found = labelled.skus  # the driver names no model: the next source may
    elif unknown:
        found = ()
        lost = dict.fromkeys(reported.evidence(each.gpu) or "a GPU without a name" for each in unknown)
        evidence = "agent: " + ", ".join(lost)
    modes = list(dict.fromkeys(each.mode for each in units))
    memories = [each.memory_mib for each in units]
    shares = [each.share for each in units]
    memory = min((each for each in memories if each is not None), default=None) if None not in memories else None
    if memory is None and modes == [labelled.mode]:
        memory = labelled.memory_mib
    known = [share for share in shares if share is not None]
    exact = len(known) == len(shares)
    counts = [number * (replicas or 1) for _, number in skus.values()]
    return vendors.Identity(
        skus=found,
        counts=tuple(counts) if len(found) == len(counts) > 1 else (),
        memory_mib=memory,
        mode=modes[0] if len(modes) == 1 else reported.UNKNOWN_MODE,
        memory_share=min(share.memory for share in known) if exact else None,
        compute_share=min(share.compute for share in known) if exact else None,
        replicas=replicas,
        evidence=evidence,
        problem=None
        if len(modes) == 1
        else f"the node's GPUs are cut differently ({', '.join(each or 'whole' for each in modes)}) behind one name",
    )


# --- Health by node labels and taints --------------------------------------------------------------------------------


def _labelled_health(
    question: Question, labelled: vendors.Identity, labels: vendors.Labels, taints: Collection[str]
) -> tuple[int | None, tuple[str, ...]]:
    """Devices that labels and taints leave, and why the others are none; None: they say nothing."""
    vendor = question.vendor
    for taint in vendor.unhealthy_taints:
        if taint in taints:
            return 0, (f"the node is tainted {taint}",)
    sick = vendor.unhealthy(labels)
    if not sick:
        return None, ()
    return max(0, question.count - len(sick) * _per_gpu(labelled)), tuple(
        f"GPU {each}: unhealthy by its label" for each in sick
    )


def _per_gpu(labelled: vendors.Identity) -> int:
    """Devices that one GPU of the name is offered as."""
    mode = partitions.amd_mode(labelled.mode or "")
    parts = [partitions.amd_parts(sku, mode.compute) or 1 for sku in labelled.skus] if mode else []
    return max(parts, default=1) * (labelled.replicas or 1)


# --- Conflicts -------------------------------------------------------------------------------------------------------


def _conflicts(question: Question, labelled: vendors.Identity, identity: vendors.Identity, seen: int) -> list[str]:
    """What the device plugin and the labels say otherwise than the agent."""
    name, found = question.resource, []
    if seen != question.count:
        found.append(f"{name}: {question.count} by the device plugin, {seen} by the agent")
    if labelled.skus and identity.skus and any(sku not in identity.skus for sku in labelled.skus):
        found.append(
            f"{name}: {models(identity.skus)} by the agent, {models(labelled.skus)} by labels ({labelled.evidence})"
        )
        return found  # of different models all else differs too
    if labelled.mode != identity.mode and labelled.evidence != vendors.Identity().evidence:
        found.append(f"{name}: {identity.mode or 'whole'} by the agent, {labelled.mode or 'whole'} by labels")
    elif len(identity.skus) == 1 and differ(labelled.memory_mib, identity.memory_mib):
        found.append(f"{name}: {identity.memory_mib:.0f} MiB by the agent, {labelled.memory_mib:.0f} MiB by labels")
    return found


def _cloud_conflict(
    question: Question, labelled: vendors.Identity, labels: vendors.Labels, catalogue: Catalogue
) -> list[str]:
    """What the cloud's labels say otherwise than the vendor's."""
    cloud = catalogue.by_cloud(labels)
    if cloud is None or cloud.vendor != question.vendor.name or not labelled.skus or cloud in labelled.skus:
        return []
    return [f"{question.resource}: {models(labelled.skus)} by {labelled.evidence}, {cloud.id} by the cloud's labels"]


def models(skus: Sequence[Sku]) -> str:
    """Some models, as texts name them."""
    return "/".join(sku.id for sku in skus)
