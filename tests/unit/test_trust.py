"""One truth per node: what each source says of its GPUs, and which of them counts."""

from __future__ import annotations

from typing import Any

import dranodes
import gpunodes
import gpureports
import msgspec
import placing
import pytest
import registering

from capability_db import node_facts, slices
from scheduler import control, inventory, kube
from scheduler import fleet as fleets

Json = dict[str, Any]
GPU = "nvidia.com/gpu"


def fleet_of(node: Json, *reports: Json, published: list[Json] | None = None) -> fleets.Fleet:
    """The table of one node, called `n`."""
    made = placing.fleet_of([node])
    for each in published or []:
        made.apply_slice(msgspec.convert(each, slices.ResourceSlice))
    for each in reports:
        made.apply_report(gpureports.to_report(each))
    return made


def row_of(node: Json, devices: list[Json], **more: Any) -> fleets.Row:
    return fleet_of(node, gpureports.report("n", devices, **more)).rows["n"]


def one_pool(row: fleets.Row) -> node_facts.Pool:
    (found,) = row.facts.pools
    return found


def bare(resources: dict[str, int], labels: dict[str, str] | None = None) -> Json:
    return gpunodes.node("n", labels, resources)


def names(pool: node_facts.Pool) -> list[str]:
    return [sku.id for sku in pool.device.skus]


# --- What devices are ------------------------------------------------------------------------------------------------


def test_several_models_behind_one_name_are_one_class_of_all_of_them() -> None:
    row = row_of(bare({GPU: 8}), gpureports.several("a100-80", 4) + gpureports.several("t4", 4))
    pool = one_pool(row)
    assert (names(pool), pool.sku_counts) == (["a100-sxm4-80gb", "t4"], (4, 4))
    assert (pool.device.kind, pool.device.memory_mib, pool.device.memory_reported) == ("whole", 15360, True)
    assert (pool.allocatable, pool.capacity, row.facts.conflicts) == (8, 8, ())
    assert {key: row.labels[key] for key in row.labels if node_facts.is_ours(key)} == {
        "anygpu.io/sku.a100-sxm4-80gb": "4",
        "anygpu.io/sku.t4": "4",
        "anygpu.io/partition": "a100-sxm4-80gb.t4",
    }


def test_labels_that_name_one_of_the_models_are_no_conflict() -> None:
    """GPU feature discovery lets the last model win: it cannot say more."""
    node = gpunodes.nvidia("n", "t4", 8)
    row = row_of(node, gpureports.several("a100-80", 4) + gpureports.several("t4", 4))
    assert (names(one_pool(row)), row.facts.conflicts) == (["a100-sxm4-80gb", "t4"], ())


def test_one_model_is_as_by_labels_with_the_memory_that_the_driver_reports() -> None:
    node = gpunodes.nvidia("n", "h100", 8)
    alone = one_pool(placing.fleet_of([node]).rows["n"])
    pool = one_pool(row_of(node, gpureports.several("h100", 8, memoryMiB=81079)))
    assert (names(pool), pool.device.kind, pool.sku_counts) == (names(alone), alone.device.kind, alone.sku_counts)
    assert (pool.device.memory_mib, pool.device.memory_reported) == (81079, True)


@pytest.mark.parametrize(
    ("device", "sku"),
    [
        ({"vendor": "nvidia", "product": "NVIDIA A100-SXM4-80GB"}, "a100-sxm4-80gb"),
        ({"vendor": "nvidia", "pciDeviceID": "20b2"}, "a100-sxm4-80gb"),
        (
            {"vendor": "nvidia", "product": "NVIDIA renamed", "pciDeviceID": "20b2", "memoryMiB": 81920},
            "a100-sxm4-80gb",
        ),
        ({"vendor": "nvidia", "sku": "a100-sxm4-80gb"}, "a100-sxm4-80gb"),
        ({"vendor": "nvidia", "product": "Tesla T4", "sku": "h100-sxm"}, "t4"),
        ({"vendor": "nvidia", "sku": "no-such-sku"}, None),
        ({"vendor": "nvidia", "sku": "mi300x"}, None),
        # A virtual GPU has the PCI id of the whole one and a part of its memory.
        ({"vendor": "nvidia", "product": "GRID A100D-10C", "pciDeviceID": "20b2", "memoryMiB": 10240}, None),
        ({"vendor": "nvidia", "pciDeviceID": "25b6"}, None),  # A2 and A16
        ({"vendor": "nvidia", "product": "NVIDIA A16", "pciDeviceID": "25b6"}, "a16"),
        ({"vendor": "nvidia"}, None),
    ],
)
def test_a_device_is_what_its_driver_calls_it_else_unknown(device: Json, sku: str | None) -> None:
    pool = one_pool(row_of(bare({GPU: 1}), [device]))
    assert names(pool) == ([sku] if sku else [])


@pytest.mark.parametrize(
    ("device", "sku"),
    [
        ({"product": "AMD Instinct MI300X", "pciDeviceID": "74a1"}, "mi300x"),
        ({"product": "AMD Instinct MI60 / MI50", "pciDeviceID": "66a1", "memoryMiB": 16368}, "mi50-16gb"),
        ({"product": "AMD Instinct MI60 / MI50", "pciDeviceID": "66a1", "memoryMiB": 32752}, "mi60"),
        ({"product": "AMD Instinct MI60 / MI50", "pciDeviceID": "66a1"}, None),
        ({"pciDeviceID": "740c", "computeUnits": 104}, "mi250"),
        ({"pciDeviceID": "740c", "computeUnits": 110}, "mi250x"),
        ({"product": "AMD Radeon RX 7900 XTX", "pciDeviceID": "744c"}, "radeon-rx-7900-xtx"),
        ({"product": "AMD Radeon RX 7900 GRE", "pciDeviceID": "744c", "memoryMiB": 16368}, None),
        ({"product": "AMD Instinct MI210"}, None),  # no label of AMD's is written so
    ],
)
def test_an_amd_device_is_told_by_its_pci_id_and_what_tells_its_bearers_apart(device: Json, sku: str | None) -> None:
    pool = one_pool(row_of(bare({"amd.com/gpu": 1}), [{"vendor": "amd"} | device]))
    assert names(pool) == ([sku] if sku else [])


def test_one_unknown_device_makes_the_whole_name_unknown() -> None:
    """The kubelet may give it."""
    pool = one_pool(
        row_of(gpunodes.nvidia("n", "t4", 2), [*gpureports.several("t4", 1), gpureports.nvidia("x", "unknown")])
    )
    assert (names(pool), pool.device.evidence) == ([], "agent: NVIDIA X1")


def test_a_driver_that_names_no_model_leaves_it_to_the_labels() -> None:
    devices = [{"vendor": "nvidia", "uuid": f"GPU-{number}", "memoryMiB": 15109} for number in range(4)]
    pool = one_pool(row_of(gpunodes.nvidia("n", "t4", 4), devices))
    assert (names(pool), pool.device.memory_mib) == (["t4"], 15109)


def test_devices_of_another_vendor_say_nothing_of_a_name() -> None:
    row = row_of(gpunodes.nvidia("n", "t4", 4), gpureports.several("mi300x", 8))
    assert (names(one_pool(row)), row.facts.conflicts) == (["t4"], ())


def test_intel_devices_stand_behind_the_names_of_their_drivers() -> None:
    node = bare({"gpu.intel.com/i915": 2, "habana.ai/gaudi": 8})
    row = row_of(
        node,
        [{"vendor": "intel", "product": "Max 1550", "memoryMiB": 131072}] * 2
        + [{"vendor": "intel", "sku": "gaudi3"}] * 8,
    )
    assert {pool.device.resource: names(pool) for pool in row.facts.pools} == {
        "gpu.intel.com/i915": ["max-1550"],
        "habana.ai/gaudi": ["gaudi3"],
    }


# --- Partitions under each strategy ----------------------------------------------------------------------------------

SEVENTH = [("1g.10gb", start) for start in range(7)]


def test_under_the_mixed_strategy_instances_stand_behind_their_profiles_name() -> None:
    devices = [
        *gpureports.several("a100-80", 6),
        gpureports.cut(gpureports.nvidia("x", "a100-80"), ("3g.40gb", 0), ("1g.10gb", 4), ("1g.10gb", 5)),
        gpureports.cut(gpureports.nvidia("y", "a100-80"), ("3g.40gb", 4), ("1g.10gb+me", 0)),
    ]
    node = bare({GPU: 6, "nvidia.com/mig-3g.40gb": 2, "nvidia.com/mig-1g.10gb": 2, "nvidia.com/mig-1g.10gb.me": 1})
    row = row_of(node, devices)
    assert row.facts.conflicts == ()
    found = {pool.device.resource: (pool.device.label, pool.device.memory_mib) for pool in row.facts.pools}
    assert found == {
        GPU: ("a100-sxm4-80gb", 81920),
        "nvidia.com/mig-3g.40gb": ("a100-sxm4-80gb 3g.40gb", 40192),
        "nvidia.com/mig-1g.10gb": ("a100-sxm4-80gb 1g.10gb", 9856),
        "nvidia.com/mig-1g.10gb.me": ("a100-sxm4-80gb 1g.10gb+me", 9856),
    }
    (three,) = [pool for pool in row.facts.pools if pool.device.resource == "nvidia.com/mig-3g.40gb"]
    assert (three.device.memory_share, three.device.compute_share) == (0.5, 3 / 7)
    # x has unit 6 left, y units 1 to 3; the profile with media extensions is there once on y.
    left = {"1g.10gb": 1 + 3, "1g.10gb+me": 1, "1g.20gb": 1 + 1, "2g.20gb": 1}
    assert {name: count for name, count in three.fits if count} == left


def test_under_the_single_strategy_instances_stand_behind_the_plain_name() -> None:
    devices = [gpureports.cut(each, *SEVENTH) for each in gpureports.several("a100-80", 2)]
    for labels in ({}, {"nvidia.com/mig.strategy": "single"}, {GPU + ".product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"}):
        row = row_of(bare({GPU: 14}, labels), devices)
        pool = one_pool(row)
        assert (pool.device.label, pool.device.memory_mib, pool.sku_counts) == ("a100-sxm4-80gb 1g.10gb", 9856, (14,))
        assert row.facts.conflicts == ()


def test_a_whole_gpu_in_mig_mode_is_no_whole_gpu() -> None:
    """Strategy none: who gets the GPU sees one of its instances, of whatever size."""
    devices = [gpureports.cut(each, *SEVENTH) for each in gpureports.several("a100-80", 2)]
    pool = one_pool(row_of(bare({GPU: 2}), devices))
    assert (pool.device.kind, pool.device.mode, pool.device.memory_mib) == ("slice", "unknown", None)


def test_a_gpu_in_mig_mode_without_instances_is_no_whole_gpu_either() -> None:
    devices = [*gpureports.several("a100-80", 1), gpureports.cut(gpureports.nvidia("x", "a100-80"))]
    pool = one_pool(row_of(bare({GPU: 1}), devices))
    assert (pool.device.label, pool.allocatable) == ("a100-sxm4-80gb", 1)


def test_gpus_cut_differently_behind_one_name_cannot_be_used() -> None:
    one, other = gpureports.several("a100-80", 2)
    row = row_of(
        bare({GPU: 3}), [gpureports.cut(one, ("3g.40gb", 0), ("3g.40gb", 4)), gpureports.cut(other, ("7g.80gb", 0))]
    )
    assert one_pool(row).device.problem == "the node's GPUs are cut differently (3g.40gb, 7g.80gb) behind one name"


def test_an_instance_of_different_models_has_what_the_smallest_has() -> None:
    devices = [
        gpureports.cut(gpureports.nvidia("x", "a100-40"), ("1g.10gb", 0)),
        gpureports.cut(gpureports.nvidia("y", "h100"), ("1g.10gb", 0)),
    ]
    pool = one_pool(row_of(bare({"nvidia.com/mig-1g.10gb": 2}), devices))
    assert (names(pool), pool.device.memory_mib) == (["a100-sxm4-40gb", "h100-sxm"], 9856)
    assert (pool.device.memory_share, pool.device.compute_share) == (1 / 8, 1 / 7)


@pytest.mark.parametrize("listed", [1, 8], ids=["whole GPUs listed", "every part listed"])
@pytest.mark.parametrize("resource", ["amd.com/gpu", "amd.com/cpx_nps4"], ids=["single", "mixed"])
def test_amd_partitions_are_read_however_the_driver_lists_them(listed: int, resource: str) -> None:
    memory = 196592 // listed
    cut = {"partition": {"compute": "CPX", "memory": "NPS4"}, "memoryMiB": memory}
    row = row_of(bare({resource: 16}), gpureports.several("mi300x", 2 * listed, **cut))
    pool = one_pool(row)
    assert (pool.device.label, pool.device.memory_mib, pool.allocatable) == ("mi300x cpx_nps4", 24574, 16)
    assert (pool.device.memory_share, row.facts.conflicts) == (1 / 8, ())


def test_amd_whole_and_cut_gpus_stand_behind_names_of_their_own() -> None:
    devices = [
        *gpureports.several("mi300x", 5, partition={"compute": "SPX", "memory": "NPS1"}),
        *[each | {"partition": {"compute": "CPX", "memory": "NPS1"}} for each in gpureports.several("mi300x", 3)],
    ]
    row = row_of(bare({"amd.com/spx_nps1": 5, "amd.com/cpx_nps1": 24}), devices)
    found = {pool.device.resource: (pool.device.label, pool.device.memory_mib) for pool in row.facts.pools}
    assert found == {"amd.com/spx_nps1": ("mi300x", 196592), "amd.com/cpx_nps1": ("mi300x cpx_nps1", 24574)}
    assert row.facts.conflicts == ()


def test_a_partition_of_a_model_whose_modes_nobody_states_has_no_known_memory() -> None:
    device = {
        "vendor": "amd",
        "pciDeviceID": "74a2",
        "memoryMiB": 196592,
        "partition": {"compute": "CPX", "memory": "NPS1"},
    }
    pool = one_pool(row_of(bare({"amd.com/gpu": 4}), [device]))
    assert (names(pool), pool.device.kind, pool.device.memory_mib) == (["mi308x"], "slice", None)
    labels = {
        "amd.com/gpu.device-id": "74a2",
        "amd.com/gpu.vram": "192G",
        "amd.com/gpu.compute-memory-partition": "cpx_nps1",
    }
    by_labels = one_pool(placing.fleet_of([bare({"amd.com/gpu": 4}, labels)]).rows["n"])
    assert (by_labels.device.kind, by_labels.device.memory_mib) == ("slice", None)


def test_time_shared_devices_divide_what_the_driver_reports() -> None:
    row = row_of(gpunodes.shared("n", "t4", 2, 4), gpureports.several("t4", 2, memoryMiB=15000))
    pool = one_pool(row)
    assert (pool.device.kind, pool.device.replicas, pool.device.memory_mib) == ("shared", 4, 3750)
    assert row.facts.conflicts == ()
    unlabelled = row_of(bare({GPU: 8}), gpureports.several("t4", 2))
    assert one_pool(unlabelled).device.replicas == 4
    renamed = row_of(bare({f"{GPU}.shared": 8}), gpureports.several("t4", 2))
    assert one_pool(renamed).device.replicas == 4


# --- Health ----------------------------------------------------------------------------------------------------------


def lost(count: int, of: int) -> list[Json]:
    return [
        gpureports.sick(each, "lost") if number < count else each
        for number, each in enumerate(gpureports.several("t4", of))
    ]


@pytest.mark.parametrize(
    ("allocatable", "sick", "left", "withheld"), [(8, 2, 6, 2), (6, 2, 6, 0), (5, 2, 5, 0), (8, 0, 8, 0), (7, 2, 6, 1)]
)
def test_unhealthy_devices_are_taken_off_once(allocatable: int, sick: int, left: int, withheld: int) -> None:
    node = gpunodes.nvidia("n", "t4", 8)
    node["status"]["allocatable"][GPU] = str(allocatable)
    row = row_of(node, lost(sick, 8))
    pool = one_pool(row)
    assert (pool.allocatable, pool.capacity, pool.withheld) == (left, 8, withheld)
    assert row.free(GPU) == left
    assert row.facts.conflicts == ()


def test_why_devices_are_unhealthy_is_said_where_it_counts() -> None:
    made = fleet_of(gpunodes.nvidia("n", "t4", 8), gpureports.report("n", lost(2, 8)))
    assert inventory.state(made.rows["n"], 0) == f"{GPU}: 2 of 8 unhealthy (GPU-t4-0: lost; GPU-t4-1: lost)"
    (device,) = inventory.nodes(made, 0)[0]["devices"]
    assert (device["allocatable"], device["unhealthy"]) == (6, ["GPU-t4-0: lost", "GPU-t4-1: lost"])


def test_a_gpu_lost_before_the_agent_ever_read_it_leaves_the_others_as_they_are() -> None:
    nameless = gpureports.sick({"vendor": "nvidia", "pciBusID": "0000:65:00.0"}, "lost: no answer")
    row = row_of(gpunodes.nvidia("n", "t4", 8), [nameless, *gpureports.several("t4", 7)])
    pool = one_pool(row)
    assert (names(pool), pool.device.memory_mib, pool.allocatable) == (["t4"], 15360, 7)
    assert (pool.unhealthy, row.facts.conflicts) == (("0000:65:00.0: lost: no answer",), ())
    alone = one_pool(row_of(gpunodes.nvidia("n", "t4", 1), [nameless]))
    assert (names(alone), alone.allocatable) == (["t4"], 0)
    cut = [nameless, *[gpureports.cut(each, *SEVENTH) for each in gpureports.several("a100-80", 1)]]
    assert one_pool(row_of(bare({GPU: 7}), cut)).device.label == "a100-sxm4-80gb 1g.10gb"


def test_gpus_that_no_device_plugin_offers_are_told() -> None:
    made = fleet_of(gpunodes.node("n"), gpureports.report("n", gpureports.several("t4", 2)))
    assert inventory.state(made.rows["n"], 0) == "has nvidia hardware, but no device plugin offers it"


def test_all_instances_of_a_lost_gpu_are_gone() -> None:
    one, other = gpureports.several("a100-80", 2)
    devices = [gpureports.sick(gpureports.cut(one, *SEVENTH), "XID 79"), gpureports.cut(other, *SEVENTH)]
    pool = one_pool(row_of(bare({GPU: 14}), devices))
    assert (pool.allocatable, pool.unhealthy) == (7, ("GPU-a100-80-0: XID 79",))


def test_all_replicas_of_a_lost_gpu_are_gone() -> None:
    pool = one_pool(row_of(gpunodes.shared("n", "t4", 2, 4), lost(1, 2)))
    assert (pool.allocatable, pool.withheld) == (4, 4)


@pytest.mark.parametrize(("mode", "count", "left"), [(None, 8, 6), ("cpx_nps4", 64, 48)])
def test_amd_labels_of_unhealthy_gpus_count(mode: str | None, count: int, left: int) -> None:
    node = gpunodes.amd("n", "mi300x", count, mode=mode)
    for gpu, said in (("0", "unhealthy"), ("5", "unhealthy"), ("6", "healthy")):
        node["metadata"]["labels"][f"metricsexporter.amd.com.gpu.{gpu}.state"] = said
    pool = one_pool(placing.fleet_of([node]).rows["n"])
    assert (pool.allocatable, pool.unhealthy) == (
        left,
        ("GPU 0: unhealthy by its label", "GPU 5: unhealthy by its label"),
    )


def test_the_taint_of_amds_remediation_takes_the_node_out() -> None:
    made = placing.fleet_of([gpunodes.amd("n", "mi300x", 8)])
    made.apply_node(kube.to_node(gpunodes.amd("n", "mi300x", 8, taint="amd-gpu-unhealthy")))
    pool = one_pool(made.rows["n"])
    assert (pool.allocatable, pool.sickness) == (0, "8 of 8 unhealthy (the node is tainted amd-gpu-unhealthy)")


def test_the_taints_of_dra_devices_are_reasons() -> None:
    devices = [dranodes.tainted(dranodes.nvidia("gpu-0", "t4")), dranodes.nvidia("gpu-1", "t4")]
    made = fleet_of(gpunodes.node("n"), published=[dranodes.resource_slice("n", "gpu.nvidia.com", devices)])
    pool = one_pool(made.rows["n"])
    assert (pool.allocatable, pool.sickness) == (1, "1 of 2 unhealthy (gpu-0: gpu.nvidia.com/xid=79)")


def test_a_dra_device_that_the_agent_calls_lost_is_not_free() -> None:
    devices = [dranodes.nvidia("a", "t4"), dranodes.nvidia("b", "t4")]
    made = fleet_of(
        gpunodes.node("n"),
        gpureports.report("n", [gpureports.sick(gpureports.nvidia("a", "t4"), "lost"), gpureports.nvidia("b", "t4")]),
        published=[dranodes.resource_slice("n", "gpu.nvidia.com", devices)],
    )
    row = made.rows["n"]
    pool = one_pool(row)
    assert (pool.allocatable, row.left(pool), pool.unhealthy) == (1, 1, ("a: lost",))


# --- Conflicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "devices", "conflict"),
    [
        (
            gpunodes.nvidia("n", "a100-80", 8),
            gpureports.several("h100", 8),
            f"{GPU}: h100-sxm by the agent, a100-sxm4-80gb by labels (nvidia.com/gpu.product=NVIDIA-A100-SXM4-80GB)",
        ),
        (gpunodes.nvidia("n", "t4", 8), gpureports.several("t4", 7), f"{GPU}: 8 by the device plugin, 7 by the agent"),
        (
            bare({GPU: 8}, {f"{GPU}.product": "Tesla-T4"}),  # not -SHARED
            gpureports.several("t4", 4),
            f"{GPU}: 8 by the device plugin, 4 by the agent",
        ),
        (
            gpunodes.nvidia("n", "t4", 2),
            gpureports.several("t4", 2, memoryMiB=14000),
            f"{GPU}: 14000 MiB by the agent, 15360 MiB by labels",
        ),
        (
            gpunodes.mig_single("n", "a100-80", "1g.10gb", 2),
            [gpureports.cut(each, ("3g.40gb", 0)) for each in gpureports.several("a100-80", 2)],
            f"{GPU}: 3g.40gb by the agent, 1g.10gb by labels",
        ),
        (
            gpunodes.node("n", {}, {"nvidia.com/mig-1g.10gb": 7}),
            gpureports.several("a100-80", 1),
            "nvidia.com/mig-1g.10gb: 7 by the device plugin, none of them seen by the agent",
        ),
    ],
)
def test_what_sources_say_differently_is_told(node: Json, devices: list[Json], conflict: str) -> None:
    made = fleet_of(node, gpureports.report("n", devices))
    assert list(made.rows["n"].facts.conflicts) == [conflict]
    assert f"conflict: {conflict}" in inventory.state(made.rows["n"], 0)
    assert inventory.nodes(made, 0)[0]["conflicts"] == [conflict]


def test_a_label_may_count_other_gpus_than_the_agent() -> None:
    node = gpunodes.nvidia("n", "t4", 8)
    node["metadata"]["labels"][f"{GPU}.count"] = "4"
    row = row_of(node, gpureports.several("t4", 8))
    assert row.facts.conflicts == (f"{GPU}: 8 GPUs by the agent, 4 by labels",)


def test_memory_within_five_percent_is_no_conflict() -> None:
    row = row_of(gpunodes.nvidia("n", "t4", 2), gpureports.several("t4", 2, memoryMiB=14700))
    assert row.facts.conflicts == ()


def test_the_clouds_label_may_contradict_the_vendors() -> None:
    node = gpunodes.nvidia("n", "t4", 1)
    node["metadata"]["labels"]["cloud.google.com/gke-accelerator"] = "nvidia-l4"
    row = placing.fleet_of([node]).rows["n"]
    assert names(one_pool(row)) == ["t4"]
    assert row.facts.conflicts == (f"{GPU}: t4 by nvidia.com/gpu.product=Tesla-T4, l4 by the cloud's labels",)


def test_a_slice_and_the_agent_may_differ_about_a_device() -> None:
    devices = [dranodes.nvidia("a", "a100-80"), dranodes.nvidia("b", "t4", memory="10000Mi")]
    made = fleet_of(
        gpunodes.node("n"),
        gpureports.report("n", [gpureports.nvidia("a", "h100"), gpureports.nvidia("b", "t4")]),
        published=[dranodes.resource_slice("n", "gpu.nvidia.com", devices)],
    )
    row = made.rows["n"]
    assert row.facts.conflicts == (
        "a: h100-sxm by the agent, a100-sxm4-80gb by its ResourceSlice",
        "b: 15360 MiB by the agent, 10000 MiB by its ResourceSlice",
    )
    assert sorted(name for pool in row.facts.pools for name in names(pool)) == ["h100-sxm", "t4"]


def test_the_condition_comes_with_a_conflict_and_says_when_it_is_solved() -> None:
    made = fleet_of(gpunodes.nvidia("n", "a100-80", 8), gpureports.report("n", gpureports.several("a100-80", 8)))
    assert control.condition_change(made.rows["n"], 0) is None  # nothing was ever wrong
    made.apply_report(gpureports.to_report(gpureports.report("n", gpureports.several("h100", 8))))
    raised = control.condition_change(made.rows["n"], 0)
    assert raised is not None
    assert (raised["status"], raised["reason"]) == ("True", "SourcesDisagree")
    assert (raised["type"], raised["lastTransitionTime"]) == ("anygpu.io/GPUFactsConflict", "1970-01-01T00:00:00Z")
    assert "h100-sxm by the agent" in raised["message"]
    node = gpunodes.nvidia("n", "a100-80", 8)
    node["status"]["conditions"].append(raised)
    made.apply_node(kube.to_node(node))
    assert control.condition_change(made.rows["n"], 60) is None  # it is there already
    made.remove_report("n")
    solved = control.condition_change(made.rows["n"], 60)
    assert solved is not None
    assert (solved["status"], solved["message"], solved["lastTransitionTime"]) == ("False", "", "1970-01-01T00:01:00Z")


# --- Reports that say nothing, or nonsense ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ("text", "status: "),
        ([], "status: "),
        ({"devices": "many"}, "devices: "),
        ({"devices": [{"index": 0}]}, "devices.0.vendor: "),
        ({"devices": [{"index": 0, "vendor": "nvidia", "memoryMiB": -1}]}, "devices.0.memoryMiB: "),
        ({"devices": [{"index": 0, "vendor": "nvidia", "pciDeviceID": "0x20B2"}]}, "devices.0.pciDeviceID: "),
        ({"surprise": True}, "surprise: "),
    ],
)
def test_what_is_no_report_is_noted_and_the_last_good_one_stays(status: Any, problem: str) -> None:
    made = fleet_of(gpunodes.nvidia("n", "t4", 8), gpureports.report("n", lost(2, 8)))
    before = made.rows["n"].facts
    made.apply_report(gpureports.to_report({"metadata": {"name": "n"}, "status": status}))
    assert made.rows["n"].facts == before
    assert f"the agent's report is not used: {problem}" in inventory.state(made.rows["n"], 0)
    agent = inventory.nodes(made, 0)[0]["agent"]
    assert agent["problem"].startswith(problem)
    made.apply_report(gpureports.to_report(gpureports.report("n", gpureports.several("t4", 8))))
    assert inventory.state(made.rows["n"], 0) == "ready"


@pytest.mark.parametrize("status", [None, {}, {"devices": []}])
def test_an_empty_report_changes_nothing(status: Any) -> None:
    made = fleet_of(gpunodes.nvidia("n", "t4", 8))
    before = made.rows["n"].facts
    made.apply_report(gpureports.to_report({"metadata": {"name": "n"}, "status": status}))
    assert made.rows["n"].facts == before


def test_a_beat_that_brings_nothing_new_changes_nothing() -> None:
    made = fleet_of(gpunodes.nvidia("n", "t4", 8), gpureports.report("n", gpureports.several("t4", 8)))
    version, facts = made.facts_version, made.rows["n"].facts
    warm = gpureports.several("t4", 8, temperatureC=80, powerWatts=69.5, memoryUsedMiB=9000)
    made.apply_report(gpureports.to_report(gpureports.report("n", warm, heartbeat="2026-01-01T00:01:00Z")))
    assert made.facts_version == version
    assert made.rows["n"].facts is facts
    assert inventory.nodes(made, 0)[0]["agent"]["heartbeat"] == "2026-01-01T00:01:00Z"


def test_a_silent_agent_and_a_broken_driver_are_told_and_what_they_said_stays() -> None:
    made = fleet_of(gpunodes.nvidia("n", "t4", 8), gpureports.report("n", lost(2, 8), error="NVML: driver not loaded"))
    heard = 1767225600.0
    assert inventory.last_heard(made) == heard
    assert "agent: nvidia: NVML: driver not loaded" in inventory.state(made.rows["n"], heard + 60)
    assert "silent" not in inventory.state(made.rows["n"], heard + 60)
    assert "agent silent for 1000 s: health as it was then" in inventory.state(made.rows["n"], heard + 1000)
    agent = inventory.nodes(made, heard + 1000)[0]["agent"]
    assert (agent["stale"], agent["errors"]) == (True, {"nvidia": "NVML: driver not loaded"})
    assert one_pool(made.rows["n"]).allocatable == 6


def test_a_report_may_come_before_its_node_and_outlive_it() -> None:
    made = placing.fleet_of([])
    made.apply_report(gpureports.to_report(gpureports.report("n", gpureports.several("h100", 8))))
    made.apply_node(kube.to_node(bare({GPU: 8})))
    assert names(one_pool(made.rows["n"])) == ["h100-sxm"]
    made.remove_node("n")
    made.apply_node(kube.to_node(bare({GPU: 8})))
    assert names(one_pool(made.rows["n"])) == ["h100-sxm"]
    made.remove_report("n")
    assert names(one_pool(made.rows["n"])) == []


def test_a_registered_model_names_what_the_agent_reports_and_no_label_does() -> None:
    """And the same table comes of it as of objects that are read with the model in force already."""
    devices = [gpureports.nvidia("a", "unknown"), gpureports.sick(gpureports.nvidia("b", "t4"), "lost")]
    document = gpureports.report("n", devices)
    made = fleet_of(bare({GPU: 2}), document)
    assert (names(one_pool(made.rows["n"])), one_pool(made.rows["n"]).allocatable) == ([], 1)
    made.registered.replace("GPUSKU", [registering.sku("x1", "NVIDIA-X1")])
    assert made.use_registered()
    row = made.rows["n"]
    assert (names(one_pool(row)), one_pool(row).sku_counts, row.free(GPU)) == (["x1", "t4"], (1, 1), 1)
    anew = placing.fleet_of([])
    anew.registered.replace("GPUSKU", [registering.sku("x1", "NVIDIA-X1")])
    anew.use_registered()
    anew.apply_report(gpureports.to_report(document))
    anew.apply_node(kube.to_node(bare({GPU: 2})))
    assert (anew.rows["n"].facts, anew.rows["n"].allocatable) == (row.facts, row.allocatable)
    assert anew.rows["n"].labels == row.labels
