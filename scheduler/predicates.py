"""What kube-scheduler itself would say of a pod and a node, so that nothing is promised that it refuses.

Covered: readiness, cordons, taints, nodeSelector, node affinity, resources and pod count, required pod affinity and
anti-affinity. Not covered: volumes, host ports, topology spread, DRA claims.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from scheduler import fleet as fleets
from scheduler import kube

KUBELET_EFFECTS = ("NoExecute",)
HARD_EFFECTS = ("NoSchedule", *KUBELET_EFFECTS)


def static_reason(pod: kube.Pod, row: fleets.Row, tolerated: Callable[[str], bool]) -> str | None:
    """Why the node does not take the pod however empty it is; None: it would.

    `tolerated` says of a taint key whether the webhook adds its toleration. A pod with a nodeName is past
    kube-scheduler: only the kubelet judges it (kubernetes pkg/kubelet/lifecycle/predicate.go).
    """
    tolerations = pod.spec.tolerations
    effects: tuple[str, ...] = HARD_EFFECTS
    if pod.spec.node_name:
        effects = KUBELET_EFFECTS
    elif row.node.spec.unschedulable and not kube.tolerates(
        tolerations, kube.Taint(key=fleets.CORDON_TAINT, effect="NoSchedule")
    ):
        return "cordoned"
    elif row.not_ready:
        return row.not_ready
    for taint in row.node.spec.taints or ():
        if taint.effect in effects and not tolerated(taint.key) and not kube.tolerates(tolerations, taint):
            value = f"={taint.value}" if taint.value else ""
            return f"untolerated taint {taint.key}{value}:{taint.effect}"
    if not kube.node_affinity_holds(pod.spec, row.name, row.labels):
        return "nodeSelector or node affinity does not match"
    return None


def resource_reason(requests: Mapping[str, int], row: fleets.Row, skip: Iterable[str] = ()) -> str | None:
    """Which resource is short on the node for the requests (thousandths), `skip` aside; None: none is."""
    if len(row.usage.pods) >= row.allocatable.get("pods", 110_000) // 1000:
        return "too many pods"
    skipped = set(skip)
    for resource, amount in requests.items():
        if amount and resource not in skipped:
            left = row.allocatable.get(resource, 0) - row.usage.amounts.get(resource, 0)
            if amount > left:
                return f"insufficient {resource}"
    return None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Where the required (anti-)affinity between a pod and those that run lets it be; topologies as (key, value)."""

    near: tuple[tuple[str, frozenset[str]], ...]
    """The topology key of each affinity term, with the values where pods are that all terms select."""
    first: bool
    """Whether the pod may start a group: no pod is selected by all terms, and they select the pod itself."""
    far: frozenset[tuple[str, str]]
    """Where pods are that the pod's anti-affinity selects."""
    forbidden: frozenset[tuple[str, str]]
    """Where pods are whose anti-affinity selects the pod."""


def neighbours(pod: kube.Pod, rows: Iterable[fleets.Row]) -> Neighbours:
    """What pod affinity says of all nodes at once, as kube-scheduler counts it (interpodaffinity filtering.go)."""
    affinity = pod.spec.affinity
    near = _terms(affinity.pod_affinity if affinity else None)
    far = _terms(affinity.pod_anti_affinity if affinity else None)
    values: dict[str, set[str]] = {term.topology_key: set() for term in near}
    avoided: set[tuple[str, str]] = set()
    forbidden: set[tuple[str, str]] = set()
    for row in rows:
        # Without terms of its own only pods that keep others away matter: few, whatever runs.
        for other in (row.usage.pods if near or far else row.usage.avoiding).values():
            if pod.metadata.uid and other.metadata.uid == pod.metadata.uid:
                continue
            if near and all(_selects(term, pod, other) for term in near):
                for key in values.keys() & row.labels.keys():
                    values[key].add(row.labels[key])
            avoided |= _domains(far, pod, other, row)
            if other.spec.affinity is not None:
                forbidden |= _domains(_terms(other.spec.affinity.pod_anti_affinity), other, pod, row)
    return Neighbours(
        near=tuple((key, frozenset(found)) for key, found in values.items()),
        first=not any(values.values()) and all(_selects(term, pod, pod) for term in near),
        far=frozenset(avoided),
        forbidden=frozenset(forbidden),
    )


def pod_affinity_reason(around: Neighbours, row: fleets.Row) -> str | None:
    """Whether the pod's required (anti-)affinity to other pods, or theirs to it, forbids the node."""
    if not around.far.isdisjoint(row.labels.items()):
        return "pod anti-affinity forbids it"
    for key, values in around.near:
        # Even the first of a group needs a node that has the topology.
        if key not in row.labels or not (row.labels[key] in values or around.first):
            return "pod affinity is not met"
    if not around.forbidden.isdisjoint(row.labels.items()):
        return "another pod's anti-affinity forbids it"
    return None


def _terms(affinity: kube.PodAffinity | None) -> list[kube.PodAffinityTerm]:
    return (affinity.required_during_scheduling_ignored_during_execution or []) if affinity else []


def _domains(
    terms: Iterable[kube.PodAffinityTerm], owner: kube.Pod, other: kube.Pod, row: fleets.Row
) -> set[tuple[str, str]]:
    """The topologies of a node in which the terms that select the other pod hold."""
    return {
        (term.topology_key, row.labels[term.topology_key])
        for term in terms
        if term.topology_key in row.labels and _selects(term, owner, other)
    }


def _selects(term: kube.PodAffinityTerm, owner: kube.Pod, other: kube.Pod) -> bool:
    namespace = other.metadata.namespace or "default"
    named = term.namespaces or []
    if term.namespace_selector is None and not named:
        named = [owner.metadata.namespace or "default"]
    # Namespace labels are not watched; the one label every namespace has is enough for the usual selector.
    own_label = {"kubernetes.io/metadata.name": namespace}
    if namespace not in named and not kube.selector_holds(term.namespace_selector, own_label):
        return False
    return kube.selector_holds(term.label_selector, other.labels)
