"""The choice against a brute-force oracle, over random mixed fleets and needs."""

import random
from typing import Any

import gpunodes
import hypothesis.strategies as st
import placing
from hypothesis import assume, given, settings

from capability_db import vendors
from scheduler import asks, errors, fit, kube, offers, score
from scheduler import fleet as fleets
from scheduler.cli import place

Json = dict[str, Any]
FEW = settings(max_examples=60, deadline=None)
AMOUNTS = st.dictionaries(
    st.sampled_from(["nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-3g.40gb"]), st.integers(1, 3), max_size=2
)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Json], list[Json]]:
    """Nodes, and plain pods that run on them within what they offer."""
    nodes = draw(placing.gpu_nodes())
    running: list[Json] = []
    for number, node in enumerate(nodes):
        asked = draw(AMOUNTS)
        there = node["status"]["allocatable"]
        taken = {name: count for name, count in asked.items() if count <= int(there.get(name, "0"))}
        if taken:
            running.append(placing.bound(f"running-{number}", node["metadata"]["name"], taken))
    return nodes, running


def question(document: Json) -> asks.Question:
    return asks.read(kube.to_pod(document), fleets.Fleet(placing.CATALOGUE))


def survey(document: Json, fleet: fleets.Fleet) -> offers.Survey:
    return offers.survey(question(document).ask(kube.to_pod(document), placing.IMAGE), fleet)


def free_offers(document: Json, nodes: list[Json], running: list[Json]) -> list[tuple[Any, int, str, str]]:
    """Every (rank, devices left, node, resource) that could take the pod now, counted from the documents alone."""
    asked = question(document)
    pod = kube.to_pod(document)
    found: list[tuple[Any, int, str, str]] = []
    for node in nodes:
        name = node["metadata"]["name"]
        ready = {"type": "Ready", "status": "True"} in node["status"]["conditions"]
        if not ready or node["spec"].get("unschedulable"):
            continue
        row = placing.fleet_of([node]).rows[name]
        for pool in row.facts.pools:
            device = pool.device
            taints = {taint["key"] for taint in node["spec"].get("taints", [])}
            used = sum(
                int(container["resources"]["limits"].get(device.resource, "0"))
                for other in running
                if other["spec"].get("nodeName") == name
                for container in other["spec"]["containers"]
            )
            left = int(node["status"]["allocatable"][device.resource]) - used - asked.count
            if (
                left >= 0
                and device.vendor in placing.IMAGE.by_vendor
                and not fit.unmet(asked.needs, device)
                and all(vendors.VENDORS[device.vendor].tolerates(taint) for taint in taints)
                and kube.node_affinity_holds(pod.spec, name, row.labels)
            ):
                found.append((score.rank(asked.needs, device), left, name, device.resource))
    return sorted(found)


@FEW
@given(clusters(), placing.NEEDS)
def test_the_choice_is_the_best_free_offer_there_is(cluster: tuple[list[Json], list[Json]], needs: Json) -> None:
    nodes, running = cluster
    pod = gpunodes.pod(**needs)
    made = survey(pod, placing.fleet_of(nodes, running))
    expected = free_offers(pod, nodes, running)
    assert {verdict.name for verdict in made.verdicts if verdict.fits} == {name for _, _, name, _ in expected}
    if not expected:
        assert made.choice is None or made.choice.node is None
        return
    assert made.choice is not None
    assert (made.choice.node, made.choice.device.resource) == expected[0][2:]
    if needs.get("vendor"):
        order = needs["vendor"].split(",")
        theirs = [vendors.of_resource(resource).name for *_, resource in expected]
        assert order.index(made.choice.device.vendor) == min(order.index(vendor) for vendor in theirs)


@FEW
@given(clusters(), placing.NEEDS)
def test_scores_never_contradict_the_choice(cluster: tuple[list[Json], list[Json]], needs: Json) -> None:
    nodes, running = cluster
    pod = gpunodes.pod(**needs)
    made = survey(pod, placing.fleet_of(nodes, running))
    best: dict[str, Any] = {}
    for rank, _, name, _ in free_offers(pod, nodes, running):
        best.setdefault(name, rank)
    assert made.scores.keys() == best.keys()
    assert all(0 <= points <= score.MAX_SCORE for points in made.scores.values())
    for one, rank in best.items():
        for other, worse in best.items():
            if rank < worse and made.scores[one] > 1:
                assert made.scores[one] >= made.scores[other] + 1
    if made.choice and made.choice.node:
        assert made.scores[made.choice.node] == score.MAX_SCORE
        assert list(made.scores.values()).count(score.MAX_SCORE) == 1


@FEW
@given(clusters(), placing.NEEDS, st.randoms(use_true_random=False))
def test_the_answer_does_not_depend_on_the_order_of_events(
    cluster: tuple[list[Json], list[Json]], needs: Json, shuffle: random.Random
) -> None:
    nodes, running = cluster
    pod = gpunodes.pod(**needs)
    before = survey(pod, placing.fleet_of(nodes, running))
    events = [(fleets.Fleet.apply_node, kube.to_node(node)) for node in nodes]
    events += [(fleets.Fleet.apply_pod, kube.to_pod(each)) for each in running]
    shuffle.shuffle(events)
    fleet = fleets.Fleet(placing.CATALOGUE)
    for apply, value in events:
        apply(fleet, value)
    after = survey(pod, fleet)
    assert (after.choice, after.scores) == (before.choice, before.scores)
    assert [(v.name, v.reason, v.missing) for v in after.verdicts] == [
        (v.name, v.reason, v.missing) for v in before.verdicts
    ]


@FEW
@given(clusters(), st.lists(placing.NEEDS, min_size=1, max_size=12))
def test_placing_one_after_the_other_never_exceeds_what_a_node_has(
    cluster: tuple[list[Json], list[Json]], wanted: list[Json]
) -> None:
    nodes, running = cluster
    fleet = placing.fleet_of(nodes, running)
    taken: list[Json] = list(running)
    for number, needs in enumerate(wanted):
        document = gpunodes.pod(f"p{number}", **needs)
        try:
            placed = place.place_one(document, fleet, {"registry.test/team/app:v1": placing.IMAGE}, "test")
        except (errors.InvalidNeeds, errors.NothingFits):
            continue
        place.remember(placed, fleet, number)
        taken.append(placed.pod)
        if placed.decision and placed.decision.node:
            assert placed.node == placed.decision.node
    for node in nodes:
        for resource, amount in node["status"]["allocatable"].items():
            if "/" in resource:
                used = sum(
                    int(container.get("resources", {}).get("limits", {}).get(resource, 0))
                    for pod in taken
                    if pod["spec"].get("nodeName") == node["metadata"]["name"]
                    for container in pod["spec"]["containers"]
                )
                assert used <= int(amount)


@settings(max_examples=150, deadline=None)
@given(placing.gpu_nodes(), placing.NEEDS)
def test_the_injected_affinity_admits_a_node_exactly_if_its_devices_fit(nodes: list[Json], needs: Json) -> None:
    fleet = placing.fleet_of(nodes)
    document = gpunodes.pod(**needs)
    try:
        admitted = placing.admit(document, fleet)
    except (errors.InvalidNeeds, errors.NothingFits):
        assume(False)
    resource = admitted.decision.resource
    spec = kube.to_pod(admitted.pod).spec
    asked = question(document).needs
    for row in fleet.rows.values():
        for pool in row.facts.pools:
            if pool.device.resource == resource:
                fits = not fit.unmet(asked, pool.device)
                assert kube.node_affinity_holds(spec, row.name, row.labels) == fits, (row.name, pool.device.label)


@FEW
@given(clusters(), placing.NEEDS)
def test_a_pod_that_waits_says_what_it_waits_for_and_is_admitted_there(
    cluster: tuple[list[Json], list[Json]], needs: Json
) -> None:
    fleet = placing.fleet_of(*cluster)
    made = survey(gpunodes.pod(**needs), fleet)
    could = [verdict.offer for verdict in made.verdicts if verdict.offer]
    if made.choice is None or made.choice.node is not None or not could:
        return
    assert made.choice.device.resource in {offer.pool.device.resource for offer in could}
    assert made.choice.nodes == sum(offer.pool.device.resource == made.choice.device.resource for offer in could)
    assert not fit.unmet(question(gpunodes.pod(**needs)).needs, made.choice.device)
