"""What kube-scheduler would say of a pod and a node."""

from typing import Any

import pytest

from capability_db.catalogue import Catalogue
from scheduler import fleet as fleets
from scheduler import kube, predicates

HOST, ZONE = "kubernetes.io/hostname", "zone"


def node(name: str = "n1", *, zone: str | None = None, spec: Any = None, **status: Any) -> kube.Node:
    """A node with room for ten pods."""
    labels = {HOST: name} | ({ZONE: zone} if zone else {})
    allocatable = {"cpu": "8", "memory": "16Gi", "pods": "10", "nvidia.com/gpu": "4"}
    return kube.to_node(
        {
            "metadata": {"name": name, "labels": labels},
            "spec": spec,
            "status": {"allocatable": allocatable, "capacity": allocatable} | status,
        }
    )


def pod(name: str = "p", *, on: str | None = None, namespace: str = "default", **spec: Any) -> kube.Pod:
    """A pod labelled by the first part of its name, on a node or on none."""
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name.partition("-")[0]}, "uid": name}
    return kube.to_pod({"metadata": metadata, "spec": {"nodeName": on} | spec})


def fleet(nodes: list[kube.Node], pods: list[kube.Pod] | None = None) -> fleets.Fleet:
    """The node table of nodes and pods."""
    table = fleets.Fleet(Catalogue.builtin())
    table.replace(nodes, pods or [])
    return table


def row(**fields: Any) -> fleets.Row:
    """One node's row."""
    return fleet([node(**fields)]).rows["n1"]


# --- The node itself --------------------------------------------------------------------------------------------------

TAINT = {"key": "gpu", "value": "a100", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("node_fields", "pod_spec", "reason"),
    [
        ({}, {}, None),
        ({"spec": {"unschedulable": True}}, {}, "cordoned"),
        ({"spec": {"unschedulable": True}}, {"tolerations": [{"operator": "Exists"}]}, None),
        (
            {"spec": {"unschedulable": True}},
            {
                "tolerations": [
                    {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}
                ]
            },
            None,
        ),
        ({"conditions": [{"type": "Ready", "status": "True"}]}, {}, None),
        ({"conditions": [{"type": "Ready", "status": "False"}]}, {}, "not ready (Ready is False)"),
        ({"conditions": [{"type": "Ready", "status": "Unknown"}]}, {}, "not ready (Ready is Unknown)"),
        ({"conditions": [{"type": "Ready"}]}, {}, "not ready (Ready is empty)"),
        ({"conditions": [{"type": "DiskPressure", "status": "True"}]}, {}, None),
        ({"spec": {"taints": [TAINT]}}, {}, "untolerated taint gpu=a100:NoSchedule"),
        ({"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}, {}, "untolerated taint x:NoExecute"),
        ({"spec": {"taints": [TAINT | {"effect": "PreferNoSchedule"}]}}, {}, None),
        ({"spec": {"taints": [TAINT]}}, {"tolerations": [{"key": "gpu", "operator": "Exists"}]}, None),
        (
            {"spec": {"taints": [TAINT, {"key": "x", "effect": "NoSchedule"}]}},
            {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
            "untolerated taint x:NoSchedule",
        ),
        ({"zone": "a"}, {"nodeSelector": {"zone": "a"}}, None),
        ({"zone": "a"}, {"nodeSelector": {"zone": "b"}}, "nodeSelector or node affinity does not match"),
    ],
)
def test_a_node_refuses_by_its_state_taints_and_labels(
    node_fields: dict[str, Any], pod_spec: dict[str, Any], reason: str | None
) -> None:
    assert predicates.static_reason(pod(**pod_spec), row(**node_fields), lambda _: False) == reason


def test_a_taint_that_the_webhook_tolerates_keeps_nobody_away() -> None:
    tainted = row(spec={"taints": [TAINT | {"key": "nvidia.com/gpu"}]})
    assert predicates.static_reason(pod(), tainted, lambda key: key == "nvidia.com/gpu") is None


# --- Resources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "skip", "reason"),
    [
        ({}, (), None),
        ({"cpu": 6000}, (), None),
        ({"cpu": 6001}, (), "insufficient cpu"),
        ({"nvidia.com/gpu": 5000}, (), "insufficient nvidia.com/gpu"),
        ({"nvidia.com/gpu": 5000}, ("nvidia.com/gpu",), None),
        ({"rdma/hca": 1000}, (), "insufficient rdma/hca"),
        ({"rdma/hca": 0}, (), None),
    ],
)
def test_what_bound_pods_leave_is_what_there_is(
    requests: dict[str, int], skip: tuple[str, ...], reason: str | None
) -> None:
    busy = pod("busy", on="n1", containers=[{"name": "c", "resources": {"requests": {"cpu": "2"}}}])
    assert predicates.resource_reason(requests, fleet([node()], [busy]).rows["n1"], skip) == reason


def test_a_full_node_takes_no_pod_even_one_that_asks_nothing() -> None:
    pods = [pod(f"p-{number}", on="n1") for number in range(10)]
    assert predicates.resource_reason({}, fleet([node()], pods).rows["n1"]) == "too many pods"
    assert predicates.resource_reason({}, fleet([node()], pods[1:]).rows["n1"]) is None


# --- Other pods -------------------------------------------------------------------------------------------------------


def term(app: str | None, key: str = HOST, **more: Any) -> dict[str, Any]:
    """A pod affinity term for an app."""
    return {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app} if app else {}}} | more


def near(*terms: dict[str, Any]) -> dict[str, Any]:
    """Required pod affinity."""
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}}


def far(*terms: dict[str, Any]) -> dict[str, Any]:
    """Required pod anti-affinity."""
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}}


NODES = [node("a1", zone="a"), node("a2", zone="a"), node("b1", zone="b"), node("c1")]
RUNNING = [pod("web-1", on="a1"), pod("db-1", on="b1"), pod("web-2", on="b1", namespace="other")]


def allowed(asker: kube.Pod, pods: list[kube.Pod] | None = None) -> list[str]:
    """The nodes that pod affinity leaves."""
    table = fleet(NODES, RUNNING if pods is None else pods)
    around = predicates.neighbours(asker, table.rows.values())
    return [name for name, each in sorted(table.rows.items()) if predicates.pod_affinity_reason(around, each) is None]


@pytest.mark.parametrize(
    ("affinity", "nodes"),
    [
        (None, ["a1", "a2", "b1", "c1"]),
        (near(term("web")), ["a1"]),
        (near(term("web", ZONE)), ["a1", "a2"]),
        (near(term("db", ZONE), term("web", ZONE)), []),
        (near(term("nobody")), []),
        (near(term(None, ZONE)), ["a1", "a2", "b1"]),
        (near(term("web", namespaces=["other"])), ["b1"]),
        (near(term("web", namespaces=["default", "other"])), ["a1", "b1"]),
        (near(term("web", namespaceSelector={})), ["a1", "b1"]),
        (
            near(term("web", namespaceSelector={"matchLabels": {"kubernetes.io/metadata.name": "other"}})),
            ["b1"],
        ),
        (
            near(
                term(
                    "web",
                    namespaces=["default"],
                    namespaceSelector={"matchLabels": {"kubernetes.io/metadata.name": "other"}},
                )
            ),
            ["a1", "b1"],
        ),
        (near({"topologyKey": HOST}), []),
        (far(term("web")), ["a2", "b1", "c1"]),
        (far(term("web", ZONE)), ["b1", "c1"]),
        (far(term("web", ZONE), term("db")), ["c1"]),
        (far(term("web", "no-such-label")), ["a1", "a2", "b1", "c1"]),
        (far({"topologyKey": HOST}), ["a1", "a2", "b1", "c1"]),
        (near(term("web", ZONE)) | far(term("web")), ["a2"]),
    ],
)
def test_required_pod_affinity_leaves_the_nodes_that_kube_scheduler_would(affinity: Any, nodes: list[str]) -> None:
    assert allowed(pod("job-1", affinity=affinity)) == nodes


def test_the_first_of_a_group_may_start_anywhere_that_has_the_topology() -> None:
    first = pod("ring-1", affinity=near(term("ring", ZONE)))
    assert allowed(first) == ["a1", "a2", "b1"]
    second = pod("ring-2", affinity=near(term("ring", ZONE)))
    assert allowed(second, [pod("ring-1", on="b1")]) == ["b1"]


def test_one_group_member_must_match_all_terms_to_count() -> None:
    both = near(term("ring", ZONE), {"topologyKey": ZONE, "labelSelector": {"matchLabels": {"tier": "x"}}})
    assert allowed(pod("ring-2", affinity=both), [pod("ring-1", on="b1")]) == []


@pytest.mark.parametrize(
    ("key", "nodes"),
    [(HOST, ["a2", "b1", "c1"]), (ZONE, ["b1", "c1"]), ("no-such-label", ["a1", "a2", "b1", "c1"])],
)
def test_a_running_pod_keeps_others_out_of_its_whole_topology(key: str, nodes: list[str]) -> None:
    loner = pod("loner", on="a1", affinity=far(term("job", key)))
    assert allowed(pod("job-1"), [loner]) == nodes
    assert allowed(pod("web-9"), [loner]) == ["a1", "a2", "b1", "c1"]
    assert allowed(pod("job-1", namespace="other"), [loner]) == ["a1", "a2", "b1", "c1"]


def test_a_pod_is_not_its_own_neighbour() -> None:
    running = pod("solo-1", on="a1", affinity=far(term("solo", ZONE)))
    assert allowed(running, [running]) == ["a1", "a2", "b1", "c1"]
    assert allowed(pod("solo-2", affinity=far(term("solo", ZONE))), [running]) == ["b1", "c1"]
