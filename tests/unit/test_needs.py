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


@pytest.mark.parametrize("key", ["image", "fraction"])
@pytest.mark.parametrize("text", ["llama-3.1-8b", "", "0.47"])
def test_what_a_later_version_brings_is_refused_and_not_ignored(key: str, text: str) -> None:
    (problem,) = refused({key: text})
    assert problem.startswith(f"anygpu.io/{key}:")
    assert "not available in this version" in problem


def test_a_model_fills_every_need_that_the_pod_does_not_state() -> None:
    found = parse(model="llama-3.1-8b", context="8192", batch="4")
    assert (found.gpus, found.precision, found.interconnect) == (1, ("bf16",), "none")
    assert found.memory_text == "25.1Gi"  # 15.0 of weights, 4.0 of cache, 2.1 of activations and runtime, over 0.84
    assert found.workload is not None
    assert (found.workload.profile.id, found.workload.batch, found.workload.context) == ("llama-3.1-8b", 4, 8192)


def test_what_the_pod_states_wins_over_the_model() -> None:
    found = parse(model="llama-3.1-8b", memory="40Gi", precision="fp16", gpus="2", interconnect="required")
    assert found.memory_text == "40Gi"
    assert (found.workload, found.precision, found.gpus, found.interconnect) == (None, ("fp16",), 2, "required")
    assert parse(model="sdxl-base", batch="4", memory="20Gi").memory_text == "20Gi"


def test_without_sizes_a_model_runs_one_sequence_of_its_longest_context() -> None:
    assert parse(model="llama-3.1-8b") == parse(model="llama-3.1-8b", batch="1", context="131072")


@pytest.mark.parametrize(
    ("annotations", "gpus", "memory"),
    [
        ({"gpus": "4"}, 4, "53.5Gi"),  # the model is split over what is stated
        ({"gpus": "8"}, 8, "28Gi"),
        ({}, 1, "206.6Gi"),  # the fewest for which some GPU of the DB is large enough
        ({"vendor": "nvidia", "not_sku": "b300,gb300"}, 2, "104.5Gi"),
        ({"sku": "h100-sxm"}, 4, "53.5Gi"),  # … of those that the pod allows
        ({"sku": "h100-sxm", "precision": "fp8"}, 2, "66.6Gi"),
        ({"memory": "75Gi"}, 4, "75Gi"),  # the fewest on which it fits in the stated memory
        ({"mig": "7g.80gb"}, 1, "206.6Gi"),
    ],
)
def test_the_number_of_devices_follows_from_what_is_stated(annotations: dict[str, str], gpus: int, memory: str) -> None:
    found = parse(model="llama-3.1-70b", **annotations)
    assert (found.gpus, found.memory_text) == (gpus, memory)
    assert found.interconnect == ("preferred" if gpus > 1 else "none")


def test_the_devices_that_the_pod_itself_asks_size_the_model() -> None:
    found = needs.parse({"anygpu.io/model": "llama-3.1-70b"}, BUILTIN, devices=8)
    assert (found.gpus, found.memory_text) == (8, "28Gi")


@pytest.mark.parametrize(
    ("annotations", "key", "says"),
    [
        ({"model": "llama-31-8b"}, "model", "'llama-31-8b' is unknown: did you mean llama-3.1-8b?"),
        ({"model": "meta-llama/Llama-3.1-8B"}, "model", "did you mean llama-3.1-8b?"),
        ({"model": "zzzzzz"}, "model", "write for example llama-3.1-8b"),
        ({"model": ""}, "model", "empty; write a model's name"),
        ({"model": "llama-3.1-8b", "batch": "0"}, "batch", "'0' is not a number of sequences; write an integer of 1"),
        ({"model": "llama-3.1-8b", "batch": "1.5"}, "batch", "'1.5' is not a number of sequences"),
        ({"model": "llama-3.1-8b", "context": "-1"}, "context", "'-1' is not a number of tokens"),
        ({"model": "llama-3.1-8b", "context": "131073"}, "context", "llama-3.1-8b takes from 1 to 131072 tokens"),
        ({"model": "resnet-50", "context": "512"}, "context", "resnet-50 (vision) has no context; leave it out"),
        ({"model": "sdxl-base", "batch": "4"}, "batch", "only batch 1 can be sized; state memory instead"),
        ({"batch": "16"}, "batch", "'16': sizes a model, and the pod names none; add anygpu.io/model"),
        ({"context": "8192"}, "context", "the pod names none; add anygpu.io/model"),
        (
            {"model": "llama-3.1-70b", "gpus": "3"},
            "gpus",
            "64 attention heads, which 3 devices cannot share evenly; 1, 2",
        ),
        ({"model": "llama-3.1-405b", "gpus": "1"}, "model", "needs 979Gi on 1 GPU, and the largest that"),
        ({"model": "llama-3.1-405b", "gpus": "1"}, "model", "has 288Gi; 4 GPUs would do"),
        (
            {"model": "llama-3.1-70b", "memory": "7Gi"},
            "memory",
            "too little for llama-3.1-70b, which needs 28Gi on each of 8",
        ),
        ({"model": "llama-3.1-8b", "batch": "999999999"}, "model", "a smaller context, batch or precision needs less"),
    ],
)
def test_a_model_that_cannot_be_sized_is_refused_with_what_would_be_right(
    annotations: dict[str, str], key: str, says: str
) -> None:
    (problem,) = refused(annotations)
    assert problem.startswith(f"anygpu.io/{key}:")
    assert says in problem


@pytest.mark.parametrize("binding", ["early", "late", "claim"])
def test_a_pod_states_how_it_is_bound(binding: str) -> None:
    assert needs.parse({"anygpu.io/binding": binding}, BUILTIN).binding == binding


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
