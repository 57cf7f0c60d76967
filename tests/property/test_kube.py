"""Quantities, requests and selectors agree with plain models of what Kubernetes defines."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from capability_db import errors, quantities
from scheduler import kube

# --- Quantities -------------------------------------------------------------------------------------------------------

FACTORS = {
    "": Fraction(1),
    **{suffix: Fraction(1, 1000**power) for power, suffix in enumerate("mun", 1)},
    **{suffix: Fraction(1000) ** power for power, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
    **{f"e{power}": Fraction(10) ** power for power in range(-99, 100)},
    **{f"E+{power}": Fraction(10) ** power for power in range(10)},
}
numbers = st.from_regex(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})", fullmatch=True).filter(str.isascii)


@given(numbers, st.sampled_from(sorted(FACTORS)))
def test_a_quantity_is_exactly_what_it_says_in_thousandths_rounded_up(number: str, suffix: str) -> None:
    exact = Fraction(number) * FACTORS[suffix]
    assert quantities.milli(number + suffix) == math.ceil(exact * 1000)
    if exact >= 0:
        assert quantities.units(number + suffix) == math.ceil(exact) or exact < Fraction(1, 1000)


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_an_error_that_quotes_it(text: str) -> None:
    try:
        quantities.milli(text)
    except errors.QuantityError as error:
        assert repr(text) in str(error)


# --- Requests ---------------------------------------------------------------------------------------------------------

RESOURCES = ["cpu", "memory", "nvidia.com/gpu"]
amounts = st.dictionaries(st.sampled_from(RESOURCES), st.integers(0, 9), max_size=3)
init_containers = st.lists(st.tuples(amounts, st.booleans()), max_size=4)


def container(asked: Mapping[str, int], *, sidecar: bool = False) -> dict[str, Any]:
    """A container's JSON."""
    requests = {name: str(amount) for name, amount in asked.items()}
    return {"name": "c", "resources": {"requests": requests}} | ({"restartPolicy": "Always"} if sidecar else {})


def peak(name: str, containers: list[dict[str, int]], init: list[tuple[dict[str, int], bool]]) -> int:
    """The most of a resource that runs at one moment: each init step with the sidecars before it, then all together."""
    moments, sidecars = [0], 0
    for asked, is_sidecar in init:
        moments.append(sidecars + asked.get(name, 0))
        sidecars += asked.get(name, 0) if is_sidecar else 0
    return max(*moments, sidecars + sum(asked.get(name, 0) for asked in containers))


@given(st.lists(amounts, min_size=1, max_size=3), init_containers, amounts)
def test_a_pod_asks_its_peak_over_time_and_its_overhead(
    containers: list[dict[str, int]], init: list[tuple[dict[str, int], bool]], overhead: dict[str, int]
) -> None:
    pod = kube.to_pod(
        {
            "spec": {
                "containers": [container(asked) for asked in containers],
                "initContainers": [container(asked, sidecar=is_sidecar) for asked, is_sidecar in init],
                "overhead": {name: str(amount) for name, amount in overhead.items()},
            }
        }
    )
    found = kube.pod_requests(pod)
    for name in RESOURCES:
        assert found.get(name, 0) == (peak(name, containers, init) + overhead.get(name, 0)) * 1000


# --- Selectors --------------------------------------------------------------------------------------------------------

words = st.sampled_from(["a", "b", "c", "", "1", "-5", "07", "1_0"])
labels = st.dictionaries(words, words, max_size=4)


@given(labels, words, st.lists(words, max_size=3))
def test_an_operator_and_its_opposite_never_agree(found: dict[str, str], key: str, values: list[str]) -> None:
    for operator, opposite in (("In", "NotIn"), ("Exists", "DoesNotExist")):
        one, other = (kube.Requirement(key=key, operator=each, values=values) for each in (operator, opposite))
        assert kube.expression_holds(one, found) != kube.expression_holds(other, found)


@given(labels, st.text(max_size=5), st.sampled_from(["Gt", "Lt", "In", "?", ""]), st.lists(st.text(max_size=25)))
def test_any_expression_holds_or_not(found: dict[str, str], key: str, operator: str, values: list[str]) -> None:
    assert kube.expression_holds(kube.Requirement(key=key, operator=operator, values=values), found) in (True, False)


keys = st.sampled_from(["x", "y", None, ""])
effects = st.sampled_from(["NoSchedule", "NoExecute", None, ""])
operators = st.sampled_from(["Exists", "Equal", None, ""])


@given(keys, operators, st.sampled_from(["v", "w", None, ""]), effects)
def test_a_toleration_without_effect_tolerates_what_one_with_an_effect_does(
    key: str | None, operator: str | None, value: str | None, effect: str | None
) -> None:
    taint = kube.Taint(key="x", value="v", effect="NoSchedule")
    narrow = kube.Toleration(key=key, operator=operator, value=value, effect=effect)
    wide = kube.Toleration(key=key, operator=operator, value=value)
    assert kube.tolerates([wide], taint) or not kube.tolerates([narrow], taint)
    assert kube.tolerates([kube.Toleration(operator="Exists")], taint)


# --- Objects ----------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["metadata", "spec", "status", "name", "labels", "annotations", "containers", "tolerations", "allocatable"]
documents = st.dictionaries(
    st.sampled_from(FIELDS),
    st.one_of(json_values, st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3)),
    max_size=3,
)


@given(documents)
def test_any_document_is_an_object_or_refused_as_one_thing(document: dict[str, Any]) -> None:
    for read in (kube.to_pod, kube.to_node):
        try:
            found = read(document)
        except msgspec.ValidationError:
            continue
        if isinstance(found, kube.Node):
            kube.amounts(found.status.allocatable)
