"""What could serve a pod now, and the choice among it: the one decision behind webhook, extender, CLI and tests."""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from capability_db import node_facts, vendors
from capability_db.node_facts import DeviceClass, Pool
from capability_db.sku import VendorName
from scheduler import fit, kube, predicates, score
from scheduler import fleet as fleets
from scheduler.needs import Needs

Devices = Iterable[DeviceClass]
OTHER_NODE = "the pod names another node"


@dataclass(frozen=True, slots=True)
class Ask:
    """One pod's question."""

    pod: kube.Pod
    """As the user wrote it, before anything is injected."""
    needs: Needs
    count: int
    """Devices that the whole pod takes of its resource."""
    runs_on: Mapping[VendorName, Callable[[Collection[str]], bool]] | None = None
    """Vendors that the image has variants for, with what says whether one of them runs on all of some targets (compute
    capabilities, gfx targets); None: any."""
    nodes: frozenset[str] | None = None
    """The nodes that the pod names itself; None: any."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One pool of devices that meets the needs, on a node that could take the pod."""

    row: fleets.Row
    pool: Pool
    rank: score.Rank
    left: int
    """Devices left on the node after the pod, unbound pods' holds counted; below 0: not free now."""

    @property
    def key(self) -> tuple[score.Rank, float, str]:
        """The order of choice: best rank, then fullest node, then name."""
        return (self.rank, self.left, self.row.name)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one node says to the pod."""

    name: str
    offer: Offer | None
    """What the node would give, were it free; None: it never fits as it is."""
    reason: str | None
    """Why not now; None: it fits."""
    missing: tuple[fit.Unmet, ...] = ()
    """The needs that the node's closest device fails."""
    change: str | None = None
    """The one change of the pod with which the node would take it now; only looked for where no node fits."""

    @property
    def fits(self) -> bool:
        """Whether the node takes the pod now."""
        return self.reason is None


@dataclass(frozen=True, slots=True)
class Choice:
    """What the pod is given: a resource name, hence a vendor."""

    device: DeviceClass
    node: str | None
    """The node that is best now; None: none is free."""
    nodes: int
    """Nodes that fit the needs with this resource, free or not."""


@dataclass(frozen=True, slots=True)
class Survey:
    """All nodes' verdicts, and the choice."""

    verdicts: Sequence[Verdict]
    choice: Choice | None
    """None: no GPU of the wanted vendors and image variants could serve the needs."""
    scores: Mapping[str, int] = field(default_factory=dict)
    """0-10 of the nodes that fit."""


def survey(ask: Ask, fleet: fleets.Fleet) -> Survey:
    """Ask every node, then choose; the same answer for the same objects, whatever order they came in."""
    rows = [fleet.rows[name] for name in sorted(fleet.rows)]
    look = _Look(
        ask,
        fleet,
        kube.pod_requests(ask.pod),
        predicates.neighbours(ask.pod, rows),
        # One verdict a device class, not one a node: classes are few.
        {id(device): _judge(ask, device) for device in fleet.classes()},
    )
    verdicts = [_verdict(look, row) for row in rows]
    fitting = [verdict.offer for verdict in verdicts if verdict.fits and verdict.offer]
    if not fitting:  # else nobody needs advice
        verdicts = [
            dataclasses.replace(verdict, change=_change(look, row)) if verdict.missing else verdict
            for verdict, row in zip(verdicts, rows, strict=True)
        ]
    scores = score.points([offer.key for offer in fitting])
    return Survey(verdicts, _choose(ask, verdicts, fitting, fleet), scores)


Judged = tuple[list[fit.Unmet], score.Rank]
"""What a device class lacks, and its rank."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What is the same for every node of one survey."""

    ask: Ask
    fleet: fleets.Fleet
    requests: Mapping[str, int]
    around: predicates.Neighbours
    judged: Mapping[int, Judged]

    def free(self, row: fleets.Row, pool: Pool) -> int:
        """Devices that neither bound pods nor unbound pods' holds take; below 0: held more than once."""
        return max(0, row.left(pool, self.ask.needs.memory_bytes)) - self.fleet.held(row.name, pool.device.resource)

    def elsewise(self, row: fleets.Row, device: DeviceClass) -> str | None:
        """Why kube-scheduler (for a named node its kubelet) would refuse the node, devices and amounts aside."""
        tolerated = vendors.VENDORS[device.vendor].tolerates
        reason = predicates.static_reason(self.ask.pod, row, tolerated)
        if reason is None and not self.ask.pod.spec.node_name:
            reason = predicates.pod_affinity_reason(self.around, row)
        return reason

    def short(self, row: fleets.Row) -> str | None:
        """Which resource other than GPUs is short."""
        return predicates.resource_reason(self.requests, row, skip=vendors.gpu_resources(self.requests))


def _judge(ask: Ask, device: DeviceClass) -> Judged:
    lacking = missing(ask, device)
    return lacking, () if lacking else score.rank(ask.needs, device)


def _verdict(look: _Look, row: fleets.Row) -> Verdict:
    ask = look.ask
    if ask.nodes is not None and row.name not in ask.nodes:
        return Verdict(row.name, None, OTHER_NODE)
    offers: list[Offer] = []
    closest: list[fit.Unmet] | None = None
    for pool in row.facts.pools:
        lacking, rank = look.judged[id(pool.device)]
        if not lacking and pool.allocatable < ask.count:
            lacking = [_too_few(pool, ask)]
        if not lacking:
            offers.append(Offer(row, pool, rank, look.free(row, pool) - ask.count))
        elif closest is None or len(lacking) < len(closest):
            closest = lacking
    if not offers:
        return Verdict(row.name, None, closest[0].text if closest else _no_device(row), tuple(closest or ()))
    # A free pool is better than a full one of a better rank: the pod could start now.
    offer = min(offers, key=lambda each: (each.left < 0, each.key))
    reason = look.elsewise(row, offer.pool.device)
    if reason is not None:
        return Verdict(row.name, None, reason)
    return Verdict(row.name, offer, look.short(row) or _taken(offer, look))


def _change(look: _Look, row: fleets.Row) -> str | None:
    """The one change of the pod with which a node that lacks something would take it; None: one is not enough."""
    for pool in row.facts.pools:
        lacking, _ = look.judged[id(pool.device)]
        free = look.free(row, pool)
        changes = {each.change for each in lacking}
        if not lacking and free > 0:
            # The device fits, there are only fewer than asked; a model would not fit on fewer.
            changes = set() if look.ask.needs.workload else {f"gpus: {free}"}
        elif free < max([look.ask.count, *(_devices(change) for change in changes)]):
            continue
        change = changes.pop() if len(changes) == 1 else None
        if change is not None and not (look.elsewise(row, pool.device) or look.short(row)):
            return change
    return None


def _devices(change: str | None) -> int:
    """The devices that a change asks for; 0: it changes something else."""
    key, _, figure = (change or "").partition(": ")
    return int(figure) if key == "gpus" else 0


def _too_few(pool: Pool, ask: Ask) -> fit.Unmet:
    note = f", {pool.sickness}" if pool.sickness else ""
    text = f"{pool.device.label}: {pool.allocatable} {pool.device.resource}, {ask.count} asked{note}"
    return fit.Unmet("gpus", text, None)


def missing(ask: Ask, device: DeviceClass) -> list[fit.Unmet]:
    """What a device class lacks for the pod and its image; empty: it fits."""
    found = fit.unmet(ask.needs, device)
    if ask.runs_on is None:
        return found
    runs_on = ask.runs_on.get(device.vendor)
    if runs_on is None:
        found.append(fit.Unmet("image", f"{device.vendor}: the image has no {device.vendor} variant", None))
    elif (targets := [sku.target for sku in device.skus if sku.target]) and not runs_on(targets):
        name = "/".join(sku.id for sku in device.skus)
        text = f"{name}: the image has no {device.vendor} variant built for {' and '.join(targets)}"
        found.append(fit.Unmet("image", text, None))
    return found


def _taken(offer: Offer, look: _Look) -> str | None:
    if offer.left >= 0:
        return None
    resource = offer.pool.device.resource
    free = max(0, offer.row.left(offer.pool, look.ask.needs.memory_bytes))
    held = look.fleet.held(offer.row.name, resource)
    waiting = f", {held} of them held by admitted pods" if held else ""
    sick = f"; {offer.pool.sickness}" if offer.pool.sickness else ""
    return f"{free} of {offer.pool.allocatable} {resource} free{waiting}, {look.ask.count} asked{sick}"


def _no_device(row: fleets.Row) -> str:
    if row.facts.present:
        named = ", ".join(vendors.VENDORS[name].title for name in row.facts.present)
        return f"has {named} hardware, but no device plugin offers it"
    return "no GPU"


def _choose(ask: Ask, verdicts: Iterable[Verdict], fitting: list[Offer], fleet: fleets.Fleet) -> Choice | None:
    offers = [verdict.offer for verdict in verdicts if verdict.offer]
    counts: dict[str, int] = {}
    for offer in offers:
        counts[offer.pool.device.resource] = counts.get(offer.pool.device.resource, 0) + 1
    free = _not_spoken_for(ask, offers, fitting, fleet)
    if free:
        chosen = min(free, key=lambda offer: offer.key)
        return Choice(chosen.pool.device, chosen.row.name, counts[chosen.pool.device.resource])
    if offers:
        # Nothing is free: wait where the load is lightest, so that a burst spreads as capacity does.
        load = _loads(ask, offers, fleet)
        waiting = min(offers, key=lambda o: (o.rank[0], load[o.pool.device.resource], o.key))
        return Choice(waiting.pool.device, None, counts[waiting.pool.device.resource])
    # No node could ever take it as the cluster is: wait for one that might come, whole before partitioned.
    possible = [device for device in _possible(fleet) if not missing(ask, device)]
    if not possible:
        return None

    def preference(device: DeviceClass) -> tuple[float, bool, score.Rank]:
        rank = score.rank(ask.needs, device)
        return (rank[0], device.kind != "whole", rank)

    return Choice(min(possible, key=preference), None, 0)


def _possible(fleet: fleets.Fleet) -> Devices:
    """What nodes that are not there now could offer: seen device classes first, then the capability DB's."""
    yield from fleet.classes()
    yield from shipped(fleet)


def shipped(fleet: fleets.Fleet) -> Devices:
    """Every device class that the capability DB's models could be offered as."""
    yield from fit.possible(fleet.catalogue)


def _not_spoken_for(ask: Ask, offers: list[Offer], fitting: list[Offer], fleet: fleets.Fleet) -> list[Offer]:
    """The offers whose resource has more free devices than pods already speak for; all of them if none has.

    Pods speak for devices by waiting, and by holding more of a node than it has: kube-scheduler may bind a pod to
    another node than expected, and then the one that expected that node takes a device elsewhere.
    """
    left: list[Offer] = []
    taking = {offer.row.name for offer in fitting}
    for resource in {offer.pool.device.resource for offer in fitting}:
        same = [offer for offer in fitting if offer.pool.device.resource == resource]
        skus = frozenset(sku.id for offer in same for sku in offer.pool.device.skus)
        free = sum(offer.left + ask.count for offer in same)
        free += sum(
            min(0, offer.left + ask.count)
            for offer in offers
            if offer.pool.device.resource == resource and offer.row.name not in taking
        )
        if free - fleet.ledger.waiting(resource, skus) >= ask.count:
            left += same
    return left or fitting


def _loads(ask: Ask, offers: Iterable[Offer], fleet: fleets.Fleet) -> dict[str, float]:
    """Devices asked for over devices there are, for each resource."""
    there: dict[str, int] = {}
    asked: dict[str, int] = {}
    skus: dict[str, set[str]] = {}
    for offer in offers:
        resource = offer.pool.device.resource
        there[resource] = there.get(resource, 0) + offer.pool.allocatable
        asked[resource] = asked.get(resource, 0) + offer.pool.allocatable - offer.left
        skus.setdefault(resource, set()).update(sku.id for sku in offer.pool.device.skus)
    return {
        resource: (asked[resource] + fleet.ledger.waiting(resource, frozenset(skus[resource]))) / max(1, total)
        for resource, total in there.items()
    }


@dataclass(frozen=True, slots=True)
class Partitions:
    """What the labels of nodes with one SKU may say for a pod to land there."""

    whole: bool
    """Whether whole devices fit."""
    good: frozenset[str]
    """Partition labels that fit."""
    bad: frozenset[str]
    """Partition labels that do not."""
    plain: bool
    """Whether the resource is a plain name, which partitions can hide behind; others say themselves what they are."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The SKUs that a pod may land on with one resource."""

    partitions: Mapping[str, Partitions]
    """By SKU id."""


def image_lacks(ask: Ask, fleet: fleets.Fleet) -> str | None:
    """What the image would need for a GPU that meets all else; None: the image is not to blame."""
    for device in _possible(fleet):
        lacking = missing(ask, device)
        if lacking and all(each.key == "image" for each in lacking):
            return lacking[0].text
    return None


def admitted_skus(ask: Ask, resource: str, fleet: fleets.Fleet) -> Admitted:
    """Every SKU, seen or only in the DB, that meets the needs under a resource name.

    What nodes report goes before the DB's figures; where two nodes with the same labels differ, both are admitted and
    `/filter` tells them apart.
    """
    vendor = vendors.of_resource(resource)
    plain = vendor is not None and resource in vendor.resources
    seen: dict[tuple[str, str | None], bool] = {}
    known: dict[tuple[str, str | None], bool] = {}
    for found, devices in ((seen, fleet.classes()), (known, shipped(fleet))):
        for device in devices:
            if device.resource != resource:
                continue
            fits = not missing(ask, device)
            for sku in device.skus:
                # Only a plain name may stand for other things than whole devices; the label says nothing of others.
                key = (sku.id, device.partition if plain else None)
                found[key] = found.get(key, False) or fits
    verdicts = {**known, **seen} if any(({**known, **seen}).values()) else known
    partitions: dict[str, Partitions] = {}
    for sku_id in sorted({sku_id for sku_id, _ in verdicts}):
        labels = {label: fits for (name, label), fits in verdicts.items() if name == sku_id}
        whole = labels.pop(None, False)
        good = frozenset(label for label, fits in labels.items() if label and fits)
        bad = frozenset(label for label, fits in labels.items() if label and not fits)
        if whole or good:
            partitions[sku_id] = Partitions(whole, good, bad, plain)
    return Admitted(partitions)


def summary(verdicts: Iterable[Verdict]) -> list[tuple[str, int]]:
    """Reasons with the number of nodes that gave each, the most common first."""
    counts = collections.Counter(verdict.reason for verdict in verdicts if verdict.reason)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def in_words(verdicts: Iterable[Verdict], limit: int = 3) -> str:
    """The most common reasons in a line: `4 nodes: insufficient cpu, 1 node: no GPU, …`."""
    reasons = summary(verdicts)
    shown = [f"{count} node{'s' * (count > 1)}: {reason}" for reason, count in reasons[:limit]]
    return ", ".join([*shown, *(["…"] if len(reasons) > limit else [])]) or "the cluster has no nodes"


def smallest_changes(verdicts: Iterable[Verdict], limit: int = 3) -> list[str]:
    """The single changes of the pod that would let some node take it, for each key the mildest first."""
    counts = collections.Counter(verdict.change for verdict in verdicts if verdict.change)
    ordered = sorted(counts.items(), key=lambda item: (_loss(item[0]), -item[1], item[0]))
    return [change for change, _ in ordered[:limit]]


def _loss(change: str) -> tuple[str, float]:
    """Orders changes of one key so that the one that gives up least, the largest figure, comes first."""
    key, _, figure = change.partition(": ")
    try:
        return (key, -float(figure.removesuffix("Gi")))
    except ValueError:
        return (key, 0.0)


def node_label_terms(admitted: Admitted) -> list[list[dict[str, object]]]:
    """One list of node selector expressions a SKU: the labels that nodes offering it carry."""
    terms: list[list[dict[str, object]]] = []
    label = node_facts.PARTITION_LABEL
    for sku_id, found in admitted.partitions.items():
        term: list[dict[str, object]] = [{"key": f"{node_facts.SKU_LABEL}{sku_id}", "operator": "Exists"}]
        if found.whole and not found.good and found.plain:
            term.append({"key": label, "operator": "DoesNotExist"})
        elif found.whole and found.bad:
            term.append({"key": label, "operator": "NotIn", "values": sorted(found.bad)})
        elif not found.whole:
            term.append({"key": label, "operator": "In", "values": sorted(found.good)})
        terms.append(term)
    return terms
