"""Why a pod is where it is, or why it waits and what would let it run."""

from typing import Any

import gpunodes
import placing

from scheduler import explain, kube
from scheduler import fleet as fleets

Json = dict[str, Any]
NVIDIA = "nvidia.com/gpu"


def admitted(fleet: fleets.Fleet, node: str | None = None, **needs: str) -> kube.Pod:
    """A pod as it stands in the cluster after admission, bound to a node or not."""
    document = placing.admit(gpunodes.pod(**needs), fleet).pod
    document["metadata"]["uid"] = "uid-p"
    if node:
        document["spec"]["nodeName"] = node
    fleet.apply_pod(kube.to_pod(document))
    return kube.to_pod(document)


def explained(fleet: fleets.Fleet, pod: kube.Pod) -> explain.Explanation:
    found = explain.explain(pod, fleet)
    assert set(found.as_json()) == {
        "pod",
        "node",
        "summary",
        "decision",
        "problem",
        "changes",
        "advice",
        "schedulerSays",
        "policy",
        "nodes",
    }
    return found


def test_a_pod_that_runs_says_where_and_with_what() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 4)])
    found = explained(fleet, admitted(fleet, "t4", gpus="1"))
    assert found.node == "t4"
    assert found.summary.startswith("runs on t4 with nvidia.com/gpu: 1; t4 on t4: the least capable GPU that fits")


def test_a_pod_that_landed_elsewhere_says_where_it_was_expected() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("a", "t4", 4), gpunodes.nvidia("b", "t4", 4)])
    assert "(expected on a at admission)" in explained(fleet, admitted(fleet, "b", gpus="1")).summary


def test_a_pod_is_judged_as_if_it_were_not_there() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 1)])
    found = explained(fleet, admitted(fleet, "t4", gpus="1"))
    assert [(each.name, each.fits) for each in found.verdicts] == [("t4", True)]
    assert fleet.rows["t4"].free(NVIDIA) == 0


def test_a_pod_that_nothing_could_serve_says_what_would_let_it_run() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 4)])
    found = explained(fleet, admitted(fleet, memory="20Gi"))
    assert found.node is None
    assert found.summary == "waits: no node of the cluster could serve it as it is"
    assert found.changes == ("memory: 15Gi",)


def test_a_pod_that_waits_for_a_device_says_so() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 1)], [placing.bound("x", "t4", {NVIDIA: 1})])
    found = explained(fleet, admitted(fleet, gpus="1"))
    assert (
        found.summary
        == "waits: nodes that could serve it: 1, none can now (1 node: 0 of 1 nvidia.com/gpu free, 1 asked)"
    )
    assert found.as_json()["nodes"] == [{"name": "t4", "fits": False, "reason": "0 of 1 nvidia.com/gpu free, 1 asked"}]


def test_a_pod_whose_resource_is_the_wrong_one_by_now_is_told_to_be_made_anew() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 1)])
    pod = admitted(fleet, gpus="1")
    fleet.apply_pod(kube.to_pod(placing.bound("faster", "t4", {NVIDIA: 1})))
    fleet.apply_node(kube.to_node(gpunodes.amd("mi", "mi300x")))
    found = explained(fleet, pod)
    assert found.summary == "waits for nvidia.com/gpu, which nothing fitting has free"
    assert found.advice
    assert "mi would take it now with amd.com/gpu" in found.advice


def test_what_kube_scheduler_says_is_passed_on() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 1)])
    document = kube.to_json(admitted(fleet, gpus="1"))
    document["status"] = {
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]
    }
    assert explained(fleet, kube.to_pod(document)).scheduler_says == "0/1 nodes"


def test_annotations_that_are_wrong_are_named() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 1)])
    found = explained(fleet, kube.to_pod(gpunodes.pod(gpus="x")))
    assert found.problem
    assert "anygpu.io/gpus: 'x'" in found.problem


def test_a_pod_that_asks_nothing_is_explained_too() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 1)])
    pod = kube.to_pod(placing.bound("x", "t4", {NVIDIA: 1}))
    fleet.apply_pod(pod)
    assert explained(fleet, pod).summary == "runs on t4; it asks nothing of anygpu"


def test_the_pod_as_written_has_none_of_what_anygpu_added() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 4), gpunodes.amd("mi", "mi300x")])
    zone = [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": zone}},
    }
    for given in (None, affinity):
        document = gpunodes.pod(gpus="2")
        document["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1"}}
        if given:
            document["spec"]["affinity"] = given
        made = placing.admit(document, fleet)
        written = explain.as_written(kube.to_pod(made.pod), made.decision)
        assert kube.pod_requests(written) == {"cpu": 1000}
        before = kube.to_pod(document).spec.affinity
        after = written.spec.affinity
        if given:
            assert after == before
        else:
            assert after == kube.Affinity(node_affinity=kube.NodeAffinity())


def test_a_resource_that_the_pod_asked_itself_stays_its_own() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 4), gpunodes.amd("mi", "mi300x")])
    document = gpunodes.pod(objective="pack")
    document["spec"]["containers"][0]["resources"] = {"limits": {"amd.com/gpu": "1"}}
    made = placing.admit(document, fleet)
    written = explain.as_written(kube.to_pod(made.pod), made.decision)
    assert kube.pod_requests(written) == {"amd.com/gpu": 1000}
