"""/mutate and /validate: whole reviews in, whole answers out."""

import asyncio
import base64
import collections
import json
from typing import Any

import gpunodes
import jsonpatch
import placing
import pytest

from images import resolve
from scheduler import decision, kube
from webhooks import admission as admissions

Json = dict[str, Any]
NVIDIA, AMD = "nvidia.com/gpu", "amd.com/gpu"


class Hook:
    """An admission over a fleet and a registry that is not there."""

    def __init__(self, nodes: list[Json] | None = None, *tags: str, down: bool = False, synced: bool = True) -> None:
        if nodes is None:
            nodes = [gpunodes.nvidia("t4", "t4", 4), gpunodes.amd("mi", "mi300x", 8)]
        self.fleet = placing.fleet_of(nodes)
        self.lookup = placing.FakeLookup(*(tags or ("v1-nvidia", "v1-amd")), down=down)
        self.now = 0.0
        self.admission = admissions.Admission(
            self.fleet, resolve.Resolver(self.lookup), placing.ids(), lambda: synced, lambda: self.now
        )

    def mutate(self, document: Json | None, **request: Any) -> Json:
        return self._call(self.admission.mutate, document, "Pod", request)

    def validate(self, document: Json | None, **request: Any) -> Json:
        return self._call(self.admission.validate, document, (document or {}).get("kind", ""), request)

    def _call(self, verb: Any, document: Json | None, kind: str, request: Json) -> Json:
        body = asyncio.run(verb(reviewed(document, kind, **request)))
        answer = json.loads(body)
        assert answer["apiVersion"] == "admission.k8s.io/v1"
        response = answer["response"]
        assert response["uid"] == "the-uid"
        assert ("patch" in response) == ("patchType" in response)
        if not response["allowed"]:
            assert response["status"]["message"].isprintable()
        return response


def reviewed(document: Json | None, of: str = "Pod", **request: Any) -> bytes:
    base = {"uid": "the-uid", "operation": "CREATE", "namespace": "default", "kind": {"kind": of}, "object": document}
    return json.dumps({"request": base | request}).encode()


def patched(document: Json, response: Json) -> Json:
    assert response["allowed"], response
    return jsonpatch.apply_patch(document, json.loads(base64.b64decode(response["patch"])))


def pod(**annotations: str) -> Json:
    return gpunodes.pod(**(annotations or {"gpus": "1"}))


def workload(kind: str, **annotations: str) -> Json:
    keys = {f"anygpu.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    template: Json = {"template": {"metadata": {"annotations": keys}, "spec": pod()["spec"]}}
    spec = {"jobTemplate": {"spec": template}} if kind == "CronJob" else template
    return {"kind": kind, "metadata": {"name": "w", "namespace": "default"}, "spec": spec}


KINDS = pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"])


# --- /mutate ----------------------------------------------------------------------------------------------------------


def test_a_pod_is_given_a_gpu_and_what_it_was_given_is_reserved() -> None:
    hook = Hook()
    document = pod()
    after = patched(document, hook.mutate(document))
    made = decision.read(after["metadata"]["annotations"])
    assert made is not None
    assert after["spec"]["containers"][0]["resources"]["limits"] == {NVIDIA: "1"}
    assert made.id in hook.fleet.ledger
    assert hook.fleet.ledger.on_node("t4", NVIDIA) == 1


def test_a_dry_run_is_answered_alike_and_reserves_nothing() -> None:
    hook = Hook()
    assert "patch" in hook.mutate(pod(), dryRun=True)
    assert len(hook.fleet.ledger) == 0


@pytest.mark.parametrize(
    ("document", "request_"),
    [
        (None, {}),
        (None, {"operation": "DELETE", "oldObject": pod()}),
        (pod(), {"operation": "UPDATE", "oldObject": pod()}),
        (pod(), {"kind": {"kind": "Deployment"}}),
        ({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}, {}),
    ],
    ids=["no object", "delete", "update", "no pod", "not opted in"],
)
def test_what_is_not_ours_is_let_in_untouched(document: Json | None, request_: Json) -> None:
    hook = Hook(down=True, synced=False)
    assert hook.mutate(document, **request_) == {"uid": "the-uid", "allowed": True}


def test_forged_records_on_a_pod_that_asks_nothing_are_taken_off() -> None:
    forged = {"anygpu.io/decision": "{}", "anygpu.io/bound-vendor": "amd", "mine": "kept"}
    document = {"metadata": {"annotations": forged}, "spec": {}}
    response = Hook(down=True, synced=False).mutate(document)
    patch = json.loads(base64.b64decode(response["patch"]))
    assert patch == [{"op": "add", "path": "/metadata/annotations", "value": {"mine": "kept"}}]


def test_a_pod_that_opts_out_is_let_in_untouched() -> None:
    document = pod(gpus="nonsense")
    document["metadata"]["labels"] = {"anygpu.io/inject": "false"}
    assert "patch" not in Hook(down=True).mutate(document)


def test_a_mirror_pod_is_let_in_untouched() -> None:
    document = pod()
    document["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "x"
    assert "patch" not in Hook(down=True).mutate(document)


def test_before_the_cluster_was_read_a_pod_is_refused_and_told_to_come_back() -> None:
    response = Hook(synced=False).mutate(pod())
    assert (response["allowed"], response["status"]["code"]) == (False, 503)
    assert "try again" in response["status"]["message"]


def test_bad_annotations_are_refused_by_name_and_value() -> None:
    response = Hook().mutate(pod(gpus="two", precison="fp8"))
    assert response["status"]["code"] == 400
    assert "anygpu.io/gpus: 'two'" in response["status"]["message"]
    assert "anygpu.io/precison: unknown; did you mean precision?" in response["status"]["message"]


def test_an_unreachable_registry_refuses_with_its_reason() -> None:
    response = Hook(down=True).mutate(pod())
    assert (response["allowed"], response["status"]["code"]) == (False, 503)
    assert "registry.test" in response["status"]["message"]


def test_an_image_without_variants_refuses_with_what_is_there() -> None:
    hook = Hook(None, "v2", "v1-arm64")
    response = hook.mutate(pod())
    assert not response["allowed"]
    assert "has no variant for any GPU vendor" in response["status"]["message"]
    assert len(hook.fleet.ledger) == 0


def test_a_pod_that_nothing_serves_waits_and_its_maker_is_warned() -> None:
    hook = Hook([gpunodes.nvidia("t4", "t4", 4)])
    response = hook.mutate(pod(memory="40Gi"))
    assert response["allowed"]
    assert response["warnings"][0].startswith("anygpu: waits, asking for")


def test_an_image_by_digest_asks_no_registry() -> None:
    hook = Hook(down=True)
    document = pod()
    document["spec"]["containers"][0]["image"] = placing.PINNED
    assert patched(document, hook.mutate(document))["spec"]["containers"][0]["image"] == placing.PINNED
    assert hook.lookup.asked == 0


def test_asked_again_for_the_same_pod_the_choice_stands() -> None:
    hook = Hook()
    document = pod()
    after = patched(document, hook.mutate(document))
    assert hook.mutate(after) == {"uid": "the-uid", "allowed": True}
    after["spec"]["containers"].append({"name": "sidecar", "image": "mesh:v1"})
    assert "patch" not in hook.mutate(after)
    assert hook.fleet.ledger.on_node("t4", NVIDIA) == 1


def test_a_forged_decision_is_decided_anew() -> None:
    hook = Hook()
    document = pod()
    other = decision.read(patched(document, hook.mutate(document))["metadata"]["annotations"])
    assert other is not None
    forged = other.model_copy(update={"id": "forged-by-hand", "vendor": "amd", "resource": AMD})
    document["metadata"]["annotations"]["anygpu.io/decision"] = forged.model_dump_json()
    after = patched(document, hook.mutate(document))
    made = decision.read(after["metadata"]["annotations"])
    assert made is not None
    assert (made.id, made.vendor) == ("decision-0002", "nvidia")


def test_a_reservation_whose_pod_never_came_is_given_up() -> None:
    hook = Hook([gpunodes.nvidia("t4", "t4", 1)])
    document = pod()
    patched(document, hook.mutate(document))
    assert "warnings" in hook.mutate(pod())
    hook.now = 61.0
    assert "warnings" not in hook.mutate(pod())


def test_a_namespace_in_the_request_alone_is_enough() -> None:
    document = pod()
    del document["metadata"]["namespace"]
    document["metadata"] |= {"generateName": "p-"}
    del document["metadata"]["name"]
    assert Hook().mutate(document)["allowed"]


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": ["x"]},
        {"metadata": {"annotations": []}},
        {"metadata": {"annotations": {"anygpu.io/gpus": 1}}, "spec": {}},
        {"metadata": {"annotations": {"anygpu.io/gpus": "1"}}},
        {"metadata": {"annotations": {"anygpu.io/gpus": "1"}}, "spec": {"containers": {}}},
        {"metadata": {"annotations": {"anygpu.io/gpus": "1"}}, "spec": {"containers": [{"name": 1}]}},
        {"metadata": {"annotations": {"anygpu.io/gpus": "1"}}, "spec": {"containers": [{"name": "c"}]}},
        {"metadata": {"annotations": {"anygpu.io/gpus": "1"}}, "spec": {"containers": [{"image": "a b"}]}},
        pod() | {"spec": {"containers": [{"image": placing.PINNED, "resources": {"limits": {NVIDIA: "x"}}}]}},
        pod(gpus="2") | {"spec": {"containers": [{"image": placing.PINNED, "volumeMounts": "x"}]}},
    ],
)
def test_a_hostile_object_is_refused_and_never_half_done(document: Json) -> None:
    response = Hook().mutate(document)
    assert not response["allowed"]
    assert response["status"]["code"] in (400, 500)


def test_fifty_pods_at_once_spread_as_capacity_allows() -> None:
    nodes = [gpunodes.nvidia(f"t4-{n}", "t4", 8) for n in range(2)]
    nodes += [gpunodes.nvidia(f"l4-{n}", "l4", 8) for n in range(2)]
    nodes += [gpunodes.amd(f"mi-{n}", "mi300x", 8) for n in range(3)]
    hook = Hook(nodes)

    async def all_at_once() -> list[bytes]:
        return await asyncio.gather(*(hook.admission.mutate(reviewed(pod(gpus="1"))) for _ in range(50)))

    landed: collections.Counter[tuple[str, str]] = collections.Counter()
    for body in asyncio.run(all_at_once()):
        made = decision.read(patched(pod(), json.loads(body)["response"])["metadata"]["annotations"])
        assert made is not None
        assert made.node is not None
        landed[made.node, made.resource] += 1
    assert all(count <= 8 for count in landed.values())
    assert sum(count for (_, resource), count in landed.items() if resource == NVIDIA) == 32
    assert sum(count for (_, resource), count in landed.items() if resource == AMD) == 18
    assert hook.lookup.asked == 1


def test_beyond_capacity_pods_wait_where_the_load_is_lightest() -> None:
    hook = Hook([gpunodes.nvidia("t4", "t4", 4), gpunodes.amd("mi", "mi300x", 8)])
    given: collections.Counter[str] = collections.Counter()
    for _ in range(36):
        made = decision.read(patched(pod(), hook.mutate(pod()))["metadata"]["annotations"])
        assert made is not None
        given[made.resource] += 1
    assert given == {NVIDIA: 12, AMD: 24}


def test_a_refused_admission_reserves_nothing() -> None:
    hook = Hook()
    hook.mutate(pod(memory="900Ti"))
    hook.mutate(pod(gpus="0"))
    assert len(hook.fleet.ledger) == 0


def test_two_gpus_of_two_containers_are_reserved_together() -> None:
    hook = Hook()
    document = pod(matrix_cores="preferred")
    one = {"image": placing.PINNED, "resources": {"limits": {NVIDIA: "1"}}}
    document["spec"]["containers"] = [{"name": "a", **one}, {"name": "b", **one}]
    after = patched(document, hook.mutate(document))
    assert hook.fleet.ledger.on_node("t4", NVIDIA) == 2
    after["metadata"]["uid"] = "uid"
    hook.fleet.apply_pod(kube.to_pod(after))
    assert (len(hook.fleet.ledger), hook.fleet.ledger.on_node("t4", NVIDIA)) == (1, 2)


# --- /validate --------------------------------------------------------------------------------------------------------


@KINDS
def test_a_template_with_bad_annotations_is_refused_at_once(kind: str) -> None:
    response = Hook(down=True, synced=False).validate(workload(kind, gpus="none"))
    assert response["status"]["code"] == 400
    assert "anygpu.io/gpus: 'none'" in response["status"]["message"]


@KINDS
def test_a_good_template_passes_without_a_word_and_without_a_patch(kind: str) -> None:
    assert Hook().validate(workload(kind, gpus="1")) == {"uid": "the-uid", "allowed": True}


@KINDS
def test_a_workload_whose_template_did_not_change_stays_operable(kind: str) -> None:
    bad = workload(kind, gpus="none")
    scaled = json.loads(json.dumps(bad))
    scaled["spec"]["replicas"] = 0
    scaled["metadata"]["finalizers"] = []
    assert Hook().validate(scaled, operation="UPDATE", oldObject=bad)["allowed"]


@KINDS
def test_a_template_that_changes_for_the_worse_is_refused(kind: str) -> None:
    good, bad = workload(kind, gpus="1"), workload(kind, gpus="1", vendor="nvidea")
    response = Hook().validate(bad, operation="UPDATE", oldObject=good)
    assert "nvidea" in response["status"]["message"]


def test_what_no_node_meets_now_is_a_warning_with_what_would_help() -> None:
    response = Hook([gpunodes.nvidia("t4", "t4", 4)]).validate(workload("Deployment", memory="16Gi"))
    assert response["allowed"]
    assert "no node meets the pods' needs now" in response["warnings"][0]
    assert "memory: 15Gi" in response["warnings"][0]


def test_what_no_model_could_ever_meet_is_refused() -> None:
    response = Hook().validate(workload("Deployment", memory="10Ti"))
    assert "anygpu.io/memory" in response["status"]["message"]


def test_an_image_that_is_not_there_yet_is_a_warning() -> None:
    response = Hook(None, "other").validate(workload("Deployment", gpus="1"))
    assert response["allowed"]
    assert "has no variant" in response["warnings"][0]


def test_a_registry_that_is_down_is_a_warning() -> None:
    response = Hook(down=True).validate(workload("Job", gpus="1"))
    assert response["allowed"]
    assert "registry.test" in response["warnings"][0]


@pytest.mark.parametrize(
    ("document", "request_"),
    [
        (None, {"operation": "DELETE", "oldObject": workload("Job", gpus="none")}),
        ({"kind": "Scale", "metadata": {}, "spec": {"replicas": 3}}, {"operation": "UPDATE"}),
        ({"kind": "Service", "metadata": {}}, {}),
        (workload("Deployment"), {}),
    ],
    ids=["delete", "scale", "service", "not opted in"],
)
def test_what_validate_has_no_say_in_passes(document: Json | None, request_: Json) -> None:
    assert Hook().validate(document, **request_) == {"uid": "the-uid", "allowed": True}


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "Deployment"},
        {"kind": "Deployment", "spec": []},
        {"kind": "CronJob", "spec": {"jobTemplate": "x"}},
        {"kind": "Deployment", "spec": {"template": {"metadata": {"annotations": {"anygpu.io/gpus": 2}}}}},
    ],
)
def test_a_hostile_workload_is_refused_in_a_sentence(document: Json) -> None:
    response = Hook().validate(document)
    assert response["status"]["code"] == 400
