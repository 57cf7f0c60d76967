"""The fleet and the capability DB as JSON, for the CLI and the service alike."""

from typing import Any

from capability_db.sku import Sku
from scheduler import fleet as fleets


def state(row: fleets.Row) -> str:
    """What an admin should know of a node, in a few words."""
    notes: list[str] = []
    if row.not_ready:
        notes.append(row.not_ready)
    if row.node.spec.unschedulable:
        notes.append("cordoned")
    for pool in row.facts.pools:
        if pool.device.problem:
            notes.append(pool.device.problem)
        if not pool.device.skus:
            notes.append(f"unknown model ({pool.device.evidence})")
        if pool.capacity > pool.allocatable:
            notes.append(f"{pool.capacity - pool.allocatable} {pool.device.resource} unhealthy")
    if row.facts.present and not row.facts.pools:
        notes.append(f"has {', '.join(row.facts.present)} hardware, but no device plugin offers it")
    return "; ".join(notes) or "ready"


def nodes(fleet: fleets.Fleet) -> list[dict[str, Any]]:
    """Every node with its devices; memory in MiB of what a pod gets of one device."""
    return [
        {
            "name": row.name,
            "state": state(row),
            "versions": dict(row.facts.versions),
            "devices": [
                {
                    "resource": pool.device.resource,
                    "vendor": pool.device.vendor,
                    "skus": [sku.id for sku in pool.device.skus],
                    "kind": pool.device.kind,
                    "mode": pool.device.mode,
                    "replicas": pool.device.replicas,
                    "memoryMiB": pool.device.memory_mib,
                    "memoryReported": pool.device.memory_reported,
                    "capacity": pool.capacity,
                    "allocatable": pool.allocatable,
                    "free": max(0, row.left(pool)),
                    "held": fleet.held(row.name, pool.device.resource),
                    "evidence": pool.device.evidence,
                    "problem": pool.device.problem,
                    "priceUsdHour": pool.device.price_usd_hour,
                }
                for pool in row.facts.pools
            ],
        }
        for row in (fleet.rows[name] for name in sorted(fleet.rows))
    ]


def sku(model: Sku, origin: str) -> dict[str, Any]:
    """One GPU model as its data states it, figures per card, and where it comes from."""
    return {**model.model_dump(mode="json", exclude_none=True), "origin": origin}
