"""Any text in any annotation gives needs, or an error that names the key; never anything else."""

from hypothesis import given
from hypothesis import strategies as st

from capability_db import models
from capability_db.catalogue import Catalogue
from scheduler import errors, fit, needs

BUILTIN = Catalogue.builtin()
KEYS = [*needs.KEYS, "image", "fraction", "inject", "precison", ""]

values = st.one_of(
    st.text(max_size=30),
    st.from_regex(r"[0-9٠-٩.,_+eE-]{1,12}(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|K|gb)?"),
    st.lists(st.sampled_from([sku.id for sku in BUILTIN]), max_size=4).map(",".join),
    st.lists(st.sampled_from(["fp8", "bf16", "nvidia", "amd", "intel", " fp4\n", ""]), max_size=3).map(", ".join),
    st.sampled_from(["required", "preferred", "none", "whole", "slice", "any", "pack", "cost", "3g.40gb", "1g.5gb+me"]),
    st.sampled_from([each.id for each in models.Profiles.builtin()]),
    st.integers(0, 200_000).map(str),
)
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=20)).map(lambda name: needs.PREFIX + name)
good = st.fixed_dictionaries(
    {},
    optional={
        "anygpu.io/gpus": st.integers(1, 16).map(str),
        "anygpu.io/memory": st.builds(
            "{}{}".format, st.integers(1, 300_000_000), st.sampled_from(["Ki", "Mi", "Gi", "G", "k"])
        ),
        "anygpu.io/precision": st.sampled_from(["fp8", "bf16,fp16", "fp4", "fp64", "int8"]),
        "anygpu.io/matrix-cores": st.sampled_from(["required", "preferred", "none"]),
        "anygpu.io/tflops": st.integers(1, 20_000).map(str),
        "anygpu.io/bandwidth": st.integers(1, 9_000).map(str),
        "anygpu.io/interconnect": st.sampled_from(["required", "preferred"]),
        "anygpu.io/mig": st.sampled_from(["3g.40gb", "1g.5gb", "1g.10gb+me"]),
        "anygpu.io/share": st.sampled_from(["whole", "slice", "any"]),
        "anygpu.io/vendor": st.sampled_from(["nvidia", "amd", "intel", "amd,nvidia"]),
        "anygpu.io/sku": st.sampled_from(["t4", "h100-sxm,mi300x", "max-1100"]),
        "anygpu.io/not-sku": st.sampled_from(["t4", "h100-sxm", "l4,a2"]),
        "anygpu.io/model": st.sampled_from(["llama-3.1-8b", "deepseek-v3", "qwen2.5-7b", "resnet-50"]),
        "anygpu.io/batch": st.integers(1, 200).map(str),
        "anygpu.io/max-price": st.sampled_from(["0.1", "100"]),
    },
)


def printable(text: str) -> str:
    """The text as messages show it."""
    return "".join(each if each.isprintable() else "?" for each in text)


@given(st.dictionaries(keys, values, max_size=5))
def test_any_annotations_are_needs_or_problems_that_name_their_keys(annotations: dict[str, str]) -> None:
    try:
        found = needs.parse(annotations, BUILTIN)
    except errors.InvalidNeeds as error:
        assert error.problems
        assert str(error).isprintable()
        for problem in error.problems:
            assert any(problem.startswith(f"{printable(key)}:") for key in annotations)
    else:
        assert found.gpus >= 1
        assert {each.removeprefix(needs.PREFIX) for each in annotations} <= {*needs.KEYS} | {
            each.removeprefix(needs.PREFIX) for each in needs.WRITTEN_BACK
        }


@given(st.sampled_from(KEYS), st.text(min_size=1, max_size=3), st.integers(1, 100_000))
def test_long_texts_give_short_messages(name: str, text: str, times: int) -> None:
    try:
        needs.parse({needs.PREFIX + name: text * times}, BUILTIN)
    except errors.InvalidNeeds as error:
        assert len(str(error)) < 500


@given(good)
def test_valid_needs_are_impossible_only_with_a_key_that_the_pod_states(annotations: dict[str, str]) -> None:
    try:
        found = needs.parse(annotations, BUILTIN)
    except errors.InvalidNeeds:
        return
    why = fit.impossible(found, BUILTIN, [])
    fitting = [sku for sku in BUILTIN for device in fit.possible_classes(sku) if not fit.unmet(found, device)]
    assert (why is None) == bool(fitting)
    if why is not None:
        named = why.partition(": ")[0].split(", ")
        filled = {"anygpu.io/precision"} if "anygpu.io/model" in annotations else set()
        assert {*named} <= {*annotations} | {"anygpu.io/gpus", "anygpu.io/share"} | filled
        assert why.isprintable()
        assert "%" not in why
