"""The plan against a brute-force oracle that knows the documents alone, and what holds of every plan."""

import itertools
import math
from typing import Any

import gpunodes
import hypothesis.strategies as st
import placing
import pytest
from hypothesis import event, given, settings

from scheduler import budgets, kube, preempt, reservations

Json = dict[str, Any]
MANY = settings(max_examples=400, deadline=None)
NOW = 1_800_000_000.0
GPU = "nvidia.com/gpu"
PRIORITY = 100
NODES = ("n0", "n1", "n2")


@st.composite
def running(draw: st.DrawFn, name: str) -> Json:
    made = placing.bound(
        name, draw(st.sampled_from(NODES)), {GPU: draw(st.integers(0, 3)), "cpu": draw(st.sampled_from([1, 10, 20]))}
    )
    made["spec"]["priority"] = draw(st.sampled_from([-1, 0, 0, 0, 10, 10, 99, 100]))
    made["metadata"]["labels"] = {"app": draw(st.sampled_from(["web", "db", "batch", "batch"]))}
    made["metadata"]["namespace"] = draw(st.sampled_from(["default", "default", "default", "kube-system"]))
    started = draw(st.integers(0, 3))
    if started:
        made["status"]["startTime"] = f"2026-01-0{started}T00:00:00Z"
    if draw(st.integers(0, 29)) == 29:
        made["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:30Z"
    return made


@st.composite
def cluster(draw: st.DrawFn) -> tuple[list[Json], list[Json], dict[str, int], dict[str, int], dict[str, int]]:
    """Nodes, the pods on them, budgets by app, promises to others by node, and what the waiting pod asks."""
    pods = [draw(running(f"p{number}")) for number in range(draw(st.integers(3, 12)))]
    nodes: list[Json] = []
    for name in NODES:  # mostly full
        taken = sum(amount(pod, GPU) for pod in pods if pod["spec"]["nodeName"] == name)
        nodes.append(gpunodes.nvidia(name, "l4", max(0, taken + draw(st.sampled_from([0, 0, 0, 0, 1, -1])))))
        nodes[-1]["status"]["allocatable"]["pods"] = str(draw(st.sampled_from([110, 110, 4])))
    guards = draw(st.dictionaries(st.sampled_from(["web", "db"]), st.integers(0, 2)))
    promised = draw(st.dictionaries(st.sampled_from(NODES), st.integers(1, 2), max_size=2))
    return nodes, pods, guards, promised, {GPU: draw(st.integers(1, 4)), "cpu": draw(st.sampled_from([1, 1, 30]))}


def amount(pod: Json, resource: str) -> int:
    return int(pod["spec"]["containers"][0]["resources"]["limits"].get(resource, "0"))


def room(node: Json, there: list[Json], promised: int, asked: dict[str, int]) -> bool:
    offered = node["status"]["allocatable"]
    devices = int(offered[GPU]) - promised - sum(amount(pod, GPU) for pod in there)
    cpu = int(offered["cpu"]) - sum(amount(pod, "cpu") for pod in there)
    return devices >= asked[GPU] and cpu >= asked["cpu"] and len(there) < int(offered["pods"])


def may_go(pod: Json) -> bool:
    metadata = pod["metadata"]
    return pod["spec"]["priority"] < PRIORITY and metadata["namespace"] == "default" and not leaves(pod)


def leaves(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def keeps(victims: tuple[Json, ...], guards: dict[str, int]) -> bool:
    apps = [pod["metadata"]["labels"]["app"] for pod in victims]
    return all(apps.count(app) <= allowed for app, allowed in guards.items())


def cost(victims: tuple[Json, ...], missing: int, node: str) -> tuple[Any, ...]:
    starts = [pod["status"].get("startTime", "9") for pod in victims]
    return (
        max(pod["spec"]["priority"] for pod in victims),
        sum(pod["spec"]["priority"] + 2**31 for pod in victims),
        sum(amount(pod, GPU) for pod in victims) - missing,
        len(victims),
        [-ord(each) for each in min(starts)],
        node,
    )


def missing(node: Json, there: list[Json], promised: int, asked: dict[str, int]) -> int:
    """Devices that are missing once those have left who are leaving."""
    taken = sum(amount(pod, GPU) for pod in there if not leaves(pod))
    return max(0, asked[GPU] + promised + taken - int(node["status"]["allocatable"][GPU]))


def oracle(
    nodes: list[Json], pods: list[Json], guards: dict[str, int], promised: dict[str, int], asked: dict[str, int]
) -> tuple[Any, ...] | str | None:
    """The least cost of any victims on any node; a node's name: whose pods are leaving; None: no plan."""
    if all(pod["spec"]["priority"] >= PRIORITY for pod in pods):
        return None
    waited: list[str] = []
    costs: list[tuple[Any, ...]] = []
    for node in nodes:
        name = node["metadata"]["name"]
        there = [pod for pod in pods if pod["spec"]["nodeName"] == name]
        held = promised.get(name, 0)
        if int(node["status"]["allocatable"][GPU]) < asked[GPU]:
            continue
        if room(node, there, held, asked):
            return None
        staying = [pod for pod in there if not leaves(pod)]
        if room(node, staying, held, asked):
            waited.append(name)
        candidates = [pod for pod in staying if may_go(pod)]
        for count in range(1, len(candidates) + 1):
            for victims in itertools.combinations(candidates, count):
                left = [pod for pod in staying if pod not in victims]
                if keeps(victims, guards) and room(node, left, held, asked):
                    costs.append(cost(victims, missing(node, there, held, asked), name))
    return min(waited) if waited else min(costs, default=None)


def planned(
    nodes: list[Json], pods: list[Json], guards: dict[str, int], promised: dict[str, int], asked: dict[str, int]
) -> preempt.Plan | None:
    high = placing.bound("high", None, asked)
    high["spec"] |= {"priority": PRIORITY, "schedulerName": "anygpu-scheduler"}
    fleet = placing.fleet_of(nodes, [*pods, high])
    for name, count in promised.items():
        entry = reservations.Entry(kube.PodUid("other"), "default/other", {GPU: count}, NOW)
        fleet.apply_reservations(reservations.Record(name, {entry.uid: entry}, "1"))
    found = budgets.Budgets(
        budgets.Budget(
            metadata=kube.Metadata(name=app, namespace="default"),
            spec=budgets.BudgetSpec(selector=kube.LabelSelector(match_labels={"app": app})),
            status=budgets.BudgetStatus(disruptions_allowed=allowed),
        )
        for app, allowed in guards.items()
    )
    return preempt.plan(kube.to_pod(high), preempt.scene(fleet, NOW), found)


@MANY
@given(case=cluster())
def test_the_plan_is_the_cheapest_that_there_is(case: Any) -> None:
    nodes, pods, _, promised, asked = case
    found, wanted = planned(*case), oracle(*case)
    if found is None or wanted is None:
        event("no plan")
        assert (found, wanted) == (None, None)
        return
    if isinstance(wanted, str):
        event("pods are leaving")
        assert (found.node, found.victims) == (wanted, ())
        return
    event(f"{len(found.victims)} victims")
    documents = {pod["metadata"]["name"]: pod for pod in pods}
    victims = tuple(documents[pod.metadata.name] for pod in found.victims)
    (node,) = [each for each in nodes if each["metadata"]["name"] == found.node]
    there = [pod for pod in pods if pod["spec"]["nodeName"] == found.node]
    held = promised.get(found.node, 0)
    assert found.devices == {GPU: asked[GPU]}
    assert cost(victims, missing(node, there, held, asked), found.node) == wanted


@MANY
@given(case=cluster(), most=st.integers(1, 40))
def test_where_victims_are_spared_one_by_one_the_plan_holds_and_none_is_needless(case: Any, most: int) -> None:
    nodes, pods, guards, promised, asked = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preempt, "MAX_CHOICES", most)
        patch.setattr(preempt, "SHORTLIST", 1)
        found = planned(*case)
    if found is None or not found.victims:
        return
    victims = [pod.metadata.name for pod in found.victims]
    (node,) = [each for each in nodes if each["metadata"]["name"] == found.node]
    staying = [pod for pod in pods if pod["spec"]["nodeName"] == found.node and not leaves(pod)]
    going = tuple(pod for pod in staying if pod["metadata"]["name"] in victims)
    assert len(going) == len(victims) == len({*victims})
    assert all(may_go(pod) for pod in going)
    assert keeps(going, guards)

    def holds(without: tuple[Json, ...]) -> bool:
        return room(node, [pod for pod in staying if pod not in without], promised.get(found.node, 0), asked)

    assert holds(going)
    assert not any(holds(tuple(pod for pod in going if pod is not spared)) for spared in going)
    if not guards:
        highest = max((pod["spec"]["priority"] for pod in going), default=-math.inf)
        cheaper = tuple(pod for pod in staying if may_go(pod) and pod["spec"]["priority"] < highest)
        assert not holds(cheaper), "no one as important as the most important victim had to go"
