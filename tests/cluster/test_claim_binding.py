"""Claim binding on the real control plane: DRA allocates a device of either vendor, /bind sets the image for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import dranodes
import gpunodes
import httpx
import install
import pytest
from kubernetes import config
from playgrounds import Playground

from capability_db.catalogue import Catalogue
from scheduler import feeds, kubeapi, watch
from scheduler import fleet as fleets
from scheduler import templates as cleaning

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
SLICES = "/apis/resource.k8s.io/v1/resourceslices"


@pytest.fixture
def dra(late_playground: Playground) -> Iterator[Playground]:
    """Nodes without a device plugin: one with two L4s, one with two MI210s, published by their DRA drivers."""
    playground = late_playground
    slices = [dranodes.nvidia_slice("dra-nv", "l4", 2), dranodes.amd_slice("dra-amd", "mi210", 2)]
    playground.cluster.add_nodes([gpunodes.node(each["spec"]["nodeName"]) for each in slices])
    publish(playground, *slices)
    yield playground
    playground.cluster.kubectl("delete", "resourceslices", "--all")


def publish(playground: Playground, *slices: Json) -> None:
    for each in slices:
        playground.cluster.api("POST", SLICES, each)
    names = {each["spec"]["nodeName"] for each in slices}

    def labelled() -> bool:
        found = playground.nodes()
        return all(any(key.startswith("anygpu.io/sku.") for key in found[name]["metadata"]["labels"]) for name in names)

    playground.wait("the SKU labels of DRA nodes", labelled)


def test_one_spec_is_allocated_on_both_vendors_each_with_its_image(dra: Playground, oci_registry: Any) -> None:
    repository = dra.image.partition("/")[2].removesuffix(":v1")
    digests = {vendor: oci_registry.push(repository, f"v1-{vendor}", {"V": vendor}) for vendor in ("nvidia", "amd")}
    dra.deploy("claim", 5, memory="16Gi", binding="claim")
    pods = dra.wait_bound("claim", 4)
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == ["dra-amd", "dra-amd", "dra-nv", "dra-nv"]
    devices = set()
    for pod in pods:
        vendor = "amd" if pod["spec"]["nodeName"] == "dra-amd" else "nvidia"
        assert pod["spec"]["containers"][0]["image"].endswith(f"@{digests[vendor]}")
        annotations = pod["metadata"]["annotations"]
        decision = json.loads(annotations["anygpu.io/decision"])
        assert annotations["anygpu.io/bound-vendor"] == vendor == decision["vendor"]
        assert (decision["binding"], decision["resource"]) == ("claim", f"gpu.{vendor}.com")
        (status,) = pod["status"]["resourceClaimStatuses"]
        claim = dra.cluster.api(
            "GET",
            f"/apis/resource.k8s.io/v1/namespaces/{dra.namespace}/resourceclaims/{status['resourceClaimName']}",
        )
        (result,) = claim["status"]["allocation"]["devices"]["results"]
        devices.add((result["driver"], result["pool"], result["device"]))
    assert len(devices) == 4
    (template,) = templates(dra)
    assert template["metadata"]["name"].startswith("anygpu-")
    (waiting,) = [pod for pod in dra.pods("claim") if not pod["spec"].get("nodeName")]
    assert waiting["spec"]["containers"][0]["image"] == "anygpu.invalid/unresolved"


def templates(playground: Playground) -> list[Json]:
    path = f"/apis/resource.k8s.io/v1/namespaces/{playground.namespace}/resourceclaimtemplates"
    found: list[Json] = playground.cluster.api("GET", path)["items"]
    return found


def test_pods_of_no_needs_take_either_vendor_and_needs_choose(dra: Playground) -> None:
    dra.deploy("any", 1, binding="claim")
    dra.deploy("large", 1, binding="claim", memory="40Gi")
    (pod,) = dra.wait_bound("any", 1)
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"anygpu.io/claim": "1"}
    vendor = pod["metadata"]["annotations"]["anygpu.io/bound-vendor"]
    assert pod["spec"]["nodeName"] == {"nvidia": "dra-nv", "amd": "dra-amd"}[vendor]
    assert "@sha256:" in pod["spec"]["containers"][0]["image"]
    (pod,) = dra.wait_bound("large", 1)
    assert pod["spec"]["nodeName"] == "dra-amd"


def test_a_dry_run_makes_no_template(dra: Playground) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "dry",
            "namespace": dra.namespace,
            "annotations": {"anygpu.io/binding": "claim", "anygpu.io/memory": "16Gi"},
        },
        "spec": {"containers": [{"name": "main", "image": dra.image}]},
    }
    dra.apply(pod, "--dry-run=server")
    assert templates(dra) == []


def names_of(objects: list[Json]) -> list[str]:
    return [each["metadata"]["name"] for each in objects]


def claim_pod(playground: Playground, name: str) -> Any:
    pod = gpunodes.pod(name, playground.image, memory="16Gi", binding="claim")
    pod["metadata"]["namespace"] = playground.namespace
    playground.apply(pod)
    return playground.cluster.api("GET", f"/api/v1/namespaces/{playground.namespace}/pods/{name}")


def test_a_template_that_somebody_removed_is_made_again_for_the_next_pod_and_for_one_that_waits(
    dra: Playground,
) -> None:
    dra.cluster.stop_scheduler()
    try:
        claim_pod(dra, "first")
        (template,) = names_of(templates(dra))
        path = f"/apis/resource.k8s.io/v1/namespaces/{dra.namespace}/resourceclaimtemplates/{template}"
        dra.cluster.api("DELETE", path)
        claim_pod(dra, "second")
        assert names_of(templates(dra)) == [template]
        dra.cluster.api("DELETE", path)
        kubeconfig = dra.cluster.create_token(install.NAMESPACE, install.SERVICE)
        api = kubeapi.Api(config.new_client_from_config(str(kubeconfig)))
        fleet = fleets.Fleet(Catalogue.builtin())
        for feed in feeds.feeds(fleet, install.ALL_BINDINGS):
            feed.on_list(watch.list_all(api, feed.path, feed.kind, feed.selector))
        assert asyncio.run(cleaning.clean(api, fleet, time.time())) == 0
        assert names_of(templates(dra)) == [template]
        dra.cluster.kubectl("delete", "pods", "first", "second", "-n", dra.namespace, "--force")
        fleet.replace(pods=[])
        assert asyncio.run(cleaning.clean(api, fleet, time.time())) == 0, "used a moment ago"
        assert asyncio.run(cleaning.clean(api, fleet, time.time() + cleaning.KEEP_SECONDS + 1)) >= 1
        assert templates(dra) == []
    finally:
        dra.cluster.start_scheduler()


def test_a_three_and_a_six_gigabyte_model_share_one_device_of_eight_or_wait(late_playground: Playground) -> None:
    playground = late_playground
    playground.cluster.add_nodes([gpunodes.node("dra-shared")])
    try:
        publish(playground, dranodes.shared_slice("dra-shared", "l4", 1, "8Gi"))
        playground.deploy("three", 1, binding="claim", share="any", memory="3G")
        playground.wait_bound("three", 1)
        playground.deploy("six", 1, binding="claim", share="any", memory="6G")
        playground.deploy("four", 1, binding="claim", share="any", memory="4G")
        playground.wait_bound("four", 1)
        (six,) = playground.pods("six")
        assert "nodeName" not in six["spec"]
        playground.cluster.kubectl("delete", "deployment", "three", "four", "-n", playground.namespace)
        playground.wait_bound("six", 1)
    finally:
        playground.cluster.kubectl("delete", "resourceslices", "--all")


def test_a_claim_that_cannot_be_bound_says_why(dra: Playground) -> None:
    dra.cluster.stop_scheduler()
    try:
        dra.deploy("claim", 1, memory="16Gi", binding="claim")
        (pod,) = dra.wait("the pod", lambda: dra.pods("claim"))
        metadata = pod["metadata"]
        body = {"PodName": metadata["name"], "PodNamespace": metadata["namespace"], "PodUID": metadata["uid"]}

        def bind() -> str:
            url = f"{install.extender_url(dra.cluster)}/bind"
            error: str = httpx.post(url, json={**body, "Node": "dra-nv"}, trust_env=False, timeout=20).json()["Error"]
            return error

        path = f"/apis/resource.k8s.io/v1/namespaces/{dra.namespace}/resourceclaims"
        (claim,) = dra.wait("the claim", lambda: dra.cluster.api("GET", path)["items"])
        dra.wait("the claim's name in the pod", lambda: dra.pods("claim")[0]["status"].get("resourceClaimStatuses"))
        assert "nothing is allocated to it" in bind()
        result = {"request": "gpu/nvidia", "driver": "gpu.example.com", "pool": "x", "device": "y"}
        claim["status"] = {"allocation": {"devices": {"results": [result]}}}
        dra.cluster.api("PUT", f"{path}/{claim['metadata']['name']}/status", claim)
        assert "driver gpu.example.com is unknown to anygpu" in bind()
        there = {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["x"]}]}]}
        name = claim["metadata"]["name"]
        result = {"request": "gpu/nvidia", "driver": "gpu.nvidia.com", "pool": "dra-nv", "device": "gpu-0"}
        for selector, error in ((there, "cannot be reached from node dra-nv"), (None, "is not reserved for pod")):
            allocation = {"devices": {"results": [result]}} | ({"nodeSelector": selector} if selector else {})
            for status in ({}, {"allocation": allocation}):  # it may be taken back, and not changed
                found = dra.cluster.api("GET", f"{path}/{name}")
                dra.cluster.api("PUT", f"{path}/{name}/status", found | {"status": status})
            assert error in bind()
        assert dra.pods("claim")[0]["spec"]["containers"][0]["image"] == "anygpu.invalid/unresolved"
    finally:
        dra.cluster.start_scheduler()
