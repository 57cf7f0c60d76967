"""Where kube-scheduler would put a pod that asks nothing of anygpu: its default filters and main scores."""

from collections.abc import Mapping

from scheduler import fleet as fleets
from scheduler import kube, offers, predicates


def survey(pod: kube.Pod, fleet: fleets.Fleet) -> list[offers.Verdict]:
    """Every node's verdict, by name."""
    requests = kube.pod_requests(pod)
    rows = [fleet.rows[name] for name in sorted(fleet.rows)]
    around = predicates.neighbours(pod, rows)
    named = kube.named_nodes(pod.spec) if pod.spec.node_name else None
    return [
        offers.Verdict(
            row.name,
            None,
            "the pod names another node" if named and row.name not in named else _reason(pod, row, requests, around),
        )
        for row in rows
    ]


def _reason(pod: kube.Pod, row: fleets.Row, requests: Mapping[str, int], around: predicates.Neighbours) -> str | None:
    reason = predicates.static_reason(pod, row, lambda _: False) or predicates.resource_reason(requests, row)
    if reason is None and not pod.spec.node_name:
        reason = predicates.pod_affinity_reason(around, row)
    return reason


def score(pod: kube.Pod, row: fleets.Row) -> float:
    """0-700: taints to avoid (weight 3), preferred node affinity (2), free cpu and memory (1), their balance (1).

    The weights are the defaults of k8s.io/kubernetes pkg/scheduler/apis/config/v1; scores of other plugins are equal
    for pods that use none of what they look at.
    """
    requests = kube.pod_requests(pod)
    avoided = sum(
        taint.effect == "PreferNoSchedule" and not kube.tolerates(pod.spec.tolerations, taint)
        for taint in row.node.spec.taints or ()
    )
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity else None
    preferred = (affinity.preferred_during_scheduling_ignored_during_execution or []) if affinity else []
    weight = sum(each.weight for each in preferred) or 1
    wanted = sum(each.weight for each in preferred if kube.term_holds(each.preference, row.name, row.labels)) / weight
    used = [_fraction(row, requests, resource) for resource in ("cpu", "memory")]
    least_allocated = sum(1 - fraction for fraction in used) / len(used)
    balance = 1 - abs(used[0] - used[1]) / 2
    return 300 / (1 + avoided) + 200 * wanted + 100 * least_allocated + 100 * balance


def _fraction(row: fleets.Row, requests: Mapping[str, int], resource: str) -> float:
    total = row.allocatable.get(resource, 0)
    asked = row.usage.amounts.get(resource, 0) + requests.get(resource, 0)
    return min(1.0, asked / total) if total else 1.0
