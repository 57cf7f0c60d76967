"""Filter and prioritize over random fleets: nothing lost, nothing invented, and in step with the choice."""

import json
from typing import Any

import gpunodes
import hypothesis.strategies as st
import placing
from hypothesis import assume, given, settings

from scheduler import errors, extender
from scheduler.cli import place

Json = dict[str, Any]
FEW = settings(max_examples=60, deadline=None)


def call(verb: Any, pod: Json, names: list[str], fleet: Any) -> Any:
    return json.loads(verb(json.dumps({"Pod": pod, "Nodes": None, "NodeNames": names}).encode(), fleet))


@FEW
@given(placing.gpu_nodes(), placing.NEEDS, st.lists(st.sampled_from(["node-0", "node-3", "x"]), unique=True))
def test_every_name_comes_back_exactly_once(nodes: list[Json], needs: Json, more: list[str]) -> None:
    fleet = placing.fleet_of(nodes)
    names = list(dict.fromkeys([*fleet.rows, *more]))
    answer = call(extender.filter_nodes, gpunodes.pod(**needs), names, fleet)
    kept, refused = answer["NodeNames"], answer["FailedAndUnresolvableNodes"]
    assert [name for name in names if name not in refused] == kept
    assert refused.keys() <= set(names)
    assert all(reason and "%" not in reason and len(reason) < 200 for reason in refused.values())
    points = call(extender.prioritize_nodes, gpunodes.pod(**needs), names, fleet)
    assert {each["Host"] for each in points} <= set(kept)


@FEW
@given(placing.gpu_nodes(), placing.NEEDS)
def test_a_placed_pod_wins_the_scheduler_too(nodes: list[Json], needs: Json) -> None:
    fleet = placing.fleet_of(nodes)
    document = gpunodes.pod(**needs)
    try:
        placed = place.place_one(document, fleet, {"registry.test/team/app:v1": placing.IMAGE}, "test")
    except (errors.InvalidNeeds, errors.NothingFits):
        assume(False)
    assume(placed.node and needs)
    # What kube-scheduler's own filters leave: the nodes of `place` that fit and list the resource that was chosen.
    assert placed.decision
    resource = placed.decision.resource
    names = [
        verdict.name
        for verdict in placed.verdicts
        if verdict.fits and fleet.rows[verdict.name].free(resource) >= placed.decision.count
    ]
    pod = {**placed.pod, "spec": {key: value for key, value in placed.pod["spec"].items() if key != "nodeName"}}
    kept = call(extender.filter_nodes, pod, names, fleet)["NodeNames"]
    assert placed.node in kept
    points = {each["Host"]: each["Score"] for each in call(extender.prioritize_nodes, pod, kept, fleet)}
    assert max(kept, key=lambda name: points.get(name, 0)) == placed.node


KEYS = st.sampled_from(["Pod", "NodeNames", "metadata", "spec", "annotations", "containers"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(KEYS, children),
)


@FEW
@given(JSON)
def test_any_json_is_an_answer_or_a_refusal(body: Any) -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("n", "t4")])
    for verb in (extender.filter_nodes, extender.prioritize_nodes):
        try:
            json.loads(verb(json.dumps(body).encode(), fleet))
        except errors.InvalidInput as error:
            assert str(error)
