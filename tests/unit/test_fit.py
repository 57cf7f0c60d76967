"""Whether a device meets the needs, and the constant text that says why not."""

import dataclasses
import re

import pytest

from capability_db import node_facts, vendors
from capability_db.catalogue import Catalogue
from capability_db.node_facts import DeviceClass
from scheduler import fit, needs

BUILTIN = Catalogue.builtin()


def ask(**stated: str) -> needs.Needs:
    """The needs of annotations given without prefix; `_` stands for `-`."""
    return needs.parse({f"anygpu.io/{key.replace('_', '-')}": value for key, value in stated.items()}, BUILTIN)


def nvidia(product: str, memory: int | None = None, resource: str = "nvidia.com/gpu", **more: str) -> DeviceClass:
    """Devices as GPU feature discovery labels them."""
    labels = {"nvidia.com/gpu.product": product} | {f"nvidia.com/gpu.{key}": value for key, value in more.items()}
    labels |= {"nvidia.com/gpu.memory": str(memory)} if memory else {}
    return node_facts.read(labels, {resource: 8}, {}, BUILTIN).pools[0].device


def amd(*device_ids: str, resource: str = "amd.com/gpu") -> DeviceClass:
    """Devices as AMD's labeller labels them."""
    labels = {f"amd.com/gpu.device-id.{each}": "4" for each in device_ids}
    return node_facts.read(labels, {resource: 8}, {}, BUILTIN).pools[0].device


H100 = nvidia("NVIDIA-H100-80GB-HBM3", 81559)
H20 = nvidia("NVIDIA-H20", 97871)
L4 = nvidia("NVIDIA-L4", 23034)
T4 = nvidia("Tesla-T4", 15360)
P100 = nvidia("Tesla-P100-PCIE-16GB", 16280)
A100 = nvidia("NVIDIA-A100-SXM4-40GB", 40960)
A100_PCIE = nvidia("NVIDIA-A100-PCIE-40GB", 40960)
MIG = nvidia("NVIDIA-A100-SXM4-40GB-MIG-3g.20gb", 19968)
SHARED_MIG = nvidia("NVIDIA-A100-SXM4-40GB-MIG-3g.20gb-SHARED", 19968, replicas="2")
SHARED_T4 = nvidia("Tesla-T4-SHARED", 15360, replicas="4")
SHARED_SOMEHOW = nvidia("Tesla-T4-SHARED", 15360)
MI300X = amd("74a1")
MI210 = amd("740f")
MI100 = amd("738c")
MIXED = amd("74a1", "740f")
CPX = amd("74a1", resource="amd.com/cpx_nps4")
UNKNOWN = nvidia("NVIDIA-X1", 81559)
INVALID = nvidia("NVIDIA-H100-80GB-HBM3-MIG-INVALID")
MAX = node_facts.read({"gpu.intel.com/product": "Max_1100"}, {"gpu.intel.com/xe": 2}, {}, BUILTIN).pools[0].device
ALL = [H100, H20, L4, T4, P100, A100, MIG, SHARED_MIG, SHARED_T4, SHARED_SOMEHOW, MI300X, MIXED, CPX, UNKNOWN, INVALID]


def why(device: DeviceClass, **stated: str) -> str | None:
    """The refusal of a device for needs."""
    return fit.refusal(ask(**stated), device)


# --- Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "memory", "refusal"),
    [
        (H100, "80G", None),
        (H100, "80Gi", "h100-sxm: 79.6 GiB of memory, 80Gi asked (80G would fit)"),
        (H100, "81559Mi", None),
        (H100, "81560Mi", "h100-sxm: 79.6 GiB of memory, 81560Mi asked (81560M would fit)"),
        (H100, "90Gi", "h100-sxm: 79.6 GiB of memory, 90Gi asked"),
        (H100, "90G", "h100-sxm: 79.6 GiB of memory, 90G asked"),
        # 24 * 10^9 bytes are 22,888.2 MiB; an L4 reports 23,034.
        (L4, "24G", None),
        (L4, "24Gi", "l4: 22.5 GiB of memory, 24Gi asked (24G would fit)"),
        (T4, "16Gi", "t4: 15 GiB of memory, 16Gi asked (16G would fit)"),
        (MI300X, "191Gi", None),
        (MI300X, "192Gi", "mi300x: 196592 MiB of memory, 192Gi asked (192G would fit)"),
        (SHARED_T4, "4Gi", "t4 shared by 4: 3.8 GiB of memory, 4Gi asked (4G would fit)"),
        (SHARED_SOMEHOW, "1Gi", "t4 shared by unknown: memory unknown, 1Gi asked"),
        (H100, "900000000Ki", "h100-sxm: 79.6 GiB of memory, 900000000Ki asked"),
        (H100, "83600000Ki", "h100-sxm: 79.6 GiB of memory, 83600000Ki asked (83600000k would fit)"),
    ],
)
def test_memory_is_compared_without_tolerance(device: DeviceClass, memory: str, refusal: str | None) -> None:
    assert why(device, memory=memory, share="any") == refusal


@pytest.mark.parametrize("device", [H100, L4, T4, MI210, P100])
def test_the_change_that_is_proposed_for_memory_would_fit(device: DeviceClass) -> None:
    (short,) = fit.unmet(ask(memory="500Gi"), device)
    key, _, size = (short.change or "").partition(": ")
    assert fit.unmet(ask(**{key: size}), device) == []


# --- Formats and rates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "stated", "refusal"),
    [
        (H100, {"precision": "fp8"}, None),
        (A100, {"precision": "fp8"}, "a100-sxm4-40gb: no native fp8"),
        (H100, {"precision": "fp4"}, "h100-sxm: no native fp4"),
        (T4, {"precision": "bf16,fp16"}, "t4: no native bf16"),
        (MI210, {"precision": "tf32"}, "mi210: no native tf32"),
        (P100, {"precision": "fp16"}, None),
        (P100, {"precision": "fp16", "matrix_cores": "required"}, "p100-pcie-16gb: no matrix cores"),
        (P100, {"matrix_cores": "required"}, "p100-pcie-16gb: no matrix cores"),
        (P100, {"precision": "fp16", "matrix_cores": "none"}, None),
        (P100, {"precision": "fp16", "matrix_cores": "preferred"}, None),
        (T4, {"precision": "fp32", "matrix_cores": "required"}, "t4: no matrix cores for fp32"),
        (H100, {"tflops": "989"}, None),
        (H100, {"tflops": "990"}, "h100-sxm: 989 TFLOPS at fp16, 990 asked"),
        (H100, {"tflops": "1978", "precision": "fp8"}, None),
        (H100, {"tflops": "1978", "precision": "bf16,fp8"}, "h100-sxm: 989 TFLOPS at bf16, 1978 asked"),
        (H100, {"bandwidth": "3350"}, None),
        (H100, {"bandwidth": "3350.1"}, "h100-sxm: 3350 GB/s, 3350.1 asked"),
        (MI300X, {"bandwidth": "5300"}, None),
        (CPX, {"bandwidth": "700", "share": "slice"}, "mi300x cpx_nps4: 662.5 GB/s, 700 asked"),
        (SHARED_T4, {"tflops": "20", "share": "any"}, "t4 shared by 4: 16.25 TFLOPS at fp16, 20 asked"),
        (SHARED_SOMEHOW, {"tflops": "1", "share": "any"}, "TFLOPS at fp16 not stated, 1 asked"),
        (H100, {"max_price": "2.50"}, "h100-sxm: no price stated"),
    ],
)
def test_figures_count_only_as_the_data_states_them(
    device: DeviceClass, stated: dict[str, str], refusal: str | None
) -> None:
    found = why(device, **stated)
    if refusal is None:
        assert found is None
    else:
        # A part of a device may be called by its model alone.
        assert found is not None
        assert found.endswith(refusal.partition(": ")[2] or refusal)


def test_a_stated_price_qualifies_up_to_the_cap() -> None:
    priced = dataclasses.replace(H100, price_usd_hour=2.5)
    assert why(priced, max_price="2.50") is None
    assert why(priced, max_price="2.49") == "h100-sxm: 2.5 USD an hour, at most 2.49 asked"


# --- Links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (H100, None),
        (MI300X, None),
        (A100_PCIE, "is optional and nothing reports it"),
        (L4, "l4: PCIe only, no NVLink or xGMI"),
        (CPX, "slices share no link"),
        (dataclasses.replace(MI300X, skus=(*MI300X.skus, *amd("74a5").skus)), "mixed models share no island"),
    ],
)
def test_devices_that_must_be_linked_are_so_by_construction(device: DeviceClass, says: str | None) -> None:
    found = why(device, gpus="2", interconnect="required", share="slice")
    assert found is None if says is None else found is not None and says in found


def test_one_device_needs_no_link() -> None:
    assert why(L4, interconnect="required") is None
    assert why(L4, gpus="2", interconnect="preferred") is None


# --- Which device -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "stated", "refusal"),
    [
        (MI300X, {"vendor": "nvidia"}, "amd: vendor nvidia asked"),
        (MAX, {"vendor": "nvidia,amd"}, "intel: vendor nvidia,amd asked"),
        (MAX, {}, None),
        (H20, {"sku": "h200-sxm"}, "h20: sku h200-sxm asked"),
        (H100, {"sku": "a100-sxm4-40gb,a100-sxm4-80gb"}, "h100-sxm: sku a100-sxm4-40gb,a100-sxm4-80gb asked"),
        (H100, {"sku": "mi300x,h100-sxm"}, None),
        (H100, {"not_sku": "h100-sxm"}, "h100-sxm: excluded by not-sku"),
        (H100, {"not_sku": "h100-pcie,h100-nvl"}, None),
        (UNKNOWN, {}, "unknown GPU model: nvidia.com/gpu.product=NVIDIA-X1"),
        (UNKNOWN, {"vendor": "nvidia"}, "unknown GPU model: nvidia.com/gpu.product=NVIDIA-X1"),
    ],
)
def test_vendor_and_model_are_exact(device: DeviceClass, stated: dict[str, str], refusal: str | None) -> None:
    assert why(device, **stated) == refusal


def test_gpus_that_disagree_on_their_profile_serve_nobody() -> None:
    assert "do not agree on one profile" in (why(INVALID, share="any") or "")


@pytest.mark.parametrize(
    ("device", "stated", "refusal"),
    [
        (MIG, {}, "a100-sxm4-40gb 3g.20gb: a slice, whole devices asked"),
        (MIG, {"share": "slice"}, None),
        (MIG, {"share": "any"}, None),
        (MIG, {"mig": "3g.20gb"}, None),
        (MIG, {"mig": "1g.5gb"}, "a100-sxm4-40gb 3g.20gb: MIG profile 1g.5gb asked"),
        (A100, {"mig": "3g.20gb"}, "a100-sxm4-40gb: MIG profile 3g.20gb asked"),
        (MIG, {"gpus": "2", "share": "slice"}, "a100-sxm4-40gb 3g.20gb: a container can use one MIG instance only"),
        (CPX, {"gpus": "2", "share": "slice"}, None),
        (CPX, {}, "mi300x cpx_nps4: a slice, whole devices asked"),
        (SHARED_T4, {}, "t4 shared by 4: time-shared, whole devices asked"),
        (SHARED_T4, {"share": "slice"}, "t4 shared by 4: time-shared, no time-sharing asked"),
        (SHARED_T4, {"share": "any"}, None),
        (SHARED_T4, {"share": "any", "gpus": "2"}, "t4 shared by 4: several time-shared devices may be one GPU"),
        (SHARED_MIG, {"share": "slice"}, "a100-sxm4-40gb 3g.20gb shared by 2: time-shared, no time-sharing asked"),
        (SHARED_MIG, {"share": "any"}, None),
        (SHARED_MIG, {"mig": "3g.20gb"}, "a100-sxm4-40gb 3g.20gb shared by 2: MIG profile 3g.20gb asked"),
        (H100, {"share": "slice"}, None),
    ],
)
def test_a_pod_gets_no_smaller_part_than_it_takes(
    device: DeviceClass, stated: dict[str, str], refusal: str | None
) -> None:
    assert why(device, **stated) == refusal


def test_devices_of_several_models_fit_only_if_each_does() -> None:
    assert why(MIXED) is None
    assert why(MIXED, precision="bf16") is None
    assert why(MIXED, memory="70Gi") == "mi300x/mi210: 64 GiB of memory, 70Gi asked"
    assert why(MIXED, precision="fp8") == "mi210: no native fp8"
    assert why(MIXED, sku="mi300x") == "mi210: sku mi300x asked"
    assert why(MIXED, not_sku="mi210") == "mi210: excluded by not-sku"


def test_a_resource_that_the_pod_asks_itself_is_the_only_one() -> None:
    asked = needs.Needs(resources=("amd.com/gpu",))
    assert fit.refusal(asked, H100) == "offers nvidia.com/gpu, the pod asks amd.com/gpu"
    assert fit.refusal(asked, MI300X) is None


# --- Texts ------------------------------------------------------------------------------------------------------------

EVERYTHING = [
    {"memory": "500Gi", "share": "any"},
    {"precision": "fp4", "matrix_cores": "required"},
    {"tflops": "99999", "bandwidth": "99999"},
    {"gpus": "2", "interconnect": "required", "share": "any"},
    {"mig": "1g.5gb"},
    {"vendor": "intel", "max_price": "1"},
    {"sku": "max-1100", "gpus": "9999"},
]


@pytest.mark.parametrize("stated", EVERYTHING)
def test_refusals_are_one_short_line_without_percent_signs_and_always_the_same(stated: dict[str, str]) -> None:
    for device in ALL:
        for missing in fit.unmet(ask(**stated), device):
            assert missing.text.isprintable()
            assert "%" not in missing.text
            assert len(missing.text) < 160
        assert fit.unmet(ask(**stated), device) == fit.unmet(ask(**stated), device)


def test_refusals_know_nothing_of_how_many_devices_there_are() -> None:
    labels = {"nvidia.com/gpu.product": "Tesla-T4"}
    texts = {
        fit.refusal(
            ask(memory="500Gi"), node_facts.read(labels, {"nvidia.com/gpu": count}, {}, BUILTIN).pools[0].device
        )
        for count in (1, 2, 8)
    }
    assert texts == {"t4: 15 GiB of memory, 500Gi asked"}


# --- What could never be met ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"memory": "300Gi"}, "anygpu.io/memory: no GPU model in the capability DB meets this; the closest is mi35"),
        ({"tflops": "20000", "precision": "fp8"}, "anygpu.io/tflops: "),
        ({"bandwidth": "9000"}, "anygpu.io/bandwidth: "),
        ({"max_price": "2"}, "anygpu.io/max-price: "),
        ({"memory": "100Gi", "vendor": "nvidia", "sku": "h100-sxm"}, "anygpu.io/memory: "),
        ({"sku": "t4", "precision": "fp8"}, "anygpu.io/precision: "),
        ({"sku": "t4", "mig": "1g.10gb"}, "anygpu.io/mig: "),
        ({"mig": "1g.5gb", "memory": "40Gi"}, "anygpu.io/memory: "),
    ],
)
def test_needs_that_nothing_could_ever_meet_name_their_key(stated: dict[str, str], says: str) -> None:
    found = fit.impossible(ask(**stated), BUILTIN, [])
    assert found is not None
    keys, _, text = found.partition(": ")
    assert says.partition(": ")[0] in keys.split(", ")
    assert text.startswith(says.partition(": ")[2])
    assert {key.removeprefix("anygpu.io/").replace("-", "_") for key in keys.split(", ")} <= {*stated, "share"}


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"memory": "288Gi"},
        {"memory": "80Gi", "precision": "fp8"},
        {"mig": "3g.40gb"},
        {"mig": "1g.10gb", "sku": "h100-sxm"},
        {"gpus": "9999"},
        {"interconnect": "required", "gpus": "8", "vendor": "amd"},
        {"vendor": "intel"},
        {"share": "slice", "vendor": "amd", "gpus": "4"},
        {"precision": "fp4", "matrix_cores": "required"},
    ],
)
def test_needs_that_some_model_meets_are_valid(stated: dict[str, str]) -> None:
    assert fit.impossible(ask(**stated), BUILTIN, []) is None


def test_a_device_that_is_there_and_fits_makes_needs_possible() -> None:
    asked = ask(memory="300Gi")
    assert fit.impossible(asked, BUILTIN, [H100]) is not None
    assert fit.impossible(asked, BUILTIN, [dataclasses.replace(H100, memory_mib=400 * 1024)]) is None


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "amd.com/cpx_nps4", "amd.com/gpu"])
def test_a_resource_that_the_database_can_offer_is_possible(resource: str) -> None:
    assert fit.impossible(needs.Needs(resources=(resource,), share="slice"), BUILTIN, []) is None


def test_a_resource_that_no_model_is_offered_as_is_named() -> None:
    found = fit.impossible(needs.Needs(resources=("nvidia.com/mig-9g.99gb",), share="slice"), BUILTIN, [])
    assert found is not None
    assert "nvidia.com/mig-9g.99gb" in found


def test_parts_of_a_model_are_never_more_than_the_whole() -> None:
    for sku in BUILTIN:
        for device in fit.possible_classes(sku):
            assert device.memory_mib is not None
            assert 0 < device.memory_mib <= sku.memory_mib * 1.001, device.label
            assert (device.kind == "slice") == (device.mode is not None)
            if device.dra:
                assert device.resource == vendors.VENDORS[sku.vendor].driver.name
            else:
                assert re.fullmatch(r"[a-z0-9.]+/[a-z0-9._-]+", device.resource)


@pytest.mark.parametrize(
    ("sku_id", "modes"),
    [
        ("l4", {None}),
        ("a30", {None, "1g.6gb", "1g.6gb+me", "2g.12gb", "2g.12gb+me", "4g.24gb"}),
        ("mi300a", {None, "tpx_nps1", "cpx_nps1"}),
        ("max-1550", {None}),
    ],
)
def test_a_dra_driver_may_publish_a_model_whole_and_cut(sku_id: str, modes: set[str | None]) -> None:
    sku = BUILTIN.get(sku_id)
    assert sku is not None
    found = [device for device in fit.possible_classes(sku) if device.dra]
    assert {device.mode for device in found} == modes
    assert len(found) == len(modes)


@pytest.mark.parametrize("sku_id", ["mi250", "mi60", "gaudi3"])
def test_no_dra_class_has_a_model_that_attributes_cannot_tell(sku_id: str) -> None:
    sku = BUILTIN.get(sku_id)
    assert sku is not None
    assert not any(device.dra for device in fit.possible_classes(sku))


def test_needs_bound_by_claim_are_judged_over_the_drivers_devices() -> None:
    assert fit.impossible(ask(binding="claim", memory="80Gi", precision="fp8"), BUILTIN, []) is None
    why = fit.impossible(ask(binding="claim", memory="900Gi"), BUILTIN, [])
    assert why is not None
    assert why.startswith("anygpu.io/memory: no GPU model in the capability DB meets this; the closest is ")
    assert "binding" not in why
