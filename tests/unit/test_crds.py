"""The CRDs that follow from the models: what their schemas say, and that both take and refuse the same."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kindobjects
import pydantic
import pytest
import structural
import yaml

from capability_db import crds, models, resources, sku
from capability_db.catalogue import Catalogue

Json = dict[str, Any]

SCHEMAS: dict[str, Json] = {name: crds.schema(kind) for name, kind in resources.KINDS.items()}
OURS = {
    kind: {key: value for key, value in each["properties"].items() if key in ("spec", "status")}
    for kind, each in SCHEMAS.items()
}
ALLOWED = {
    "type",
    "format",
    "description",
    "enum",
    "default",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "properties",
    "required",
    "items",
    "additionalProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
}


def nodes(node: Json, path: str) -> Iterator[tuple[str, Json]]:
    """(path, schema) of a schema and of all that it holds."""
    yield path, node
    for name, each in node.get("properties", {}).items():
        yield from nodes(each, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}.{key}")


ALL = [pair for kind, parts in OURS.items() for part, each in parts.items() for pair in nodes(each, f"{kind}.{part}")]

MESSAGES = [rule["message"] for _, node in ALL for rule in node.get("x-kubernetes-validations", ())]


def test_every_schema_is_structural() -> None:
    for path, node in ALL:
        assert node["type"] in structural.TYPES, path
        assert {*node} <= ALLOWED, path
        assert not ({"properties"} & {*node} and "additionalProperties" in node), path


def test_texts_lists_and_maps_are_bounded_so_that_rules_have_a_cost() -> None:
    for path, node in ALL:
        if node["type"] == "string":
            assert "maxLength" in node or "enum" in node, path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_every_model_says_what_it_is_and_names_fields_as_the_api_has_them() -> None:
    for path, node in ALL:
        if node["type"] == "object" and "properties" in node:
            assert node.get("description"), path
        assert "_gib`" not in node.get("description", ""), path
    about_cards = OURS["GPUSKU"]["spec"]["description"]
    assert OURS["GPUSKU"]["spec"]["properties"]["match"]["properties"]["pciShared"]["description"]
    assert about_cards.startswith("One GPU model")


def test_every_field_that_people_write_is_explained() -> None:
    plain = {*sku.FORMATS, "vendor", "value"}
    for path, node in ALL:
        for name, each in node.get("properties", {}).items():
            if ".spec" in path and name not in plain:
                assert each.get("description"), f"{path}.{name}"
    assert "`kv_lora_rank`" in OURS["ModelProfile"]["spec"]["properties"]["latentSize"]["description"]


def test_bounds_are_written_as_openapi_3_0_has_them() -> None:
    fields = OURS["GPUSKU"]["spec"]["properties"]
    assert fields["memoryGib"]["minimum"] == 0
    assert fields["memoryGib"]["exclusiveMinimum"] is True
    assert fields["devicesPerCard"]["default"] == 1
    assert fields["tflops"]["properties"].keys() == {*sku.FORMATS}
    between = OURS["NodeGPUs"]["status"]["properties"]["links"]["items"]["properties"]["between"]
    assert (between["minItems"], between["maxItems"]) == (2, 2)


def test_rules_come_from_the_models_and_say_what_would_be_right() -> None:
    found = OURS["ImageSet"]["spec"]["properties"]["variants"]["items"]["x-kubernetes-validations"]
    assert found == [{"rule": rule.cel, "message": rule.message} for rule in resources.Variant.rules]
    for path, node in ALL:
        for rule in node.get("x-kubernetes-validations", ()):
            assert len(rule["message"]) > 20, path
            assert "\n" not in rule["message"], path


@pytest.mark.parametrize("kind", [*resources.KINDS])
def test_kinds_have_short_names_columns_and_a_status_of_their_own(kind: str) -> None:
    spec = crds.definition(resources.KINDS[kind])["spec"]
    (version,) = spec["versions"]
    assert spec["names"]["shortNames"]
    assert spec["names"]["categories"] == ["anygpu"]
    assert version["subresources"] == {"status": {}}
    assert [each["name"] for each in version["additionalPrinterColumns"]][-2:] == ["Ready", "Age"]


def test_no_two_kinds_share_a_name() -> None:
    names = [
        name
        for each in crds.documents()
        for name in (each["spec"]["names"]["plural"], *each["spec"]["names"]["shortNames"])
    ]
    assert len({*names}) == len(names)


# --- Objects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document", [*kindobjects.shipped()], ids=lambda each: f"{each['kind']} {each['metadata']['name']}"
)
def test_every_shipped_entry_is_a_good_object_and_comes_back_as_it_was(document: Json) -> None:
    kind, name = document["kind"], document["metadata"]["name"]
    assert [*structural.wrong(OURS[kind]["spec"], document["spec"], "spec")] == []
    entry: sku.Sku | models.ModelProfile | None
    entry = Catalogue.builtin().get(name) if kind == "GPUSKU" else models.Profiles.builtin().get(name)
    assert entry is not None
    assert type(entry).model_validate({**document["spec"], "id": name, "provenance": entry.provenance}) == entry
    read = resources.KINDS[kind].spec.model_validate(document["spec"])
    assert resources.KINDS[kind].spec.model_validate(read.model_dump(by_alias=True, mode="json")) == read


@pytest.mark.parametrize("kind", [*kindobjects.GOOD])
def test_the_good_object_of_each_kind_is_taken(kind: str) -> None:
    document = kindobjects.GOOD[kind]
    for part, schema in OURS[kind].items():
        if part in document:
            assert [*structural.wrong(schema, document[part], part)] == []
    kindobjects.read(document)


@pytest.mark.parametrize("bad", kindobjects.BAD, ids=lambda bad: f"{bad.kind}: {bad.what}")
def test_what_the_api_server_refuses_the_model_refuses_too(bad: kindobjects.Bad) -> None:
    if bad.unread:
        kindobjects.read(bad.document)
        return
    with pytest.raises(pydantic.ValidationError) as refused:
        kindobjects.read(bad.document)
    if any(bad.says in message for message in MESSAGES):
        assert bad.says in str(refused.value)


def test_the_readmes_objects_are_good() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"^```yaml\n(apiVersion: anygpu.io/.*?)^```", readme, re.DOTALL | re.MULTILINE)
    documents = [document for block in blocks for document in yaml.safe_load_all(block)]
    assert documents
    for document in documents:
        assert [*structural.wrong(OURS[document["kind"]]["spec"], document["spec"], "spec")] == []
        kindobjects.read(document)


def test_every_kind_has_many_ways_to_be_wrong() -> None:
    counts = {kind: sum(bad.kind == kind for bad in kindobjects.BAD) for kind in resources.KINDS}
    assert min(counts.values()) >= 15
    assert len({(bad.kind, bad.what) for bad in kindobjects.BAD}) == len(kindobjects.BAD)


# --- The command ------------------------------------------------------------------------------------------------------


def test_importing_the_models_reads_no_source_and_no_data() -> None:
    """Docstrings are read where CRDs are made, which no other command does."""
    script = "import sys; from capability_db import resources; sys.exit('capability_db.crds' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
