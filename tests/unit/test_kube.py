"""The rules of Kubernetes that decisions rest on: requests, tolerations, selectors, and what objects may look like."""

from typing import Any

import msgspec
import pytest

from capability_db import errors as capability_errors
from scheduler import kube


def pod(**spec: Any) -> kube.Pod:
    """A pod with a spec."""
    return kube.to_pod({"metadata": {"name": "p"}, "spec": spec})


def asks(name: str, *, always: bool = False, **amounts: str) -> dict[str, Any]:
    """A container that requests amounts; `gpu` stands for NVIDIA's."""
    requests = {"nvidia.com/gpu" if key == "gpu" else key: amount for key, amount in amounts.items()}
    return {"name": name, "resources": {"requests": requests}} | ({"restartPolicy": "Always"} if always else {})


# --- Requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"containers": [asks("a", cpu="1"), asks("b", cpu="500m")]}, {"cpu": 1500}),
        ({"containers": [asks("a", cpu="1")], "initContainers": [asks("i", cpu="3")]}, {"cpu": 3000}),
        (
            {"containers": [asks("a", cpu="1")], "initContainers": [asks("i", cpu="2"), asks("j", cpu="3")]},
            {"cpu": 3000},
        ),
        ({"containers": [asks("a", cpu="1")], "initContainers": [asks("s", always=True, cpu="2")]}, {"cpu": 3000}),
        (
            {
                "containers": [asks("a", cpu="1")],
                "initContainers": [asks("s", always=True, cpu="2"), asks("i", cpu="4")],
            },
            {"cpu": 6000},
        ),
        (
            {
                "containers": [asks("a", cpu="1")],
                "initContainers": [asks("i", cpu="4"), asks("s", always=True, cpu="2")],
            },
            {"cpu": 4000},
        ),
        ({"containers": [asks("a", cpu="1")], "overhead": {"cpu": "250m"}}, {"cpu": 1250}),
        (
            {"containers": [asks("a", cpu="1", gpu="1")], "resources": {"requests": {"cpu": "4"}}},
            {"cpu": 4000, "nvidia.com/gpu": 1000},
        ),
        ({"containers": [asks("a", cpu="1")], "resources": {"limits": {"cpu": "4"}}}, {"cpu": 1000}),
        ({"containers": [{"name": "a"}], "resources": {"limits": {"cpu": "4"}}}, {"cpu": 4000}),
        (
            {"containers": [asks("a", gpu="2")], "initContainers": [asks("i", gpu="1")]},
            {"nvidia.com/gpu": 2000},
        ),
        ({"containers": [{"name": "a"}]}, {}),
        ({}, {}),
    ],
)
def test_a_pod_asks_what_kube_scheduler_counts(spec: dict[str, Any], expected: dict[str, int]) -> None:
    assert kube.pod_requests(pod(**spec)) == expected


def test_a_limit_without_a_request_is_one() -> None:
    both = {"limits": {"cpu": "2", "nvidia.com/gpu": 1}, "requests": {"cpu": "1"}}
    assert kube.pod_requests(pod(containers=[{"name": "a", "resources": both}])) == {
        "cpu": 1000,
        "nvidia.com/gpu": 1000,
    }


def test_numbers_in_place_of_text_are_read() -> None:
    assert kube.pod_requests(pod(containers=[{"name": "a", "resources": {"requests": {"cpu": 1.5}}}])) == {"cpu": 1500}


@pytest.mark.parametrize("amount", ["lots", "", "1_0", "٣"])
def test_a_request_that_is_no_quantity_is_an_error(amount: str) -> None:
    with pytest.raises(capability_errors.QuantityError):
        kube.pod_requests(pod(containers=[asks("a", cpu=amount)]))


def test_a_nodes_bad_quantity_counts_as_none_and_stops_nothing() -> None:
    assert kube.amounts({"cpu": "8", "nvidia.com/gpu": "many", "memory": "1e99", "pods": 110}) == {
        "cpu": 8000,
        "nvidia.com/gpu": 0,
        "memory": 10**102,
        "pods": 110_000,
    }
    assert kube.amounts(None) == {}


# --- Taints and tolerations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"key": "gpu", "operator": "Equal", "value": "a100", "effect": "NoSchedule"}, True),
        ({"key": "gpu", "value": "a100", "effect": "NoSchedule"}, True),
        ({"key": "gpu", "operator": "", "value": "a100"}, True),
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}, True),
        ({"operator": "Exists"}, True),
        ({"operator": "Exists", "effect": "NoSchedule"}, True),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "gpu", "value": "a10"}, False),
        ({"key": "gpu"}, False),
        ({"key": "gp", "operator": "Exists"}, False),
        ({"key": "gpu", "operator": "exists"}, False),
        ({"value": "a100"}, False),
        ({}, False),
    ],
)
def test_a_toleration_tolerates_as_kubernetes_defines_it(toleration: dict[str, str], tolerated: bool) -> None:
    taint = kube.Taint(key="gpu", value="a100", effect="NoSchedule")
    assert kube.tolerates(pod(tolerations=[toleration]).spec.tolerations, taint) == tolerated


def test_an_empty_value_equals_an_absent_one() -> None:
    tolerations = pod(tolerations=[{"key": "gpu", "operator": "Equal", "value": ""}]).spec.tolerations
    assert kube.tolerates(tolerations, kube.Taint(key="gpu", effect="NoSchedule"))
    assert not kube.tolerates(None, kube.Taint(key="gpu", effect="NoSchedule"))


# --- Selectors --------------------------------------------------------------------------------------------------------

LABELS = {"zone": "a", "cores": "64", "empty": "", "under": "1_000", "big": "9" * 19, "plus": "+5"}


@pytest.mark.parametrize(
    ("key", "operator", "values", "holds"),
    [
        ("zone", "In", ["a", "b"], True),
        ("zone", "In", ["b"], False),
        ("zone", "In", [], False),
        ("rack", "In", [""], False),
        ("empty", "In", [""], True),
        ("zone", "NotIn", ["a"], False),
        ("zone", "NotIn", ["b"], True),
        ("rack", "NotIn", ["a"], True),
        ("zone", "Exists", None, True),
        ("empty", "Exists", None, True),
        ("rack", "Exists", None, False),
        ("zone", "DoesNotExist", None, False),
        ("rack", "DoesNotExist", None, True),
        ("cores", "Gt", ["63"], True),
        ("cores", "Gt", ["64"], False),
        ("cores", "Lt", ["65"], True),
        ("cores", "Lt", ["-1"], False),
        ("plus", "Gt", ["4"], True),
        ("zone", "Gt", ["1"], False),
        ("rack", "Lt", ["1"], False),
        ("cores", "Gt", [], False),
        ("cores", "Gt", ["1", "2"], False),
        ("cores", "Gt", ["x"], False),
        ("cores", "Gt", ["٣"], False),
        ("under", "Gt", ["1"], False),
        ("big", "Gt", ["1"], False),
        ("cores", "Lt", ["9" * 5000], False),
        ("zone", "Like", ["a"], False),
    ],
)
def test_a_node_selector_expression_holds_as_kubernetes_defines_it(
    key: str, operator: str, values: list[str] | None, holds: bool
) -> None:
    assert kube.expression_holds(kube.Requirement(key=key, operator=operator, values=values), LABELS) == holds


def affinity(*terms: dict[str, Any]) -> dict[str, Any]:
    """A pod's required node affinity."""
    required = {"nodeSelectorTerms": list(terms)}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


IN_A = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
IN_B = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}
ON_N1 = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
ON_N2 = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}


@pytest.mark.parametrize(
    ("spec", "holds"),
    [
        ({}, True),
        ({"nodeSelector": {"zone": "a"}}, True),
        ({"nodeSelector": {"zone": "a", "rack": "1"}}, False),
        ({"affinity": affinity(IN_A)}, True),
        ({"affinity": affinity(IN_B, IN_A)}, True),
        ({"affinity": affinity(IN_B)}, False),
        ({"affinity": affinity()}, False),
        ({"affinity": affinity({})}, False),
        ({"affinity": affinity({}, IN_A)}, True),
        ({"affinity": affinity({"matchExpressions": [], "matchFields": []})}, False),
        ({"affinity": affinity(ON_N1)}, True),
        ({"affinity": affinity(ON_N2)}, False),
        ({"affinity": affinity(IN_B | ON_N1)}, False),
        ({"affinity": affinity(IN_A), "nodeSelector": {"zone": "b"}}, False),
        ({"affinity": {"nodeAffinity": {}}}, True),
        ({"affinity": {"nodeAffinity": None, "podAffinity": None}}, True),
    ],
)
def test_node_selector_and_affinity_must_both_hold(spec: dict[str, Any], holds: bool) -> None:
    assert kube.node_affinity_holds(pod(**spec).spec, "n1", LABELS) == holds


def test_no_label_selector_matches_nothing_and_an_empty_one_everything() -> None:
    assert not kube.selector_holds(None, LABELS)
    assert kube.selector_holds(kube.LabelSelector(), LABELS)
    assert kube.selector_holds(kube.LabelSelector(match_labels={"zone": "a"}), LABELS)
    assert not kube.selector_holds(kube.LabelSelector(match_labels={"rack": ""}), LABELS)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ({}, None),
        ({"nodeName": "n1"}, ["n1"]),
        ({"affinity": affinity(ON_N1)}, ["n1"]),
        ({"affinity": affinity(ON_N1, ON_N2)}, ["n1", "n2"]),
        ({"affinity": affinity(ON_N1, IN_A)}, None),
        ({"affinity": affinity(IN_A)}, None),
        ({"affinity": affinity(IN_A | ON_N1)}, ["n1"]),
    ],
)
def test_a_pod_names_nodes_by_name_or_as_daemonset_pods_do(spec: dict[str, Any], names: list[str] | None) -> None:
    assert kube.named_nodes(pod(**spec).spec) == names


# --- Objects ----------------------------------------------------------------------------------------------------------


def test_null_and_absent_fields_mean_the_same_but_a_null_annotation_is_an_empty_one() -> None:
    nulls = {"name": "p", "labels": None, "annotations": {"a": None, "b": "c"}, "uid": None}
    found = kube.to_pod(
        {"metadata": nulls, "spec": {"containers": [{"name": "x", "image": None}], "tolerations": None}, "status": None}
    )
    assert (found.labels, found.annotations) == ({}, {"a": "", "b": "c"})
    assert [container.name for container in found.containers] == ["x"]


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({"metadata": {"annotations": {"anygpu.io/gpus": 2}}}, "annotations"),
        ({"metadata": {"labels": ["a"]}}, "labels"),
        ({"spec": {"containers": {"name": "a"}}}, "containers"),
        ({"spec": {"tolerations": ["all"]}}, "tolerations"),
        ({"spec": "x"}, "spec"),
        ({"spec": {"containers": [None]}}, "containers"),
        ({"metadata": {"name": True}}, "name"),
    ],
)
def test_a_field_of_a_wrong_type_is_named(document: dict[str, Any], names: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=names):
        kube.to_pod(document)


def test_what_is_known_of_a_pod_survives_json() -> None:
    found = pod(containers=[asks("a", cpu="1")], affinity=affinity(IN_A), tolerations=[{"operator": "Exists"}])
    assert kube.to_pod(kube.to_json(found)) == found


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"name": "a", "namespace": "n"}, "n/a"),
        ({"name": "a"}, "default/a"),
        ({"generateName": "a-"}, "default/a-"),
        ({}, "default/pod"),
    ],
)
def test_a_pod_is_known_by_namespace_and_name(metadata: dict[str, str], key: str) -> None:
    assert kube.to_pod({"metadata": metadata}).key == key
    assert kube.to_pod({"metadata": metadata | {"uid": "u"}}).identity == "u"


def test_finished_and_unschedulable_pods_say_so_in_their_status() -> None:
    assert kube.to_pod({"status": {"phase": "Succeeded"}}).finished
    assert not kube.to_pod({"status": {"phase": "Running"}}).finished
    waiting = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    assert kube.to_pod({"status": {"conditions": [waiting]}}).unschedulable
    assert not kube.to_pod({"status": {"conditions": [waiting | {"reason": "SchedulingGated"}]}}).unschedulable
