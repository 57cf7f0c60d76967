"""The shipped GPU models: what their data says, and what a catalogue refuses."""

import collections

import pytest

from capability_db import errors, partitions
from capability_db.catalogue import Catalogue
from capability_db.sku import FORMATS, Format, Sku

BUILTIN = Catalogue.builtin()
BY_ID = {sku.id: sku for sku in BUILTIN}


def make(sku_id: str = "x1", **fields: object) -> Sku:
    """A small valid SKU with fields replaced."""
    whole: dict[str, object] = {
        "id": sku_id,
        "vendor": "nvidia",
        "architecture": "ampere",
        "memory_gib": 16,
        "link": {"name": "PCIe", "reach": "none"},
        "match": {},
        "provenance": {"confidence": "known"},
    }
    return Sku.model_validate(whole | fields)


def test_65_models_of_three_vendors_ship() -> None:
    assert len(BUILTIN) == 65
    assert collections.Counter(sku.vendor for sku in BUILTIN) == {"nvidia": 40, "amd": 18, "intel": 7}


def test_iteration_is_in_file_order() -> None:
    ids = [sku.id for sku in BUILTIN]
    assert ids[0] == "p100-pcie-16gb"
    assert ids[-1] == "gaudi3"
    assert ids.index("h100-sxm") < ids.index("mi300x") < ids.index("max-1100")


def test_the_builtin_catalogue_is_read_once() -> None:
    assert Catalogue.builtin() is BUILTIN


def test_no_price_ships() -> None:
    assert not [sku.id for sku in BUILTIN if sku.price_usd_hour is not None]


@pytest.mark.parametrize(
    ("sku_id", "rates"),
    [
        ("a100-sxm4-80gb", {"fp64": 9.7, "fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312, "int8": 624}),
        ("h100-sxm", {"fp64": 34, "fp32": 67, "tf32": 494, "bf16": 989, "fp16": 989, "fp8": 1978, "int8": 1978}),
        ("l4", {"bf16": 121, "fp8": 242}),
        ("l40s", {"bf16": 362.05, "fp8": 733}),
        ("b200", {"bf16": 2250, "fp8": 4500, "fp4": 9000}),
        ("rtx-4090", {"bf16": 165.2, "fp8": 330.3}),
        ("mi300x", {"fp32": 163.4, "tf32": 653.7, "bf16": 1307.4, "fp8": 2614.9}),
        ("mi325x", {"bf16": 1307.4, "fp8": 2614.9}),
        ("mi100", {"bf16": 92.3, "fp16": 184.6}),
    ],
)
def test_rates_are_dense_not_sparse(sku_id: str, rates: dict[Format, float]) -> None:
    assert {each: BY_ID[sku_id].rate(each) for each in rates} == rates


@pytest.mark.parametrize(
    ("sku_id", "absent"),
    [
        ("p100-pcie-16gb", {"bf16", "tf32", "fp8", "int8"}),
        ("v100-sxm2-32gb", {"bf16", "tf32", "fp8", "int8"}),
        ("t4", {"bf16", "tf32", "fp8"}),
        ("a100-sxm4-40gb", {"fp8", "fp4"}),
        ("h100-sxm", {"fp4"}),
        ("mi210", {"tf32", "fp8", "fp4"}),
        ("mi250x", {"fp8"}),
        ("mi300x", {"fp4"}),
        ("mi350x", {"tf32"}),
        ("rtx-pro-6000-blackwell-server", {"fp16"}),
        ("gb300", {"fp64", "tf32"}),
        ("gaudi3", {"fp16", "int8"}),
    ],
)
def test_a_format_without_a_stated_figure_is_not_listed(sku_id: str, absent: set[Format]) -> None:
    assert not absent & {*BY_ID[sku_id].formats}


@pytest.mark.parametrize("sku", [*BUILTIN], ids=lambda sku: sku.id)
def test_formats_are_exactly_those_with_a_figure_in_their_usual_order(sku: Sku) -> None:
    assert sku.formats == tuple(each for each in FORMATS if each in sku.tflops or each in sku.matrix_tflops)
    assert {*sku.matrix_tflops} <= {"fp64", "fp32"}


@pytest.mark.parametrize("sku", [*BUILTIN], ids=lambda sku: sku.id)
def test_matrix_formats_need_a_matrix_unit_and_hold_fp64_and_fp32_only_with_a_matrix_rate(sku: Sku) -> None:
    expected = {each for each in sku.formats if each not in ("fp64", "fp32")} | {*sku.matrix_tflops}
    assert {*sku.matrix_formats} == (expected if sku.matrix_unit else set())


def test_models_whose_rates_nobody_states_have_no_formats() -> None:
    assert [sku.id for sku in BUILTIN if not sku.formats] == ["mi308x", "radeon-pro-v710"]


@pytest.mark.parametrize("sku_id", ["mi250", "mi250x"])
def test_a_gcd_has_half_of_the_card(sku_id: str) -> None:
    sku = BY_ID[sku_id]
    assert sku.memory_mib == 64 * 1024
    assert sku.bandwidth == 1600
    assert sku.rate("bf16") == sku.tflops["bf16"] / 2
    assert sku.rate("fp64", matrix=True) == sku.matrix_tflops["fp64"] / 2


def test_only_cards_of_several_devices_are_divided() -> None:
    assert {sku.id: sku.devices_per_card for sku in BUILTIN if sku.devices_per_card != 1} == {
        "mi250": 2,
        "mi250x": 2,
        "flex-140": 2,
    }


@pytest.mark.parametrize(
    ("sku_id", "mib"),
    [("t4", 15360), ("l4", 23034), ("h100-sxm", 81559), ("a100-sxm4-40gb", 40960), ("mi300x", 196592)],
)
def test_memory_is_what_drivers_report_where_known(sku_id: str, mib: int) -> None:
    assert BY_ID[sku_id].memory_mib == mib


@pytest.mark.parametrize("sku", [*BUILTIN], ids=lambda sku: sku.id)
def test_reported_memory_is_close_to_the_nominal_size(sku: Sku) -> None:
    if sku.reported_memory_mib:
        assert 0.93 * sku.memory_gib * 1024 <= sku.reported_memory_mib <= 1.001 * sku.memory_gib * 1024


def test_a_gh200s_memory_is_the_gpus_not_the_cpus() -> None:
    assert BY_ID["gh200-480gb"].memory_gib == 96


@pytest.mark.parametrize(
    ("sku_id", "reach"),
    [
        ("h100-sxm", "node"),
        ("h100-pcie", "bridge"),
        ("a800-pcie-80gb", "bridge"),
        ("l4", "none"),
        ("mi100", "bridge"),
        ("mi210", "bridge"),
        ("mi300x", "node"),
        ("max-1100", "bridge"),
        ("max-1550", "node"),
        ("gaudi3", "none"),
    ],
)
def test_links_say_how_far_they_reach(sku_id: str, reach: str) -> None:
    assert BY_ID[sku_id].link.reach == reach


@pytest.mark.parametrize("sku", [*BUILTIN], ids=lambda sku: sku.id)
def test_every_sku_says_where_its_figures_come_from(sku: Sku) -> None:
    fields = {*Sku.model_fields}
    known = {name.partition(".")[0] for name in sku.provenance.known}
    assert known <= fields
    assert sku.provenance.sources or sku.provenance.confidence == "known"


def test_only_nvidia_cards_have_mig_and_only_instincts_partition_modes() -> None:
    assert {sku.vendor for sku in BUILTIN if sku.mig} == {"nvidia"}
    assert len([sku for sku in BUILTIN if sku.mig]) == 21
    assert [sku.id for sku in BUILTIN if sku.compute_modes] == ["mi300a", "mi300x", "mi325x", "mi350x", "mi355x"]


# --- lookups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "label", "sku_id"),
    [
        ("nvidia", "NVIDIA-H200", "h200-sxm"),
        ("nvidia", "NVIDIA-H20", "h20"),
        ("nvidia", "NVIDIA-H100-80GB-HBM3", "h100-sxm"),
        ("nvidia", "NVIDIA-L4", "l4"),
        ("nvidia", "NVIDIA-L40", "l40"),
        ("nvidia", "NVIDIA-L40S", "l40s"),
        ("nvidia", "NVIDIA-A10", "a10"),
        ("nvidia", "NVIDIA-A100-80GB-PCIe", "a100-pcie-80gb"),
        ("nvidia", "A100-SXM4-40GB", "a100-sxm4-40gb"),
        ("amd", "AMD_Instinct_MI300X_OAM", "mi300x"),
        ("amd", "AMD_Instinct_MI325_OAM", "mi325x"),
        ("intel", "Max_1100", "max-1100"),
    ],
)
def test_a_product_label_finds_its_model(vendor: str, label: str, sku_id: str) -> None:
    assert BUILTIN.by_product(vendor, label) is BY_ID[sku_id]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "label",
    ["NVIDIA-H100", "NVIDIA-A100", "NVIDIA-H20-3e", "Tesla-P100-PCIE-12GB", "nvidia-h200", "NVIDIA-A100-PCIE-80GB", ""],
)
def test_labels_of_other_cards_find_nothing(label: str) -> None:
    assert BUILTIN.by_product("nvidia", label) is None


def test_a_label_counts_for_its_vendor_only() -> None:
    assert BUILTIN.by_product("amd", "NVIDIA-H200") is None


@pytest.mark.parametrize(
    ("vendor", "device_id", "ids"),
    [
        ("amd", "74a1", ["mi300x"]),
        ("amd", "74b5", ["mi300x"]),
        ("amd", "740f", ["mi210"]),
        ("amd", "740c", ["mi250", "mi250x"]),
        ("amd", "7408", ["mi250x"]),
        ("amd", "66a1", ["mi50-16gb", "mi60"]),
        ("amd", "744c", ["radeon-rx-7900-xtx"]),
        ("amd", "744b", []),
        ("amd", "7449", []),
        ("nvidia", "25b6", ["a2", "a16"]),
        ("nvidia", "2330", ["h100-sxm"]),
        ("intel", "0bda", ["max-1100"]),
        ("intel", "74a1", []),
    ],
)
def test_a_pci_id_gives_its_model_or_every_candidate(vendor: str, device_id: str, ids: list[str]) -> None:
    assert [sku.id for sku in BUILTIN.by_pci(vendor, device_id)] == ids  # type: ignore[arg-type]


GKE = "cloud.google.com/gke-accelerator"
NAME, MEMORY = "karpenter.k8s.aws/instance-gpu-name", "karpenter.k8s.aws/instance-gpu-memory"


@pytest.mark.parametrize(
    ("labels", "sku_id"),
    [
        ({GKE: "nvidia-tesla-t4"}, "t4"),
        ({GKE: "nvidia-tesla-a100"}, "a100-sxm4-40gb"),
        ({GKE: "nvidia-a100-80gb"}, "a100-sxm4-80gb"),
        ({GKE: "nvidia-h100-mega-80gb", "pool": "x"}, "h100-sxm"),
        ({GKE: "nvidia-h100"}, None),
        ({NAME: "t4"}, "t4"),
        ({NAME: "a100"}, None),
        ({NAME: "a100", MEMORY: "40960"}, "a100-sxm4-40gb"),
        ({NAME: "a100", MEMORY: "81920"}, "a100-sxm4-80gb"),
        ({NAME: "l4", MEMORY: "22888"}, "l4"),
        ({NAME: "l4", MEMORY: "11444"}, None),
        ({}, None),
    ],
)
def test_cloud_labels_name_a_model_only_with_every_part_of_an_entry(labels: dict[str, str], sku_id: str | None) -> None:
    found = BUILTIN.by_cloud(labels)
    assert (found.id if found else None) == sku_id


def test_the_cloud_entry_that_says_more_wins_and_equals_cancel_out() -> None:
    wide = make("wide", match={"cloud": ["kind=a"]})
    narrow = make("narrow", match={"cloud": ["kind=a,size=1"]})
    other = make("other", match={"cloud": ["place=b,zone=2"]})
    catalogue = Catalogue([wide, narrow, other])
    assert catalogue.by_cloud({"kind": "a"}) is wide
    assert catalogue.by_cloud({"kind": "a", "size": "1"}) is narrow
    assert catalogue.by_cloud({"kind": "a", "size": "1", "place": "b", "zone": "2"}) is None


@pytest.mark.parametrize(
    ("typo", "near"),
    [
        ("h100-smx", "h100-sxm"),
        ("MI300X", "mi300x"),
        ("mi300", "mi300x"),
        ("h100", "h100-sxm"),
        ("a100", "a100-sxm4-40gb"),
        ("qqqqqq", None),
        ("", None),
    ],
)
def test_a_misspelt_id_gets_a_suggestion_that_begins_alike(typo: str, near: str | None) -> None:
    found = BUILTIN.nearest(typo)
    if near and not near.startswith(typo.lower()):
        assert found == near
    else:
        assert (found is None) if near is None else (found or "").startswith(typo.lower())


def test_get_is_exact() -> None:
    assert BUILTIN.get("h100-sxm") is BY_ID["h100-sxm"]
    assert BUILTIN.get("h100") is None


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skus", "message"),
    [
        ([make(), make()], r"^x1: id: two SKUs"),
        ([make("a", match={"product": ["P"]}), make("b", match={"product": ["P"]})], r"^b: match\.product: 'P' .*a$"),
        ([make("a", match={"pci": ["20b0"]}), make("b", match={"pci": ["20b0"]})], r"^b: match\.pci: '20b0' .*a$"),
        (
            [make("a", match={"pci_shared": ["20b0"]}), make("b", match={"pci": ["20b0"]})],
            r"^a: match\.pci_shared: '20b0' .*b$",
        ),
        (
            [make("a", match={"cloud": ["k=v,l=w"]}), make("b", match={"cloud": ["l=w,k=v"]})],
            r"^b: match\.cloud: .*already means a$",
        ),
        ([make(match={"cloud": ["k=v,k=w"]})], r"^x1: match\.cloud: "),
        ([make(mig="a100")], r"^x1: mig: 'a100' is no geometry; known are a30, "),
    ],
)
def test_a_contradiction_is_refused_with_sku_and_field(skus: list[Sku], message: str) -> None:
    with pytest.raises(errors.CatalogueError, match=message):
        Catalogue(skus)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"match": {"cloud": ["k"]}}, r"match\.cloud\.0"),
        ({"match": {"product": ["A/B"]}}, r"match\.product\.0"),
        ({"match": {"pci": ["20B0"]}}, r"match\.pci\.0"),
        ({"match": {"pci": ["20b0", "20b0"]}}, r"20b0: listed twice"),
        ({"tflops": {"fp8": 1}}, r"tflops\.fp8: .* add fp8 to formats"),
        ({"matrix_tflops": {"fp64": 1}, "formats": ["fp32"]}, r"matrixTflops\.fp64: .* add fp64 to formats"),
        ({"matrix_unit": "m", "matrix_formats": ["bf16"]}, r"matrixFormats: .* add it to formats too"),
        ({"formats": ["bf16"], "matrix_formats": ["bf16"]}, r"matrixFormats: needs a matrixUnit"),
        ({"reported_memory_mib": 17_000}, r"reportedMemoryMib: more than memoryGib"),
        ({"vendor": "amd", "mig": "a30"}, r"mig: only nvidia"),
        ({"compute_modes": ["CPX"]}, r"computeModes and memoryModes: only amd"),
        ({"target": "gfx942"}, r"target: a CUDA compute capability for nvidia"),
    ],
)
def test_a_sku_that_contradicts_itself_is_none(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_two_vendors_may_use_the_same_values() -> None:
    mine = make("a", match={"product": ["P"], "pci": ["20b0"]})
    theirs = make("b", vendor="amd", match={"product": ["P"], "pci": ["20b0"]})
    catalogue = Catalogue([mine, theirs])
    assert catalogue.by_product("amd", "P") is theirs
    assert catalogue.by_pci("nvidia", "20b0") == (mine,)


def test_every_mig_key_of_the_data_is_used() -> None:
    assert {sku.mig for sku in BUILTIN if sku.mig} == {*partitions.mig_keys()}
