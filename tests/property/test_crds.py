"""Whatever a model takes and writes back, the schema made from it takes."""

from __future__ import annotations

import copy
from typing import Any

import kindobjects
import pydantic
import structural
from hypothesis import given
from hypothesis import strategies as st

from capability_db import crds, resources
from images import errors, reference

Json = dict[str, Any]

SCHEMAS = {name: crds.schema(kind)["properties"] for name, kind in resources.KINDS.items()}
DOCUMENTS = [*kindobjects.GOOD.values(), *kindobjects.shipped()]
VALUES = st.one_of(
    st.integers(-2, 300),
    st.floats(-1, 1e6),
    st.booleans(),
    st.text(max_size=8),
    st.sampled_from(["nvidia", "amd", "fp8", "fp64", "9.0", "gfx942", "pack", "early", "node"]),
    st.lists(st.sampled_from(["fp8", "amd", "t4", "CPX", "2330"]), max_size=3),
)


def part_of(document: Json) -> str:
    return "status" if document["kind"] == "NodeGPUs" else "spec"


@given(st.sampled_from(DOCUMENTS), st.data())
def test_a_changed_object_that_the_model_takes_is_one_that_the_schema_takes(
    document: Json, data: st.DataObject
) -> None:
    kind, part = document["kind"], part_of(document)
    model = resources.KINDS[kind].spec if part == "spec" else resources.KINDS[kind].status
    changed = copy.deepcopy(document[part])
    fields = sorted(SCHEMAS[kind][part]["properties"])
    for name in data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3)):
        changed[name] = data.draw(VALUES)
    try:
        read = model.model_validate(changed)
    except pydantic.ValidationError:
        return
    written = read.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert [*structural.wrong(SCHEMAS[kind][part], written, part)] == []
    assert model.model_validate(written) == read


@given(st.sampled_from(DOCUMENTS), st.data())
def test_a_field_may_be_missing_for_the_one_as_for_the_other(document: Json, data: st.DataObject) -> None:
    kind, part = document["kind"], part_of(document)
    model = resources.KINDS[kind].spec if part == "spec" else resources.KINDS[kind].status
    gone = data.draw(st.sampled_from(sorted(document[part])))
    left = {name: value for name, value in document[part].items() if name != gone}
    try:
        model.model_validate(left)
    except pydantic.ValidationError as error:
        needed = {each["loc"][0] for each in error.errors() if each["type"] == "missing"}
        assert needed <= {*SCHEMAS[kind][part].get("required", ())}
        return
    assert [*structural.wrong(SCHEMAS[kind][part], left, part)] == []


PARTS = st.sampled_from(
    [
        "app",
        "a.b",
        "a__b",
        "a--b",
        "Team",
        "registry.example.com",
        "localhost",
        "[::1]",
        "[::ffff:1.2.3.4]",
        "_",
        "sha256",
    ]
)
MARKS = st.sampled_from(["/", ":", "@", ":5000/", ":v1", ":latest-rocm", "@sha256:" + "0a" * 32, "//", " "])


@given(st.lists(st.tuples(PARTS, MARKS), min_size=1, max_size=4), st.booleans())
def test_every_image_that_can_be_read_may_be_written_in_an_image_set(parts: list[tuple[str, str]], cut: bool) -> None:
    text = "".join(part + mark for part, mark in parts)
    text = text[: -len(parts[-1][1])] if cut else text
    try:
        read = reference.parse(text)
    except errors.ImageError:
        return
    assert resources.Variant.model_validate({"vendor": "amd", "image": text}).image == text
    spec = {"repository": read.written, "variants": [{"vendor": "amd", "tag": "{tag}"}]}
    assert resources.ImageSetSpec.model_validate(spec).repository == read.written
