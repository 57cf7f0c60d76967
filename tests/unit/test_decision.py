"""The decision annotation: read back as written, and nothing else taken for one."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from scheduler import decision

MADE = decision.Decision(
    id="0123456789abcdef",
    vendor="amd",
    resource="amd.com/gpu",
    count=2,
    container="main",
    sku="mi300x",
    skus=("mi300x", "mi325x"),
    node="n",
    images={"main": "app@sha256:0"},
    reason="because",
    kept=("tolerations",),
    rejected=(decision.Rejection(what="t4", nodes=3, reason="15 GiB of memory"),),
)
KEY = "anygpu.io/decision"


def test_what_was_written_is_read_back() -> None:
    assert decision.read({KEY: MADE.model_dump_json()}) == MADE


def test_a_decision_without_a_node_waits() -> None:
    assert not MADE.waits
    assert MADE.model_copy(update={"node": None}).waits


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "x", '{"id": "short"}', "[" * 10_000, json.dumps({"id": "0" * 70})]
)
def test_what_is_no_decision_is_none(text: str) -> None:
    assert decision.read({KEY: text}) is None


@given(st.text())
def test_any_text_is_a_decision_or_none(text: str) -> None:
    assert decision.read({KEY: text}) is None
    assert decision.read({"other": text}) is None


@given(st.sampled_from(sorted(MADE.model_dump())), st.none() | st.integers() | st.text() | st.lists(st.text()))
def test_a_decision_with_a_field_of_another_kind_is_read_or_none(field: str, value: object) -> None:
    read = decision.read({KEY: json.dumps(MADE.model_dump(mode="json") | {field: value})})
    assert read is None or getattr(read, field) == (tuple(value) if isinstance(value, list) else value)


def test_the_schema_names_every_field() -> None:
    schema = decision.schema()
    assert schema["$id"] == decision.SCHEMA_ID
    assert set(schema["properties"]) == set(MADE.model_dump())  # type: ignore[arg-type]
