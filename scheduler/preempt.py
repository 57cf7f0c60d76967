"""Who has to go so that a pod gets its devices: the cheapest victims, on the node where they are cheapest.

For pods on the scheduler that leaves the counting of GPUs to anygpu, whose own preemption cannot see what is short.
Nodes and victims are chosen in kube-scheduler's order (kubernetes pkg/scheduler/framework/preemption/preemption.go,
pickOneNodeForPreemption), with two differences: a pod whose PodDisruptionBudget allows no disruption is no victim at
all, and of victims alike in number and priority those go whose loss is smallest. DaemonSet pods may go, as there.

Whatever `predicates` does not cover is not looked at: a pod that waits for a volume is not told from one that waits
for a device, so whoever carries plans out bounds how often one pod may preempt.
"""

import dataclasses
import datetime
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from capability_db import errors as capability_errors
from capability_db.node_facts import DeviceClass
from scheduler import asks, binding, budgets, decision, errors, fit, kube, predicates, reservations
from scheduler import fleet as fleets

SPARED_NAMESPACES = frozenset({"kube-system", reservations.NAMESPACE})
STUCK_SECONDS = 60.0
"""A pod that is there so long after its deletion was due is not leaving: its node may be dead."""
MAX_CHOICES = 4096
"""Choices of victims on one node that are all compared; where there are more, victims are spared one by one."""
SHORTLIST = 500
"""Nodes that are compared where more could be freed, those with the lowest priorities; kube-scheduler takes a tenth."""
ABOVE_ALL = 2**31
"""Added to priorities before they are summed, so that no victim comes for free (as kube-scheduler does)."""
PODS = "pods"

Cost = tuple[int, int, int, int, float]
"""Highest priority of a victim, sum of the priorities, devices lost beyond those missing (thousandths), victims, and
the start of the one that ran longest, negated: it should have run least."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a pod gets its devices."""

    node: str
    devices: Mapping[str, int]
    """Resource name -> devices to hold for the pod."""
    victims: tuple[kube.Pod, ...] = ()
    """Those whose eviction may be refused come first; empty: pods that are leaving already free enough."""

    @property
    def why(self) -> str:
        """The plan in words."""
        wanted = ", ".join(f"{name}: {count}" for name, count in self.devices.items())
        if not self.victims:
            return f"pods that are leaving {self.node} free {wanted}"
        highest = max(kube.priority(victim) for victim in self.victims)
        many = "1 pod" if len(self.victims) == 1 else f"{len(self.victims)} pods"
        return f"evicting {many} of priority {highest} or less from {self.node} frees {wanted}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What is the same for every pod of one round."""

    fleet: fleets.Fleet
    now: float
    """Unix seconds."""
    lowest: float
    """The lowest priority of a bound pod."""


def scene(fleet: fleets.Fleet, now: float) -> Scene:
    """The scene as the node table is now."""
    return Scene(fleet, now, min((kube.priority(pod) for pod in fleet.pods() if pod.spec.node_name), default=math.inf))


def waiting(fleet: fleets.Fleet) -> list[kube.Pod]:
    """The pods that anygpu might make room for, the most important first, then the oldest."""
    found = [
        pod
        for pod in fleet.pods()
        if not pod.spec.node_name
        and binding.counted_here(pod)
        and pod.unschedulable
        and pod.spec.preemption_policy != "Never"
        and pod.metadata.deletion_timestamp is None
    ]
    return sorted(found, key=lambda pod: (-kube.priority(pod), pod.metadata.creation_timestamp or "", pod.identity))


def plan(pod: kube.Pod, around: Scene, guards: budgets.Budgets, nodes: Collection[str] | None = None) -> Plan | None:
    """How the pod gets its devices on one of the nodes (None: of all); None: it fits as things are, or never would."""
    case = _case(pod, around, guards)
    if case is None:
        return None
    fleet = around.fleet
    names = fleet.rows if nodes is None else [name for name in nodes if name in fleet.rows]
    leaving: list[Plan] = []
    full: list[tuple[fleets.Row, dict[str, int], dict[str, int]]] = []
    for name in names:
        row = fleet.rows[name]
        devices = case.devices(row)
        if devices is None or case.refused(row):
            continue
        short = case.short(row, devices)
        if not short:
            return None
        left = case.after_leaving(row, short)
        if left:
            full.append((row, devices, left))
        else:
            leaving.append(Plan(name, devices))
    if leaving:
        held = fleet.promised_to(pod.identity)
        return min(leaving, key=lambda each: (each.node not in held, each.node))
    best: tuple[Cost, str] | None = None
    chosen: Plan | None = None
    full.sort(key=lambda each: (case.lowest(each[0]), each[0].name))
    for number, (row, devices, short) in enumerate(full):
        if best is not None and (case.lowest(row) > best[0][0] or number >= SHORTLIST):
            break
        kinds = case.kinds(row, devices, short)
        found = _cheapest(kinds, tuple(short.values()), _missing(devices, short), best[0] if best else None)
        if found is not None and (best is None or (found[0], row.name) < best):
            best = (found[0], row.name)
            chosen = Plan(row.name, devices, tuple(found[1]))
    return chosen


def _missing(devices: Collection[str], short: Mapping[str, int]) -> int:
    return sum(amount for name, amount in short.items() if name in devices)


@dataclass(frozen=True, slots=True)
class _Case:
    """One pod's question."""

    pod: kube.Pod
    around: Scene
    guards: budgets.Budgets
    priority: int
    requests: Mapping[str, int]
    """Thousandths."""
    takes: Mapping[str, int]
    """The device-plugin resources that the pod carries."""
    open: bool
    """Whether it takes one of these, the one that the node offers; else it takes all."""
    fits: Callable[[DeviceClass], bool]
    neighbours: predicates.Neighbours
    near: tuple[kube.PodAffinityTerm, ...]

    def devices(self, row: fleets.Row) -> dict[str, int] | None:
        """What the pod would take of the node; None: the node has no such devices, or never enough."""
        here = row.offered(self.takes) if self.open else list(self.takes)
        if self.open and len(here) != 1:
            return None
        for name in here:
            if not any(
                pool.device.resource == name and pool.allocatable >= self.takes[name] and self.fits(pool.device)
                for pool in row.facts.pools
            ):
                return None
        return {name: self.takes[name] for name in here}

    def refused(self, row: fleets.Row) -> bool:
        """Whether kube-scheduler would refuse the node whoever leaves it."""
        return bool(
            predicates.static_reason(self.pod, row, lambda taint: False)
            or predicates.pod_affinity_reason(self.neighbours, row)
        )

    def lowest(self, row: fleets.Row) -> int:
        """No victim on the node has a lower priority."""
        return min((kube.priority(pod) for pod in row.usage.pods.values()), default=self.priority)

    def short(self, row: fleets.Row, devices: Mapping[str, int]) -> dict[str, int]:
        """Thousandths of each resource that are missing on the node now, promises to others counted."""
        others = self.around.fleet.nominated(row.name, self.pod)
        theirs = _sum(_requests(pod) for pod in others)
        fleet, usage = self.around.fleet, row.usage
        own = fleet.promised_to(self.pod.identity).get(row.name)
        found: dict[str, int] = {}
        for name, amount in self.requests.items():
            if name in self.takes and name not in devices:
                continue
            wanted = amount + usage.amounts.get(name, 0) + theirs.get(name, 0)
            if name in devices:
                promised = fleet.promises.on_node(row.name, name) - (own.devices.get(name, 0) if own else 0)
                wanted += 1000 * promised
            if wanted > row.allocatable.get(name, 0):
                found[name] = wanted - row.allocatable.get(name, 0)
        over = 1000 * (len(usage.pods) + len(others) + 1) - row.allocatable.get(PODS, 110_000)
        return found | {PODS: over} if over > 0 else found

    def after_leaving(self, row: fleets.Row, short: Mapping[str, int]) -> dict[str, int]:
        """What is still missing when those pods are gone that are being deleted."""
        gone = [_frees(_requests(pod), short) for pod in row.usage.pods.values() if self._leaves(pod)]
        left = {name: amount - sum(frees[at] for frees in gone) for at, (name, amount) in enumerate(short.items())}
        return {name: amount for name, amount in left.items() if amount > 0}

    def _leaves(self, pod: kube.Pod) -> bool:
        due = pod.metadata.deletion_timestamp
        return due is not None and _unix(due) + STUCK_SECONDS > self.around.now

    def kinds(self, row: fleets.Row, devices: Collection[str], short: Mapping[str, int]) -> list["_Kind"]:
        """The pods that may go and would free something that is missing, grouped by what matters of them."""
        found: dict[_Kind, list[kube.Pod]] = {}
        guarded: dict[str, list[tuple[_Kind, kube.Pod]]] = {}
        for pod in row.usage.pods.values():
            if not self._may_go(pod):
                continue
            amounts = _requests(pod)
            frees = _frees(amounts, short)
            if not any(frees):
                continue
            over = self.guards.over(pod)
            if len(over) > 1:
                continue  # the eviction API refuses pods that have several budgets
            kind = _Kind(kube.priority(pod), frees, sum(_frees(amounts, devices)))
            if over:
                name = f"{over[0].metadata.namespace}/{over[0].metadata.name}"
                kind = dataclasses.replace(kind, guard=name, allowed=max(0, over[0].status.disruptions_allowed))
                guarded.setdefault(name, []).append((kind, pod))
            else:
                found.setdefault(kind, []).append(pod)
        for members in guarded.values():
            for kind, pod in members:
                # Where the budget lets all of them go it sets none apart from others.
                same = kind if len(members) > kind.allowed else dataclasses.replace(kind, guard="", allowed=0)
                found.setdefault(same, []).append(pod)
        return [dataclasses.replace(kind, pods=tuple(sorted(pods, key=_least_lost))) for kind, pods in found.items()]

    def _may_go(self, pod: kube.Pod) -> bool:
        return (
            kube.priority(pod) < self.priority
            and pod.metadata.deletion_timestamp is None
            and pod.metadata.namespace not in SPARED_NAMESPACES
            and asks.MIRROR_ANNOTATION not in pod.annotations
            # Whom the pod wants to be near must stay; namespaces aside, which only spares more.
            and not any(kube.selector_holds(term.label_selector, pod.labels) for term in self.near)
        )


def _case(pod: kube.Pod, around: Scene, guards: budgets.Budgets) -> _Case | None:
    """The question; None: the pod takes no device, may evict nobody, or states no valid need."""
    fleet, priority = around.fleet, kube.priority(pod)
    if pod.spec.preemption_policy == "Never" or priority <= around.lowest:
        return None
    try:
        requests, takes = kube.pod_requests(pod), binding.takes(pod)
        question = asks.read(pod, fleet) if asks.concerns(pod, fleet.opted_out) else None
    except (capability_errors.QuantityError, errors.InvalidNeeds):
        return None
    if not takes:
        return None
    made = decision.read(pod.annotations) if question else None
    late = made is not None and made.binding == "late"
    judged: dict[int, bool] = {}

    def fits(device: DeviceClass) -> bool:
        if question is None:
            return True
        known = judged.get(id(device))
        if known is None:
            known = not fit.unmet(question.needs, device)
            if made is not None and late:
                known = known and binding.alternative(made, device) is not None
            judged[id(device)] = known
        return known

    affinity = pod.spec.affinity.pod_affinity if pod.spec.affinity else None
    near = affinity.required_during_scheduling_ignored_during_execution if affinity else None
    neighbours = predicates.neighbours(pod, fleet.rows.values())
    return _Case(pod, around, guards, priority, requests, takes, late, fits, neighbours, tuple(near or ()))


@dataclass(frozen=True, slots=True)
class _Kind:
    """Pods of which each is as good a victim as the other, how long they have run aside."""

    priority: int
    frees: tuple[int, ...]
    """Thousandths of each missing resource that one frees."""
    devices: int
    """Thousandths of devices that one loses."""
    guard: str = ""
    """The budget that does not let all of the node's go."""
    allowed: int = 0
    pods: tuple[kube.Pod, ...] = ()
    """Those first that have run least."""


def _cheapest(
    kinds: list[_Kind], short: tuple[int, ...], missing: int, beat: Cost | None
) -> tuple[Cost, list[kube.Pod]] | None:
    """The cheapest victims that free what is missing; None: none do, or none as cheap as what is to be beaten."""
    for highest in sorted({kind.priority for kind in kinds}):
        limit = math.inf
        if beat is not None:
            if highest > beat[0]:
                return None
            limit = beat[1] if highest == beat[0] else math.inf
        within = [kind for kind in kinds if kind.priority <= highest]
        if any(need > sum(kind.frees[at] * len(kind.pods) for kind in within) for at, need in enumerate(short)):
            continue
        within.sort(key=lambda kind: (kind.priority, [-each for each in kind.frees]))
        few = math.prod(len(kind.pods) + 1 for kind in within) <= MAX_CHOICES
        counts = _compared(within, short, missing, limit) if few else _spared(within, short)
        if counts is not None:
            pods = [
                (not kind.guard, kind.priority, *_least_lost(pod), pod)
                for kind, count in zip(within, counts, strict=True)
                for pod in kind.pods[:count]
            ]
            return _cost(within, counts, missing), [pod for *_, pod in sorted(pods)]
    return None


def _compared(kinds: Sequence[_Kind], short: tuple[int, ...], missing: int, limit: float) -> tuple[int, ...] | None:
    """How many of each kind should go, by comparing all ways; None: none keeps the sum of priorities in the limit."""
    rest = [[0] * len(short)]
    for kind in reversed(kinds):
        rest.insert(0, [had + frees * len(kind.pods) for had, frees in zip(rest[0], kind.frees, strict=True)])
    best: tuple[Cost, tuple[int, ...]] | None = None
    allowed = {kind.guard: kind.allowed for kind in kinds if kind.guard}

    def descend(at: int, left: tuple[int, ...], total: int, counts: tuple[int, ...]) -> None:
        nonlocal best, limit
        if total > limit:
            return
        if all(need <= 0 for need in left):
            counts += (0,) * (len(kinds) - len(counts))
            cost = _cost(kinds, counts, missing)
            if best is None or cost < best[0]:
                best = (cost, counts)
                limit = min(total, limit)
            return
        if any(need > more for need, more in zip(left, rest[at], strict=True)):
            return
        kind = kinds[at]
        most = min(len(kind.pods), allowed.get(kind.guard, len(kind.pods)))
        for count in range(most + 1):
            if kind.guard:
                allowed[kind.guard] -= count
            after = tuple(need - frees * count for need, frees in zip(left, kind.frees, strict=True))
            descend(at + 1, after, total + count * (kind.priority + ABOVE_ALL), (*counts, count))
            if kind.guard:
                allowed[kind.guard] += count

    descend(0, short, 0, ())
    return best[1] if best else None


def _spared(kinds: Sequence[_Kind], short: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many of each kind should go when all are taken first and then spared, the most important first."""
    allowed = {kind.guard: kind.allowed for kind in kinds if kind.guard}
    counts: list[int] = []
    for kind in kinds:  # the least important first, as far as their budget goes
        count = min(len(kind.pods), allowed.get(kind.guard, len(kind.pods)))
        if kind.guard:
            allowed[kind.guard] -= count
        counts.append(count)
    over = [
        sum(kind.frees[at] * count for kind, count in zip(kinds, counts, strict=True)) - need
        for at, need in enumerate(short)
    ]
    if any(each < 0 for each in over):
        return None
    for at in reversed(range(len(kinds))):
        frees = kinds[at].frees
        while counts[at] and all(spare >= each for spare, each in zip(over, frees, strict=True)):
            counts[at] -= 1
            over = [spare - each for spare, each in zip(over, frees, strict=True)]
    return tuple(counts)


def _cost(kinds: Iterable[_Kind], counts: Iterable[int], missing: int) -> Cost:
    going = [(kind, count) for kind, count in zip(kinds, counts, strict=True) if count]
    return (
        max(kind.priority for kind, _ in going),
        sum((kind.priority + ABOVE_ALL) * count for kind, count in going),
        sum(kind.devices * count for kind, count in going) - missing,
        sum(count for _, count in going),
        -min(_started(kind.pods[count - 1]) for kind, count in going),
    )


def _least_lost(pod: kube.Pod) -> tuple[float, str]:
    return (-_started(pod), pod.identity)


def _started(pod: kube.Pod) -> float:
    """When the pod started, in Unix seconds; one that has not loses nothing."""
    return _unix(pod.status.start_time) if pod.status.start_time else math.inf


def _unix(time: str) -> float:
    return datetime.datetime.fromisoformat(time).timestamp()


def _frees(amounts: Mapping[str, int], names: Iterable[str]) -> tuple[int, ...]:
    """Thousandths of each resource that are free when a pod of these requests is gone."""
    return tuple(1000 if name == PODS else amounts.get(name, 0) for name in names)


def _requests(pod: kube.Pod) -> dict[str, int]:
    try:
        return kube.pod_requests(pod)
    except capability_errors.QuantityError:
        return {}  # the node table counts nothing for it either


def _sum(amounts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in amounts:
        for name, amount in each.items():
            total[name] = total.get(name, 0) + amount
    return total
