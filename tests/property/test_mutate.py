"""Admission over random fleets, needs and pods: doing it twice adds nothing, and the patch is the change."""

import base64
import copy
import json
from typing import Any

import gpunodes
import hypothesis.strategies as st
import jsonpatch
import placing
from hypothesis import assume, given, settings

from images import resolve
from scheduler import errors, kube
from webhooks import inject, mutate, review

Json = dict[str, Any]
FEW = settings(max_examples=60, deadline=None)
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
IMAGE = "registry.test/team/app:v1"

EXPRESSIONS = st.sampled_from(
    [
        {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
        {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["node-1"]},
        {"key": "team", "operator": "DoesNotExist"},
    ]
)
TERMS = st.lists(st.fixed_dictionaries({"matchExpressions": st.lists(EXPRESSIONS, min_size=1, max_size=2)}), max_size=2)


@st.composite
def pods(draw: st.DrawFn) -> Json:
    """A pod with any of the parts that admission looks at, absent, null or filled."""
    document = gpunodes.pod(**draw(placing.NEEDS))
    document["metadata"]["annotations"].setdefault("anygpu.io/objective", "pack")
    spec = document["spec"]
    spec["containers"][0]["resources"] = draw(st.sampled_from([None, {}, {"limits": {"cpu": "1"}}, {"requests": None}]))
    spec["containers"][0]["env"] = draw(st.sampled_from([None, [], [{"name": "A", "value": "1"}]]))
    for number in range(draw(st.integers(0, 2))):
        spec["containers"].append({"name": f"more-{number}", "image": draw(st.sampled_from([IMAGE, "envoy:v1"]))})
    if draw(st.booleans()):
        spec["initContainers"] = [{"name": "init", "image": draw(st.sampled_from([IMAGE, "busybox"]))}]
    terms = draw(TERMS)
    if terms:
        spec["affinity"] = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}
    spec["tolerations"] = draw(st.sampled_from([None, [], [{"operator": "Exists"}], [{"key": "a", "value": "b"}]]))
    document["metadata"]["labels"] = draw(st.sampled_from([None, {"app": "x"}]))
    return {key: value for key, value in document.items() if value is not None}


def admit(document: Json, fleet: Any, image: resolve.Resolved = placing.IMAGE) -> mutate.Admission:
    try:
        return placing.admit(document, fleet, image)
    except (errors.InvalidNeeds, errors.NothingFits):
        assume(False)
        raise


def without_record(document: Json) -> Json:
    copied = copy.deepcopy(document)
    for key in ("anygpu.io/decision", "anygpu.io/requested-image"):
        copied["metadata"]["annotations"].pop(key, None)
    return copied


@FEW
@given(placing.gpu_nodes(5), pods())
def test_admitting_what_was_admitted_changes_nothing_but_the_record(nodes: list[Json], document: Json) -> None:
    fleet = placing.fleet_of(nodes)
    once = admit(document, fleet)
    chosen = next(iter(once.decision.images.values()))
    vendor = once.decision.vendor
    again = placing.admit(
        once.pod,
        fleet,
        resolve.Resolved(chosen, {vendor: placing.IMAGE.by_vendor[vendor]}, pinned_by_user=True),
    )
    assert without_record(again.pod) == without_record(once.pod)
    assert (again.decision.vendor, again.decision.resource, again.decision.count, again.decision.node) == (
        once.decision.vendor,
        once.decision.resource,
        once.decision.count,
        once.decision.node,
    )
    assert inject.again(once.pod, once.decision) == once.pod


@FEW
@given(placing.gpu_nodes(5), pods())
def test_the_patch_turns_the_original_into_the_admitted_pod(nodes: list[Json], document: Json) -> None:
    made = admit(document, placing.fleet_of(nodes))
    response = json.loads(review.allow("u", document, made.pod))["response"]
    patch = json.loads(base64.b64decode(response["patch"]))
    assert jsonpatch.apply_patch(document, patch) == made.pod
    assert response["patchType"] == "JSONPatch"


@FEW
@given(placing.gpu_nodes(5), pods())
def test_what_the_pod_says_itself_is_all_still_there(nodes: list[Json], document: Json) -> None:
    fleet = placing.fleet_of(nodes)
    made = admit(document, fleet)
    before, after = kube.to_pod(document), kube.to_pod(made.pod)
    for toleration in before.spec.tolerations or []:
        assert toleration in (after.spec.tolerations or [])
    for name, row in fleet.rows.items():
        if kube.node_affinity_holds(after.spec, name, row.labels):
            assert kube.node_affinity_holds(before.spec, name, row.labels)
    if made.decision.node:
        assert kube.node_affinity_holds(after.spec, made.decision.node, fleet.rows[made.decision.node].labels)
    asked = kube.pod_requests(after)
    for resource, amount in kube.pod_requests(before).items():
        assert asked[resource] == amount
    assert asked[made.decision.resource] == made.hold.count * 1000
    assert made.decision.id == made.pod["metadata"]["annotations"]["anygpu.io/decision"].split('"')[3]
