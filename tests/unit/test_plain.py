"""Where kube-scheduler would put a pod that asks nothing of anygpu."""

from typing import Any

import gpunodes
import placing
import pytest

from scheduler import kube, plain
from scheduler.cli import place

Json = dict[str, Any]


def pod(spec: Json | None = None, **resources: str) -> Json:
    container: Json = {"name": "main", "image": "x", "resources": {"requests": resources}}
    return {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]} | (spec or {})}


def reasons(document: Json, *nodes: Json, pods: list[Json] | None = None) -> dict[str, str | None]:
    fleet = placing.fleet_of(nodes, pods or [])
    return {verdict.name: verdict.reason for verdict in plain.survey(kube.to_pod(document), fleet)}


def node(name: str, **fields: Any) -> Json:
    made = gpunodes.node(name)
    made["spec"] |= fields
    return made


def test_a_cordoned_and_a_tainted_node_are_no_place() -> None:
    taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    found = reasons(pod(), node("a", unschedulable=True), node("b", taints=[taint]), node("c"))
    assert found == {"a": "cordoned", "b": "untolerated taint nvidia.com/gpu:NoSchedule", "c": None}


def test_cpu_memory_gpus_and_pods_are_counted() -> None:
    full = placing.bound("x", "a", {"cpu": 63, "nvidia.com/gpu": 8})
    nodes = [gpunodes.nvidia("a", "t4"), gpunodes.nvidia("b", "t4")]
    asked = pod(cpu="2")
    assert reasons(asked, *nodes, pods=[full]) == {"a": "insufficient cpu", "b": None}
    asked["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    assert reasons(asked, *nodes, pods=[full])["a"] == "insufficient nvidia.com/gpu"


def test_a_node_selector_is_followed() -> None:
    found = reasons(pod({"nodeSelector": {"kubernetes.io/hostname": "b"}}), node("a"), node("b"))
    assert found == {"a": "nodeSelector or node affinity does not match", "b": None}


def placed(document: Json, *nodes: Json, pods: list[Json] | None = None) -> str | None:
    return place.place_one(document, placing.fleet_of(nodes, pods or []), {}, "test").node


def test_the_emptier_node_is_preferred_then_the_first_name() -> None:
    busy = placing.bound("x", "a", {"cpu": 32})
    assert placed(pod(cpu="1"), node("a"), node("b"), pods=[busy]) == "b"
    assert placed(pod(cpu="1"), node("b"), node("a")) == "a"


def test_a_soft_taint_and_a_preference_weigh() -> None:
    soft = [{"key": "x", "effect": "PreferNoSchedule"}]
    assert placed(pod(), node("a", taints=soft), node("b")) == "b"
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}
    preferred = [{"weight": 10, "preference": term}]
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    assert placed(pod({"affinity": affinity}), node("a"), node("b")) == "b"


def test_the_pod_is_untouched_but_for_its_node() -> None:
    document = pod(cpu="1")
    answer = place.place_one(document, placing.fleet_of([node("a")]), {}, "test")
    assert answer.pod == document | {"spec": document["spec"] | {"nodeName": "a"}}
    assert answer.as_json()["decision"] is None


def test_nothing_fits_leaves_no_node() -> None:
    answer = place.place_one(pod(cpu="900"), placing.fleet_of([node("a")]), {}, "test")
    assert answer.node is None
    assert "nodeName" not in answer.pod["spec"]


@pytest.mark.parametrize("spec", [{}, {"unschedulable": True}, {"taints": [{"key": "x", "effect": "NoSchedule"}]}])
def test_a_pod_that_names_its_node_is_only_asked_of_its_kubelet(spec: Json) -> None:
    found = reasons(pod({"nodeName": "a"}), node("a", **spec), node("b"))
    assert found == {"a": None, "b": "the pod names another node"}
