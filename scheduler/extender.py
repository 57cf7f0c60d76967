"""Filter and prioritize: kube-scheduler's extender calls as bytes in, bytes out, over the node table.

Wire: k8s.io/kube-scheduler/extender/v1, whose fields carry Go's names. Filter writes nothing, returns every node that
fits, and refuses others for good (`FailedAndUnresolvableNodes`): evicting pods would not change what a GPU can do.
"""

from collections.abc import Iterable, Mapping

import msgspec

from scheduler import asks, errors, fit, kube, score
from scheduler import fleet as fleets

NOT_SEEN = "anygpu has not seen this node yet"
NOT_FREE = "fewer free devices than asked"
NO_GPU = "no GPU that the pod asks"
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


_arguments = msgspec.json.Decoder(Arguments)
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
    if not refused:
        return _encoder.encode(FilterResult(names, {}))
    return _encoder.encode(FilterResult([name for name in names if name not in refused], refused))


def prioritize_nodes(body: bytes, fleet: fleets.Fleet) -> bytes:
    """The reply to /prioritize: scores above 0 only, a host left out scores 0; raises InvalidInput likewise."""
    arguments = decode(body)
    scores = priorities(arguments.pod, arguments.names or [], fleet)
    return _encoder.encode([HostPriority(name, points) for name, points in scores.items() if points])


def error_reply(text: str) -> bytes:
    """The reply to a /filter that could not be answered."""
    return _encoder.encode(FilterResult([], {}, error=text))


def refusals(pod: kube.Pod, names: Iterable[str], fleet: fleets.Fleet) -> dict[str, str]:
    """Node -> constant text for the nodes that cannot serve the pod; a pod that asks nothing of us is never refused."""
    if not asks.concerns(pod, fleet.opted_out):
        return {}
    try:
        question = asks.read(pod, fleet.catalogue)
    except errors.InvalidNeeds as error:
        # Nothing but the webhook's absence lets such a pod in. The event recorder would format percent signs.
        text = str(error).replace("%", "％")
        return dict.fromkeys(names, text)
    by_class = {id(device): fit.refusal(question.needs, device) for device in fleet.classes()}
    rows = fleet.rows
    found: dict[str, str] = {}
    for name in names:
        row = rows.get(name)
        reason = NOT_SEEN if row is None else _refusal(question, row, by_class)
        if reason is not None:
            found[name] = reason
    return found


def priorities(pod: kube.Pod, names: Iterable[str], fleet: fleets.Fleet) -> dict[str, int]:
    """Node -> 0-10 for the nodes that can serve the pod; empty for a pod that asks nothing of us."""
    if not asks.concerns(pod, fleet.opted_out):
        return {}
    try:
        question = asks.read(pod, fleet.catalogue)
    except errors.InvalidNeeds:
        return {}
    needed = question.needs
    ranks = {
        id(device): score.rank(needed, device) for device in fleet.classes() if fit.refusal(needed, device) is None
    }
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
            # What the pod carries kube-scheduler has counted; else a full pool is no place for it.
            and ((left := row.free(pool.device.resource) - question.count) >= 0 or question.asks_resource)
        ]
        if keys:
            ranked.append(min(keys))
    return score.points(ranked)


def _refusal(question: asks.Question, row: fleets.Row, by_class: Mapping[int, str | None]) -> str | None:
    """Why the node cannot serve the pod.

    Devices are counted only for a pod that carries no GPU resource: what it carries kube-scheduler counts itself, and
    a count of ours that lags behind would park the pod until the next event.
    """
    closest: str | None = None
    for pool in row.facts.pools:
        reason = by_class[id(pool.device)]
        if reason is None and not question.asks_resource and row.free(pool.device.resource) < question.count:
            reason = NOT_FREE
        if reason is None:
            return None
        closest = reason if closest is None or reason == NOT_FREE else closest
    return closest or NO_GPU
