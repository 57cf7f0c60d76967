"""What kube-scheduler itself would say of a pod and a node, so that nothing is promised that it refuses.

Covered: readiness, cordons, taints, nodeSelector, node affinity, resources and pod count, required pod affinity and
anti-affinity. Not covered: volumes, host ports, topology spread, DRA claims.
"""

from collections.abc import Callable, Iterable, Mapping

from scheduler import fleet as fleets
from scheduler import kube

HARD_EFFECTS = ("NoSchedule", "NoExecute")


def static_reason(pod: kube.Pod, row: fleets.Row, tolerated: Callable[[str], bool]) -> str | None:
    """Why the node does not take the pod however empty it is; None: it would.

    `tolerated` says of a taint key whether the webhook adds its toleration.
    """
    tolerations = pod.spec.tolerations
    if row.node.spec.unschedulable and not kube.tolerates(
        tolerations, kube.Taint(key=fleets.CORDON_TAINT, effect="NoSchedule")
    ):
        return "cordoned"
    if row.not_ready:
        return row.not_ready
    for taint in row.node.spec.taints or ():
        if taint.effect in HARD_EFFECTS and not tolerated(taint.key) and not kube.tolerates(tolerations, taint):
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


def pod_affinity_reason(pod: kube.Pod, row: fleets.Row, rows: Iterable[fleets.Row]) -> str | None:
    """Whether the pod's required (anti-)affinity to other pods, or theirs to it, forbids the node."""
    affinity = pod.spec.affinity
    near = _terms(affinity.pod_affinity if affinity else None)
    far = _terms(affinity.pod_anti_affinity if affinity else None)
    everyone = list(rows) if near or far else []
    for term in far:
        if _matches_in_domain(term, pod, row, everyone):
            return "pod anti-affinity forbids it"
    for term in near:
        if not _matches_in_domain(term, pod, row, everyone):
            # The first pod of a group that wants to be near itself may start anywhere (interpodaffinity filtering.go).
            alone = not any(_selects(term, pod, other) for each in everyone for other in each.usage.pods.values())
            if not (alone and _selects(term, pod, pod)):
                return "pod affinity is not met"
    for other in row.usage.pods.values():
        theirs = other.spec.affinity
        for term in _terms(theirs.pod_anti_affinity if theirs else None):
            if term.topology_key in row.labels and _selects(term, other, pod):
                return "another pod's anti-affinity forbids it"
    return None


def _terms(affinity: kube.PodAffinity | None) -> list[kube.PodAffinityTerm]:
    return (affinity.required_during_scheduling_ignored_during_execution or []) if affinity else []


def _selects(term: kube.PodAffinityTerm, owner: kube.Pod, other: kube.Pod) -> bool:
    namespace = other.metadata.namespace or "default"
    if term.namespace_selector is None:
        if namespace not in (term.namespaces or [owner.metadata.namespace or "default"]):
            return False
    # Namespace labels are not watched; the one label every namespace has is enough for the usual selector.
    elif not kube.selector_holds(term.namespace_selector, {"kubernetes.io/metadata.name": namespace}):
        return False
    return kube.selector_holds(term.label_selector, other.labels)


def _matches_in_domain(term: kube.PodAffinityTerm, pod: kube.Pod, row: fleets.Row, rows: list[fleets.Row]) -> bool:
    domain = row.labels.get(term.topology_key)
    if domain is None:
        return False
    return any(
        _selects(term, pod, other)
        for each in rows
        if each.labels.get(term.topology_key) == domain
        for other in each.usage.pods.values()
    )
