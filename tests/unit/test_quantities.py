"""Kubernetes quantities: every form the API has, and nothing else."""

import pytest

from capability_db import errors, quantities


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [
        ("0", 0),
        ("1", 1000),
        ("500m", 500),
        ("0.5", 500),
        (".5", 500),
        ("1.", 1000),
        ("+2", 2000),
        ("-2", -2000),
        ("3k", 3_000_000),
        ("1Ki", 1_024_000),
        ("1e3", 1_000_000),
        ("1E3", 1_000_000),
        ("1E", 10**21),
        ("1Ei", 2**60 * 1000),
        ("5e-1", 500),
    ],
)
def test_every_form_of_kubernetes_is_read(text: str, thousandths: int) -> None:
    assert quantities.milli(text) == thousandths


@pytest.mark.parametrize("text", ["1u", "1n", "999u", "0.0001", "1e-99", "1m"])
def test_what_is_finer_than_a_thousandth_rounds_up(text: str) -> None:
    assert quantities.milli(text) == 1


@pytest.mark.parametrize("text", ["1e99", "9" * 30, "9" * 30 + "Ei", "9" * 30 + "." + "9" * 30])
def test_huge_numbers_are_exact_and_no_error(text: str) -> None:
    assert quantities.milli(text) > 2**63
    assert quantities.milli("9" * 30) == (10**30 - 1) * 1000


@pytest.mark.parametrize(
    "text",
    # Python's own numbers allow several of these.
    [
        "",
        " ",
        "1 ",
        " 1",
        "1_000",
        "١",
        "½",
        "0x10",
        "inf",
        "nan",
        "1K",
        "1gi",
        "1GB",
        "1.5.5",
        "--1",
        "1e",
        "1e100",
        "1Gi\n",
        "e3",
        "i",
        "1mi",
        ".",
        "+",
        "9" * 31,
    ],
)
def test_nothing_else_is_a_quantity(text: str) -> None:
    with pytest.raises(errors.QuantityError) as refused:
        quantities.milli(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(("text", "whole"), [("1500m", 2), ("1", 1), ("16G", 16 * 10**9), ("16Gi", 16 * 2**30)])
def test_units_round_up_to_whole_ones(text: str, whole: int) -> None:
    assert quantities.units(text) == whole


@pytest.mark.parametrize(("mib", "text"), [(81559, "79.6 GiB"), (196608, "192 GiB"), (512, "0.5 GiB")])
def test_gib_are_written_as_people_read_them(mib: float, text: str) -> None:
    assert quantities.gib(mib) == text
