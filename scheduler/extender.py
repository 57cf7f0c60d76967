"""Filter and prioritize: kube-scheduler's extender calls as bytes in, bytes out, over the node table.

Wire: k8s.io/kube-scheduler/extender/v1, whose fields carry Go's names. Filter writes nothing, returns every node that
fits, and refuses others for good (`FailedAndUnresolvableNodes`): evicting pods would not change what a GPU can do.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import msgspec

from capability_db import errors as capability_errors
from capability_db import node_facts
from scheduler import asks, binding, crossing, errors, fit, kube, score
from scheduler import fleet as fleets

NOT_SEEN = "anygpu has not seen this node yet"
NOT_FREE = "fewer free devices than asked"
NO_GPU = "no GPU that the pod asks"
EXPECTED = "its free devices are expected to go to other pods"
CROSSING = "its last devices are being given to a pod of another scheduler"
SEVERAL_NAMES = "lists several of the pod's resource names, and its kubelet would demand them all"
NEEDS_CACHE = "anygpu needs nodeCacheCapable: true in the scheduler's extender configuration"


class Arguments(msgspec.Struct, frozen=True, gc=False):
    """ExtenderArgs, the nodes by name."""

    pod: kube.Pod = msgspec.field(name="Pod")
    names: list[str] | None = msgspec.field(name="NodeNames", default=None)


class FilterResult(msgspec.Struct, frozen=True, gc=False):
    """ExtenderFilterResult."""

    names: list[str] = msgspec.field(name="NodeNames")
    refused: dict[str, str] = msgspec.field(name="FailedAndUnresolvableNodes")
    nodes: None = msgspec.field(name="Nodes", default=None)
    failed: dict[str, str] = msgspec.field(name="FailedNodes", default_factory=dict)
    error: str = msgspec.field(name="Error", default="")


class HostPriority(msgspec.Struct, frozen=True, gc=False):
    """HostPriority."""

    host: str = msgspec.field(name="Host")
    score: int = msgspec.field(name="Score")


class PreemptionArguments(msgspec.Struct, frozen=True, gc=False):
    """ExtenderPreemptionArgs, and what of them is in ExtenderPreemptionResult."""

    pod: kube.Pod = msgspec.field(name="Pod")
    victims: dict[str, msgspec.Raw] | None = msgspec.field(name="NodeNameToMetaVictims", default=None)


class PreemptionResult(msgspec.Struct, frozen=True, gc=False):
    """ExtenderPreemptionResult."""

    victims: dict[str, msgspec.Raw] = msgspec.field(name="NodeNameToMetaVictims")


_arguments = msgspec.json.Decoder(Arguments)
_preemption = msgspec.json.Decoder(PreemptionArguments)
_encoder = msgspec.json.Encoder()


def decode(body: bytes) -> Arguments:
    """The call's arguments; raises InvalidInput saying what of the body is not as kube-scheduler sends it."""
    try:
        arguments = _arguments.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidInput(f"the body is no ExtenderArgs: {error}") from error
    if arguments.names is None:
        raise errors.InvalidInput(NEEDS_CACHE)
    return arguments


def filter_nodes(body: bytes, fleet: fleets.Fleet) -> bytes:
    """The reply to /filter; raises InvalidInput for a body that is no ExtenderArgs."""
    arguments = decode(body)
    names = arguments.names or []
    refused = refusals(arguments.pod, names, fleet)
    if fleet.crossing is not None and not binding.counted_here(arguments.pod):
        left = [name for name in names if name not in refused]
        refused |= _crossing(arguments.pod, left, fleet, fleet.crossing)
    if not refused:
        return _encoder.encode(FilterResult(names, {}))
    return _encoder.encode(FilterResult([name for name in names if name not in refused], refused))


def _crossing(pod: kube.Pod, names: list[str], fleet: fleets.Fleet, between: crossing.Crossing) -> dict[str, str]:
    """The nodes that another scheduler's pod is kept from for a moment; it is let through to the others."""
    try:
        takes = binding.takes(pod)
    except capability_errors.QuantityError:
        return {}
    kept = {
        name: CROSSING
        for name in names
        if between.binds(name)
        and any(fleet.room(name, resource, pod.identity) < count for resource, count in takes.items())
    }
    for name in kept:
        between.hold_back(name)
    if takes:
        between.let_through(pod.identity, takes, [name for name in names if name not in kept])
    return kept


def prioritize_nodes(body: bytes, fleet: fleets.Fleet) -> bytes:
    """The reply to /prioritize: scores above 0 only, a host left out scores 0; raises InvalidInput likewise."""
    arguments = decode(body)
    scores = priorities(arguments.pod, arguments.names or [], fleet)
    return _encoder.encode([HostPriority(name, points) for name, points in scores.items() if points])


def preempt_pods(body: bytes) -> bytes:
    """The reply to /preempt: the victims as kube-scheduler has them, or none for a pod whose devices we count.

    What such a pod waits for kube-scheduler cannot see: it would evict for cpu alone where no device is free, and that
    again and again. anygpu's own preemption evicts for both. Raises InvalidInput for a body that is none.
    """
    try:
        arguments = _preemption.decode(body)
        takes = binding.takes(arguments.pod)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, capability_errors.QuantityError) as error:
        raise errors.InvalidInput(f"the body is no ExtenderPreemptionArgs: {error}") from error
    if arguments.victims is None:
        raise errors.InvalidInput(NEEDS_CACHE)
    ours = binding.counted_here(arguments.pod) and bool(takes)
    return _encoder.encode(PreemptionResult({} if ours else arguments.victims))


def error_reply(text: str) -> bytes:
    """The reply to a /filter that could not be answered."""
    return _encoder.encode(FilterResult([], {}, error=text))


def refusals(pod: kube.Pod, names: Iterable[str], fleet: fleets.Fleet) -> dict[str, str]:
    """Node -> constant text for the nodes that cannot serve the pod; a pod that asks nothing of us is never refused.

    Of nodes that can, those whose free devices other pods are expected to take are refused as long as there are others.
    """
    look = _look(pod, fleet)
    if look is None:
        return {}
    if isinstance(look, str):
        return dict.fromkeys(names, look)
    rows = fleet.rows
    found: dict[str, str] = {}
    expected: dict[str, str] = {}
    free = 0
    for name in names:
        row = rows.get(name)
        reason = NOT_SEEN if row is None else _refusal(look, row)
        if reason is not None:
            found[name] = reason
        elif look.counts and row is not None and not _unexpected(look, row):
            expected[name] = EXPECTED
        else:
            free += 1
    return found | expected if free else found


def priorities(pod: kube.Pod, names: Iterable[str], fleet: fleets.Fleet) -> dict[str, int]:
    """Node -> 0-10 for the nodes that can serve the pod; empty for a pod that asks nothing of us."""
    look = _look(pod, fleet)
    if look is None or isinstance(look, str) or look.question is None:
        return {}
    needed = look.question.needs
    ranks = {id(device): score.rank(needed, device) for device in fleet.classes() if look.refused[id(device)] is None}
    rows = fleet.rows
    ranked: list[tuple[score.Rank, float, str]] = []
    for name in names:
        row = rows.get(name)
        if row is None:
            continue
        keys = [
            (rank, left, name)
            for pool in row.facts.pools
            if (rank := ranks.get(id(pool.device))) is not None
            # What kube-scheduler has counted need not be free by our count; else a full pool is no place for the pod.
            and ((left := look.left(row, pool) - look.count) >= 0 or not look.counts)
        ]
        if keys:
            ranked.append(min(keys))
    return score.points(ranked)


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """What is the same for every node of one call."""

    fleet: fleets.Fleet
    pod: kube.Pod
    question: asks.Question | None
    """None: a pod that asks nothing of us, on the scheduler that leaves all counting to us."""
    refused: Mapping[int, str | None]
    """By id of a device class: why it does not fit."""
    takes: Mapping[str, int]
    """The device-plugin resources that the pod carries: all of them, or for a late pod one of them."""
    count: int
    counts: bool
    """Whether devices are counted here: kube-scheduler counts what it is not told to ignore, and a count of ours that
    lags behind would park the pod until the next event."""

    def left(self, row: fleets.Row, pool: node_facts.Pool) -> int:
        """Devices of a pool that are free for the pod."""
        dra = pool.device.dra and self.question is not None
        memory = self.question.needs.memory_bytes if dra and self.question else None
        return row.left(pool, memory) if dra else self.free(row, pool.device.resource)

    def free(self, row: fleets.Row, resource: str) -> int:
        """Devices that neither bound pods take nor other pods were promised, or kube-scheduler is freeing for them."""
        free = row.free(resource) - self.fleet.promises.on_node(row.name, resource)
        if self.counts:
            free -= sum(binding.takes(each).get(resource, 0) for each in self.fleet.nominated(row.name, self.pod))
        own = self.fleet.promised_to(self.pod.identity).get(row.name)
        return free + own.devices.get(resource, 0) if own else free


def _look(pod: kube.Pod, fleet: fleets.Fleet) -> _Look | str | None:
    """What to judge nodes by; a text: why none will do; None: nothing is to judge."""
    counted, concerned = binding.counted_here(pod), asks.concerns(pod, fleet.opted_out)
    if not counted and not concerned:
        return None
    try:
        takes = binding.takes(pod)
        question = asks.read(pod, fleet) if concerned else None
    except (errors.InvalidNeeds, capability_errors.QuantityError) as error:
        # Nothing but the webhook's absence lets such a pod in. The event recorder would format percent signs.
        return str(error).replace("%", "％")
    if question is None:
        return _Look(fleet, pod, None, {}, takes, 0, counts=True) if takes else None
    refused = {id(device): fit.refusal(question.needs, device) for device in fleet.classes()}
    # What a pod claims kube-scheduler counts too, down to the device.
    claims = question.needs.binding == "claim" and bool(question.needs.resources)
    counts = counted or not (question.asks_resource or claims)
    return _Look(fleet, pod, question, refused, takes, question.count, counts)


def _refusal(look: _Look, row: fleets.Row) -> str | None:
    """Why the node cannot serve the pod."""
    if look.question is None:
        missing = any(name not in row.allocatable for name in look.takes)
        short = any(look.free(row, name) < count for name, count in look.takes.items())
        return NO_GPU if missing else NOT_FREE if short else None
    if len(look.takes) > 1 and len(row.offered(look.takes)) > 1:
        return SEVERAL_NAMES
    closest: str | None = None
    for pool in row.facts.pools:
        reason = look.refused[id(pool.device)]
        # kube-scheduler counts devices that the device plugin offers though they are unhealthy.
        if reason is None and (look.counts or pool.withheld) and look.left(row, pool) < look.count:
            reason = f"{NOT_FREE}; {pool.sickness}" if pool.withheld else NOT_FREE
        if reason is None:
            return None
        closest = reason if closest is None or reason.startswith(NOT_FREE) else closest
    return closest or NO_GPU


def _unexpected(look: _Look, row: fleets.Row) -> bool:
    """Whether devices are left for the pod when all that others are expected to take is taken."""

    def left(name: str) -> int:
        return look.free(row, name) - look.fleet.ledger.expected(row.name, name, look.pod.identity)

    if look.question is None:
        return all(left(name) >= count for name, count in look.takes.items())
    fitting = [pool.device.resource for pool in row.facts.pools if look.refused[id(pool.device)] is None]
    return any(left(name) >= look.count for name in fitting)
