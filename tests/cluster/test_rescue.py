"""Rescue on the real control plane: pods that wait for the wrong vendor are made anew by their owners, or told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gpunodes
import install
import pytest
from cluster import Cluster
from kubernetes import config
from playgrounds import Playground

from scheduler import kube, kubeapi, replace

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
NVIDIA, AMD = "nvidia.com/gpu", "amd.com/gpu"


@pytest.fixture(scope="module", autouse=True)
def rescuing(service: Cluster) -> Iterator[None]:
    """The service with little patience."""
    install.start_service(service, options=["--rescue-after", "2"])
    yield
    install.start_service(service)


def occupy(playground: Playground, name: str, resource: str, count: int = 1) -> None:
    """Take devices with a plain pod, and return when it is bound."""
    container = {"name": "main", "image": "busybox", "resources": {"limits": {resource: str(count)}}}
    metadata = {"name": name, "namespace": playground.namespace}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    playground.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    playground.wait(f"{name} to be bound", lambda: pod_of(playground, name)["spec"].get("nodeName"))


def leave(playground: Playground, name: str) -> None:
    playground.cluster.kubectl("delete", "pod", name, "-n", playground.namespace)


def pod_of(playground: Playground, name: str) -> Json:
    return playground.cluster.api("GET", f"/api/v1/namespaces/{playground.namespace}/pods/{name}")


def both_full(playground: Playground, amd: int = 1, *, node: str = "mi210-1") -> None:
    """An NVIDIA node that stays full, and an AMD one that gets free when pod `amd` goes."""
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 1), gpunodes.amd(node, "mi210", amd)])
    occupy(playground, "nvidia", NVIDIA)
    occupy(playground, "amd", AMD, amd)
    playground.wait_full("l4-1", node)


def decided(pod: Json) -> Json:
    found: Json = json.loads(pod["metadata"]["annotations"]["anygpu.io/decision"])
    return found


def waiting(playground: Playground, app: str | None, count: int) -> list[Json]:
    """The pods of an app once `count` of them wait for NVIDIA's GPUs, and kube-scheduler has said so."""

    def all_wait() -> list[Json]:
        found = [pod for pod in playground.pods(app) if kube.to_pod(pod).unschedulable]
        return found if len(found) == count else []

    pods: list[Json] = playground.wait(f"{count} pods of {app} to wait", all_wait)
    assert {decided(pod)["resource"] for pod in pods} == {NVIDIA}
    return pods


def job(playground: Playground, name: str, **spec: Any) -> Json:
    template = playground.deployment(name, 1, memory="16Gi", vendor="nvidia,amd")["spec"]["template"]
    template["spec"]["restartPolicy"] = "Never"
    metadata = {"name": name, "namespace": playground.namespace}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template, **spec}}


def test_a_deployment_moves_to_the_vendor_that_got_free(playground: Playground, oci_registry: Any) -> None:
    repository = playground.image.partition("/")[2].removesuffix(":v1")
    amd = oci_registry.push(repository, "v1-amd", {"V": "amd"})
    both_full(playground)
    playground.deploy("web", 1, memory="16Gi")
    (old,) = waiting(playground, "web", 1)
    leave(playground, "amd")
    (new,) = playground.wait_bound("web", 1)
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["spec"]["nodeName"] == "mi210-1"
    assert new["spec"]["containers"][0]["image"].endswith(f"@{amd}")
    assert new["spec"]["containers"][0]["resources"]["limits"] == {AMD: "1"}
    (event,) = playground.events("GPUReplaced")
    owner = old["metadata"]["ownerReferences"][0]
    assert event["metadata"]["name"] == f"{owner['name']}.{owner['uid'][:8]}.rescue-1"
    assert event["related"]["uid"] == owner["uid"]
    assert event["regarding"]["uid"] == old["metadata"]["uid"]
    assert "amd.com/gpu is free on mi210-1; replacing it (1 of 3 this hour)" in event["note"]
    playground.assert_within_capacity()


def test_a_stateful_sets_pod_comes_back_under_its_name(playground: Playground) -> None:
    both_full(playground, node="mi210-2")  # on the other one a pod of the test before is expected for 30 s
    stateful = playground.deployment("db", 1, memory="16Gi")
    stateful["kind"] = "StatefulSet"
    stateful["spec"]["serviceName"] = "db"
    playground.apply(stateful)
    waiting(playground, "db", 1)
    leave(playground, "amd")
    (new,) = playground.wait_bound("db", 1)
    assert (new["metadata"]["name"], new["spec"]["nodeName"]) == ("db-0", "mi210-2")


def test_a_bare_pod_and_a_daemon_sets_pod_stay_and_are_told_what_to_do(playground: Playground) -> None:
    # On the MIG node a DaemonSet's pod may take either resource, of which the slice is the smaller and is asked for.
    playground.add_nodes(
        [
            gpunodes.nvidia("l4-1", "l4", 1),
            gpunodes.amd("mi210-1", "mi210", 1),
            gpunodes.mig_mixed("mig-1", "a100-80", 1, **{"3g.40gb": 1}),
        ]
    )
    for name, resource, count in (("nvidia", NVIDIA, 2), ("amd", AMD, 1), ("slice", "nvidia.com/mig-3g.40gb", 1)):
        for number in range(count):
            occupy(playground, f"{name}-{number}", resource)
    playground.wait_full("l4-1", "mi210-1", "mig-1")
    bare = gpunodes.pod("bare", playground.image, memory="16Gi", sku="l4,mi210")
    bare["metadata"]["namespace"] = playground.namespace
    playground.apply(bare)
    daemons = playground.deployment("agent", 1, memory="30Gi", share="any", vendor="nvidia")
    daemons["kind"] = "DaemonSet"
    del daemons["spec"]["replicas"]
    daemons["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "mig-1"}
    playground.apply(daemons)
    (daemon,) = playground.wait("the daemon's pod", lambda: playground.pods("agent"))
    taken = decided(daemon)["resource"]
    playground.wait("both to wait", lambda: sum(kube.to_pod(pod).unschedulable for pod in playground.pods()) == 2)
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in playground.pods()}
    gone = ["amd-0"]
    if taken == NVIDIA:
        gone.append("slice-0")
    else:
        gone += [name for name in ("nvidia-0", "nvidia-1") if pod_of(playground, name)["spec"]["nodeName"] == "mig-1"]
    for name in gone:
        leave(playground, name)
    events = playground.wait("two events", lambda: len(e := playground.events("GPUNotReplaced")) == 2 and e)
    notes = {event["regarding"]["name"]: event["note"] for event in events}
    assert "no controller owns the pod: delete it and create it again" in notes["bare"]
    assert "a DaemonSet's pods are left alone" in notes[daemon["metadata"]["name"]]
    after = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in playground.pods()}
    assert after == {name: uid for name, uid in before.items() if name not in gone}


def test_jobs_are_rescued_where_that_costs_them_no_last_retry(playground: Playground) -> None:
    both_full(playground, amd=4)
    ignore = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]}
    jobs = {
        "default": {},
        "failed-only": {"podReplacementPolicy": "Failed"},
        "ignoring": {"backoffLimit": 0, "podFailurePolicy": ignore},
        "no-retry": {"backoffLimit": 0},
        "one-retry": {"backoffLimit": 1, "podReplacementPolicy": "Failed"},
        "per-index": {"completions": 1, "completionMode": "Indexed", "backoffLimitPerIndex": 2},
        "last-of-index": {"completions": 1, "completionMode": "Indexed", "backoffLimitPerIndex": 1},
    }
    rescued = {"default": 1, "failed-only": 1, "ignoring": 0, "per-index": 1}
    left = set(jobs) - set(rescued)
    for name, spec in jobs.items():
        playground.apply(job(playground, name, **spec))
    old = {pod["metadata"]["labels"]["app"]: pod for pod in waiting(playground, None, len(jobs))}

    def status(name: str) -> Json:
        found = playground.cluster.api("GET", f"/apis/batch/v1/namespaces/{playground.namespace}/jobs/{name}")
        done: Json = found["status"]
        return done

    leave(playground, "amd")
    playground.wait(
        "the Jobs to complete", lambda: all(status(name).get("succeeded") == 1 for name in rescued), timeout=120
    )
    playground.wait("the events", lambda: len(playground.events("GPUNotReplaced")) >= len(left))
    assert {name: status(name).get("failed", 0) for name in rescued} == rescued
    assert {event["related"]["name"] for event in playground.events("GPUReplaced")} == set(rescued)
    notes = {event["related"]["name"]: event["note"] for event in playground.events("GPUNotReplaced")}
    assert set(notes) == left
    assert "0 of backoffLimit 0 failures are spent" in notes["no-retry"]
    assert "0 of backoffLimit 1 failures are spent" in notes["one-retry"]
    assert "0 of backoffLimitPerIndex 1 failures are spent" in notes["last-of-index"]
    for name in left:
        (pod,) = playground.pods(name)
        assert pod["metadata"]["uid"] == old[name]["metadata"]["uid"]
        assert not pod["metadata"].get("deletionTimestamp")
        assert status(name).get("failed", 0) == 0


def test_an_owner_has_its_limit_and_devices_are_not_spoken_for_twice(playground: Playground) -> None:
    both_full(playground, amd=8)
    playground.deploy("many", 5, memory="16Gi", vendor="nvidia,amd")
    playground.deploy("other", 2, memory="16Gi", vendor="nvidia,amd")
    waiting(playground, "many", 5)
    waiting(playground, "other", 2)
    leave(playground, "amd")
    playground.wait_bound("many", 3)
    playground.wait_bound("other", 2)
    (limit,) = playground.wait("the limit's event", lambda: playground.events("GPUNotReplaced"))
    assert "had 3 pods replaced within the hour, which is the limit" in limit["note"]
    assert len(playground.events("GPUReplaced")) == 5
    assert sum(bool(pod["spec"].get("nodeName")) for pod in playground.pods("many")) == 3
    playground.assert_within_capacity()


class BindsFirst:
    """The API, on which a pod is bound just before its eviction arrives."""

    def __init__(self, api: Any, playground: Playground) -> None:
        self._api, self._playground = api, playground
        self.get_json = api.get_json

    def post(self, path: str, body: Json) -> Any:
        if path.endswith("/eviction"):
            target = {"apiVersion": "v1", "kind": "Node", "name": "l4-1"}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": body["metadata"], "target": target}
            self._playground.cluster.api("POST", path.replace("/eviction", "/binding"), binding)
        return self._api.post(path, body)


def test_a_pod_that_is_bound_at_the_last_moment_is_left_alone(playground: Playground) -> None:
    both_full(playground)
    playground.deploy("web", 1, memory="16Gi")
    (old,) = waiting(playground, "web", 1)
    kubeconfig = playground.cluster.create_token(install.NAMESPACE, install.SERVICE)
    api: Any = BindsFirst(kubeapi.Api(config.new_client_from_config(str(kubeconfig))), playground)
    outcome = replace.Hands(api, per_owner=3, now=0.0).waiting(kube.to_pod(old), "for a test")
    assert outcome is replace.Outcome.GONE
    (pod,) = playground.wait_bound("web", 1)
    assert (pod["metadata"]["uid"], pod["spec"]["nodeName"]) == (old["metadata"]["uid"], "l4-1")
    assert not pod["metadata"].get("deletionTimestamp")
    assert all(each["type"] != "DisruptionTarget" for each in pod["status"]["conditions"])


def test_a_late_pod_that_its_kubelet_rejected_is_removed_once_its_replica_set_made_another(
    late_playground: Playground,
) -> None:
    playground = late_playground
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 2)])
    playground.cluster.kill("kwok")  # so that the pod never runs
    try:
        playground.deploy("late", 1, memory="16Gi", binding="late")
        (pod,) = playground.wait_bound("late", 1)
        path = f"/api/v1/namespaces/{playground.namespace}/pods/{pod['metadata']['name']}"
        status = {"phase": "Failed", "reason": f"OutOf{NVIDIA}", "message": f"Pod was rejected: no {NVIDIA} left"}
        playground.cluster.api(
            "PATCH", f"{path}/status", {"status": status}, content_type="application/merge-patch+json"
        )
    finally:
        playground.cluster.restart("kwok")
    playground.wait("two pods", lambda: len(playground.pods("late")) == 2)
    playground.wait("the rejected pod to go", lambda: len(playground.pods("late")) == 1)
    (event,) = playground.events("GPUReplaced")
    assert f"the kubelet of l4-1 rejected it (OutOf{NVIDIA})" in event["note"]
    (left,) = playground.wait_bound("late", 1)
    assert left["metadata"]["uid"] != pod["metadata"]["uid"]
