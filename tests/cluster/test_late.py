"""Late binding on the real control plane: the node decides the vendor, and devices are counted exactly."""

from __future__ import annotations

import json
import time
from typing import Any

import gpunodes
import httpx
import install
import pytest
from playgrounds import Playground

from scheduler import reservations

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
UNRESOLVED = "anygpu.invalid/unresolved"


def test_nobody_but_anygpu_changes_what_it_wrote_on_a_pod(late_playground: Playground) -> None:
    playground = late_playground
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 1)])
    playground.deploy("late", 2, memory="16Gi", binding="late")
    playground.wait_bound("late", 1)
    (pod,) = playground.wait(
        "one to wait", lambda: [each for each in playground.pods("late") if not each["spec"].get("nodeName")]
    )
    path = f"/api/v1/namespaces/{playground.namespace}/pods/{pod['metadata']['name']}"
    changes: list[tuple[Json, int]] = [
        ({"annotations": {"anygpu.io/decision": "{}"}}, 403),
        ({"annotations": {"anygpu.io/requested-image": None}}, 403),
        ({"annotations": {"anygpu.io/bound-vendor": "amd"}}, 403),
        ({"annotations": {"anygpu.io/env.LD_PRELOAD": "x"}}, 403),
        ({"labels": {"anygpu.io/binding": None}}, 403),
        ({"annotations": {"team/owner": "ml"}, "labels": {"team": "ml"}}, 200),
    ]
    for change, status in changes:
        for endpoint in (path, f"{path}/status"):
            answer = playground.cluster.http.patch(
                endpoint, json={"metadata": change}, headers={"Content-Type": "application/merge-patch+json"}
            )
            assert answer.status_code == status, f"{change} at {endpoint}: {answer.text}"
            assert status == 200 or "only anygpu" in answer.json()["message"]


def _container(pod: Json) -> Json:
    container: Json = pod["spec"]["containers"][0]
    return container


def test_one_spec_lands_on_both_vendors_each_with_its_image(late_playground: Playground, oci_registry: Any) -> None:
    playground = late_playground
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 2), gpunodes.amd("mi210-1", "mi210", 2)])
    repository = playground.image.partition("/")[2].removesuffix(":v1")
    digests = {vendor: oci_registry.push(repository, f"v1-{vendor}", {"V": vendor}) for vendor in ("nvidia", "amd")}
    playground.deploy("late", 5, memory="16Gi", binding="late")
    pods = playground.wait_bound("late", 4)
    by_node = {name: [pod for pod in pods if pod["spec"]["nodeName"] == name] for name in ("l4-1", "mi210-1")}
    assert {name: len(found) for name, found in by_node.items()} == {"l4-1": 2, "mi210-1": 2}
    for name, vendor, resource in (("l4-1", "nvidia", "nvidia.com/gpu"), ("mi210-1", "amd", "amd.com/gpu")):
        for pod in by_node[name]:
            assert _container(pod)["resources"]["limits"] == {"nvidia.com/gpu": "1", "amd.com/gpu": "1"}
            assert _container(pod)["image"].endswith(f"@{digests[vendor]}")
            annotations = pod["metadata"]["annotations"]
            assert annotations["anygpu.io/bound-vendor"] == vendor
            decision = json.loads(annotations["anygpu.io/decision"])
            assert (decision["binding"], decision["vendor"], decision["resource"]) == ("late", vendor, resource)
            assert decision["node"] == name
            env = {each["name"]: each for each in _container(pod)["env"]}
            path = env["ANYGPU_VENDOR"]["valueFrom"]["fieldRef"]["fieldPath"]
            assert path == "metadata.annotations['anygpu.io/bound-vendor']"
            assert pod["spec"]["schedulerName"] == "anygpu-scheduler"
    (waiting,) = [pod for pod in playground.pods("late") if not pod["spec"].get("nodeName")]
    assert _container(waiting)["image"] == UNRESOLVED

    def says_why() -> Any:
        (pod,) = [pod for pod in playground.pods("late") if not pod["spec"].get("nodeName")]
        return any("fewer free devices" in each.get("message", "") for each in pod["status"].get("conditions", []))

    playground.wait("the pod too many to say why it waits", says_why)
    playground.cluster.kubectl("delete", "pod", by_node["mi210-1"][0]["metadata"]["name"], "-n", playground.namespace)
    playground.wait_bound("late", 4)


@pytest.fixture
def bound_by_hand(late_playground: Playground) -> Playground:
    late_playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 1), gpunodes.nvidia("l4-2", "l4", 1)])
    late_playground.cluster.stop_scheduler("anygpu-scheduler")
    return late_playground


def _bind(playground: Playground, pod: Json, node: str, **changes: str) -> str:
    metadata = pod["metadata"]
    body = {
        "PodName": metadata["name"],
        "PodNamespace": metadata["namespace"],
        "PodUID": metadata["uid"],
        "Node": node,
    } | changes
    answer = httpx.post(f"{install.extender_url(playground.cluster)}/bind", json=body, trust_env=False, timeout=20)
    assert answer.status_code == httpx.codes.OK
    error: str = answer.json()["Error"]
    return error


def test_a_bind_that_cannot_be_says_why_and_changes_nothing(bound_by_hand: Playground) -> None:
    playground = bound_by_hand
    try:
        playground.deploy("late", 3, memory="16Gi", binding="late")
        first, second, third = playground.wait("the pods", lambda: (p := playground.pods("late"))[2:] and p)
        assert "is gone" in _bind(playground, first, "l4-1", PodName="nobody")
        assert "was replaced" in _bind(playground, first, "l4-1", PodUID="b1946ac9-2a10-4d49-8b6e-0000000000aa")
        assert "does not exist" in _bind(playground, first, "l4-9")
        assert _bind(playground, first, "l4-1") == ""
        assert _bind(playground, first, "l4-1") == "", "the same again succeeds"
        assert "already bound to l4-1" in _bind(playground, first, "l4-2")
        assert "taken by pods" in _bind(playground, second, "l4-1")
        untouched = playground.cluster.api("GET", _path(second))
        assert untouched["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
        assert _bind(playground, second, "l4-2") == ""
        assert "taken by pods" in _bind(playground, third, "l4-2")
        playground.assert_within_capacity()
    finally:
        install.start_scheduler(playground.cluster)


def _path(pod: Json) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def test_another_scheduler_cannot_take_a_promised_device_until_the_promise_is_given_up(
    bound_by_hand: Playground,
) -> None:
    playground = bound_by_hand
    try:
        playground.deploy("late", 1, memory="16Gi", binding="late", vendor="nvidia")
        (late,) = playground.wait("the late pod", lambda: playground.pods("late"))
        lives = reservations.LIVES_SECONDS["late"]
        for node in ("l4-1", "l4-2"):  # as if two binds had been cut off after their promise
            entry = reservations.Entry(
                late["metadata"]["uid"],
                f"{playground.namespace}/{late['metadata']['name']}",
                {"nvidia.com/gpu": 1},
                time.time() - lives + 8,
            )
            found = playground.cluster.api("GET", reservations.path_of(node), ok=[404])
            record = reservations.read(found) or reservations.Record(node, {})
            method, path = ("PUT", reservations.path_of(node)) if record.version else ("POST", reservations.COLLECTION)
            playground.cluster.api(method, path, reservations.document(record.put(entry)))
        container = {"name": "main", "image": "busybox", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
        plain = {"metadata": {"name": "plain"}, "spec": {"containers": [container]}}
        path = f"/api/v1/namespaces/{playground.namespace}/pods"
        playground.cluster.api("POST", path, plain)

        def denied() -> bool:
            pod = playground.cluster.api("GET", f"{path}/plain")
            said = [each.get("message", "") for each in pod["status"].get("conditions", [])]
            return not pod["spec"].get("nodeName") and any("1 promised to others" in text for text in said)

        playground.wait("the plain pod's bind to be denied", denied, timeout=7)
        playground.wait(
            "the plain pod to be bound",
            lambda: playground.cluster.api("GET", f"{path}/plain")["spec"].get("nodeName"),
            timeout=40,
        )
        late = playground.cluster.api("GET", _path(late))
        assert "anygpu.io/released" in late["metadata"]["annotations"], "it was written to before its promise ended"
        assert "nodeName" not in late["spec"]
    finally:
        install.start_scheduler(playground.cluster)
    playground.wait_bound("late", 1)
    playground.assert_within_capacity()
