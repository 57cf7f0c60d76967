"""What is made of needs for claim binding is selected by Kubernetes itself, and is what `fit` lets through."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import dranodes
import install
import msgspec
import pytest
from cluster import Cluster

from capability_db import slices
from capability_db.catalogue import Catalogue
from capability_db.sku import VendorName
from scheduler import claims, errors, fit, needs

pytestmark = pytest.mark.cluster

Json = dict[str, Any]

BUILTIN = Catalogue.builtin()
VENDORS: tuple[VendorName, ...] = ("nvidia", "amd", "intel")
EVERY = {name: frozenset(sku.id for sku in BUILTIN if sku.vendor == name) for name in VENDORS}
API = "/apis/resource.k8s.io/v1"
SCHEDULER = "stock"
"""A kube-scheduler without extenders, whatever other tests gave the default one."""

INTEL = {"pciId": "0x56c0", "model": "Flex 170", "health": "Healthy"}
UNKNOWN = {"type": "gpu", "productName": "NVIDIA X1 Ultra"}
MIXED_UP = {"type": "amdgpu", "deviceID": "0x74a5", "productName": "AMD_Instinct_MI300X_OAM"}
SERIAL = {"type": "amdgpu", "deviceID": "994913940318892495", "productName": "AMD_Instinct_MI300X_OAM"}

NVIDIA_DEVICES = [
    dranodes.nvidia("t4", "t4"),
    dranodes.nvidia("t4-with-more", "t4", memory="16Gi"),
    dranodes.nvidia("l4", "l4"),
    dranodes.nvidia("a100-40", "a100-40"),
    dranodes.nvidia("a100-80", "a100-80"),
    dranodes.nvidia("h100", "h100"),
    dranodes.nvidia("h100-with-less", "h100", memory="70Gi"),
    dranodes.nvidia("h200", "h200"),
    dranodes.device("unknown", UNKNOWN, "1Ti"),
    dranodes.device("nameless", {"type": "gpu"}, "1Ti"),
    dranodes.device("typeless", {"productName": "NVIDIA L4"}, "23034Mi"),
    dranodes.device("vfio", {"type": "vfio", "productName": "NVIDIA L4"}, None),
    dranodes.device("no-memory", {"type": "gpu", "productName": "NVIDIA L4"}, None),
    dranodes.mig("mig-a100-1g", "a100-80", "1g.10gb", "9856Mi"),
    dranodes.mig("mig-a100-3g", "a100-80", "3g.40gb", "40192Mi"),
    dranodes.mig("mig-h100-1g", "h100", "1g.10gb", "9984Mi"),
    dranodes.mig("mig-h100-1g-me", "h100", "1g.10gb+me", "9984Mi"),
    dranodes.mig("mig-h100-7g", "h100", "7g.80gb", "80384Mi"),
    dranodes.mig("mig-of-no-known-profile", "h100", "9g.99gb", "99Gi"),
    dranodes.mig("mig-of-no-mig-model", "l4", "1g.10gb", "9984Mi"),
    dranodes.device("mig-without-profile", {"type": "mig", "productName": "NVIDIA L4"}, "9Gi"),
    dranodes.shareable(dranodes.nvidia("shared-t4", "t4", memory="8Gi")),
    dranodes.shareable(dranodes.nvidia("shared-h100", "h100")),
    dranodes.shareable(dranodes.mig("shared-mig", "h100", "3g.40gb", "40192Mi")),
]
OTHER_DEVICES = {
    "gpu.amd.com": [
        dranodes.amd("mi210", "mi210"),
        dranodes.amd("mi300x", "mi300x"),
        dranodes.amd("mi325x", "mi325x"),
        dranodes.amd("unreadable", "mi300x", memory="0"),
        dranodes.device("mixed-up", MIXED_UP, "196592Mi"),
        dranodes.device("serial", SERIAL, "196592Mi"),
        dranodes.device("of-a-shared-id", {"type": "amdgpu", "deviceID": "0x740c"}, "64Gi"),
        dranodes.partition("cpx", "mi300x", "cpx_nps4", "24574Mi"),
        dranodes.partition("dpx", "mi300x", "DPX_NPS1", "98296Mi"),
        dranodes.partition("no-such-mode", "mi210", "cpx_nps1", "9Gi"),
        dranodes.shareable(dranodes.amd("shared-mi300x", "mi300x")),
    ],
    "gpu.intel.com": [
        dranodes.device("flex", INTEL, "14248Mi"),
        dranodes.device("by-model", {"model": "Max 1550"}, "128Gi"),
        dranodes.device("neither", {"pciId": "0x4626", "model": "Alder Lake-P"}, "16Gi"),
    ],
    "gpu.example.com": [dranodes.device("foreign", {"type": "gpu", "productName": "NVIDIA L4"}, "24Gi")],
}

NEEDS: list[dict[str, str]] = [
    {},
    {"memory": "14Gi"},
    {"memory": "15.5Gi"},
    {"memory": "40Gi"},
    {"memory": "80G"},
    {"memory": "80Gi"},
    {"memory": "190Gi", "share": "any"},
    {"precision": "fp8"},
    {"precision": "bf16,fp16", "matrix-cores": "required"},
    {"precision": "fp64"},
    {"tflops": "300"},
    {"tflops": "100", "share": "any"},
    {"bandwidth": "1500", "share": "slice"},
    {"share": "slice"},
    {"share": "slice", "memory": "9.7Gi"},
    {"share": "slice", "memory": "24G", "vendor": "amd"},
    {"share": "any"},
    {"share": "any", "memory": "3Gi"},
    {"share": "any", "memory": "20Gi", "precision": "bf16"},
    {"mig": "1g.10gb"},
    {"mig": "1g.10gb+me"},
    {"mig": "1g.10gb", "share": "any"},
    {"vendor": "intel"},
    {"vendor": "amd,intel", "memory": "14Gi"},
    {"sku": "h100-sxm,mi325x"},
    {"sku": "mi300x", "share": "any"},
    {"not-sku": "t4,l4,mi300x", "share": "any"},
    {"interconnect": "required", "gpus": "2"},
    {"gpus": "2", "share": "slice"},
]


@pytest.fixture(scope="module")
def stock(control_plane: Cluster) -> Iterator[Cluster]:
    """The control plane with the shipped DeviceClasses and a scheduler of its own; both are gone afterwards."""
    control_plane.kubectl("apply", "--server-side", "-f", install.MANIFESTS / "device-classes.yaml")
    control_plane.start_scheduler(name=SCHEDULER)
    yield control_plane
    control_plane.stop_scheduler(SCHEDULER)
    control_plane.kubectl("delete", "--ignore-not-found", "-f", install.MANIFESTS / "device-classes.yaml")


@pytest.fixture
def lab(stock: Cluster, namespace: str) -> Iterator[Lab]:
    """No nodes yet; what a test adds is gone afterwards."""
    made = Lab(stock, namespace)
    yield made
    made.clear()


class Lab:
    """Nodes with DRA devices, and pods that claim them, of one test."""

    def __init__(self, running: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = running, namespace
        self.nodes: list[str] = []
        self.published: list[Json] = []

    def name(self, what: str) -> str:
        """A node's name, which no other test has."""
        return f"{what}-{uuid.uuid4().hex[:6]}"

    def publish(self, *given: Json) -> None:
        """Add the nodes of the slices, then the slices."""
        nodes = sorted({each["spec"]["nodeName"] for each in given})
        self.nodes += nodes
        hosts = [{"metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}}} for node in nodes]
        self.cluster.add_nodes(hosts)
        for each in given:
            self.published.append(each)
            self.cluster.api("POST", f"{API}/resourceslices", each)

    def devices(self) -> dict[slices.Key, slices.Published]:
        """What is published, as anygpu reads it of the API."""
        made = {each["metadata"]["name"] for each in self.published}
        items = self.cluster.api("GET", f"{API}/resourceslices")["items"]
        read = [msgspec.convert(each, slices.ResourceSlice) for each in items if each["metadata"]["name"] in made]
        return slices.devices(read, BUILTIN)

    def fitting(self, asked: needs.Needs) -> set[slices.Key]:
        """The devices that `fit` lets through."""
        return {key for key, each in self.devices().items() if not fit.unmet(asked, each.device)}

    def spec(self, asked: needs.Needs) -> Json:
        return claims.template_spec(asked, EVERY, BUILTIN, [each.device for each in self.devices().values()])

    def template(self, asked: needs.Needs) -> str:
        """The name of the template for the needs, made if it is not there."""
        made = claims.template(self.namespace, self.spec(asked))
        self.cluster.api("POST", f"{API}/namespaces/{self.namespace}/resourceclaimtemplates", made, ok=[409])
        name: str = made["metadata"]["name"]
        return name

    def pod(self, name: str, claim: Json | None = None, **resources: str) -> None:
        """Create a pod that uses a claim or asks extended resources, on the nodes of this test."""
        container: Json = {"name": "main", "image": "app", "resources": {"limits": resources}}
        spec: Json = {"schedulerName": SCHEDULER, "containers": [container], "terminationGracePeriodSeconds": 0}
        if claim is not None:
            container["resources"]["claims"] = [{"name": claims.CLAIM_NAME}]
            spec["resourceClaims"] = [{"name": claims.CLAIM_NAME} | claim]
        terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": self.nodes}]}]
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        spec["affinity"] = {"nodeAffinity": required}
        pod = {"metadata": {"name": name, "labels": {"of": "lab"}}, "spec": spec}
        self.cluster.api("POST", f"/api/v1/namespaces/{self.namespace}/pods", pod)

    def from_template(self, name: str, asked: needs.Needs) -> None:
        """Create a pod with a claim from the template of its needs."""
        self.pod(name, {"resourceClaimTemplateName": self.template(asked)})

    def settled(self, names: Iterable[str], bound: int = 0) -> dict[str, tuple[slices.Key, ...] | None]:
        """Pod -> its devices once kube-scheduler has decided on all; None: it waits, and has not failed.

        So many should be bound: a scheduler that has not seen every slice yet refuses at first.
        """
        wanted, deadline = set(names), time.monotonic() + 20

        def decided() -> dict[str, Json]:
            pods = self.cluster.api("GET", f"/api/v1/namespaces/{self.namespace}/pods")["items"]
            found = {pod["metadata"]["name"]: pod for pod in pods if pod["metadata"]["name"] in wanted}
            enough = sum(bool(pod["spec"].get("nodeName")) for pod in found.values()) >= bound
            done = all(map(_decided, found.values())) and (enough or time.monotonic() > deadline)
            return found if len(found) == len(wanted) and done else {}

        pods = self.cluster.wait("every pod to be bound or refused", decided, timeout=120)
        return {name: self._devices_of(pods[name]) for name in wanted}

    def given(self, name: str) -> tuple[slices.Key, ...] | None:
        """The devices of one pod that should be bound."""
        return self.settled([name], bound=1)[name]

    def _devices_of(self, pod: Json) -> tuple[slices.Key, ...] | None:
        if not pod["spec"].get("nodeName"):
            assert pod["status"]["phase"] == "Pending"
            return None
        name = claims.claim_name(pod) or pod["spec"]["resourceClaims"][0]["resourceClaimName"]
        path = f"{API}/namespaces/{self.namespace}/resourceclaims/{name}"
        return claims.allocated(claims.to_claim(self.cluster.api("GET", path)))

    def delete_pods(self, *names: str) -> None:
        """Delete pods (all, if none is named), and return when their claims are gone too."""
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        for path in [f"{pods}/{name}" for name in names] or [pods]:
            self.cluster.api("DELETE", f"{path}?gracePeriodSeconds=0")

        def unclaimed() -> bool:
            found = self.cluster.api("GET", f"{API}/namespaces/{self.namespace}/resourceclaims")["items"]
            owners = {owner["name"] for each in found for owner in each["metadata"].get("ownerReferences", [])}
            return not (owners & set(names) if names else owners)

        self.cluster.wait("the pods' claims to go", unclaimed)

    def clear(self) -> None:
        self.delete_pods()
        for each in self.published:
            self.cluster.api("DELETE", f"{API}/resourceslices/{each['metadata']['name']}", ok=[404])
        self.cluster.delete_nodes(self.nodes)


def _decided(pod: Json) -> bool:
    conditions = pod["status"].get("conditions", [])
    refused = any(each["type"] == "PodScheduled" and each.get("reason") == "Unschedulable" for each in conditions)
    return bool(pod["spec"].get("nodeName")) or refused


def ask(**stated: str) -> needs.Needs:
    """The needs of annotations given without prefix; `_` stands for `-`."""
    keys = {f"anygpu.io/{key.replace('_', '-')}": value for key, value in stated.items()}
    return needs.parse({"anygpu.io/binding": "claim"} | keys, BUILTIN)


def names(keys: Iterable[slices.Key]) -> list[str]:
    """The devices' names, for assertions that people read."""
    return sorted(device for _, _, device in keys)


def test_the_api_server_takes_every_shipped_class(stock: Cluster) -> None:
    """It compiles each selector and estimates what it costs at most."""
    there = {each["metadata"]["name"]: each["spec"] for each in stock.api("GET", f"{API}/deviceclasses")["items"]}
    for each in claims.device_classes(BUILTIN):
        assert there[each["metadata"]["name"]] == each["spec"]


def test_templates_select_exactly_the_devices_that_fit(lab: Lab) -> None:
    """Each alternative of each need's template asks for all that it selects, as an administrator may, at once."""
    node = lab.name("all")
    lab.publish(
        dranodes.resource_slice(node, "gpu.nvidia.com", NVIDIA_DEVICES),
        *(dranodes.resource_slice(node, driver, devices) for driver, devices in OTHER_DEVICES.items()),
    )
    admin = {"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}}
    merge = "application/merge-patch+json"
    lab.cluster.api("PATCH", f"/api/v1/namespaces/{lab.namespace}", admin, content_type=merge)
    asked = {f"n{number}": ask(**stated) for number, stated in enumerate(NEEDS)}
    published = lab.devices()
    expected: dict[str, set[slices.Key]] = {}
    for key, each in asked.items():
        fitting = lab.fitting(each)
        for subrequest in lab.spec(each)["spec"]["devices"]["requests"][0]["firstAvailable"]:
            vendor, _, kind = subrequest["name"].partition("-")
            pod = f"{key}-{subrequest['name']}"
            lab.pod(pod, {"resourceClaimName": _claim_all(lab, pod, subrequest)})
            expected[pod] = {
                device
                for device in fitting
                if published[device].device.vendor == vendor and published[device].device.kind == (kind or "whole")
            }
            fitting -= expected[pod]
        assert not fitting, f"{NEEDS[int(key[1:])]}: no alternative is for these"
    found = lab.settled(expected, bound=sum(map(bool, expected.values())))
    for pod, devices in expected.items():
        stated = NEEDS[int(pod[1:].partition("-")[0])]
        assert names(found[pod] or ()) == names(devices), f"{pod}: {stated}"
    assert sum(map(len, expected.values())) > 100


def _claim_all(lab: Lab, name: str, subrequest: Json) -> str:
    """A claim for every device that a subrequest selects, whoever has it: it takes nothing."""
    kept = {key: subrequest[key] for key in ("deviceClassName", "selectors")}
    exactly = kept | {"allocationMode": "All", "adminAccess": True}
    claim = {"metadata": {"name": name}, "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}}
    lab.cluster.api("POST", f"{API}/namespaces/{lab.namespace}/resourceclaims", claim)
    return name


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"memory": "20Gi", "precision": "bf16"},
        {"vendor": "amd", "memory": "150Gi"},
        {"share": "slice", "memory": "9Gi", "not_sku": "h100-sxm"},
        {"sku": "l4,t4", "share": "any"},
    ],
)
def test_pods_take_all_devices_that_fit_and_no_others(lab: Lab, stated: dict[str, str]) -> None:
    """One node a device, and one pod more than devices that fit."""
    devices = [
        ("gpu.nvidia.com", dranodes.nvidia("t4", "t4")),
        ("gpu.nvidia.com", dranodes.nvidia("l4", "l4")),
        ("gpu.nvidia.com", dranodes.tainted(dranodes.nvidia("sick", "l4"))),
        ("gpu.nvidia.com", dranodes.nvidia("h100", "h100")),
        ("gpu.nvidia.com", dranodes.mig("mig", "a100-80", "1g.10gb", "9856Mi")),
        ("gpu.amd.com", dranodes.amd("mi300x", "mi300x")),
        ("gpu.amd.com", dranodes.partition("cpx", "mi300x", "cpx_nps4", "24574Mi")),
        ("gpu.example.com", dranodes.device("foreign", {"type": "gpu", "productName": "NVIDIA L4"}, "24Gi")),
    ]
    lab.publish(
        *(dranodes.resource_slice(lab.name(each["name"]), driver, [each]) for driver, each in devices),
    )
    asked = ask(**stated)
    expected = {key for key in lab.fitting(asked) if lab.devices()[key].problem is None}
    assert expected
    pods = [f"p{number}" for number in range(len(expected) + 1)]
    for pod in pods:
        lab.from_template(pod, asked)
    found = [each for each in lab.settled(pods, bound=len(expected)).values() if each is not None]
    assert names(key for each in found for key in each) == names(expected)
    assert len(found) == len(expected)


def test_of_a_nodes_devices_the_first_alternative_is_taken(lab: Lab) -> None:
    node = lab.name("both")
    lab.publish(dranodes.nvidia_slice(node, "l4", 1), dranodes.amd_slice(node, "mi300x", 1))
    for order, drivers in {
        "amd,nvidia": ["gpu.amd.com", "gpu.nvidia.com"],
        "nvidia,amd": ["gpu.nvidia.com", "gpu.amd.com"],
    }.items():
        for number, driver in enumerate(drivers):
            name = f"{order.replace(',', '-')}-{number}"
            lab.from_template(name, ask(vendor=order))
            assert [key[0] for key in lab.given(name) or ()] == [driver]
        lab.delete_pods()


def test_several_devices_are_of_one_model(lab: Lab) -> None:
    mixed, alike = lab.name("mixed"), lab.name("alike")
    two = [dranodes.nvidia("h100", "h100"), dranodes.nvidia("a100", "a100-80")]
    lab.publish(dranodes.resource_slice(mixed, "gpu.nvidia.com", two), dranodes.amd_slice(mixed, "mi300x", 1))
    asked = ask(gpus="2", memory="40Gi")
    lab.from_template("first", asked)
    assert lab.settled(["first"]) == {"first": None}
    lab.publish(dranodes.nvidia_slice(alike, "h100", 2))
    lab.from_template("second", asked)
    driver = "gpu.nvidia.com"
    assert sorted(lab.given("second") or ()) == [(driver, alike, "gpu-0"), (driver, alike, "gpu-1")]


def test_models_of_3_and_6_gb_wait_for_one_another_on_a_device_of_8(lab: Lab) -> None:
    """Neither fails, the second waits; it runs when the first is gone, and what fits besides runs beside it."""
    lab.publish(dranodes.shared_slice(lab.name("shared"), "l4", 1, "8Gi"))
    small, large = ask(share="any", memory="3G"), ask(share="any", memory="6G")
    lab.from_template("small", small)
    first = lab.given("small")
    assert first is not None
    lab.from_template("large", large)
    assert lab.settled(["large"]) == {"large": None}
    assert _free(lab, large) == 0
    assert _free(lab, small) == 1
    lab.delete_pods("small")
    assert lab.given("large") == first
    lab.from_template("tiny", ask(share="any", memory="2G"))
    assert lab.given("tiny") == first


def _free(lab: Lab, asked: needs.Needs) -> int:
    """The devices that anygpu counts as free for the needs."""
    found = lab.cluster.api("GET", f"{API}/namespaces/{lab.namespace}/resourceclaims")["items"]
    taken = claims.taken(claims.to_claim(each) for each in found)
    return sum(slices.free(lab.devices(), taken, asked.memory_bytes).values())


def test_a_pod_that_shares_takes_no_whole_device_of_others(lab: Lab) -> None:
    """And one that wants a whole device is given none that others share."""
    lab.publish(dranodes.shared_slice(lab.name("shared"), "h100", 1, "80Gi"))
    lab.from_template("whole", ask())
    lab.from_template("sharing", ask(share="any", memory="60Gi"))
    lab.from_template("too", ask(share="any", memory="20Gi"))
    found = lab.settled(["whole", "sharing", "too"], bound=2)
    assert found["whole"] is None
    assert found["sharing"] == found["too"] != None  # noqa: E711


def test_pods_that_need_nothing_in_particular_are_given_whole_gpus_of_either_vendor(lab: Lab) -> None:
    asked = ask()
    lab.publish(
        dranodes.nvidia_slice(lab.name("nvidia"), "l4", 1),
        dranodes.amd_slice(lab.name("amd"), "mi300x", 1),
        dranodes.shared_slice(lab.name("shared"), "l4", 1),
        dranodes.resource_slice(
            lab.name("cut"),
            "gpu.nvidia.com",
            [dranodes.mig("mig", "h100", "1g.10gb", "9856Mi"), dranodes.device("unknown", UNKNOWN, "1Ti")],
        ),
        dranodes.resource_slice(lab.name("intel"), "gpu.intel.com", [dranodes.device("flex", INTEL, "14248Mi")]),
    )
    pods = ["p0", "p1", "p2"]
    for pod in pods:
        lab.pod(pod, **{claims.GPU_RESOURCE: "1"})
    found = [each for each in lab.settled(pods, bound=2).values() if each is not None]
    expected = lab.fitting(asked.model_copy(update={"vendors": claims.NEUTRAL_VENDORS}))
    assert sorted(key for each in found for key in each) == sorted(expected)
    assert len(found) == 2


def test_an_unknown_driver_is_named(lab: Lab) -> None:
    node = lab.name("foreign")
    lab.publish(dranodes.resource_slice(node, "gpu.example.com", [dranodes.device("d", {"type": "gpu"}, "1Gi")]))
    selectors = [{"cel": {"expression": 'device.driver == "gpu.example.com"'}}]
    device_class = {"metadata": {"name": node}, "spec": {"selectors": selectors}}
    lab.cluster.api("POST", f"{API}/deviceclasses", device_class)
    try:
        requests = [{"name": "gpu", "exactly": {"deviceClassName": node}}]
        claim = {"metadata": {"name": "c"}, "spec": {"devices": {"requests": requests}}}
        lab.cluster.api("POST", f"{API}/namespaces/{lab.namespace}/resourceclaims", claim)
        lab.pod("p", {"resourceClaimName": "c"})
        with pytest.raises(errors.AnygpuError, match=r"driver gpu\.example\.com is unknown to anygpu \(it knows"):
            lab.given("p")
    finally:
        lab.cluster.api("DELETE", f"{API}/deviceclasses/{node}")
