"""Checks that the API server and we both make: written once, in CEL and in Python side by side."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import AfterValidator

LIST_TYPE: Final = "x-kubernetes-list-type"
LIST_KEYS: Final = "x-kubernetes-list-map-keys"

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Rule:
    """A check over several fields of one value."""

    cel: str
    """For the API server, over names as the API has them; `has` tells whether a field is there."""
    holds: Callable[[Any], bool]
    """The same on the model."""
    message: str
    """What is wrong, and what would be right."""


def _distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items; raises where one is there twice."""
    if twice := [each for each in dict.fromkeys(items) if items.count(each) > 1]:
        raise ValueError(f"{', '.join(map(str, twice))}: listed twice")
    return items


DISTINCT: Final = AfterValidator(_distinct)
"""Marks a list that holds nothing twice; goes with `SET`, which tells the API server."""
SET: Final[dict[str, Any]] = {LIST_TYPE: "set"}


def distinct_by(field: str) -> AfterValidator:
    """Marks a list of models no two of which have the same value there; goes with `keyed`."""

    def check(items: tuple[Any, ...]) -> tuple[Any, ...]:
        _distinct(tuple(getattr(each, field) for each in items))
        return items

    return AfterValidator(check)


def keyed(field: str) -> dict[str, Any]:
    """What tells the API server of such a list."""
    return {LIST_TYPE: "map", LIST_KEYS: [field]}


def none(path: str) -> str:
    """CEL for: the list at this path (`self.targets`) is absent or empty."""
    return f"(!has({path}) || size({path}) == 0)"
