"""Every model of the capability DB is told right by labels alone, by the agent alone, by ResourceSlices alone."""

from __future__ import annotations

from typing import Any

import dranodes
import gpunodes
import gpureports
import msgspec
import placing
import pytest

from capability_db import node_facts, partitions, slices, vendors
from capability_db.catalogue import Catalogue
from capability_db.sku import Sku

Json = dict[str, Any]
BUILTIN = Catalogue.builtin()

# What the vendor's driver calls the model (NVML, libdrm's amdgpu.ids, Intel's product table) and its PCI device id.
DRIVERS = {
    "p100-pcie-16gb": ("Tesla P100-PCIE-16GB", "15f8"),
    "v100-pcie-16gb": ("Tesla V100-PCIE-16GB", None),
    "v100-sxm2-16gb": ("Tesla V100-SXM2-16GB", None),
    "v100-sxm2-32gb": ("Tesla V100-SXM2-32GB", None),
    "t4": ("Tesla T4", "1eb8"),
    "a2": ("NVIDIA A2", "25b6"),
    "a10": ("NVIDIA A10", "2236"),
    "a10g": ("NVIDIA A10G", "2237"),
    "a16": ("NVIDIA A16", "25b6"),
    "a40": ("NVIDIA A40", "2235"),
    "a30": ("NVIDIA A30", "20b7"),
    "a100-pcie-40gb": ("NVIDIA A100-PCIE-40GB", "20f1"),
    "a100-sxm4-40gb": ("NVIDIA A100-SXM4-40GB", "20b0"),
    "a100-pcie-80gb": ("NVIDIA A100 80GB PCIe", "20b5"),
    "a100-sxm4-80gb": ("NVIDIA A100-SXM4-80GB", "20b2"),
    "a800-sxm4-80gb": ("NVIDIA A800-SXM4-80GB", "20f3"),
    "a800-pcie-80gb": ("NVIDIA A800 80GB PCIe", "20f5"),
    "l4": ("NVIDIA L4", "27b8"),
    "l20": ("NVIDIA L20", "26ba"),
    "l40": ("NVIDIA L40", "26b5"),
    "l40s": ("NVIDIA L40S", "26b9"),
    "h20": ("NVIDIA H20", "2329"),
    "h100-pcie": ("NVIDIA H100 PCIe", "2331"),
    "h100-sxm": ("NVIDIA H100 80GB HBM3", "2330"),
    "h100-nvl": ("NVIDIA H100 NVL", "2321"),
    "h200-sxm": ("NVIDIA H200", "2335"),
    "h200-nvl": ("NVIDIA H200 NVL", "233b"),
    "gh200-480gb": ("NVIDIA GH200 480GB", "2342"),
    "gh200-144g": ("NVIDIA GH200 144G HBM3e", "2348"),
    "b200": ("NVIDIA B200", "2901"),
    "b300": ("NVIDIA B300 SXM6 AC", "3182"),
    "gb200": ("NVIDIA GB200", "2941"),
    "gb300": ("NVIDIA GB300", "31c2"),
    "rtx-a6000": ("NVIDIA RTX A6000", "2230"),
    "rtx-6000-ada": ("NVIDIA RTX 6000 Ada Generation", "26b1"),
    "rtx-pro-6000-blackwell-server": ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "2bb5"),
    "rtx-pro-6000-blackwell-ws": ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "2bb1"),
    "rtx-3090": ("NVIDIA GeForce RTX 3090", "2204"),
    "rtx-4090": ("NVIDIA GeForce RTX 4090", "2684"),
    "rtx-5090": ("NVIDIA GeForce RTX 5090", "2b85"),
    "mi50-16gb": ("AMD Instinct MI60 / MI50", "66a1"),
    "mi60": ("AMD Instinct MI60 / MI50", "66a1"),
    "mi100": ("AMD Instinct MI100", "738c"),
    "mi210": ("Instinct MI210", "740f"),
    "mi250": ("AMD Instinct MI250X / MI250", "740c"),
    "mi250x": ("AMD Instinct MI250X", "7408"),
    "mi300a": ("AMD Instinct MI300A", "74a0"),
    "mi300x": ("AMD Instinct MI300X OAM", "74a1"),
    "mi308x": ("AMD Instinct MI308X OAM", "74a2"),
    "mi325x": ("AMD Instinct MI325 OAM", "74a5"),
    "mi350x": ("AMD Instinct MI350X", "75a0"),
    "mi355x": ("AMD Instinct MI355X", "75a3"),
    "radeon-pro-w7800": ("AMD Radeon Pro W7800", "745e"),
    "radeon-pro-w7900": ("AMD Radeon Pro W7900", "7448"),
    "radeon-rx-7900-xtx": ("AMD Radeon RX 7900 XTX", "744c"),
    "radeon-pro-v710": ("AMD Radeon Pro V710", "7460"),
    "radeon-pro-v620": ("AMD Radeon Pro V620", "73a1"),
    "radeon-ai-pro-r9700": ("AMD Radeon AI PRO R9700", "7551"),
    "max-1100": ("Max 1100", "0bda"),
    "max-1550": ("Max 1550", "0bd5"),
    "flex-140": ("Flex 140", "56c1"),
    "flex-170": ("Flex 170", "56c0"),
    "arc-pro-b60": (None, None),
    "gaudi2": (None, None),
    "gaudi3": (None, None),
}
COMPUTE_UNITS = {"mi250": 104, "mi250x": 110}
UNNAMED = {sku_id for sku_id, words in DRIVERS.items() if words == (None, None)}
"""Models that nothing on a node names: they stay unknown, unless a GPUSKU says how they are called."""
NOT_TO_CLAIM = {"mi50-16gb", "mi60", "mi250"}
"""Models whose PCI id and name others bear too: capacities tell them apart, but no attribute that a claim may name."""

EVERY = pytest.mark.parametrize("sku", list(BUILTIN), ids=lambda sku: sku.id)
CUT = pytest.mark.parametrize("sku", [sku for sku in BUILTIN if sku.mig], ids=lambda sku: sku.id)
PARTED = pytest.mark.parametrize(
    ("sku", "mode"),
    [
        (sku, f"{compute}_{memory}".lower())
        for sku in BUILTIN
        for compute in sku.compute_modes
        for memory in partitions.amd_memory_modes(sku, compute)
    ],
    ids=lambda value: getattr(value, "id", value),
)


def resource_of(sku: Sku) -> str:
    return (sku.resources or vendors.VENDORS[sku.vendor].resources)[0]


def reported_mib(sku: Sku) -> int:
    """A little less than the DB has, as drivers do."""
    return int(sku.memory_mib * 0.999)


def amd_labels(sku: Sku, product: str, pci: str, mode: str | None = None) -> dict[str, str]:
    cus = COMPUTE_UNITS.get(sku.id, 80)
    gib = round(sku.memory_mib / 1024)
    found = {
        f"amd.com/gpu.{key}": value for key, value in (("device-id", pci), ("vram", f"{gib}G"), ("cu-count", str(cus)))
    }
    name = product.replace(" ", "_")
    if "/" not in name:  # which no label value may have
        found["amd.com/gpu.product-name"] = name
    return found | ({"amd.com/gpu.compute-memory-partition": mode} if mode else {})


def labels_of(sku: Sku) -> dict[str, str]:
    """As GPU feature discovery, AMD's node labeller and Intel's rules write them."""
    product, pci = DRIVERS[sku.id]
    if product is None or sku.vendor == "intel":
        return {"gpu.intel.com/product": product.replace(" ", "_")} if product else {}
    if sku.vendor == "amd":
        return amd_labels(sku, product, pci or "")
    return {"nvidia.com/gpu.product": product.replace(" ", "-"), "nvidia.com/gpu.memory": str(reported_mib(sku))}


def device_of(sku: Sku, number: int = 0, **more: Any) -> Json:
    """As the agent reports it, without the SKU that it thinks it is."""
    product, pci = DRIVERS[sku.id]
    return {
        "vendor": sku.vendor,
        "uuid": f"GPU-{number}",
        "product": product,
        "pciDeviceID": pci,
        "memoryMiB": reported_mib(sku),
        "computeUnits": COMPUTE_UNITS.get(sku.id),
        **more,
    }


def read(node: Json, devices: list[Json] | None = None, published: list[Json] | None = None) -> list[node_facts.Pool]:
    fleet = placing.fleet_of([node])
    if devices is not None:
        fleet.apply_report(gpureports.to_report(gpureports.report("n", devices)))
    for each in published or []:
        fleet.apply_slice(msgspec.convert(each, slices.ResourceSlice))
    return list(fleet.rows["n"].facts.pools)


def slice_of(sku: Sku, attributes: Json, memory_mib: int, count: int) -> list[Json]:
    capacity = {"memory": {"value": f"{memory_mib}Mi"}}
    if sku.id in COMPUTE_UNITS:
        capacity["computeUnits"] = {"value": str(COMPUTE_UNITS[sku.id])}
    devices = [dranodes.device(f"d{number}", attributes, None, capacity=capacity) for number in range(count)]
    return [dranodes.resource_slice("n", vendors.VENDORS[sku.vendor].driver.name, devices)]


def test_the_table_is_of_every_model() -> None:
    assert DRIVERS.keys() == {sku.id for sku in BUILTIN}


@EVERY
def test_labels_alone(sku: Sku) -> None:
    (pool,) = read(gpunodes.node("n", labels_of(sku), {resource_of(sku): 8}))
    if sku.id in UNNAMED:
        assert (pool.device.skus, pool.device.memory_mib) == ((), None)
        return
    assert pool.device.skus == (sku,)
    assert (pool.device.kind, pool.capacity, pool.sku_counts) == ("whole", 8, (8,))
    assert pool.device.memory_mib == pytest.approx(sku.memory_mib, rel=0.02)


@EVERY
def test_the_agent_alone(sku: Sku) -> None:
    (pool,) = read(gpunodes.node("n", {}, {resource_of(sku): 8}), [device_of(sku, number) for number in range(8)])
    if sku.id in UNNAMED:
        assert pool.device.skus == ()
        return
    assert pool.device.skus == (sku,)
    assert (pool.device.kind, pool.capacity, pool.sku_counts) == ("whole", 8, (8,))
    assert (pool.device.memory_mib, pool.device.memory_reported) == (reported_mib(sku), True)


@EVERY
def test_slices_alone(sku: Sku) -> None:
    product, pci = DRIVERS[sku.id]
    if sku.vendor == "nvidia":
        attributes = {"type": "gpu", "productName": product}
    elif sku.vendor == "amd":
        attributes = {"type": "amdgpu", "productName": (product or "").replace(" ", "_"), "deviceID": f"0x{pci}"}
    else:
        attributes = {"model": product, "pciId": f"0x{pci}"} if product else {"pciId": "0x0000"}
    (pool,) = read(gpunodes.node("n"), published=slice_of(sku, attributes, reported_mib(sku), 8))
    if sku.id in UNNAMED:
        assert pool.device.skus == ()
        return
    assert pool.device.skus == (sku,)
    assert (pool.device.kind, pool.capacity, pool.device.memory_mib) == ("whole", 8, reported_mib(sku))
    assert bool(pool.device.problem) == (sku.id in NOT_TO_CLAIM)


@EVERY
def test_all_sources_together_agree(sku: Sku) -> None:
    fleet = placing.fleet_of([gpunodes.node("n", labels_of(sku), {resource_of(sku): 8})])
    devices = [device_of(sku, number) for number in range(8)]
    fleet.apply_report(gpureports.to_report(gpureports.report("n", devices)))
    assert fleet.rows["n"].facts.conflicts == ()


# --- Partitions ------------------------------------------------------------------------------------------------------


def geometry_of(sku: Sku) -> partitions.Geometry:
    return partitions.mig_geometry(sku.mig or "")


def expected(sku: Sku, profile: partitions.Profile) -> tuple[Any, ...]:
    geometry = geometry_of(sku)
    memory = partitions.mig_memory_mib(sku.memory_mib, geometry, profile)
    share = (profile.size / geometry.memory_slices, profile.compute / geometry.compute_slices)
    return ((sku.id,), "slice", profile.name, memory, *share)


def seen(pool: node_facts.Pool) -> tuple[Any, ...]:
    device = pool.device
    skus = tuple(sku.id for sku in device.skus)
    return (skus, device.kind, device.mode, device.memory_mib, device.memory_share, device.compute_share)


@CUT
def test_mig_instances_by_labels_alone(sku: Sku) -> None:
    product = (DRIVERS[sku.id][0] or "").replace(" ", "-")
    for profile in geometry_of(sku).profiles:
        single = {
            "nvidia.com/gpu.product": f"{product}-MIG-{profile.resource_form}",
            "nvidia.com/mig.strategy": "single",
        }
        (pool,) = read(gpunodes.node("n", single, {"nvidia.com/gpu": profile.max}))
        assert (seen(pool), pool.capacity) == (expected(sku, profile), profile.max)
        name = f"nvidia.com/mig-{profile.resource_form}"
        mixed = {"nvidia.com/gpu.product": product, f"{name}.product": f"{product}-MIG-{profile.resource_form}"}
        (pool,) = read(gpunodes.node("n", mixed, {name: profile.max}))
        assert (seen(pool), pool.capacity) == (expected(sku, profile), profile.max)


@CUT
def test_mig_instances_by_the_agent_alone(sku: Sku) -> None:
    geometry = geometry_of(sku)
    for profile in geometry.profiles:
        starts = [start for start in profile.starts if start % profile.size == profile.starts[0] % profile.size]
        there = [(profile.name, start) for start in starts[: profile.max]]
        devices = [gpureports.cut(device_of(sku, number), *there) for number in range(2)]
        for name in (f"nvidia.com/mig-{profile.resource_form}", "nvidia.com/gpu"):
            (pool,) = read(gpunodes.node("n", {}, {name: 2 * len(there)}), devices)
            assert (seen(pool), pool.capacity) == (expected(sku, profile), 2 * len(there))
            assert dict(pool.fits)[profile.name] == 2 * (profile.max - len(there))


@CUT
def test_mig_instances_by_slices_alone(sku: Sku) -> None:
    for profile in geometry_of(sku).profiles:
        memory = partitions.mig_memory_mib(sku.memory_mib, geometry_of(sku), profile)
        attributes = {"type": "mig", "productName": DRIVERS[sku.id][0], "profile": profile.name}
        found = slice_of(sku, attributes, memory, profile.max)
        (pool,) = read(gpunodes.node("n"), published=found)
        assert (seen(pool), pool.capacity) == (expected(sku, profile), profile.max)


@PARTED
def test_amd_partitions_by_each_source_alone(sku: Sku, mode: str) -> None:
    compute, memory = mode.split("_")
    parts = partitions.amd_parts(sku, compute) or 0
    product, pci = DRIVERS[sku.id]
    kind, label = ("whole", None) if parts == 1 else ("slice", mode)
    count = 8 * parts
    cut = {"partition": {"compute": compute.upper(), "memory": memory.upper()}}
    whole = [device_of(sku, number, **cut) for number in range(8)]
    part = cut | {"memoryMiB": reported_mib(sku) // parts}
    listed = [device_of(sku, number) | part for number in range(count)]
    attributes = {
        "type": "amdgpu" if parts == 1 else "amdgpu-partition",
        "deviceID": f"0x{pci}",
        "productName": (product or "").replace(" ", "_"),
        "partitionProfile": mode,
    }
    published = slice_of(sku, attributes, reported_mib(sku) // parts, count)
    found = [read(gpunodes.node("n"), published=published)]
    for name in ("amd.com/gpu", f"amd.com/{mode}"):
        node = gpunodes.node("n", {}, {name: count})
        found += [read(node, whole), read(node, listed)]
        found.append(read(gpunodes.node("n", amd_labels(sku, product or "", pci or "", mode), {name: count})))
    for (pool,) in found:
        assert pool.device.skus == (sku,)
        assert (pool.device.kind, pool.device.mode, pool.capacity) == (kind, label, count)
        assert pool.device.memory_mib == pytest.approx(sku.memory_mib / parts, rel=0.02)
        assert pool.device.memory_share == pytest.approx(1 / parts)
