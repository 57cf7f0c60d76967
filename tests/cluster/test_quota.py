"""ResourceQuota on the real API server charges every injected name, and our verdict is the API server's."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from cluster import Cluster

from scheduler import kube, quota

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
NVIDIA, AMD, MIG = "nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.10gb"
NAMES = (NVIDIA, AMD, MIG)


class Tenant:
    """A namespace with quotas."""

    def __init__(self, running: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = running, namespace
        self.path = f"/api/v1/namespaces/{namespace}"

    def limit(self, name: str, hard: dict[str, str], scopes: list[str] | None = None, **selector: Any) -> None:
        """Create a quota (keywords are a scope requirement) and return when its use is known."""
        spec: Json = {"hard": {f"requests.{each}": amount for each, amount in hard.items()}, "scopes": scopes}
        if selector:
            spec["scopeSelector"] = {"matchExpressions": [selector]}
        self.cluster.api("POST", f"{self.path}/resourcequotas", {"metadata": {"name": name}, "spec": spec})
        self.cluster.wait(
            f"quota {name} to be computed",
            lambda: set(self.used(name)) == set(spec["hard"]),
            blame="kube-controller-manager",
        )

    def used(self, name: str) -> Json:
        found: Json = self.cluster.api("GET", f"{self.path}/resourcequotas/{name}")["status"].get("used", {})
        return found

    def quotas(self) -> list[quota.ResourceQuota]:
        items = self.cluster.api("GET", f"{self.path}/resourcequotas")["items"]
        return [msgspec.convert(each, quota.ResourceQuota) for each in items]

    def create(self, pod: Json, *, dry: bool = False) -> Json:
        """The pod as stored, or the Status that refuses it."""
        return self.cluster.api("POST", f"{self.path}/pods{'?dryRun=All' if dry else ''}", pod, ok=[403])


def pod_of(names: dict[str, int], **spec: Any) -> Json:
    limits = {name: str(count) for name, count in names.items()}
    container = {"name": "main", "image": "anygpu.invalid/unresolved", "resources": {"limits": limits}}
    return {
        "metadata": {"name": f"p-{uuid.uuid4().hex[:8]}"},
        "spec": {"schedulerName": "anygpu-scheduler", "containers": [container], **spec},
    }


@pytest.fixture
def tenant(control_plane: Cluster, namespace: str) -> Tenant:
    return Tenant(control_plane, namespace)


@pytest.fixture(scope="module")
def priority_classes(control_plane: Cluster) -> Iterator[tuple[str, str]]:
    names = (f"high-{uuid.uuid4().hex[:6]}", f"low-{uuid.uuid4().hex[:6]}")
    for name, value in zip(names, (1000, 10), strict=True):
        body = {"metadata": {"name": name}, "value": value}
        control_plane.api("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", body)
    yield names
    for name in names:
        control_plane.api("DELETE", f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}")


def test_a_late_pod_is_charged_for_every_name_it_carries(tenant: Tenant) -> None:
    tenant.limit("gpus", {NVIDIA: "4", AMD: "3"})
    late = pod_of({NVIDIA: 2, AMD: 2})
    assert tenant.create(late)["kind"] == "Pod"
    assert tenant.used("gpus") == {f"requests.{NVIDIA}": "2", f"requests.{AMD}": "2"}

    second = pod_of({NVIDIA: 2, AMD: 2})
    refused = tenant.create(second)
    assert (refused["reason"], refused["code"]) == ("Forbidden", 403)
    assert "exceeded quota: gpus, requested: requests.amd.com/gpu=2, used: requests.amd.com/gpu=2" in refused["message"]
    assert quota.refusal(tenant.quotas(), kube.to_pod(second), [NVIDIA, AMD]) == (
        f"ResourceQuota {tenant.namespace}/gpus: requests.amd.com/gpu would be 4 of 3 (used 2, this pod 2); "
        "the pod is charged for each of amd.com/gpu, nvidia.com/gpu, whichever it is given; "
        "anygpu.io/vendor: nvidia leaves amd.com/gpu out, or have the quota raised"
    )
    # What the refusal advises is admitted.
    assert tenant.create(pod_of({NVIDIA: 2}))["kind"] == "Pod"


def test_the_marker_and_the_neutral_name_are_charged_too(tenant: Tenant) -> None:
    tenant.limit("claims", {"anygpu.io/gpu": "1", "anygpu.io/claim": "1"})
    given = pod_of({"anygpu.io/gpu": 1, "anygpu.io/claim": 1})
    assert tenant.create(given)["kind"] == "Pod"
    assert tenant.create(given | {"metadata": {"name": "again"}})["reason"] == "Forbidden"
    said = quota.refusal(tenant.quotas(), kube.to_pod(given), ["anygpu.io/gpu", "anygpu.io/claim"])
    assert said is not None
    assert "requests.anygpu.io/gpu would be 2 of 1" in said


def variants(priority_classes: tuple[str, str]) -> Iterator[Json]:
    """Pods of every combination that quotas tell apart."""
    names = [{NVIDIA: 1}, {NVIDIA: 2, AMD: 2}, {NVIDIA: 1, AMD: 1, MIG: 1}]
    deadlines: list[Json] = [{}, {"activeDeadlineSeconds": 600}]
    classes: list[Json] = [{}, *({"priorityClassName": name} for name in priority_classes)]
    shapes = ["alone", "cpu", "idle", "pod-level", "two", "init", "sidecar"]
    for which, deadline, priority, shape in itertools.product(names, deadlines, classes, shapes):
        pod = pod_of(which, **deadline, **priority)
        spec = pod["spec"]
        main = spec["containers"][0]
        other = {"name": "other", "image": "app", "resources": {"limits": {NVIDIA: "1", "memory": "1Gi"}}}
        if shape == "cpu":
            main["resources"]["requests"] = {"cpu": "1"}
        elif shape == "idle":
            main["resources"]["requests"] = {"cpu": "0"}
            main["resources"]["limits"]["memory"] = "0"
        elif shape == "pod-level":
            spec["resources"] = {"requests": {"cpu": "1"}}
        elif shape == "two":
            spec["containers"].append(other)
        elif shape == "init":
            spec["initContainers"] = [{**other, "resources": {"limits": {NVIDIA: "3"}}}]
        elif shape == "sidecar":
            spec["initContainers"] = [{**other, "restartPolicy": "Always"}]
        yield pod


@pytest.mark.parametrize(
    ("scopes", "selector"),
    [
        (None, None),
        (["Terminating"], None),
        (["NotTerminating"], None),
        (["BestEffort"], None),
        (["NotBestEffort"], None),
        (["NotTerminating", "BestEffort"], None),
        (["PriorityClass"], None),
        (None, ("PriorityClass", "In")),
        (None, ("PriorityClass", "NotIn")),
        (None, ("PriorityClass", "Exists")),
        (None, ("PriorityClass", "DoesNotExist")),
        (["NotBestEffort"], ("PriorityClass", "NotIn")),
        (None, ("Terminating", "Exists")),
    ],
    ids=str,
)
def test_the_verdict_is_the_api_servers(
    tenant: Tenant,
    priority_classes: tuple[str, str],
    scopes: list[str] | None,
    selector: tuple[str, str] | None,
) -> None:
    requirement: Json = {}
    if selector:
        requirement = {"scopeName": selector[0], "operator": selector[1]}
        if selector[1] in ("In", "NotIn"):
            requirement["values"] = [priority_classes[0]]
    tenant.limit("scoped", {NVIDIA: "2", AMD: "1"}, scopes, **requirement)
    tenant.limit("wide", {NVIDIA: "5", MIG: "1"})
    draw = random.Random(str((scopes, selector)))
    given = list(variants(priority_classes))
    verdicts: list[bool] = []
    for pod in [*given, *draw.sample(given, 12)]:
        quotas = tenant.quotas()
        answer = tenant.create(pod, dry=True)
        said = quota.refusal(quotas, kube.to_pod(pod), NAMES)
        fits = answer["kind"] == "Pod"
        assert fits or "exceeded quota" in answer["message"], answer
        assert fits == (said is None), (pod["spec"], said, answer.get("message"), quotas)
        verdicts.append(fits)
        if len(verdicts) in (40, 90):
            tenant.create(pod)  # from here on something is used, if it fits
    assert len(set(verdicts)) == 2, "the table tells nothing apart"
