"""NodeGPUs objects as node agents write them, for tests of any kind."""

from __future__ import annotations

from typing import Any

import msgspec

from capability_db import reports, resources

Json = dict[str, Any]

NVIDIA = {
    "t4": ("Tesla T4", "1eb8", 15360),
    "l4": ("NVIDIA L4", "27b8", 23034),
    "a100-40": ("NVIDIA A100-SXM4-40GB", "20b0", 40960),
    "a100-80": ("NVIDIA A100-SXM4-80GB", "20b2", 81920),
    "h100": ("NVIDIA H100 80GB HBM3", "2330", 81559),
    "unknown": ("NVIDIA X1", "ffff", 99999),
}
AMD = {
    "mi210": ("AMD Instinct MI210", "740f", 65520),
    "mi300x": ("AMD Instinct MI300X", "74a1", 196592),
    "mi325x": ("AMD Instinct MI325X", "74a5", 262128),
}


def report(
    node: str, devices: list[Json], *, error: str | None = None, heartbeat: str = "2026-01-01T00:00:00Z"
) -> Json:
    """A node's object; `error` is its NVIDIA driver's."""
    drivers = [{"vendor": "nvidia", "error": error}] if error else []
    numbered = [each | {"index": index} for index, each in enumerate(devices)]
    status = {"devices": numbered, "drivers": drivers, "heartbeat": heartbeat}
    return resources.document("NodeGPUs", node, status=status)


def nvidia(uuid: str, model: str, **more: Any) -> Json:
    """A whole NVIDIA GPU."""
    product, pci, memory = NVIDIA[model]
    return {
        "vendor": "nvidia",
        "uuid": f"GPU-{uuid}",
        "product": product,
        "pciDeviceID": pci,
        "memoryMiB": memory,
        **more,
    }


def amd(uuid: str, model: str, **more: Any) -> Json:
    """A whole AMD GPU."""
    product, pci, memory = AMD[model]
    return {"vendor": "amd", "uuid": uuid, "product": product, "pciDeviceID": pci, "memoryMiB": memory, **more}


def several(model: str, count: int, **more: Any) -> list[Json]:
    """Some GPUs of one model, `GPU-<model>-0` and so on."""
    make = nvidia if model in NVIDIA else amd
    return [make(f"{model}-{number}", model, **more) for number in range(count)]


def sick(device: Json, *problems: str) -> Json:
    """The device as not healthy."""
    return device | {"healthy": False, "problems": list(problems)}


def cut(device: Json, *instances: tuple[str, int], offers: tuple[str, ...] = ()) -> Json:
    """The device in MIG mode with instances given as (profile, start); `offers` are the profiles its driver names."""
    found = [{"profile": profile, "start": start} for profile, start in instances]
    placements = [{"profile": profile, "starts": [0], "size": 1} for profile in offers]
    return device | {"mig": {"enabled": True, "instances": found, "placements": placements}}


def to_report(document: Json) -> reports.NodeGPUs:
    """The object as watches decode it."""
    return msgspec.convert(document, reports.NodeGPUs)
