"""Random changes to objects of anygpu's kinds: most fields of a fitting type, many values at or beyond their bounds."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
TEXTS = (
    *("nvidia", "amd", "9.0", "8.6", "gfx942", "t4", "h100-sxm", "CPX", "SPX", "NPS4", "2330", "a=b", "a=b,c=d", "x/y"),
    *("X Y", "", "App", "team/app", "team/app:v1", "{tag}-rocm", "2026-11-27T00:00:00Z", "Ready", "x" * 300),
)
NUMBERS: dict[str, tuple[float, ...]] = {"integer": (0, 1, 1, 2, 8, 40, 5000, -1), "number": (0, 0.5, 1, 80, 1e5, -1)}


def changed(dice: random.Random, schema: Mapping[str, Any], value: Json) -> Json:
    """The object with a few fields set, removed or made up, at any depth."""
    made = copy.deepcopy(value)
    for _ in range(dice.randint(1, 3)):
        _change(dice, schema, made)
    return made


def _change(dice: random.Random, schema: Mapping[str, Any], holder: Json) -> None:
    name = dice.choice(sorted(schema["properties"])) if schema.get("properties") else "made-up"
    inner, held = schema.get("properties", {}).get(name), holder.get(name)
    if inner is None or dice.random() < 0.02:
        holder["made-up"] = 1
    elif isinstance(held, dict) and inner.get("properties") and dice.random() < 0.7:
        _change(dice, inner, held)
    elif isinstance(held, list) and held and isinstance(held[0], dict) and dice.random() < 0.7:
        _change(dice, inner["items"], dice.choice(held))
    elif name in holder and dice.random() < 0.3:
        del holder[name]
    else:
        holder[name] = _value(dice, inner)


def _value(dice: random.Random, schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return dice.choice(schema["enum"]) if dice.random() < 0.95 else "bogus"
    match schema["type"]:
        case "boolean":
            return dice.random() < 0.5
        case "integer" | "number" as kind:
            return dice.choice(NUMBERS[kind])
        case "string":
            return dice.choice(TEXTS)
        case "array":
            return [_value(dice, schema["items"]) for _ in range(dice.randint(0, 3))]
    if "additionalProperties" in schema:
        return {f"key{n}": _value(dice, schema["additionalProperties"]) for n in range(dice.randint(0, 2))}
    needed = schema.get("required", ())
    fields = schema.get("properties", {}).items()
    return {name: _value(dice, each) for name, each in fields if name in needed or dice.random() < 0.3}
