"""Nodes of known GPU models, as lines for the stub libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from capability_db import partitions
from capability_db.catalogue import Catalogue
from capability_db.sku import Sku

Lines = dict[str, Any]


def sku(sku_id: str) -> Sku:
    """A shipped SKU."""
    found = Catalogue.builtin().get(sku_id)
    assert found is not None, sku_id
    return found


def nvidia(*sku_ids: str, switches: int = 0, **more: Any) -> Lines:
    """GPUs of these models, in order; with `switches` NVLinks each to NVSwitches. `more` are lines of every device."""
    lines: Lines = {"driver": "580.82.07", "cuda": 13000, "count": len(sku_ids)}
    for number, sku_id in enumerate(sku_ids):
        model = sku(sku_id)
        own: Lines = {
            "name": model.match.product[0].replace("-", " "),
            "uuid": gpu_uuid(number),
            "address": f"00000000:{0x10 + number:02x}:00",
            "pci_id": (*model.match.pci, *model.match.pci_shared, "ffff")[0],
            "cc": model.target or "1.0",
            "memory": round(model.memory_mib),
            "used": 1000 * number,
            "numa": number // 4,
            "power": 70000,
            "power_limit": round(model.watts or 300) * 1000,
            "temperature": 40 + number,
            "throttle": 1,
            "ecc_corrected": 3,
            "ecc_uncorrected": 0,
            "ecc_volatile": 0,
            "rows": "0 0 0 0",
        }
        if switches:
            own["switches"] = switches
        if model.mig:
            own |= {"mig": 0, **_profiles(model.mig)}
        own |= {f"near.{other}": 30 if other // 4 == number // 4 else 50 for other in range(len(sku_ids))}
        lines |= {f"{number}.{key}": value for key, value in {**own, **more}.items()}
    return lines


def gpu_uuid(number: int) -> str:
    """The UUID of a stub's GPU."""
    return f"GPU-0000000{number}-1111-2222-3333-444444444444"


def mig_uuid(number: int, instance: int) -> str:
    """The UUID of a stub's MIG device."""
    return f"MIG-{instance:08x}-000{number}-2222-3333-444444444444"


def _profiles(key: str) -> Lines:
    """`profile.INDEX ID NAME SLICES MAX MIB SIZE START,START…`, with ids of their own, as NVML has them."""
    found = {}
    for index, profile in enumerate(partitions.mig_geometry(key).profiles):
        starts = ",".join(map(str, profile.starts))
        memory = profile.memory_mib or 1000 * profile.size
        figures = (profile_id(key, profile.name), profile.name, profile.compute, profile.max, memory, profile.size)
        found[f"profile.{index}"] = " ".join(map(str, (*figures, starts)))
    return found


def profile_id(key: str, name: str) -> int:
    """NVML's id of a profile, as far as tests care: unlike its index."""
    return 30 - [each.name for each in partitions.mig_geometry(key).profiles].index(name)


def cut(number: int, key: str, *instances: tuple[str, int]) -> Lines:
    """MIG on GPU `number`, with instances (profile, start)."""
    lines: Lines = {f"{number}.mig": 1}
    for nth, (name, start) in enumerate(instances):
        profile = partitions.mig_profile(key, name)
        assert profile is not None
        memory = profile.memory_mib or 1000 * profile.size
        lines[f"{number}.instance.{nth}"] = (
            f"{profile_id(key, name)} {start} {profile.size} {memory} {mig_uuid(number, nth)}"
        )
    return lines


def amd(sku_id: str, gpus: int = 1, mode: tuple[str, str] | None = None, **more: Any) -> Lines:
    """GPUs of a model, each listed as its partitions in a mode (`CPX`, `NPS4`), which have a part of its memory."""
    model = sku(sku_id)
    parts = (partitions.amd_parts(model, mode[0]) or 1) if mode else 1
    count = gpus * parts
    lines: Lines = {"count": count}
    for number in range(count):
        gpu, part = divmod(number, parts)
        own: Lines = {
            "name": (model.match.product or (sku_id,))[0].replace("_", " "),
            "uuid": f"{gpu:02x}ff74a1-0000-1000-8000-{part:012x}",
            "address": f"0000:{0x05 + gpu:02x}:00.{part}",
            "pci_id": "0x" + (*model.match.pci, *model.match.pci_shared)[0],
            "cus": (model.match.cu_count or 304) // parts,
            "gfx": "0x" + (model.target or "gfx942").removeprefix("gfx"),
            "memory": round(model.memory_mib) // parts,
            "used": 300 + number,
            "driver": "6.12.12",
            "numa": gpu // 4,
            "power": 140,
            "power_limit": round(model.watts or 300) * 1_000_000,
            "temperature": 45,
            "ecc_corrected": 0,
            "ecc_uncorrected": 0,
            "pages": 0,
            "held_power": 10,
        }
        if mode:
            own |= {"compute": mode[0], "nps": mode[1]}
        own |= {f"link.{other}": 0 if other // parts == gpu else 2 for other in range(count) if other != number}
        lines |= {f"{number}.{key}": value for key, value in {**own, **more}.items()}
    return lines


def of_devices(numbers: Sequence[int], **lines: Any) -> Lines:
    """The same lines for several devices."""
    return {f"{number}.{key}": value for number in numbers for key, value in lines.items()}
