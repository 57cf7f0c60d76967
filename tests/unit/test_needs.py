"""Pod annotations become needs, or errors that name key, value and what would be right."""

import pytest

from capability_db.catalogue import Catalogue
from scheduler import errors, needs

BUILTIN = Catalogue.builtin()


def parse(**stated: str) -> needs.Needs:
    """The needs of annotations given without prefix; `_` stands for `-`."""
    return needs.parse({f"anygpu.io/{key.replace('_', '-')}": value for key, value in stated.items()}, BUILTIN)


def refused(annotations: dict[str, str]) -> list[str]:
    """The problems that annotations, given without prefix, have."""
    with pytest.raises(errors.InvalidNeeds) as caught:
        needs.parse({f"anygpu.io/{key}": value for key, value in annotations.items()}, BUILTIN)
    return caught.value.problems


def test_without_annotations_a_pod_needs_one_whole_device() -> None:
    assert parse() == needs.Needs(gpus=1, share="whole", matrix_cores="preferred", objective="pack")


@pytest.mark.parametrize(
    ("key", "text", "field", "value"),
    [
        ("gpus", "2", "gpus", 2),
        ("gpus", " 08 ", "gpus", 8),
        ("memory", "40Gi", "memory_bytes", 40 * 2**30),
        ("memory", "40G", "memory_bytes", 40 * 10**9),
        ("memory", "0.5Ti", "memory_bytes", 2**39),
        ("memory", "80Gi", "memory_text", "80Gi"),
        ("precision", "bf16, fp16", "precision", ("bf16", "fp16")),
        ("matrix-cores", "required", "matrix_cores", "required"),
        ("matrix-cores", "none", "matrix_cores", "none"),
        ("tflops", "300", "tflops", 300.0),
        ("bandwidth", "2000.5", "bandwidth_gbs", 2000.5),
        ("interconnect", "preferred", "interconnect", "preferred"),
        ("share", "slice", "share", "slice"),
        ("share", "any", "share", "any"),
        ("vendor", "amd,nvidia", "vendors", ("amd", "nvidia")),
        ("sku", "h100-sxm,mi300x", "skus", ("h100-sxm", "mi300x")),
        ("not-sku", "t4", "not_skus", ("t4",)),
        ("objective", "energy", "objective", "energy"),
        ("max-price", "2.50", "max_price_usd_hour", 2.5),
        ("container", "server", "container", "server"),
        ("mig", "3g.40gb", "mig", "3g.40gb"),
        ("mig", "1g.10gb+me", "mig", "1g.10gb+me"),
    ],
)
def test_each_key_says_one_need(key: str, text: str, field: str, value: object) -> None:
    assert getattr(needs.parse({f"anygpu.io/{key}": text}, BUILTIN), field) == value


def test_binding_early_is_what_there_is() -> None:
    assert parse(binding="early") == parse()


def test_mig_implies_a_slice() -> None:
    assert parse(mig="1g.10gb").share == "slice"
    assert parse(mig="1g.10gb", share="any").share == "any"


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("precison", "fp8", "anygpu.io/precison: unknown; did you mean precision?"),
        ("Memory", "40Gi", "anygpu.io/Memory: unknown; did you mean memory?"),
        ("", "1", "anygpu.io/: unknown; known keys are "),
        ("zzzzzz", "1", "anygpu.io/zzzzzz: unknown; known keys are "),
        ("inject", "false", "anygpu.io/inject: is a label, not an annotation"),
        ("gpus", "0", "anygpu.io/gpus: '0' is not a number of devices; write an integer from 1 to "),
        ("gpus", "-1", "anygpu.io/gpus: '-1' "),
        ("gpus", "1.0", "anygpu.io/gpus: '1.0' "),
        ("gpus", "two", "anygpu.io/gpus: 'two' "),
        ("gpus", "٢", "anygpu.io/gpus: '٢' "),
        ("gpus", "10000", "anygpu.io/gpus: '10000' "),
        ("gpus", "", "anygpu.io/gpus: empty; write the number of devices"),
        ("memory", "40", "'40' is not a memory size; a unit is required: 40Gi is 2^30 bytes each, 40G is 10^9"),
        ("memory", "40gb", "a unit is required: 40Gi is 2^30 bytes each, 40G is 10^9"),
        ("memory", "40 Gi", "anygpu.io/memory: '40 Gi' is not a memory size"),
        ("memory", "-40Gi", "anygpu.io/memory: '-40Gi' is not a memory size"),
        ("memory", "0Gi", "is no memory at all"),
        ("memory", "1e9", "is not a memory size"),
        ("memory", " \t", "anygpu.io/memory: empty; write the memory of one device"),
        ("precision", "fp9", "names fp9, which is not one of fp64, fp32, tf32, bf16, fp16, fp8, fp4, int8"),
        ("precision", "FP8", "did you mean fp8?"),
        ("precision", "fp8,,fp16", "has an empty item"),
        ("precision", "fp8,fp8", "names an item twice"),
        ("precision", ",", "has an empty item"),
        ("matrix-cores", "yes", "not one of required, preferred, none"),
        ("interconnect", "none", "not one of required, preferred"),
        ("tflops", "0", "is not a number of TFLOPS above 0"),
        ("tflops", "inf", "is not a number of TFLOPS"),
        ("tflops", "nan", "is not a number of TFLOPS"),
        ("bandwidth", "2e3", "is not a number of GB/s"),
        ("max-price", "$2", "is not a number of USD per device-hour above 0; write for example 2.50"),
        ("share", "half", "not one of whole, slice, any"),
        ("vendor", "nvidia,ati", "names ati, which is not one of nvidia, amd, intel"),
        ("sku", "h100", "names the unknown SKU h100; did you mean h100-"),
        ("sku", "H100-SXM", "did you mean h100-sxm?"),
        ("not-sku", "qqqqqq", "`anygpu skus` lists them"),
        ("mig", "3g.40g", "is not a MIG profile of any SKU; did you mean 3g.40gb?"),
        ("mig", "MIG 7", "is not a MIG profile of any SKU; write for example 3g.40gb"),
        ("mig", "1g.10gb.me", "did you mean 1g.10gb+me?"),
        ("objective", "cheap", "not one of pack, cost, speed, energy"),
        ("container", "-x", "is not a container name"),
        ("container", "Server", "is not a container name"),
    ],
)
def test_a_bad_annotation_is_refused_with_what_would_be_right(key: str, text: str, says: str) -> None:
    (problem,) = refused({key: text})
    assert problem.startswith(f"anygpu.io/{key}:")
    assert says in problem


@pytest.mark.parametrize("key", ["model", "batch", "context", "image", "fraction"])
@pytest.mark.parametrize("text", ["llama-3.1-8b", "", "0.47"])
def test_what_a_later_version_brings_is_refused_and_not_ignored(key: str, text: str) -> None:
    (problem,) = refused({key: text})
    assert problem.startswith(f"anygpu.io/{key}:")
    assert "not available in this version" in problem


@pytest.mark.parametrize("binding", ["late", "claim"])
def test_the_later_bindings_are_refused(binding: str) -> None:
    (problem,) = refused({"binding": binding})
    assert problem.startswith(f"anygpu.io/binding: '{binding}' is not available in this version")


def test_every_problem_is_told_at_once() -> None:
    problems = refused({"gpus": "x", "memory": "40", "precison": "fp8"})
    assert [problem.partition(":")[0] for problem in problems] == [
        "anygpu.io/gpus",
        "anygpu.io/memory",
        "anygpu.io/precison",
    ]


@pytest.mark.parametrize(
    ("annotations", "key", "also"),
    [
        ({"mig": "3g.40gb", "vendor": "amd"}, "mig", "vendor"),
        ({"mig": "3g.40gb", "gpus": "2"}, "gpus", "mig"),
        ({"mig": "3g.40gb", "share": "whole"}, "share", "mig"),
        ({"sku": "h100-sxm", "vendor": "amd,intel"}, "sku", "vendor"),
        ({"sku": "h100-sxm,t4", "not-sku": "t4"}, "not-sku", "sku"),
    ],
)
def test_a_contradiction_names_both_keys(annotations: dict[str, str], key: str, also: str) -> None:
    (problem,) = refused(annotations)
    assert problem.startswith(f"anygpu.io/{key}: ")
    assert also in problem


def test_vendors_that_leave_a_way_are_no_contradiction() -> None:
    assert parse(mig="3g.40gb", vendor="amd,nvidia").vendors == ("amd", "nvidia")
    assert parse(sku="h100-sxm,mi300x", vendor="amd").skus == ("h100-sxm", "mi300x")


def test_what_anygpu_writes_itself_is_never_read() -> None:
    assert needs.parse(dict.fromkeys(needs.WRITTEN_BACK, "nonsense"), BUILTIN) == needs.Needs()
    assert not needs.is_opted_in(dict.fromkeys(needs.WRITTEN_BACK, "{}"))


def test_annotations_of_others_are_none_of_ours() -> None:
    others = {"prometheus.io/scrape": "true", "xanygpu.io/gpus": "2", "anygpu.io.example/gpus": "2"}
    assert needs.parse(others, BUILTIN) == needs.Needs()
    assert not needs.is_opted_in(others)


def test_any_key_of_ours_opts_in_even_a_misspelt_one() -> None:
    assert needs.is_opted_in({"anygpu.io/precison": "fp8"})
    assert needs.is_opted_in({"anygpu.io/binding": "early"})


@pytest.mark.parametrize(
    "annotations",
    [
        {"memory": "1" * 100_000},
        {"sku": "h100-sxm,\n\u2028a100-pcie-40gb", "vendor": "\tamd,\nintel"},
        {"mig": "1g.10gb", "vendor": "amd,\n\x0bintel"},
        {"gpus": "1\n2\x1b[31m\u202e"},
        {"x\n\x00" * 5000: ""},
        {"sku": "é" * 200_000},
        {"sku": ",".join(f"x{number}" for number in range(20_000))},
        {"matrix-cores": "required" * 20_000},
    ],
    ids=range(8),
)
def test_messages_stay_one_short_printable_line(annotations: dict[str, str]) -> None:
    for problem in refused(annotations):
        assert problem.isprintable()
        assert len(problem) < 400
