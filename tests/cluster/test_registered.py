"""What admins register on the real API server: in force at once, said in its status, gone when it is deleted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import gpunodes
import httpx
import install
import pytest
import registering
import yaml
from playgrounds import Playground

from capability_db import resources

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
LABEL = "NVIDIA-Next-64GB"
EXAMPLE = install.MANIFESTS / "examples" / "registering.yaml"


class Registry:
    """Objects of our kinds on a playground's API server."""

    def __init__(self, playground: Playground) -> None:
        self.playground, self.cluster = playground, playground.cluster
        self._made: list[tuple[str, str, str | None]] = []

    def path(self, kind: str, name: str | None = None, namespace: str | None = None) -> str:
        where = f"namespaces/{namespace}/" if namespace else ""
        return "/".join([f"{resources.API}/{where}{resources.KINDS[kind].plural}", *([name] if name else [])])

    def create(self, kind: str, name: str, spec: Json, namespace: str | None = None) -> Json:
        self._made.append((kind, name, namespace))
        found: Json = self.cluster.api(
            "POST", self.path(kind, None, namespace), resources.document(kind, name, spec=spec)
        )
        return found

    def patch(self, kind: str, name: str, spec: Json, namespace: str | None = None) -> None:
        where = ["-n", namespace] if namespace else []
        plural = resources.KINDS[kind].plural
        self.cluster.kubectl("patch", plural, name, *where, "--type=merge", "-p", json.dumps({"spec": spec}))

    def delete(self, kind: str, name: str, namespace: str | None = None) -> None:
        self.cluster.api("DELETE", self.path(kind, name, namespace), ok=[404])

    def ready(self, kind: str, name: str, namespace: str | None = None) -> Json:
        """The object's Ready condition, once it is about the object as it is now."""

        def condition() -> Json | None:
            found = self.cluster.api("GET", self.path(kind, name, namespace))
            for each in found.get("status", {}).get("conditions", []):
                if each["type"] == "Ready" and each["observedGeneration"] == found["metadata"]["generation"]:
                    return dict(each)
            return None

        return dict(self.playground.wait(f"the status of {kind} {name}", condition))

    def skus(self) -> dict[str, Json]:
        """What the extender knows."""
        found = httpx.get(f"{install.extender_url(self.cluster)}/skus", trust_env=False).json()
        return {each["id"]: each for each in found}

    def command(self, *arguments: str) -> Any:
        """What a command prints of the live cluster."""
        command = [sys.executable, "-c", "from scheduler.cli.main import main; main()", *arguments, "-o", "json"]
        environment = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
        return json.loads(done.stdout)

    def clean(self) -> None:
        for made in self._made:
            self.delete(*made)
        self.playground.wait(
            "what was registered to be forgotten",
            lambda: {each["origin"] for each in self.skus().values()} == {"shipped"},
        )


@pytest.fixture
def registry(late_playground: Playground) -> Iterator[Registry]:
    found = Registry(late_playground)
    yield found
    found.clean()


def until(check: Any, limit_seconds: float = 20) -> float:
    """Seconds until a check holds, looked at as often as it answers."""
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < limit_seconds
        time.sleep(0.005)
    return time.monotonic() - began


def unknown_node(name: str) -> Json:
    labels = {"nvidia.com/gpu.product": LABEL, "nvidia.com/gpu.memory": "65000", "nvidia.com/gpu.count": "2"}
    return gpunodes.node(name, labels, {"nvidia.com/gpu": 2})


def test_a_registered_sku_names_a_node_of_an_unknown_product_within_a_second(
    registry: Registry, record_property: Any
) -> None:
    playground = registry.playground
    playground.cluster.add_nodes([unknown_node("next-1")])

    def gpus() -> list[str]:
        nodes = httpx.get(f"{install.extender_url(playground.cluster)}/nodes", trust_env=False).json()
        return [sku for node in nodes for device in node["devices"] for sku in device["skus"]]

    playground.wait("the node to be seen", lambda: "next-1" in playground.nodes())
    took: list[float] = []
    for _ in range(3):
        began = time.monotonic()
        registry.create("GPUSKU", "next-64", registering.sku_spec(LABEL))
        until(lambda: gpus() == ["next-64"])
        took.append(time.monotonic() - began)
        if len(took) < 3:
            registry.delete("GPUSKU", "next-64")
            until(lambda: gpus() == [])
    record_property("seconds_until_known", took)
    print(f"seconds from the create call to the extender knowing it: {[round(each, 3) for each in took]}")
    assert min(took) < 1
    assert registry.skus()["next-64"]["origin"] == "registered"
    playground.wait("its label", lambda: "anygpu.io/sku.next-64" in playground.nodes()["next-1"]["metadata"]["labels"])
    assert registry.ready("GPUSKU", "next-64")["status"] == "True"
    assert registry.command("skus", "next-64")["origin"] == "registered"
    assert registry.command("nodes")[0]["devices"][0]["skus"] == ["next-64"]
    playground.deploy("mine", 1, memory="60Gi", sku="next-64")
    (pod,) = playground.wait_bound("mine", 1)
    assert pod["spec"]["nodeName"] == "next-1"

    registry.delete("GPUSKU", "next-64")
    playground.wait(
        "the label to go", lambda: "anygpu.io/sku.next-64" not in playground.nodes()["next-1"]["metadata"]["labels"]
    )
    refused = playground.apply(playground.deployment("again", 1, sku="next-64"), check=False)
    assert "names the unknown SKU next-64" in refused.stderr


def test_an_object_that_becomes_invalid_says_so_and_stays_in_force_as_it_was(registry: Registry) -> None:
    registry.create("GPUSKU", "next-64", registering.sku_spec(LABEL))
    first = registry.ready("GPUSKU", "next-64")
    assert (first["status"], first["reason"]) == ("True", "Accepted")
    registry.patch("GPUSKU", "next-64", {"match": {"product": ["NVIDIA-H100-80GB-HBM3"]}, "memoryGib": 99})
    condition = registry.ready("GPUSKU", "next-64")
    assert (condition["status"], condition["reason"]) == ("False", "Clash")
    assert "already means h100-sxm" in condition["message"]
    assert condition["message"].endswith("the last good version stays in force")
    assert registry.skus()["next-64"]["memory_gib"] == 64

    def events() -> list[Json]:
        items = registry.cluster.api("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
        uid = registry.cluster.api("GET", registry.path("GPUSKU", "next-64"))["metadata"]["uid"]
        return [each for each in items if each["regarding"].get("uid") == uid]

    registry.playground.wait("the event", events)
    (event,) = events()
    assert (event["reason"], event["type"], event["note"]) == (
        "InvalidObject",
        "Warning",
        f"Clash: {condition['message']}",
    )
    # A service that starts anew knows the last good version from the status.
    install.start_service(registry.cluster, bindings=install.ALL_BINDINGS)
    assert registry.skus()["next-64"]["memory_gib"] == 64

    registry.patch("GPUSKU", "next-64", {"match": {"product": [LABEL]}})
    good = registry.ready("GPUSKU", "next-64")
    assert (good["status"], good["reason"]) == ("True", "Accepted")
    registry.playground.wait("the new version", lambda: registry.skus()["next-64"]["memory_gib"] == 99)
    assert "inForce" not in registry.cluster.api("GET", registry.path("GPUSKU", "next-64"))["status"]


def test_pods_use_registered_models(registry: Registry) -> None:
    playground = registry.playground
    playground.add_nodes([gpunodes.nvidia("t4-1", "t4", 2), gpunodes.nvidia("h100-1", "h100", 2)])
    refused = playground.apply(playground.deployment("early-bird", 1, model="our-model"), check=False)
    assert "anygpu.io/model: 'our-model' is unknown" in refused.stderr
    registry.create("ModelProfile", "our-model", {"kind": "embedding", "precision": "fp16", "memoryGib": 40})
    assert registry.ready("ModelProfile", "our-model")["status"] == "True"
    playground.deploy("mine", 1, model="our-model")
    (pod,) = playground.wait_bound("mine", 1)
    assert pod["spec"]["nodeName"] == "h100-1"


def test_a_policy_refuses_prices_and_binds_and_reverts_when_it_is_deleted(registry: Registry) -> None:
    playground, namespace = registry.playground, registry.playground.namespace
    spot = gpunodes.nvidia("spot-1", "t4", 4)
    spot["metadata"]["labels"]["pool"] = "spot"
    playground.add_nodes([spot, gpunodes.nvidia("owned-1", "t4", 4), gpunodes.amd("mi210-1", "mi210", 2)])
    prices = [{"sku": "t4", "usdHour": 0.5}, {"sku": "t4", "usdHour": 0.2, "nodeLabels": {"pool": "spot"}}]
    registry.create("PlacementPolicy", "default", {"prices": prices}, install.NAMESPACE)
    registry.create(
        "PlacementPolicy",
        "default",
        {"vendors": ["nvidia"], "maxPriceUsdHour": 0.3, "objective": "cost", "binding": "late"},
        namespace,
    )
    for where in (install.NAMESPACE, namespace):
        assert registry.ready("PlacementPolicy", "default", where)["status"] == "True"

    refused = playground.apply(playground.deployment("amd", 1, vendor="amd"), check=False)
    assert f"not allowed by PlacementPolicy {namespace}/default, which allows nvidia" in refused.stderr
    refused = playground.apply(playground.deployment("big", 1, memory="40Gi"), check=False)
    assert "no GPU model that meets the pod's needs is allowed" in refused.stderr
    playground.deploy("mine", 3, gpus="1")
    pods = playground.wait_bound("mine", 3)
    assert {pod["spec"]["nodeName"] for pod in pods} == {"spot-1"}
    made = json.loads(pods[0]["metadata"]["annotations"]["anygpu.io/decision"])
    assert (made["binding"], made["policy"]["binding_from"]) == ("late", f"{namespace}/default")
    answer = httpx.get(
        f"{install.extender_url(playground.cluster)}/explain/{namespace}/{pods[0]['metadata']['name']}", trust_env=False
    ).json()
    assert f"objective cost: from PlacementPolicy {namespace}/default" in answer["policy"]

    registry.delete("PlacementPolicy", "default", namespace)
    playground.wait(
        "the policy to be gone",
        lambda: playground.apply(playground.deployment("amd", 1, vendor="amd"), check=False).returncode == 0,
    )
    (pod,) = playground.wait_bound("amd", 1)
    assert pod["spec"]["nodeName"] == "mi210-1"


def test_prices_in_a_namespace_s_own_policy_are_said_to_be_wrong(registry: Registry) -> None:
    namespace = registry.playground.namespace
    registry.create("PlacementPolicy", "default", {"prices": [{"sku": "t4", "usdHour": 1}]}, namespace)
    condition = registry.ready("PlacementPolicy", "default", namespace)
    assert (condition["status"], condition["reason"]) == ("False", "Invalid")
    assert "move them to PlacementPolicy anygpu-system/default" in condition["message"]
    registry.playground.wait("the event", lambda: registry.playground.events("InvalidObject"))


def test_the_example_is_in_force_as_it_is_shipped(registry: Registry) -> None:
    registry.cluster.kubectl("apply", "-f", EXAMPLE)
    try:
        for document in yaml.safe_load_all(EXAMPLE.read_text()):
            metadata = document["metadata"]
            condition = registry.ready(document["kind"], metadata["name"], metadata.get("namespace"))
            assert condition["status"] == "True", condition
    finally:
        registry.cluster.kubectl("delete", "-f", EXAMPLE)
