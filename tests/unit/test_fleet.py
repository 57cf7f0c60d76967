"""The node table: one event at a time, whatever the order, and what a pod holds along its way."""

import json

import gpunodes
import placing
import pytest

from scheduler import decision, kube, ledger
from scheduler import fleet as fleets

NVIDIA = "nvidia.com/gpu"


def fleet() -> fleets.Fleet:
    return placing.fleet_of([gpunodes.nvidia("n", "t4", 4), gpunodes.amd("a", "mi300x", 8)])


def pod(name: str, node: str | None = None, count: int = 1, **status: object) -> kube.Pod:
    document = placing.bound(name, node, {NVIDIA: count, "cpu": 2})
    document["status"] |= status
    return kube.to_pod(document)


def decided(
    name: str, node: str | None = None, count: int = 1, expected: str | None = "n", **status: object
) -> kube.Pod:
    made = decision.Decision(
        id=f"decision-of-{name}",
        vendor="nvidia",
        resource=NVIDIA,
        count=count,
        container="main",
        sku="t4",
        skus=("t4",),
        node=expected,
        images={},
        reason="because",
    )
    document = placing.bound(name, node, {NVIDIA: count})
    document["metadata"]["annotations"] = {"anygpu.io/decision": made.model_dump_json()}
    document["status"] |= status
    return kube.to_pod(document)


UNSCHEDULABLE = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}


def test_a_bound_pod_takes_devices_until_it_is_gone() -> None:
    table = fleet()
    table.apply_pod(pod("p", "n", 3))
    assert table.rows["n"].free(NVIDIA) == 1
    table.remove_pod(kube.PodUid("uid-p"))
    assert table.rows["n"].free(NVIDIA) == 4


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_pod_takes_nothing(phase: str) -> None:
    table = fleet()
    table.apply_pod(pod("p", "n", 3))
    table.apply_pod(pod("p", "n", 3, phase=phase))
    assert table.rows["n"].free(NVIDIA) == 4
    assert list(table.pods()) == []


def test_pods_that_come_before_their_node_count_once_it_is_there() -> None:
    table = fleets.Fleet(placing.CATALOGUE)
    table.apply_pod(pod("p", "n", 3))
    table.apply_node(kube.to_node(gpunodes.nvidia("n", "t4", 4)))
    assert table.rows["n"].free(NVIDIA) == 1


def test_a_node_that_comes_back_still_has_its_pods() -> None:
    table = fleet()
    table.apply_pod(pod("p", "n", 3))
    table.remove_node("n")
    assert "n" not in table.rows
    table.apply_node(kube.to_node(gpunodes.nvidia("n", "t4", 4)))
    assert table.rows["n"].free(NVIDIA) == 1


def test_pods_that_ask_zero_of_something_come_and_go() -> None:
    table = fleet()
    for name in "pq":
        table.apply_pod(kube.to_pod(placing.bound(name, "n", {"cpu": 0, NVIDIA: 0})))
    for name in "pq":
        table.remove_pod(kube.PodUid(f"uid-{name}"))
    assert table.rows["n"].usage.amounts == {}


def test_devices_that_failed_under_running_pods_leave_less_than_none() -> None:
    table = fleet()
    table.apply_pod(pod("p", "n", 4))
    table.apply_node(kube.to_node(gpunodes.nvidia("n", "t4", 2)))
    assert table.rows["n"].free(NVIDIA) == -2


def test_a_reservation_becomes_the_pod_of_the_watch_and_counts_once_all_the_way() -> None:
    table = fleet()
    table.ledger.reserve("decision-of-p", ledger.Hold(NVIDIA, 2, "n", frozenset({"t4"})), now=0)
    assert table.ledger.on_node("n", NVIDIA) == 2
    table.apply_pod(decided("p", count=2))
    assert (table.ledger.on_node("n", NVIDIA), table.rows["n"].free(NVIDIA)) == (2, 4)
    table.apply_pod(decided("p", "n", 2))
    assert (table.ledger.on_node("n", NVIDIA), table.rows["n"].free(NVIDIA)) == (0, 2)
    table.remove_pod(kube.PodUid("uid-p"))
    assert (len(table.ledger), table.rows["n"].free(NVIDIA)) == (0, 4)


def test_a_pod_bound_elsewhere_than_expected_frees_what_it_held() -> None:
    table = placing.fleet_of([gpunodes.nvidia("n", "t4", 4), gpunodes.nvidia("m", "t4", 4)])
    table.apply_pod(decided("p"))
    table.apply_pod(decided("p", "m"))
    assert (table.ledger.on_node("n", NVIDIA), table.rows["m"].free(NVIDIA)) == (0, 3)


def test_the_hold_of_an_unschedulable_pod_lapses() -> None:
    table = fleet()
    table.apply_pod(decided("p"))
    table.apply_pod(decided("p", **UNSCHEDULABLE))
    table.ledger.expire(100.0)
    assert table.ledger.on_node("n", NVIDIA) > 0
    table.apply_pod(decided("p", **UNSCHEDULABLE))  # its condition's text changed: the deadline stands
    table.ledger.expire(100.0 + ledger.RESERVATION_SECONDS)
    assert len(table.ledger) == 0


def test_an_unschedulable_pod_without_a_decision_holds_nothing() -> None:
    table = fleet()
    table.apply_pod(pod("q", **UNSCHEDULABLE))
    assert len(table.ledger) == 0


def test_a_plain_pod_that_waits_is_counted_as_waiting() -> None:
    table = fleet()
    table.apply_pod(pod("p", count=3))
    assert table.ledger.waiting(NVIDIA, frozenset({"t4"})) == 3


def test_a_nominated_pod_holds_on_its_node() -> None:
    table = fleet()
    table.apply_pod(pod("p", count=3, nominatedNodeName="n"))
    assert table.ledger.on_node("n", NVIDIA) == 3


def test_a_pod_holds_what_it_asks_and_not_what_a_forged_decision_says() -> None:
    table = fleet()
    document = placing.bound("p", None, {NVIDIA: 1})
    forged = json.loads(decided("p", count=1).annotations["anygpu.io/decision"]) | {"count": 4000}
    document["metadata"]["annotations"] = {"anygpu.io/decision": json.dumps(forged)}
    table.apply_pod(kube.to_pod(document))
    assert table.ledger.on_node("n", NVIDIA) == 1


def test_two_containers_with_devices_hold_for_both() -> None:
    table = fleet()
    made = decided("p", count=1)
    document = kube.to_json(made)
    document["spec"]["containers"].append({**document["spec"]["containers"][0], "name": "second"})
    table.apply_pod(kube.to_pod(document))
    assert table.ledger.on_node("n", NVIDIA) == 2


def test_a_relist_forgets_what_is_not_in_it() -> None:
    table = fleet()
    table.apply_pod(pod("p", "n"))
    table.apply_pod(decided("q"))
    table.replace(pods=[pod("r", "n", 2)])
    assert [each.metadata.name for each in table.pods()] == ["r"]
    assert (table.rows["n"].free(NVIDIA), len(table.ledger)) == (2, 0)
    table.replace(nodes=[])
    assert table.rows == {}


def test_a_node_whose_quantities_are_nonsense_is_a_node_without_them() -> None:
    broken = gpunodes.nvidia("b", "t4", 4)
    broken["status"]["allocatable"] |= {NVIDIA: "many", "cpu": ""}
    table = placing.fleet_of([broken])
    assert table.rows["b"].free(NVIDIA) == 0


def test_what_nodes_offer_has_a_version_that_pods_do_not_change() -> None:
    table = fleet()
    before = table.facts_version
    table.apply_pod(pod("p", "n"))
    table.apply_node(table.rows["n"].node)
    assert table.facts_version == before
    table.apply_node(kube.to_node(gpunodes.nvidia("n", "t4", 3)))
    assert table.facts_version == before + 1


def test_a_pod_is_found_by_namespace_and_name() -> None:
    table = fleet()
    table.apply_pod(pod("p", "n"))
    found = table.pod("default", "p")
    assert found is not None
    assert found.metadata.uid == "uid-p"
    assert table.pod("other", "p") is None
