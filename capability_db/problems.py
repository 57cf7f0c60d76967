"""What is wrong with a registered object, in words: the field as the API spells it, its value, and what is right."""

import itertools
import re
from collections.abc import Iterator

import pydantic
from pydantic.alias_generators import to_camel

from capability_db import resources
from capability_db.catalogue import Catalogue

MOST = 5
"""Problems that one text tells."""
_SNAKE = re.compile(r"\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b")


def camel(text: str) -> str:
    """The text with names of fields as the API spells them: `memory_gib` is `memoryGib`."""
    return _SNAKE.sub(lambda found: to_camel(found[0]), text)


def of_validation(error: pydantic.ValidationError) -> str:
    """What pydantic found wrong with an object's spec."""
    found = [_one(each["loc"], each["type"], each["msg"], each["input"]) for each in error.errors(include_url=False)]
    more = [f"and {len(found) - MOST} more"] if len(found) > MOST else []
    return "; ".join([*found[:MOST], *more])


def _one(where: tuple[int | str, ...], kind: str, text: str, value: object) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    path = "metadata.name" if where[:1] == ("id",) else f"spec{camel(path)}"
    if kind == "missing":
        return f"{path}: is missing"
    if kind == "extra_forbidden":
        return f"{path}: is no field of this kind; drop it"
    if kind == "value_error":
        return f"{path}: {camel(text.removeprefix('Value error, '))}"
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{path}: {shown}: {text[:1].lower()}{text[1:]}".replace("input should", "should")


def of_policy(spec: resources.PlacementPolicySpec, namespace: str, catalogue: Catalogue) -> str | None:
    """What is wrong with a policy that its fields are right for; None: nothing."""
    found = list(itertools.islice(_policy(spec, namespace, catalogue), MOST))
    return "; ".join(found) or None


def _policy(spec: resources.PlacementPolicySpec, namespace: str, catalogue: Catalogue) -> Iterator[str]:
    for field, ids in (("skus", spec.skus), ("notSkus", spec.not_skus)):
        for number, sku_id in enumerate(ids):
            yield from _unknown(f"spec.{field}[{number}]", sku_id, catalogue)
    known = [sku for sku_id in spec.skus if (sku := catalogue.get(sku_id)) is not None]
    if spec.vendors and known and not any(sku.vendor in spec.vendors for sku in known):
        yield (
            f"spec.skus: none of {', '.join(spec.skus)} is of {' or '.join(spec.vendors)}, which spec.vendors allows; "
            "name a SKU of these, or drop one of the two"
        )
    if spec.prices and namespace != resources.SYSTEM_NAMESPACE:
        yield (
            f"spec.prices: only the cluster's own policy states prices; move them to PlacementPolicy "
            f"{resources.SYSTEM_NAMESPACE}/{resources.DEFAULT}"
        )
    for number, price in enumerate(spec.prices):
        yield from _unknown(f"spec.prices[{number}].sku", price.sku, catalogue)
    yield from _ties(spec.prices)


def _unknown(field: str, sku_id: str, catalogue: Catalogue) -> Iterator[str]:
    if catalogue.get(sku_id) is None:
        near = catalogue.nearest(sku_id)
        hint = f"did you mean {near}?" if near else "`anygpu skus` lists them; register it as a GPUSKU first"
        yield f"{field}: {sku_id!r} is no SKU; {hint}"


def _ties(prices: tuple[resources.Price, ...]) -> Iterator[str]:
    """Prices of which two would hold on one node, and none says more."""
    by_sku: dict[str, list[tuple[int, frozenset[tuple[str, str]]]]] = {}
    for number, price in enumerate(prices):
        by_sku.setdefault(price.sku, []).append((number, frozenset((price.node_labels or {}).items())))
    for sku_id, stated in by_sku.items():
        for (one, labels), (other, others) in itertools.combinations(stated, 2):
            together = labels | others
            if len(labels) != len(others) or len(dict(together)) != len(together):
                continue
            if not any(len(more) > len(labels) and more <= together for _, more in stated):
                where = ",".join(f"{key}={value}" for key, value in sorted(together)) or "every node"
                yield (
                    f"spec.prices[{other}]: holds beside spec.prices[{one}] for {sku_id} on {where}, and neither has "
                    "more labels; drop one, or add a price with the labels of both"
                )
