"""What a node's labels and resources say of its GPUs, in every form that vendors' agents write them."""

import pytest

from capability_db import node_facts
from capability_db.catalogue import Catalogue
from capability_db.node_facts import DeviceClass, NodeFacts, Pool

BUILTIN = Catalogue.builtin()
H100 = "NVIDIA-H100-80GB-HBM3"
A100 = "NVIDIA-A100-SXM4-40GB"


def read(labels: dict[str, str], resources: dict[str, int], capacity: dict[str, int] | None = None) -> NodeFacts:
    """The facts of a node."""
    return node_facts.read(labels, resources, resources if capacity is None else capacity, BUILTIN)


def pool(labels: dict[str, str], resource: str, count: int) -> Pool:
    """The only pool of a node with one resource."""
    (found,) = read(labels, {resource: count, "cpu": 64}).pools
    return found


def device(labels: dict[str, str], resource: str, count: int = 8) -> DeviceClass:
    """The only device class of such a node."""
    return pool(labels, resource, count).device


def ids(found: DeviceClass) -> list[str]:
    """The ids of the class's models."""
    return [sku.id for sku in found.skus]


def gfd(
    product: str,
    memory: int | None = None,
    replicas: int = 1,
    strategy: str = "none",
    prefix: str = "nvidia.com/gpu",
    count: int = 8,
) -> dict[str, str]:
    """The labels of GPU feature discovery for one resource."""
    labels = {
        f"{prefix}.product": product,
        f"{prefix}.count": str(count),
        f"{prefix}.replicas": str(replicas),
        f"{prefix}.sharing-strategy": strategy,
    }
    return labels | ({f"{prefix}.memory": str(memory)} if memory is not None else {})


# --- NVIDIA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "sku"),
    [
        (H100, "h100-sxm"),
        ("NVIDIA-H100-PCIe", "h100-pcie"),
        ("NVIDIA-H100-NVL", "h100-nvl"),
        ("NVIDIA-H200", "h200-sxm"),
        ("NVIDIA-H200-NVL", "h200-nvl"),
        ("NVIDIA-H20", "h20"),
        ("NVIDIA-A100-SXM4-80GB", "a100-sxm4-80gb"),
        (A100, "a100-sxm4-40gb"),
        ("NVIDIA-L4", "l4"),
        ("NVIDIA-L40", "l40"),
        ("NVIDIA-L40S", "l40s"),
        ("NVIDIA-A10", "a10"),
        ("NVIDIA-A10G", "a10g"),
        ("Tesla-T4", "t4"),
    ],
)
def test_a_product_label_names_exactly_its_model(product: str, sku: str) -> None:
    assert ids(device(gfd(product, 10_000), "nvidia.com/gpu")) == [sku]


@pytest.mark.parametrize(
    "product", ["NVIDIA-H2", "NVIDIA-H1000", "H100", "NVIDIA-H100", "nvidia-l4", "NVIDIA-L4 ", "NVIDIA-H800", ""]
)
def test_a_product_near_a_known_one_is_unknown(product: str) -> None:
    found = device(gfd(product, 81559), "nvidia.com/gpu")
    assert not found.skus
    assert found.label == "unknown"
    assert found.evidence == f"nvidia.com/gpu.product={product}"


def test_a_plain_node_offers_whole_devices_with_the_memory_it_reports() -> None:
    found = pool(gfd(H100, 81559), "nvidia.com/gpu", 8)
    assert (found.allocatable, found.capacity, found.sku_counts) == (8, 8, (8,))
    assert (found.device.kind, found.device.memory_mib, found.device.memory_reported) == ("whole", 81559, True)
    assert (found.device.memory_share, found.device.compute_share, found.device.replicas) == (1, 1, 1)
    assert found.device.partition is None


def test_without_a_memory_label_the_databases_figure_counts() -> None:
    found = device(gfd("Tesla-T4"), "nvidia.com/gpu")
    assert (found.memory_mib, found.memory_reported) == (15360, False)


@pytest.mark.parametrize("memory", ["", "0", "-5", "81559.5", "٨", "9" * 400, "lots"])
def test_a_memory_label_that_is_no_number_is_not_reported(memory: str) -> None:
    found = device(gfd(H100) | {"nvidia.com/gpu.memory": memory}, "nvidia.com/gpu")
    assert (found.memory_mib, found.memory_reported) == (81559, False)


def test_mig_single_offers_slices_under_the_plain_name() -> None:
    found = device(gfd(f"{A100}-MIG-1g.5gb", 4864, count=7), "nvidia.com/gpu", 7)
    assert ids(found) == ["a100-sxm4-40gb"]
    assert (found.kind, found.mode, found.memory_mib, found.partition) == ("slice", "1g.5gb", 4864, "1g.5gb")
    assert found.memory_share == pytest.approx(1 / 8)
    assert found.compute_share == pytest.approx(1 / 7)


@pytest.mark.parametrize(
    ("written", "mode"), [("1g.5gb.me", "1g.5gb+me"), ("1g.5gb", "1g.5gb"), ("3g.20gb", "3g.20gb")]
)
def test_mig_profiles_get_their_real_name(written: str, mode: str) -> None:
    labels = gfd(f"{A100}-MIG-{written}", prefix=f"nvidia.com/mig-{written}")
    assert device(labels, f"nvidia.com/mig-{written}").mode == mode
    assert device(gfd(f"{A100}-MIG-{written}"), "nvidia.com/gpu").mode == mode


def test_mig_mixed_offers_each_profile_beside_whole_devices() -> None:
    labels = gfd(A100, 40960, replicas=0, count=2)
    labels |= gfd(f"{A100}-MIG-1g.5gb", 4864, prefix="nvidia.com/mig-1g.5gb", count=7)
    labels |= gfd(f"{A100}-MIG-3g.20gb", 19968, prefix="nvidia.com/mig-3g.20gb", count=2)
    facts = read(labels, {"nvidia.com/gpu": 2, "nvidia.com/mig-1g.5gb": 7, "nvidia.com/mig-3g.20gb": 2})
    assert [
        (p.device.resource, p.device.kind, p.device.mode, p.device.memory_mib, p.capacity) for p in facts.pools
    ] == [
        ("nvidia.com/gpu", "whole", None, 40960, 2),
        ("nvidia.com/mig-1g.5gb", "slice", "1g.5gb", 4864, 7),
        ("nvidia.com/mig-3g.20gb", "slice", "3g.20gb", 19968, 2),
    ]
    # The profiles' own names hide nothing, so the node needs no partition label.
    assert node_facts.node_labels(facts) == {"anygpu.io/sku.a100-sxm4-40gb": "11"}


def test_a_profile_without_labels_of_its_own_takes_the_model_and_computes_its_memory() -> None:
    found = device(gfd(A100, 40960), "nvidia.com/mig-3g.20gb", 2)
    assert (ids(found), found.kind) == (["a100-sxm4-40gb"], "slice")
    assert found.memory_mib is not None
    assert 19_000 < found.memory_mib < 20_480
    assert not device(gfd(A100, 40960), "nvidia.com/mig-9g.99gb", 2).memory_mib


def test_a_node_whose_gpus_disagree_on_a_profile_offers_nothing() -> None:
    labels = gfd(f"{A100}-MIG-INVALID", 0, replicas=0, strategy="", count=0)
    found = device(labels, "nvidia.com/gpu")
    assert found.problem is not None
    assert read(labels, {"nvidia.com/gpu": 0}).pools == ()


@pytest.mark.parametrize("strategy", ["time-slicing", "mps"])
@pytest.mark.parametrize(
    ("resource", "suffix"), [("nvidia.com/gpu", "-SHARED"), ("nvidia.com/gpu.shared", ""), ("nvidia.com/gpu", "")]
)
def test_a_time_shared_device_offers_its_part_of_the_memory(strategy: str, resource: str, suffix: str) -> None:
    found = device(gfd(f"Tesla-T4{suffix}", 15360, 4, strategy, count=1), resource, 4)
    assert (ids(found), found.kind, found.replicas, found.memory_mib) == (["t4"], "shared", 4, 3840)
    assert (found.memory_share, found.compute_share, found.label) == (0.25, 0.25, "t4 shared by 4")
    assert found.partition == ("shared-4")


@pytest.mark.parametrize("replicas", [None, "0", "1", "many"])
def test_without_replicas_the_counts_tell_how_many_share(replicas: str | None) -> None:
    labels = {"nvidia.com/gpu.product": "Tesla-T4-SHARED", "nvidia.com/gpu.memory": "15360"}
    labels |= {"nvidia.com/gpu.count": "2"} | ({"nvidia.com/gpu.replicas": replicas} if replicas else {})
    assert device(labels, "nvidia.com/gpu", 8).replicas == 4


@pytest.mark.parametrize("count", [None, "0", "3", "8", "16"])
def test_sharing_by_an_unknown_number_has_no_known_memory(count: str | None) -> None:
    labels = {"nvidia.com/gpu.product": "Tesla-T4-SHARED", "nvidia.com/gpu.memory": "15360"}
    labels |= {"nvidia.com/gpu.count": count} if count else {}
    found = device(labels, "nvidia.com/gpu", 8)
    assert (found.kind, found.replicas, found.memory_mib, found.memory_share) == ("shared", None, None, None)
    assert found.label == "t4 shared by unknown"


def test_shared_mig_instances_keep_their_profile() -> None:
    single = gfd(f"{A100}-MIG-1g.5gb-SHARED", 4864, 2, "time-slicing", count=7)
    mixed = gfd(f"{A100}-MIG-1g.5gb", 4864, 2, "time-slicing", prefix="nvidia.com/mig-1g.5gb", count=7)
    for found in (device(single, "nvidia.com/gpu", 14), device(mixed, "nvidia.com/mig-1g.5gb.shared", 14)):
        assert (ids(found), found.kind, found.mode) == (["a100-sxm4-40gb"], "shared", "1g.5gb")
        assert found.memory_mib == 2432


def test_replicas_say_nothing_where_nothing_is_shared() -> None:
    found = device(gfd(A100, 40960, replicas=0), "nvidia.com/gpu")
    assert (found.kind, found.replicas) == ("whole", 1)


# --- AMD --------------------------------------------------------------------------------------------------------------


def labeller(prefix: str = "amd.com", **values: str) -> dict[str, str]:
    """The node labeller's plain labels; `_` stands for `-`."""
    return {f"{prefix}/gpu.{key.replace('_', '-')}": value for key, value in values.items()}


def counted(prefix: str = "amd.com", **values: dict[str, int]) -> dict[str, str]:
    """The node labeller's counted labels."""
    return {
        f"{prefix}/gpu.{key.replace('_', '-')}.{value}": str(count)
        for key, counts in values.items()
        for value, count in counts.items()
    }


MI300X = {"device_id": "74a1", "product_name": "AMD_Instinct_MI300X_OAM", "vram": "192G", "cu_count": "304"}


@pytest.mark.parametrize("prefix", ["amd.com", "beta.amd.com"])
def test_amd_labels_are_read_under_both_prefixes_in_both_forms(prefix: str) -> None:
    forms = [
        labeller(prefix, **MI300X),
        counted(prefix, **{key: {value: 8} for key, value in MI300X.items()}),
    ]
    for labels in forms:
        found = pool(labels, "amd.com/gpu", 8)
        assert (ids(found.device), found.device.kind, found.device.memory_mib) == (["mi300x"], "whole", 196608)
        assert (found.device.memory_reported, found.sku_counts) == (True, (8,))


@pytest.mark.parametrize(
    ("labels", "sku"),
    [
        (labeller(device_id="74a1"), "mi300x"),
        (labeller(device_id="0x74A5"), "mi325x"),
        (labeller(product_name="Instinct_MI210"), "mi210"),
        (labeller(device_id="740f"), "mi210"),
        (labeller(device_id="66a1", vram="16G"), "mi50-16gb"),
        (labeller(device_id="66a1", vram="32G"), "mi60"),
        (labeller(device_id="740c", cu_count="104"), "mi250"),
        (labeller(device_id="740c", cu_count="110"), "mi250x"),
        (labeller(device_id="740c", product_name="AMD_Instinct_MI250X"), "mi250x"),
        (labeller(device_id="7408"), "mi250x"),
        (labeller(device_id="744c", product_name="AMD_Radeon_RX_7900_XTX"), "radeon-rx-7900-xtx"),
    ],
)
def test_an_amd_model_is_known_by_what_tells_it_apart(labels: dict[str, str], sku: str) -> None:
    assert ids(device(labels, "amd.com/gpu")) == [sku]


@pytest.mark.parametrize(
    "labels",
    [
        labeller(device_id="744c"),
        labeller(device_id="744c", vram="24G"),
        labeller(device_id="66a1"),
        labeller(device_id="66a1", vram="24G"),
        labeller(device_id="740c"),
        labeller(device_id="740c", cu_count="220"),
        labeller(device_id="74a"),
        labeller(device_id="ffff"),
        counted(device_id={"74a1": 4, "ffff": 4}),
    ],
)
def test_an_amd_model_that_two_cards_could_be_is_unknown(labels: dict[str, str]) -> None:
    found = device(labels, "amd.com/gpu")
    assert not found.skus
    assert found.evidence.startswith("amd.com/gpu.device-id=")


def test_one_mi250_is_two_devices_of_64_gib() -> None:
    found = device(labeller(device_id="740c", cu_count="104"), "amd.com/gpu")
    assert (found.memory_mib, found.kind) == (65536, "whole")


def test_mixed_models_are_each_counted_and_offer_the_smallest_memory() -> None:
    found = pool(counted(device_id={"74a1": 4, "740f": 2}, vram={"192G": 4, "64G": 2}), "amd.com/gpu", 6)
    assert ids(found.device) == ["mi300x", "mi210"]
    assert (found.sku_counts, found.device.memory_mib, found.device.memory_reported) == ((4, 2), 65536, False)
    facts = read(counted(device_id={"74a1": 4, "740f": 2}), {"amd.com/gpu": 6})
    assert node_facts.node_labels(facts) == {
        "anygpu.io/sku.mi210": "2",
        "anygpu.io/sku.mi300x": "4",
        "anygpu.io/partition": "mi300x.mi210",
    }


def test_two_ids_of_one_model_are_one_model() -> None:
    found = pool(counted(device_id={"74a1": 4, "74a9": 4}), "amd.com/gpu", 8)
    assert (ids(found.device), found.sku_counts) == (["mi300x"], (8,))


@pytest.mark.parametrize("key", ["amd.com/gpu.compute-memory-partition", "amd.com/compute-memory-partition"])
@pytest.mark.parametrize("vram", ["192G", "24G", None])
def test_cpx_under_the_plain_name_is_told_by_either_label(key: str, vram: str | None) -> None:
    labels = labeller(device_id="74a1") | {key: "cpx_nps4"} | ({"amd.com/gpu.vram": vram} if vram else {})
    found = device(labels, "amd.com/gpu", 64)
    assert (found.kind, found.mode, found.partition) == ("slice", "cpx_nps4", "cpx_nps4")
    assert found.memory_mib == pytest.approx(24 * 1024, rel=0.001)
    assert (found.memory_share, found.compute_share) == (1 / 8, 1 / 8)


@pytest.mark.parametrize(
    ("device_id", "mode", "gib"),
    [
        ("74a1", "dpx_nps2", 96),
        ("74a1", "qpx_nps4", 48),
        ("74a5", "cpx_nps1", 32),
        ("75a0", "cpx_nps2", 36),
        ("74a0", "tpx_nps1", 128 / 3),
        ("74a0", "cpx_nps1", 128 / 6),
    ],
)
def test_amd_partitions_under_their_own_names(device_id: str, mode: str, gib: float) -> None:
    found = device(labeller(device_id=device_id), f"amd.com/{mode}", 16)
    assert (found.kind, found.mode) == ("slice", mode)
    assert found.memory_mib == pytest.approx(gib * 1024, rel=0.001)


def test_spx_is_the_whole_device_under_either_name() -> None:
    labels = labeller(device_id="74a1") | {"amd.com/gpu.compute-memory-partition": "spx_nps1"}
    for resource in ("amd.com/gpu", "amd.com/spx_nps1"):
        found = device(labels, resource)
        assert (found.kind, found.mode, found.memory_share) == ("whole", None, 1)


def test_differently_partitioned_devices_of_one_node_are_pools_of_their_own() -> None:
    facts = read(labeller(device_id="74a1"), {"amd.com/spx_nps1": 5, "amd.com/cpx_nps1": 24})
    assert [(p.device.resource, p.device.kind, p.sku_counts) for p in facts.pools] == [
        ("amd.com/cpx_nps1", "slice", (24,)),
        ("amd.com/spx_nps1", "whole", (5,)),
    ]


def test_a_model_that_reports_too_little_memory_is_some_partition() -> None:
    found = device(labeller(device_id="74a1", vram="24G"), "amd.com/gpu", 64)
    assert (found.kind, found.memory_mib, found.mode) == ("slice", 24 * 1024, "partition")


@pytest.mark.parametrize("mode", ["zpx_nps9", "cpx", "CPX_NPS4 ", "tpx_nps1"])
def test_a_partition_mode_that_the_model_has_not_is_a_slice_of_unknown_size(mode: str) -> None:
    labels = labeller(device_id="74a1") | {"amd.com/gpu.compute-memory-partition": mode}
    found = device(labels, "amd.com/gpu", 8)
    assert (found.kind, found.memory_mib, found.memory_share) == ("slice", None, None)


# --- Intel ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", ["gpu.intel.com/i915", "gpu.intel.com/xe"])
@pytest.mark.parametrize(
    ("labels", "sku"),
    [
        ({"gpu.intel.com/product": "Max_1100"}, "max-1100"),
        ({"gpu.intel.com/product": "Flex_170"}, "flex-170"),
        ({"gpu.intel.com/device-id.0380-0bd5.present": "true"}, "max-1550"),
        (
            {"gpu.intel.com/device-id.0380-56c0.count": "2", "gpu.intel.com/device-id.0380-56c0.present": "true"},
            "flex-170",
        ),
    ],
)
def test_intel_models_come_from_the_product_or_the_device_id(resource: str, labels: dict[str, str], sku: str) -> None:
    found = device(labels, resource, 2)
    assert (ids(found), found.kind, found.memory_reported) == ([sku], "whole", False)


def test_a_flex_140_card_is_two_devices() -> None:
    assert device({"gpu.intel.com/product": "Flex_140"}, "gpu.intel.com/i915").memory_mib == 6144


@pytest.mark.parametrize(
    "labels",
    [
        {"gpu.intel.com/product": "Max_11000"},
        {"gpu.intel.com/device-id.0300-4680.present": "true"},
        {"gpu.intel.com/device-id.0300-4680.present": "true", "gpu.intel.com/device-id.0380-56c0.present": "true"},
    ],
)
def test_an_intel_gpu_that_is_no_model_of_ours_is_unknown(labels: dict[str, str]) -> None:
    found = device(labels, "gpu.intel.com/i915")
    assert not found.skus
    assert found.evidence.startswith("gpu.intel.com/")


def test_intel_devices_above_their_number_are_shared() -> None:
    labels = {"gpu.intel.com/product": "Flex_170", "gpu.intel.com/device.count": "2"}
    found = device(labels, "gpu.intel.com/i915", 8)
    assert (found.kind, found.replicas, found.memory_mib) == ("shared", 4, 4096)
    assert device(labels, "gpu.intel.com/i915", 2).kind == "whole"


@pytest.mark.parametrize("labels", [{}, {"gpu.intel.com/product": "Max_1100"}])
def test_gaudi_has_no_label_that_names_its_model(labels: dict[str, str]) -> None:
    found = device(labels, "habana.ai/gaudi")
    assert (found.vendor, found.skus, found.evidence) == ("intel", (), "no label names the model")


# --- Clouds, PCI, several vendors -------------------------------------------------------------------------------------

KARPENTER = "karpenter.k8s.aws/instance-gpu-"


@pytest.mark.parametrize(
    ("labels", "sku"),
    [
        ({"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}, "t4"),
        ({"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, "h100-sxm"),
        ({f"{KARPENTER}name": "a100", f"{KARPENTER}memory": "81920"}, "a100-sxm4-80gb"),
        ({f"{KARPENTER}name": "a100", f"{KARPENTER}memory": "40960"}, "a100-sxm4-40gb"),
    ],
)
def test_cloud_labels_name_the_model_where_the_vendors_do_not(labels: dict[str, str], sku: str) -> None:
    found = device(labels, "nvidia.com/gpu")
    assert (ids(found), found.memory_reported) == ([sku], False)


@pytest.mark.parametrize(
    ("labels", "evidence"),
    [
        ({f"{KARPENTER}name": "a100"}, f"{KARPENTER}name=a100"),
        ({f"{KARPENTER}name": "l4", f"{KARPENTER}memory": "11444"}, f"{KARPENTER}name=l4"),
        ({"gpu.nvidia.com/model": "A100_NVLINK"}, "gpu.nvidia.com/model=A100_NVLINK"),
        ({"kubernetes.azure.com/accelerator": "nvidia"}, "no label names the model"),
        ({}, "no label names the model"),
    ],
)
def test_cloud_labels_that_leave_a_doubt_name_nothing(labels: dict[str, str], evidence: str) -> None:
    found = device(labels, "nvidia.com/gpu")
    assert (found.skus, found.evidence, found.memory_mib) == ((), evidence, None)


def test_the_vendors_label_is_trusted_before_the_clouds() -> None:
    cloud = {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}
    assert ids(device(cloud | gfd(H100, 81559), "nvidia.com/gpu")) == ["h100-sxm"]
    unknown = device(cloud | gfd("NVIDIA-X1", 81559), "nvidia.com/gpu")
    assert (unknown.skus, unknown.evidence) == ((), "nvidia.com/gpu.product=NVIDIA-X1")


@pytest.mark.parametrize("suffix", ["", "-SHARED", "-MIG-1g.5gb", "-MIG-1g.5gb-SHARED"])
def test_an_unknown_model_is_listed_by_the_value_that_a_gpusku_matches(suffix: str) -> None:
    assert device(gfd(f"NVIDIA-X1{suffix}"), "nvidia.com/gpu").evidence == "nvidia.com/gpu.product=NVIDIA-X1"


def test_a_gke_partition_is_a_slice_and_shared_clients_divide_it() -> None:
    labels = {
        "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
        "cloud.google.com/gke-gpu-partition-size": "1g.5gb",
    }
    found = device(labels, "nvidia.com/gpu", 7)
    assert (ids(found), found.kind, found.mode) == (["a100-sxm4-40gb"], "slice", "1g.5gb")
    assert found.memory_mib is not None
    assert 4_800 < found.memory_mib < 5_200
    shared = device(
        labels
        | {
            "cloud.google.com/gke-gpu-sharing-strategy": "time-sharing",
            "cloud.google.com/gke-max-shared-clients-per-gpu": "2",
        },
        "nvidia.com/gpu",
        14,
    )
    assert (shared.kind, shared.replicas, shared.memory_mib) == ("shared", 2, found.memory_mib / 2)


def test_a_gke_partition_never_offers_the_whole_devices_memory() -> None:
    labels = gfd(A100, 40960) | {"cloud.google.com/gke-gpu-partition-size": "1g.5gb"}
    found = device(labels, "nvidia.com/gpu", 7)
    assert found.memory_mib is not None
    assert found.memory_mib < 5_200


@pytest.mark.parametrize(
    ("label", "vendors"),
    [
        ("pci-10de.present", ("nvidia",)),
        ("pci-0302_10de.present", ("nvidia",)),
        ("pci-0380_1002.present", ("amd",)),
        ("pci-1200_1002.present", ("amd",)),
        ("pci-0300_8086.present", ("intel",)),
        ("pci-0200_8086.present", ()),
        ("pci-0300_1af4.present", ()),
        ("pci-0300_1af4_10de.present", ()),
        ("pci-10de.sriov.capable", ()),
    ],
)
def test_hardware_without_a_device_plugin_is_present_but_offers_nothing(label: str, vendors: tuple[str, ...]) -> None:
    facts = read({f"feature.node.kubernetes.io/{label}": "true"}, {"cpu": 8})
    assert (facts.present, facts.pools) == (vendors, ())


def test_a_pci_label_that_says_false_says_nothing() -> None:
    assert read({"feature.node.kubernetes.io/pci-10de.present": "false"}, {}).present == ()


def test_gpus_of_several_vendors_on_a_node_are_told_apart() -> None:
    facts = read(gfd("NVIDIA-L4", 23034) | labeller(device_id="740f"), {"amd.com/gpu": 2, "nvidia.com/gpu": 4})
    assert [(p.device.vendor, ids(p.device), p.capacity) for p in facts.pools] == [
        ("nvidia", ["l4"], 4),
        ("amd", ["mi210"], 2),
    ]


# --- Health and node labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("healthy", "total", "expected"), [(6, 8, (6, 8)), (0, 8, (0, 8)), (8, 8, (8, 8))])
def test_unhealthy_devices_are_capacity_but_not_allocatable(
    healthy: int, total: int, expected: tuple[int, int]
) -> None:
    (found,) = read(gfd(H100), {"nvidia.com/gpu": healthy}, {"nvidia.com/gpu": total}).pools
    assert (found.allocatable, found.capacity) == expected
    assert found.device == device(gfd(H100), "nvidia.com/gpu")


def test_a_resource_that_only_one_side_lists_is_read() -> None:
    (only_total,) = read(gfd(H100), {}, {"nvidia.com/gpu": 8}).pools
    assert (only_total.allocatable, only_total.capacity) == (0, 8)
    (only_healthy,) = read(gfd(H100), {"nvidia.com/gpu": 8}, {}).pools
    assert (only_healthy.allocatable, only_healthy.capacity) == (8, 8)


def test_a_resource_at_zero_of_zero_is_no_pool() -> None:
    assert read(gfd(H100), {"nvidia.com/gpu": 0}).pools == ()


@pytest.mark.parametrize("resource", ["cpu", "nvidia.com/gpus", "amd.com/gpu.shared", "x/nvidia.com/gpu", "rdma/hca"])
def test_other_resources_are_no_gpus(resource: str) -> None:
    assert read(gfd(H100), {resource: 8}).pools == ()


def test_the_nodes_own_labels_say_models_counts_and_what_the_plain_name_hides() -> None:
    assert node_facts.node_labels(read(gfd(H100), {"nvidia.com/gpu": 6}, {"nvidia.com/gpu": 8})) == {
        "anygpu.io/sku.h100-sxm": "8"
    }
    assert node_facts.node_labels(read(gfd(f"{A100}-MIG-1g.5gb.me"), {"nvidia.com/gpu": 7})) == {
        "anygpu.io/sku.a100-sxm4-40gb": "7",
        "anygpu.io/partition": "1g.5gb.me",
    }
    assert node_facts.node_labels(read(gfd("NVIDIA-X1"), {"nvidia.com/gpu": 7})) == {}


def test_only_labels_of_these_two_kinds_are_ours() -> None:
    assert node_facts.is_ours("anygpu.io/sku.t4")
    assert node_facts.is_ours("anygpu.io/partition")
    assert not node_facts.is_ours("anygpu.io/inject")


def test_driver_and_runtime_versions_are_kept() -> None:
    labels = {"nvidia.com/cuda.driver-version.full": "550.107.02", "amd.com/gpu.driver-version": "6.10.5"}
    assert read(labels, {}).versions == tuple(labels.items())
