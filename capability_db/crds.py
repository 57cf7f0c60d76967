"""CustomResourceDefinitions, made from the models of the kinds: never written twice.

What pydantic says of a model in JSON Schema is turned into what apiextensions.k8s.io/v1 calls structural: no
references, a type everywhere, OpenAPI 3.0's bounds. An absent field stands for None, so nothing is nullable. Rules
across fields, list types and bounds come along from the models.
"""

import ast
import functools
import inspect
import re
import sys
from collections.abc import Container, Iterator, Mapping
from itertools import pairwise
from types import ModuleType
from typing import Any, Final

import pydantic
from pydantic import json_schema
from pydantic.alias_generators import to_camel
from pydantic_core import core_schema

from capability_db import resources, rules, sku

Schema = dict[str, Any]

_RULES: Final = "x-kubernetes-validations"
_BOUNDS: Final = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
_KEPT: Final = (
    "type",
    "description",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    rules.LIST_TYPE,
    rules.LIST_KEYS,
    _RULES,
)
_FORMATS: Final = {"integer": "int64", "number": "double"}
_PYTHON_NAME: Final = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`")


def documents() -> list[dict[str, Any]]:
    """The CustomResourceDefinition of every kind."""
    return [definition(kind) for kind in resources.KINDS.values()]


def definition(kind: resources.Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    columns = [{"name": name, "jsonPath": path, "type": of} for name, path, of in kind.columns]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{resources.GROUP}"},
        "spec": {
            "group": resources.GROUP,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [*kind.short],
                "categories": ["anygpu"],
            },
            "versions": [
                {
                    "name": resources.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema(kind)},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        *columns,
                        {"name": "Age", "jsonPath": ".metadata.creationTimestamp", "type": "date"},
                    ],
                }
            ],
        },
    }


def schema(kind: resources.Kind) -> Schema:
    """The structural schema of a kind's objects."""
    spec = structural(kind.spec)
    found: Schema = {
        "type": "object",
        "description": kind.description,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": kind.name_length}},
            },
            "spec": spec,
            "status": structural(kind.status),
        },
    }
    if spec.get("required"):
        found["required"] = ["spec"]
    if kind.rules:
        found[_RULES] = [{"rule": rule, "message": message} for rule, message in kind.rules]
    return found


class _Told(json_schema.GenerateJsonSchema):
    """Writes what a model says of itself beside its types: its rules, and its fields' docstrings."""

    def model_schema(self, schema: core_schema.ModelSchema) -> json_schema.JsonSchemaValue:
        """The JSON Schema of a model with these."""
        found, model = super().model_schema(schema), schema["cls"]
        if issubclass(model, sku.Data) and model.rules:
            found[_RULES] = [{"rule": rule.cel, "message": rule.message} for rule in model.rules]
        for field, text in _docstrings(model):
            found["properties"][model.model_fields[field].alias or field]["description"] = text
        return found


def structural(model: type[pydantic.BaseModel]) -> Schema:
    """The structural schema of a model."""
    whole = model.model_json_schema(schema_generator=_Told)
    return _structural(whole, {**whole.get("$defs", {}), model.__name__: whole})


def _docstrings(model: type[pydantic.BaseModel]) -> Iterator[tuple[str, str]]:
    """(field, docstring) of the model's fields, the bases' first.

    Pydantic can do it (`use_attribute_docstrings`), for a quarter of a second at every start of anygpu.
    """
    for each in reversed(model.__mro__):
        statements = (
            _classes(sys.modules[each.__module__]).get(each.__name__, []) if issubclass(each, sku.Frozen) else []
        )
        for field, text in pairwise(statements):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    if name in model.model_fields:
                        yield name, said


@functools.lru_cache
def _classes(module: ModuleType) -> dict[str, list[ast.stmt]]:
    """The statements in each class of a module."""
    return {
        each.name: each.body for each in ast.parse(inspect.getsource(module)).body if isinstance(each, ast.ClassDef)
    }


def _structural(node: Mapping[str, Any], shared: Mapping[str, Any]) -> Schema:
    node = _resolved(node, shared)
    found: Schema = {key: node[key] for key in _KEPT if key in node}
    if "description" in found:
        names = {name for each in shared.values() for name in each.get("properties", ())}
        found["description"] = _as_the_api_has_it(found["description"], names)
    if text_format := node.get("format", _FORMATS.get(found["type"])):
        found["format"] = text_format
    for ours, theirs in _BOUNDS.items():
        if ours in node:
            found |= {theirs: node[ours], ours: True}
    # An empty list or text says no more than an absent one; writing it into every object would only make it longer.
    if isinstance(node.get("default"), bool | int | float):
        found["default"] = node["default"]
    match found["type"]:
        case "array":
            found["items"] = _structural(node["items"], shared)
        case "object":
            found |= _fields(node, shared)
    return found


def _fields(node: Mapping[str, Any], shared: Mapping[str, Any]) -> Schema:
    """What an object or a map holds; a map whose keys are listed becomes an object with them as optional fields."""
    if not isinstance(node.get("additionalProperties"), Mapping):
        properties = {name: _structural(each, shared) for name, each in node.get("properties", {}).items()}
        required = {"required": [*node["required"]]} if node.get("required") else {}
        return ({"properties": properties} if properties else {}) | required
    value = node["additionalProperties"]
    if "propertyNames" not in node:
        return {"additionalProperties": _structural(value, shared)}
    return {
        "properties": {name: _structural(value, shared) for name in _resolved(node["propertyNames"], shared)["enum"]}
    }


def _resolved(node: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The node with what it refers to in its place, without null as an alternative; what it says itself goes first."""
    if "$ref" in node:
        target = shared[node["$ref"].removeprefix("#/$defs/")]
        return _resolved({**target, **{key: value for key, value in node.items() if key != "$ref"}}, shared)
    if "anyOf" in node:
        (only,) = [each for each in node["anyOf"] if each.get("type") != "null"]
        return _resolved({**_resolved(only, shared), **{k: v for k, v in node.items() if k != "anyOf"}}, shared)
    if "const" in node:
        return {**node, "enum": [node["const"]]}
    return dict(node)


def _as_the_api_has_it(text: str, names: Container[str]) -> str:
    """A docstring in one line for each paragraph, with fields, which have these names, named as they are in the API."""

    def renamed(name: re.Match[str]) -> str:
        return f"`{to_camel(name[1])}`" if to_camel(name[1]) in names else name[0]

    paragraphs = (" ".join(each.split()) for each in text.split("\n\n"))
    return _PYTHON_NAME.sub(renamed, "\n".join(paragraphs))
