"""Any labels and any resource counts give node facts, never an error, and nothing that they do not say."""

import re
from typing import Any

import gpureports
from hypothesis import given
from hypothesis import strategies as st

from capability_db import errors, node_facts, reports, vendors
from capability_db.catalogue import Catalogue

BUILTIN = Catalogue.builtin()
PRODUCTS = sorted(label for sku in BUILTIN for label in sku.match.product)
KEYS = [
    *(f"nvidia.com/{each}.{name}" for each in ("gpu", "mig-1g.5gb") for name in ("product", "memory", "count")),
    *("nvidia.com/gpu.replicas", "nvidia.com/gpu.sharing-strategy", "nvidia.com/mig-1g.5gb.replicas"),
    *(f"{p}amd.com/gpu.{name}" for p in ("", "beta.") for name in ("device-id", "vram", "cu-count", "product-name")),
    *(f"{p}amd.com/gpu.device-id.{each}" for p in ("", "beta.") for each in ("74a1", "740c", "ffff")),
    *("amd.com/gpu.vram.24G", "amd.com/gpu.compute-memory-partition", "amd.com/compute-memory-partition"),
    *("gpu.intel.com/product", "gpu.intel.com/device.count", "gpu.intel.com/device-id.0380-56c0.present"),
    *("cloud.google.com/gke-accelerator", "cloud.google.com/gke-gpu-partition-size"),
    *("cloud.google.com/gke-max-shared-clients-per-gpu", "karpenter.k8s.aws/instance-gpu-name"),
    *("feature.node.kubernetes.io/pci-10de.present", "feature.node.kubernetes.io/pci-.present"),
]
RESOURCES = [
    *("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.5gb", "nvidia.com/mig-1g.5gb.shared"),
    *("nvidia.com/mig-", "amd.com/gpu", "amd.com/cpx_nps4", "amd.com/spx_nps1", "gpu.intel.com/i915"),
    *("gpu.intel.com/xe", "habana.ai/gaudi", "cpu"),
]
words = st.sampled_from(
    ["1", "0", "4", "81559", "9" * 400, "٤", "", "true", "192G", "0G", "24G", "74a1", "740c", "66a1", "104", "cpx_nps4"]
    + ["spx_nps1", "CPX_NPS9", "1g.5gb", "time-slicing", "mps", "Max_1100", "nvidia-tesla-t4", "a100", "-SHARED"]
    + [product + end for product in PRODUCTS[::9] for end in ("", "-SHARED", "-MIG-1g.5gb", "-MIG-INVALID", "-MIG-")]
)
label_values = st.from_regex(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9])?)?", fullmatch=True)
counts = st.dictionaries(st.one_of(st.sampled_from(RESOURCES), st.text(max_size=8)), st.integers(-1, 70), max_size=4)


def labels(values: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    """Labels under keys that are read, and others."""
    return st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), values, max_size=8)


@given(labels(st.one_of(words, st.text(max_size=20))), counts, counts)
def test_any_node_has_facts(found: dict[str, str], allocatable: dict[str, int], capacity: dict[str, int]) -> None:
    facts = node_facts.read(found, allocatable, capacity, BUILTIN)
    for pool in facts.pools:
        device = pool.device
        assert vendors.VENDORS[device.vendor].owns(device.resource)
        assert 0 < pool.capacity >= pool.allocatable
        assert len(pool.sku_counts) == len(device.skus) == len({sku.id for sku in device.skus})
        assert all(sku.vendor == device.vendor for sku in device.skus)
        assert device.replicas is None or device.replicas >= 1
        assert (device.kind == "shared") == (device.replicas != 1)
        assert device.kind != "whole" or device.mode is None
        for share in (device.memory_share, device.compute_share):
            assert share is None or 0 <= share <= 1
        assert device.label
        assert device.evidence
    node_facts.node_labels(facts)


@given(labels(st.one_of(words, label_values)), counts)
def test_what_the_service_writes_are_valid_labels(found: dict[str, str], allocatable: dict[str, int]) -> None:
    found = {key: value for key, value in found.items() if re.fullmatch(LABEL_VALUE, value)}
    for key, value in node_facts.node_labels(node_facts.read(found, allocatable, allocatable, BUILTIN)).items():
        assert node_facts.is_ours(key)
        assert re.fullmatch(LABEL_VALUE, key.partition("/")[2])
        assert re.fullmatch(LABEL_VALUE, value)


LABEL_VALUE = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"


@given(st.text(max_size=30), st.sampled_from(PRODUCTS), st.booleans())
def test_only_a_whole_product_names_a_model(more: str, product: str, front: bool) -> None:
    text = more + product if front else product + more
    facts = node_facts.read({"nvidia.com/gpu.product": text}, {"nvidia.com/gpu": 1}, {}, BUILTIN)
    bare = re.sub(r"-MIG-[0-9A-Za-z].*$", "", text.removesuffix("-SHARED"), flags=re.DOTALL)
    for sku in facts.pools[0].device.skus:
        assert bare in sku.match.product


@given(labels(words), counts, st.data())
def test_the_order_of_labels_changes_nothing(
    found: dict[str, str], allocatable: dict[str, int], data: st.DataObject
) -> None:
    mixed = data.draw(st.permutations(list(found.items())))
    one, two = (node_facts.read(each, allocatable, allocatable, BUILTIN) for each in (found, dict(mixed)))
    assert node_facts.node_labels(one) == node_facts.node_labels(two)


@st.composite
def reported(draw: st.DrawFn) -> reports.Report:
    """Devices of any kind: known or not, cut or not, healthy or not."""
    devices: list[dict[str, Any]] = []
    for number in range(draw(st.integers(0, 5))):
        model = draw(st.sampled_from([*gpureports.NVIDIA, *gpureports.AMD]))
        device = gpureports.several(model, 1)[0] | {"uuid": f"GPU-{number}"}
        if draw(st.booleans()):
            del device[draw(st.sampled_from(["product", "pciDeviceID", "memoryMiB"]))]
        if device["vendor"] == "nvidia" and draw(st.booleans()):
            names = st.sampled_from(["1g.5gb", "1g.10gb", "1g.10gb+me", "3g.40gb", "7g.999gb"])
            device = gpureports.cut(device, *draw(st.lists(st.tuples(names, st.integers(0, 7)), max_size=7)))
        if device["vendor"] == "amd" and draw(st.booleans()):
            device["partition"] = {"compute": draw(st.sampled_from(["SPX", "CPX", "odd"])), "memory": "NPS4"}
        devices.append(gpureports.sick(device, "100% lost") if draw(st.booleans()) else device)
    return reports.read({"devices": [each | {"index": index} for index, each in enumerate(devices)]})[0]


@given(labels(words), counts, counts, reported(), st.lists(st.sampled_from(["amd-gpu-unhealthy", "other"])))
def test_no_report_makes_more_of_a_node_than_its_device_plugin_offers(
    found: dict[str, str],
    allocatable: dict[str, int],
    capacity: dict[str, int],
    report: reports.Report,
    taints: list[str],
) -> None:
    plain = node_facts.read(found, allocatable, capacity, BUILTIN)
    facts = node_facts.read(found, allocatable, capacity, BUILTIN, taints=taints, report=report)
    assert [pool.device.resource for pool in facts.pools] == [pool.device.resource for pool in plain.pools]
    for pool, before in zip(facts.pools, plain.pools, strict=True):
        assert pool.capacity == before.capacity
        assert pool.allocatable + pool.withheld == before.allocatable
        assert len(pool.sku_counts) == len(pool.device.skus) == len({sku.id for sku in pool.device.skus})
        assert pool.device.kind != "whole" or pool.device.mode is None
        assert (pool.device.kind == "shared") == (pool.device.replicas != 1)
        assert "%" not in (pool.sickness or "")
        for share in (pool.device.memory_share, pool.device.compute_share):
            assert share is None or 0 <= share <= 1
    node_facts.node_labels(facts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["devices", "index", "vendor", "mig", "drivers", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_status_is_a_report_or_refused_as_none(status: Any) -> None:
    try:
        reports.read(status)
    except errors.ReportError as error:
        assert str(error)
