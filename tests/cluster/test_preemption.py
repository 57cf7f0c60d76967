"""Priority on the real control plane: who is evicted for whom, and who gets the devices then."""

from __future__ import annotations

import json
import time
from typing import Any

import gpunodes
import pytest
from playgrounds import Playground

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
FINALIZER = "test.anygpu.io/stays"


@pytest.fixture
def busy(late_playground: Playground) -> Playground:
    """Three NVIDIA and two AMD devices."""
    late_playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 3), gpunodes.amd("mi210-1", "mi210", 2)])
    return late_playground


def priority(playground: Playground, value: int, *, preempts: bool = True) -> str:
    """The name of a PriorityClass."""
    name = f"{playground.namespace}-{value}{'' if preempts else '-never'}"
    policy = "PreemptLowerPriority" if preempts else "Never"
    document = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value,
        "preemptionPolicy": policy,
    }
    playground.apply(document)
    return name


def deploy(
    playground: Playground, name: str, replicas: int, value: int, *, preempts: bool = True, **annotations: str
) -> None:
    document = playground.deployment(name, replicas, **{"memory": "16Gi", **annotations})
    spec = document["spec"]["template"]["spec"]
    spec["priorityClassName"] = priority(playground, value, preempts=preempts)
    playground.apply(document)


def plain(playground: Playground, name: str, resource: str, value: int, **more: Any) -> Json:
    """A pod that asks one device by itself, once it is bound."""
    container = {"name": "main", "image": "busybox", "resources": {"limits": {resource: "1"}}}
    metadata = {"name": name, "namespace": playground.namespace, "labels": {"app": name}, **more}
    spec = {"containers": [container], "priorityClassName": priority(playground, value)}
    playground.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    (pod,) = playground.wait_bound(name, 1)
    return pod


def guard(playground: Playground, app: str, replicas: int) -> None:
    """A budget that lets no pod of an app go, once the disruption controller has counted."""
    playground.apply(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": app, "namespace": playground.namespace},
            "spec": {"minAvailable": replicas, "selector": {"matchLabels": {"app": app}}},
        }
    )
    path = f"/apis/policy/v1/namespaces/{playground.namespace}/poddisruptionbudgets/{app}"

    def counted() -> bool:
        status = playground.cluster.api("GET", path).get("status", {})
        return status.get("currentHealthy") == replicas and status["disruptionsAllowed"] == 0

    playground.wait("the budget to count", counted)


def uids(pods: list[Json]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def container(pod: Json) -> Json:
    found: Json = pod["spec"]["containers"][0]
    return found


def unbound(playground: Playground, app: str, count: int) -> list[Json]:
    """The pods of an app that wait, once that many do and a scheduler has said so."""

    def waiting() -> list[Json]:
        found = [
            pod
            for pod in playground.pods(app)
            if not pod["spec"].get("nodeName")
            and any(each.get("reason") == "Unschedulable" for each in pod["status"].get("conditions", []))
        ]
        return found if len(found) == count else []

    pods: list[Json] = playground.wait(f"{count} pods of {app} to wait", waiting)
    return pods


def promised(playground: Playground, kind: str = "preempt") -> list[Json]:
    """The entries of a kind in all nodes' records."""
    records = playground.cluster.api(
        "GET", "/api/v1/namespaces/anygpu-system/configmaps?labelSelector=anygpu.io%2Freservations%3Dtrue"
    )["items"]
    entries = [each for record in records for each in json.loads(record["data"]["entries"])]
    return [each for each in entries if each["kind"] == kind and each["pod"].startswith(playground.namespace)]


def test_an_early_pod_takes_the_device_of_a_lesser_one_by_kube_schedulers_own_preemption(
    late_playground: Playground, oci_registry: Any
) -> None:
    playground = late_playground
    repository = playground.image.partition("/")[2].removesuffix(":v1")
    digests = {vendor: oci_registry.push(repository, f"v1-{vendor}", {"V": vendor}) for vendor in ("nvidia", "amd")}
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 2), gpunodes.amd("mi210-1", "mi210", 2)])
    deploy(playground, "low", 4, 0)
    before = uids(playground.wait_bound("low", 4))
    deploy(playground, "high", 1, 1000)
    (pod,) = playground.wait_bound("high", 1)
    vendor = {"l4-1": "nvidia", "mi210-1": "amd"}[pod["spec"]["nodeName"]]
    assert container(pod)["image"].endswith(f"@{digests[vendor]}")
    assert list(container(pod)["resources"]["limits"]) == [f"{vendor}.com/gpu"]
    assert json.loads(pod["metadata"]["annotations"]["anygpu.io/decision"])["vendor"] == vendor
    (waits,) = unbound(playground, "low", 1)
    assert waits["metadata"]["uid"] not in before
    playground.assert_within_capacity()


def test_a_late_pod_takes_the_cheapest_victims_device_and_keeps_it(busy: Playground, oci_registry: Any) -> None:
    repository = busy.image.partition("/")[2].removesuffix(":v1")
    digest = oci_registry.push(repository, "v1-nvidia", {"V": "nvidia"})
    deploy(busy, "guarded", 1, 0, binding="late", vendor="nvidia")
    guarded = uids(busy.wait_bound("guarded", 1))
    guard(busy, "guarded", 1)
    victim = plain(busy, "victim", "nvidia.com/gpu", 5)
    deploy(busy, "low", 3, 10, binding="late")
    low = uids(busy.wait_bound("low", 3))
    deploy(busy, "queue", 3, 5, binding="late")
    queue = uids(unbound(busy, "queue", 3))
    deploy(busy, "high", 1, 1000, binding="late")
    (pod,) = busy.wait_bound("high", 1)
    assert pod["spec"]["nodeName"] == "l4-1"
    assert container(pod)["image"].endswith(f"@{digest}")
    assert pod["metadata"]["annotations"]["anygpu.io/bound-vendor"] == "nvidia"
    assert busy.pods("victim") == []
    assert uids(busy.pods("guarded")) == guarded, "its budget protects it, though it matters least"
    assert uids(busy.pods("low")) == low
    assert uids(unbound(busy, "queue", 3)) == queue
    (told,) = busy.wait("the victim's event", lambda: busy.events("Preempted"))
    uid = pod["metadata"]["uid"]
    assert told["regarding"]["uid"] == victim["metadata"]["uid"]
    assert told["note"] == f"Preempted by pod {uid} on node l4-1"
    (event,) = busy.wait("the event", lambda: busy.events("Preempting"))
    assert event["regarding"]["uid"] == uid
    assert "evicting 1 pod of priority 5 or less from l4-1 frees nvidia.com/gpu: 1" in event["note"]
    busy.assert_within_capacity()


def test_devices_are_held_while_the_victims_go_and_given_to_nobody_else(busy: Playground) -> None:
    for number, resource in enumerate(["nvidia.com/gpu"] * 3 + ["amd.com/gpu"] * 2):
        plain(busy, f"low-{number}", resource, 5, finalizers=[FINALIZER])
    deploy(busy, "queue", 2, 5, binding="late")
    unbound(busy, "queue", 2)
    deploy(busy, "high", 1, 1000, binding="late", gpus="2", vendor="amd")
    (high,) = busy.wait("the pod", lambda: busy.pods("high"))

    def leaving() -> list[str]:
        return sorted(pod["metadata"]["name"] for pod in busy.pods() if "deletionTimestamp" in pod["metadata"])

    busy.wait("the victims to be evicted", lambda: leaving() == ["low-3", "low-4"])
    (held,) = promised(busy)
    assert held | {"since": 0} == {
        "uid": high["metadata"]["uid"],
        "pod": f"{busy.namespace}/{high['metadata']['name']}",
        "devices": {"amd.com/gpu": 2},
        "since": 0,
        "kind": "preempt",
    }
    _release(busy, "low-3")
    busy.wait("one victim to be gone", lambda: not busy.pods("low-3"))
    extra = plain_waiting(busy, "extra", "amd.com/gpu", 0)
    time.sleep(3)
    assert leaving() == ["low-4"], "no more are evicted than are needed"
    assert not busy.cluster.api("GET", extra)["spec"].get("nodeName"), "another scheduler's bind is held off"
    assert len(unbound(busy, "queue", 2)) == 2
    _release(busy, "low-4")
    (pod,) = busy.wait_bound("high", 1)
    assert pod["spec"]["nodeName"] == "mi210-1"
    assert promised(busy) == []
    assert len(unbound(busy, "queue", 2)) == 2
    for number in range(3):
        _release(busy, f"low-{number}")
    busy.assert_within_capacity()


def plain_waiting(playground: Playground, name: str, resource: str, value: int) -> str:
    """The path of a new pod that asks one device of the default scheduler."""
    container = {"name": "main", "image": "busybox", "resources": {"limits": {resource: "1"}}}
    metadata = {"name": name, "namespace": playground.namespace}
    spec = {"containers": [container], "priorityClassName": priority(playground, value)}
    playground.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return f"/api/v1/namespaces/{playground.namespace}/pods/{name}"


def _release(playground: Playground, name: str) -> None:
    path = f"/api/v1/namespaces/{playground.namespace}/pods/{name}"
    merge = "application/merge-patch+json"
    playground.cluster.api("PATCH", path, {"metadata": {"finalizers": None}}, content_type=merge)


def test_a_pod_that_never_preempts_waits_and_holds_nothing(busy: Playground) -> None:
    deploy(busy, "low", 5, 0, binding="late")
    low = uids(busy.wait_bound("low", 5))
    deploy(busy, "polite", 1, 1000, preempts=False, binding="late")
    unbound(busy, "polite", 1)
    time.sleep(3)
    unbound(busy, "polite", 1)
    assert uids(busy.pods("low")) == low
    assert promised(busy) == []


def test_a_pod_that_nothing_but_guarded_pods_stands_in_the_way_of_waits(busy: Playground) -> None:
    deploy(busy, "low", 5, 0, binding="late")
    low = uids(busy.wait_bound("low", 5))
    guard(busy, "low", 5)
    deploy(busy, "high", 1, 1000, binding="late")
    unbound(busy, "high", 1)
    time.sleep(3)
    assert uids(busy.pods("low")) == low
    assert promised(busy) == []
    busy.cluster.kubectl("delete", "poddisruptionbudget", "low", "-n", busy.namespace)
    busy.wait_bound("high", 1, timeout=60)
    busy.assert_within_capacity()


def test_several_important_pods_evict_as_many_as_they_are(busy: Playground) -> None:
    deploy(busy, "low", 5, 0, binding="late")
    low = uids(busy.wait_bound("low", 5))
    deploy(busy, "high", 3, 1000, binding="late")
    busy.wait_bound("high", 3)
    unbound(busy, "low", 3)
    assert len(low & uids(busy.pods("low"))) == 2
    assert len(busy.events("Preempted")) == 3
    busy.assert_within_capacity()


def test_nobody_loses_cpu_to_a_pod_for_which_no_device_is_free(late_playground: Playground) -> None:
    """kube-scheduler's own preemption would evict `hog` for its cpu, though the GPU is held by `boss`."""
    playground = late_playground
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 1)])
    _single(playground, "boss", 2000, {"nvidia.com/gpu": "1", "cpu": "10"})
    _single(playground, "hog", 0, {"cpu": "50"})
    playground.wait_bound("boss", 1)
    (hog,) = playground.wait_bound("hog", 1)
    _single(playground, "high", 1000, {"nvidia.com/gpu": "1", "cpu": "20"}, schedulerName="anygpu-scheduler")
    unbound(playground, "high", 1)
    time.sleep(4)
    assert uids(playground.pods("hog")) == uids([hog])
    playground.cluster.kubectl("delete", "pod", "boss", "-n", playground.namespace)
    playground.wait_bound("high", 1)
    assert playground.pods("hog") == [], "now its cpu is all that was missing"


def test_devices_that_kube_scheduler_frees_for_early_pods_are_not_taken_by_late_ones(
    late_playground: Playground,
) -> None:
    playground = late_playground
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 2)])
    deploy(playground, "low", 2, 0)
    playground.wait_bound("low", 2)
    deploy(playground, "queue", 6, 0, binding="late")
    unbound(playground, "queue", 6)
    deploy(playground, "high", 1, 1000)
    playground.wait_bound("high", 1)
    assert all("low" in each["regarding"]["name"] for each in playground.events("Preempted"))
    assert not any(pod["spec"].get("nodeName") for pod in playground.pods("queue"))
    playground.assert_within_capacity()


def _single(playground: Playground, name: str, value: int, limits: dict[str, str], **spec: Any) -> None:
    container = {"name": "main", "image": "busybox", "resources": {"limits": limits}}
    metadata = {"name": name, "namespace": playground.namespace, "labels": {"app": name}}
    spec |= {"containers": [container], "priorityClassName": priority(playground, value)}
    playground.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
