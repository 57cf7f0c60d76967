"""Registered objects as the API has them, for tests of any kind."""

from __future__ import annotations

from typing import Any

from capability_db import registered
from capability_db.catalogue import Catalogue

Json = dict[str, Any]
SYSTEM = "anygpu-system"


def sku_spec(product: str | None = None, **fields: Any) -> Json:
    """The spec of a GPUSKU of 64 GiB that one product label names."""
    return {
        "vendor": "nvidia",
        "architecture": "next",
        "memoryGib": 64,
        "bandwidthGbs": 3000,
        "tflops": {"fp16": 500},
        "formats": ["fp16", "bf16"],
        "link": {"name": "PCIe", "reach": "none"},
        "match": {"product": [product] if product else []},
        **fields,
    }


def made(
    kind: str, name: str, spec: Json, *, namespace: str | None = None, generation: int = 1, age: int = 0, **status: Any
) -> registered.Object:
    """An object; `age` is how many days ago it was created."""
    metadata = registered.Metadata(
        name=name,
        namespace=namespace,
        uid=f"uid-{kind}-{namespace}-{name}",
        generation=generation,
        resource_version="1",
        creation_timestamp=f"2026-03-{28 - age:02}T00:00:00Z",
    )
    return registered.Object(
        kind=kind, metadata=metadata, spec=spec, status=registered.Status(**status) if status else None
    )


def sku(name: str, product: str | None = None, age: int = 0, generation: int = 1, **fields: Any) -> registered.Object:
    """A GPUSKU."""
    return made("GPUSKU", name, sku_spec(product, **fields), age=age, generation=generation)


def policy(namespace: str = SYSTEM, **fields: Any) -> registered.Object:
    """A namespace's PlacementPolicy; keywords are its fields as the API spells them."""
    return made("PlacementPolicy", "default", fields, namespace=namespace)


def settled(*objects: registered.Object, shipped: Catalogue | None = None) -> registered.Registered:
    """What counts of some objects, listed at once."""
    known = registered.Registered(shipped or Catalogue.builtin())
    for kind in registered.KINDS:
        known.replace(kind, [each for each in objects if each.kind == kind])
    known.settle()
    return known


def said(known: registered.Registered, name: str) -> tuple[str, str]:
    """(reason, message) of the object of a name."""
    return next(
        (verdict.reason, verdict.message)
        for key, verdict in known.verdicts.items()
        if name in (key.name, f"{key.namespace}/{key.name}")
    )
