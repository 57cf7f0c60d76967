"""The extender's wire, byte for byte as kube-scheduler sends and reads it."""

import json
from typing import Any

import gpunodes
import placing
import pytest

from scheduler import asks, errors, extender, fit, kube
from scheduler import fleet as fleets
from scheduler.cli import place

Json = dict[str, Any]
NVIDIA = "nvidia.com/gpu"


def fleet() -> fleets.Fleet:
    return placing.fleet_of(
        [
            gpunodes.nvidia("t4", "t4", 4),
            gpunodes.nvidia("h100", "h100"),
            gpunodes.amd("mi", "mi300x"),
            gpunodes.node("plain"),
        ]
    )


ALL = ["plain", "h100", "mi", "t4"]


def arguments(pod: Json, names: list[str] | None = None, **more: Any) -> bytes:
    """ExtenderArgs as Go encodes them: field names verbatim, null for what is not sent, no apiVersion in the pod."""
    sent = {key: value for key, value in pod.items() if key not in ("apiVersion", "kind")}
    sent["metadata"] = sent["metadata"] | {"uid": "8f1c", "creationTimestamp": "2026-01-01T00:00:00Z"}
    sent["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
    return json.dumps(
        {"Pod": sent, "Nodes": None, "NodeNames": ALL if names is None else names} | more, separators=(",", ":")
    ).encode()


def filtered(pod: Json, table: fleets.Fleet | None = None, names: list[str] | None = None) -> Json:
    answer = json.loads(extender.filter_nodes(arguments(pod, names), table or fleet()))
    assert list(answer) == ["NodeNames", "FailedAndUnresolvableNodes", "Nodes", "FailedNodes", "Error"]
    assert (answer["Nodes"], answer["FailedNodes"], answer["Error"]) == (None, {}, "")
    assert sorted([*answer["NodeNames"], *answer["FailedAndUnresolvableNodes"]]) == sorted(
        ALL if names is None else names
    )
    assert "%" not in json.dumps(answer["FailedAndUnresolvableNodes"])
    return answer


def scores(pod: Json, table: fleets.Fleet | None = None, names: list[str] | None = None) -> dict[str, int]:
    answer = json.loads(extender.prioritize_nodes(arguments(pod, names), table or fleet()))
    found = {each["Host"]: each["Score"] for each in answer}
    assert len(found) == len(answer)
    assert all(type(score) is int and 0 < score <= 10 for score in found.values())
    return found


def test_nodes_that_fit_come_back_in_the_order_they_came() -> None:
    answer = filtered(gpunodes.pod(gpus="1"))
    assert answer["NodeNames"] == ["h100", "mi", "t4"]
    assert answer["FailedAndUnresolvableNodes"] == {"plain": "no GPU that the pod asks"}


def test_each_refusal_says_why() -> None:
    answer = filtered(gpunodes.pod(memory="100Gi"))
    assert answer["FailedAndUnresolvableNodes"] == {
        "plain": "no GPU that the pod asks",
        "h100": "h100-sxm: 79.6 GiB of memory, 100Gi asked",
        "t4": "t4: 15 GiB of memory, 100Gi asked",
    }


def test_a_pod_with_an_injected_resource_is_judged_for_that_vendor() -> None:
    pod = gpunodes.pod(gpus="1")
    pod["spec"]["containers"][0]["resources"] = {"limits": {NVIDIA: "1"}}
    assert filtered(pod)["NodeNames"] == ["h100", "t4"]
    assert filtered(pod)["FailedAndUnresolvableNodes"]["mi"] == "offers amd.com/gpu, the pod asks nvidia.com/gpu"


def test_devices_of_an_injected_resource_are_left_to_kube_scheduler() -> None:
    table = fleet()
    table.apply_pod(kube.to_pod(placing.bound("x", "t4", {NVIDIA: 4})))
    pod = gpunodes.pod(sku="t4")
    assert filtered(pod, table)["FailedAndUnresolvableNodes"]["t4"] == extender.NOT_FREE
    pod["spec"]["containers"][0]["resources"] = {"limits": {NVIDIA: "1"}}
    assert "t4" in filtered(pod, table)["NodeNames"]


def test_reasons_stay_the_same_while_counts_change() -> None:
    table = fleet()
    pod = gpunodes.pod(sku="t4", gpus="2")
    seen = set()
    for number in range(3):
        table.apply_pod(kube.to_pod(placing.bound(f"x{number}", "t4", {NVIDIA: 1})))
        table.apply_pod(kube.to_pod(placing.bound(f"y{number}", "h100", {NVIDIA: 2})))
        seen.add(json.dumps({k: v for k, v in filtered(pod, table)["FailedAndUnresolvableNodes"].items() if k != "t4"}))
    assert len(seen) == 1


def test_a_node_that_anygpu_has_not_seen_is_refused() -> None:
    answer = filtered(gpunodes.pod(gpus="1"), names=["t4", "new"])
    assert answer["FailedAndUnresolvableNodes"] == {"new": extender.NOT_SEEN}
    assert scores(gpunodes.pod(gpus="1"), names=["t4", "new"]) == {"t4": 10}


def test_no_nodes_in_no_nodes_out() -> None:
    assert filtered(gpunodes.pod(gpus="1"), names=[])["NodeNames"] == []
    assert scores(gpunodes.pod(gpus="1"), names=[]) == {}


@pytest.mark.parametrize(
    "pod",
    [
        gpunodes.pod(),
        placing.bound("p", None, {NVIDIA: 1}),
        gpunodes.pod(gpus="many") | {"metadata": {"annotations": {"anygpu.io/decision": "{}"}}},
        {"metadata": {"labels": {"anygpu.io/inject": "false"}, "annotations": {"anygpu.io/gpus": "x"}}, "spec": {}},
        {"metadata": {}, "spec": {}},
    ],
    ids=["nothing", "a plain GPU", "only a decision", "opted out", "empty"],
)
def test_a_pod_that_asks_nothing_of_us_is_never_refused_and_never_scored(pod: Json) -> None:
    assert filtered(pod, names=[*ALL, "unknown"])["NodeNames"] == [*ALL, "unknown"]
    assert scores(pod) == {}


def test_invalid_annotations_refuse_every_node_with_their_problem_and_score_none() -> None:
    pod = gpunodes.pod(gpus="100%d", memory="1%")
    refused = filtered(pod)["FailedAndUnresolvableNodes"]
    assert refused.keys() == set(ALL)
    assert len(set(refused.values())) == 1
    assert "anygpu.io/gpus" in refused["t4"]
    assert scores(pod) == {}


def test_scores_put_the_least_capable_first_and_leave_zero_out() -> None:
    assert scores(gpunodes.pod(gpus="1")) == {"t4": 10, "h100": 8, "mi": 6}
    assert scores(gpunodes.pod(gpus="1", objective="speed")) == {"mi": 10, "h100": 8, "t4": 6}
    many = placing.fleet_of(
        [gpunodes.nvidia(name, name) for name in gpunodes.NVIDIA] + [gpunodes.amd("mi210", "mi210")]
    )
    names = list(many.rows)
    assert sorted(scores(gpunodes.pod(gpus="1"), many, names).values()) == [2, 4, 6, 8, 10]


def test_vendor_order_beats_the_objective() -> None:
    assert scores(gpunodes.pod(vendor="amd,nvidia")) == {"mi": 10, "t4": 8, "h100": 6}


def test_without_node_names_the_scheduler_is_told_what_to_set() -> None:
    body = arguments(gpunodes.pod(gpus="1"), NodeNames=None, Nodes={"metadata": {}, "items": []})
    with pytest.raises(errors.InvalidInput, match="nodeCacheCapable: true"):
        extender.filter_nodes(body, fleet())
    assert json.loads(extender.error_reply("no"))["Error"] == "no"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b'{"Pod": null, "NodeNames": []}',
        b'{"Pod": {}, "NodeNames": [1]}',
        b'{"Pod": {"metadata": []}, "NodeNames": []}',
        b'{"Pod": {"spec": {"containers": [{"resources": {"limits": 1}}]}}, "NodeNames": []}',
        b'{"Pod": {"metadata": {"name": "\xff"}}, "NodeNames": []}',
        b'{"Pod": {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b'}, "NodeNames": []}',
    ],
)
def test_a_body_that_is_no_extender_call_is_refused_in_a_sentence(body: bytes) -> None:
    for verb in (extender.filter_nodes, extender.prioritize_nodes):
        with pytest.raises(errors.InvalidInput):
            verb(body, fleet())


def test_filter_writes_nothing() -> None:
    table = fleet()
    filtered(gpunodes.pod(gpus="2"), table)
    assert len(table.ledger) == 0
    assert all(not row.usage.pods for row in table.rows.values())


@pytest.mark.parametrize(
    "needs",
    [{"gpus": "1"}, {"memory": "40Gi"}, {"vendor": "amd,nvidia"}, {"objective": "speed"}, {"precision": "fp8"}],
    ids=str,
)
def test_through_the_scheduler_a_pod_lands_where_place_says(needs: Json) -> None:
    table = fleet()
    table.apply_pod(kube.to_pod(placing.bound("x", "h100", {NVIDIA: 3})))
    placed = place.place_one(gpunodes.pod(**needs), table, {"registry.test/team/app:v1": placing.IMAGE}, "test")
    admitted = {**placed.pod, "spec": {**placed.pod["spec"]}}
    node = admitted["spec"].pop("nodeName")
    names = filtered(admitted, table)["NodeNames"]
    points = scores(admitted, table, names)
    assert max(names, key=lambda name: points.get(name, 0)) == node
    assert list(points.values()).count(10) == 1


def test_a_mixed_node_is_judged_by_what_is_free_on_it() -> None:
    table = placing.fleet_of([gpunodes.mig_mixed("n", "a100-80", 2, **{"3g.40gb": 1})])
    table.apply_pod(kube.to_pod(placing.bound("x", "n", {"nvidia.com/mig-3g.40gb": 1})))
    assert filtered(gpunodes.pod(share="any"), table, ["n"])["NodeNames"] == ["n"]
    assert scores(gpunodes.pod(share="any"), table, ["n"]) == {"n": 10}


def test_reasons_are_those_of_fit() -> None:
    table = fleet()
    asked = gpunodes.pod(precision="fp4")
    refused = filtered(asked)["FailedAndUnresolvableNodes"]
    device = table.rows["t4"].facts.pools[0].device
    assert refused["t4"] == fit.refusal(asks.read(kube.to_pod(asked), table).needs, device)


def preemption(pod: Json) -> Json:
    victims = {"n": {"Pods": [{"UID": "uid-low"}], "NumPDBViolations": 1}}
    body = {"Pod": pod, "NodeNameToVictims": None, "NodeNameToMetaVictims": victims}
    found: Json = json.loads(extender.preempt_pods(json.dumps(body).encode()))["NodeNameToMetaVictims"]
    assert found in ({}, victims)
    return found


def test_kube_scheduler_evicts_nobody_for_a_pod_whose_devices_we_count() -> None:
    pod = placing.bound("p", None, {"nvidia.com/gpu": 1})
    assert preemption(pod) != {}, "its devices kube-scheduler counts"
    pod["spec"]["schedulerName"] = "anygpu-scheduler"
    assert preemption(pod) == {}
    claims = placing.bound("p", None, {"anygpu.io/gpu": 1})
    claims["spec"]["schedulerName"] = "anygpu-scheduler"
    assert preemption(claims) != {}, "no preemption of ours would help it"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"Pod": {}}', b'{"Pod": {}, "NodeNameToVictims": {}}', b"\xff"])
def test_a_body_that_is_no_preemption_is_refused(body: bytes) -> None:
    with pytest.raises(errors.InvalidInput):
        extender.preempt_pods(body)


def test_devices_that_kube_scheduler_frees_for_a_pod_as_important_are_not_given_away() -> None:
    early = placing.bound("early", None, {"nvidia.com/gpu": 1})
    early["spec"]["priority"] = 5
    early["status"]["nominatedNodeName"] = "n"
    late = placing.bound("late", None, {"nvidia.com/gpu": 1})
    late["spec"] |= {"schedulerName": "anygpu-scheduler", "priority": 5}
    fleet = placing.fleet_of(
        [gpunodes.nvidia("n", "l4", 2)], [placing.bound("runs", "n", {"nvidia.com/gpu": 1}), early]
    )

    def refusals() -> dict[str, str]:
        return extender.refusals(kube.to_pod(late), ["n"], fleet)

    assert refusals() == {"n": extender.NOT_FREE}
    late["spec"]["priority"] = 6
    assert refusals() == {}
    late["spec"]["priority"] = 5
    early["status"]["nominatedNodeName"] = "m"
    fleet.apply_pod(kube.to_pod(early))
    assert refusals() == {}
    early["status"]["nominatedNodeName"] = "n"
    fleet.apply_pod(kube.to_pod(early))
    assert refusals() == {"n": extender.NOT_FREE}
    fleet.remove_pod(kube.PodUid("uid-early"))
    assert refusals() == {}
