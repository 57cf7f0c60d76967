"""The fleet and the capability DB as JSON, for the CLI and the service alike."""

import datetime
from typing import Any

from capability_db import node_facts, partitions
from capability_db.sku import Sku
from scheduler import fleet as fleets

STALE_SECONDS = 900.0
"""An agent that has not been heard for so long is silent: three of its slow beats, of 300 s as it ships. What it said
of a device's health stays in force all the same, since nothing said otherwise since."""


def state(row: fleets.Row, now: float) -> str:
    """What an admin should know of a node, in a few words, at a time in unix seconds."""
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
        if pool.sickness:
            notes.append(f"{pool.device.resource}: {pool.sickness}")
    if row.facts.present and not row.facts.pools:
        notes.append(f"has {', '.join(row.facts.present)} hardware, but no device plugin offers it")
    notes += [f"conflict: {each}" for each in row.facts.conflicts]
    notes += _of_agent(row, now)
    return "; ".join(notes) or "ready"


def _of_agent(row: fleets.Row, now: float) -> list[str]:
    """What keeps the node's agent from being heard."""
    if row.heard is None:
        return []
    notes = [f"agent: {vendor}: {text}" for vendor, text in (row.heard.report.errors if row.heard.report else ())]
    if row.heard.problem:
        notes.append(f"the agent's report is not used: {row.heard.problem}")
    silent = _silence(row, now)
    if silent is not None and silent > STALE_SECONDS:
        notes.append(f"agent silent for {silent:.0f} s: health as it was then")
    return notes


def last_heard(fleet: fleets.Fleet) -> float:
    """When the last of all agents was heard, in unix seconds; 0: none was."""
    return max((when for row in fleet.rows.values() if (when := _heard(row)) is not None), default=0.0)


def _heard(row: fleets.Row) -> float | None:
    """When the node's agent last looked, in unix seconds; None: it did not say."""
    try:
        heartbeat = datetime.datetime.fromisoformat((row.heard.heartbeat if row.heard else None) or "")
    except ValueError:
        return None
    return heartbeat.replace(tzinfo=heartbeat.tzinfo or datetime.UTC).timestamp()


def _silence(row: fleets.Row, now: float) -> float | None:
    """Seconds since the agent last looked; None: it did not say when."""
    heard = _heard(row)
    return None if heard is None else max(0.0, now - heard)


def _agent(row: fleets.Row, now: float) -> dict[str, Any] | None:
    if row.heard is None:
        return None
    silent = _silence(row, now)
    return {
        "heartbeat": row.heard.heartbeat,
        "stale": None if silent is None else silent > STALE_SECONDS,
        "problem": row.heard.problem,
        "errors": dict(row.heard.report.errors) if row.heard.report else {},
    }


def fits(pool: node_facts.Pool) -> str:
    """What still fits on the pool's MIG GPUs, as tables show it: `1g.10gb x3, 2g.20gb x1`."""
    return ", ".join(f"{profile} x{count}" for profile, count in pool.fits if count)


def nodes(fleet: fleets.Fleet, now: float) -> list[dict[str, Any]]:
    """Every node with its devices, at a time in unix seconds; memory in MiB of what a pod gets of one device.

    `fits` has the MIG profiles of which more instances fit beside those that are there, each alone; null: nothing
    reports where instances lie.
    """
    return [
        {
            "name": row.name,
            "state": state(row, now),
            "conflicts": list(row.facts.conflicts),
            "agent": _agent(row, now),
            "versions": dict(row.facts.versions),
            "devices": [
                {
                    "resource": pool.device.resource,
                    "vendor": pool.device.vendor,
                    "skus": [sku.id for sku in pool.device.skus],
                    "skuCounts": {sku.id: count for sku, count in zip(pool.device.skus, pool.sku_counts, strict=True)},
                    "kind": pool.device.kind,
                    "mode": pool.device.mode,
                    "replicas": pool.device.replicas,
                    "memoryMiB": pool.device.memory_mib,
                    "memoryReported": pool.device.memory_reported,
                    "capacity": pool.capacity,
                    "allocatable": pool.allocatable,
                    "unhealthy": list(pool.unhealthy),
                    "free": max(0, row.left(pool)),
                    "held": fleet.held(row.name, pool.device.resource),
                    "evidence": pool.device.evidence,
                    "problem": pool.device.problem,
                    "fits": dict(pool.fits) or None,
                    "priceUsdHour": pool.device.price_usd_hour,
                }
                for pool in row.facts.pools
            ],
        }
        for row in (fleet.rows[name] for name in sorted(fleet.rows))
    ]


def sku(model: Sku, origin: str) -> dict[str, Any]:
    """One GPU model as its data states it, figures per card, how it can be cut, and where it comes from."""
    return {**model.model_dump(mode="json", exclude_none=True), "partitions": parts(model), "origin": origin}


def parts(model: Sku) -> list[dict[str, Any]]:
    """The parts that a GPU of the model can be cut into; memory in MiB of one of them, `max` of them on one GPU."""
    found: list[dict[str, Any]] = []
    if model.mig:
        geometry = partitions.mig_geometry(model.mig)
        found += [
            {
                "mode": profile.name,
                "max": profile.max,
                "memoryMiB": partitions.mig_memory_mib(model.memory_mib, geometry, profile),
                "compute": f"{profile.compute}/{geometry.compute_slices}",
                "starts": list(profile.starts),
                "size": profile.size,
            }
            for profile in geometry.profiles
        ]
    for compute in model.compute_modes:
        count = partitions.amd_parts(model, compute) or 1
        found += [
            {
                "mode": f"{compute}_{memory}".lower(),
                "max": count,
                "memoryMiB": int(model.memory_mib // count),
                "compute": f"1/{count}",
            }
            for memory in partitions.amd_memory_modes(model, compute)
        ]
    return found
