"""What the API server checks of an object against a structural schema, but for CEL: a second opinion without one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def wrong(schema: Mapping[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """What is wrong with the value: `PATH: what`."""
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
        yield f"{path}: not of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: not one of {schema['enum']}"
    match value:
        case dict():
            yield from _wrong_object(schema, value, path)
        case list():
            if not schema.get("minItems", 0) <= len(value) <= schema["maxItems"]:
                yield f"{path}: {len(value)} items"
            keys = schema.get("x-kubernetes-list-map-keys")
            named = [tuple(each.get(key) for key in keys) if keys else str(each) for each in value]
            if "x-kubernetes-list-type" in schema and len({*named}) < len(named):
                yield f"{path}: an item twice"
            for place, each in enumerate(value):
                yield from wrong(schema["items"], each, f"{path}[{place}]")
        case str():
            if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
                yield f"{path}: {len(value)} characters"
            if "pattern" in schema and not re.search(schema["pattern"].removesuffix("$") + r"\Z", value):
                yield f"{path}: does not match"
        case bool():
            pass
        case int() | float():
            least, most = schema.get("minimum", value), schema.get("maximum", value)
            if not least <= value <= most or (schema.get("exclusiveMinimum") and value == least):
                yield f"{path}: out of bounds"


def _wrong_object(schema: Mapping[str, Any], value: Mapping[str, Any], path: str) -> Iterator[str]:
    fields = schema.get("properties", {})
    yield from (f"{path}.{name}: required" for name in schema.get("required", ()) if name not in value)
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
        yield f"{path}: {len(value)} properties"
    for name, each in value.items():
        inner = fields.get(name, schema.get("additionalProperties"))
        if inner is None:
            yield f"{path}.{name}: unknown field"
        else:
            yield from wrong(inner, each, f"{path}.{name}")
