"""Node objects as their vendors' agents label them, for tests of any kind."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def node(
    name: str,
    labels: dict[str, str] | None = None,
    resources: dict[str, int] | None = None,
    *,
    taint: str | None = None,
    capacity: dict[str, int] | None = None,
) -> Json:
    """A Ready node with 64 cores, 512 GiB and the resources given; a taint is a key with effect NoSchedule."""
    basic = {"cpu": "64", "memory": "512Gi", "pods": "110"}
    allocatable = {key: str(count) for key, count in (resources or {}).items()}
    total = allocatable | {key: str(count) for key, count in (capacity or {}).items()}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/arch": "amd64"} | (labels or {}),
        },
        "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]} if taint else {},
        "status": {
            "allocatable": basic | allocatable,
            "capacity": basic | total,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


NVIDIA = {
    "t4": ("Tesla-T4", 15360),
    "l4": ("NVIDIA-L4", 23034),
    "a100-40": ("NVIDIA-A100-SXM4-40GB", 40960),
    "a100-80": ("NVIDIA-A100-SXM4-80GB", 81920),
    "h100": ("NVIDIA-H100-80GB-HBM3", 81559),
    "h200": ("NVIDIA-H200", 143771),
}
AMD = {
    "mi210": ("740f", "Instinct_MI210", "64G"),
    "mi300x": ("74a1", "AMD_Instinct_MI300X_OAM", "192G"),
    "mi325x": ("74a5", "AMD_Instinct_MI325_OAM", "256G"),
}


def nvidia(name: str, model: str, count: int = 8, *, taint: str | None = None) -> Json:
    """A node of whole NVIDIA GPUs, labelled by GPU feature discovery."""
    product, memory = NVIDIA[model]
    labels = {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(memory),
        "nvidia.com/gpu.count": str(count),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
    }
    return node(name, labels, {"nvidia.com/gpu": count}, taint=taint)


def amd(name: str, model: str, count: int = 8, *, mode: str | None = None, taint: str | None = None) -> Json:
    """A node of AMD GPUs, labelled by AMD's node labeller; `mode` such as `cpx_nps4` under the single strategy."""
    device_id, product, vram = AMD[model]
    labels = {
        "amd.com/gpu.device-id": device_id,
        "beta.amd.com/gpu.device-id": device_id,
        f"beta.amd.com/gpu.device-id.{device_id}": str(count),
        "amd.com/gpu.product-name": product,
        "amd.com/gpu.vram": vram,
        "amd.com/gpu.family": "AI",
    }
    if mode:
        labels["amd.com/gpu.compute-memory-partition"] = mode
    return node(name, labels, {"amd.com/gpu": count}, taint=taint)


def mig_single(name: str, model: str, profile: str, count: int) -> Json:
    """A node whose `nvidia.com/gpu` counts MIG instances of one profile."""
    product, _ = NVIDIA[model]
    return node(name, {"nvidia.com/gpu.product": f"{product}-MIG-{profile}"}, {"nvidia.com/gpu": count})


def mig_mixed(name: str, model: str, whole: int, **profiles: int) -> Json:
    """A node of whole GPUs and MIG instances by name: `mig_mixed("n", "a100-80", 4, **{"3g.40gb": 2})`."""
    product, memory = NVIDIA[model]
    labels = {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(memory),
        "nvidia.com/mig.strategy": "mixed",
    }
    resources = {"nvidia.com/gpu": whole} | {f"nvidia.com/mig-{name}": count for name, count in profiles.items()}
    for profile in profiles:
        labels[f"nvidia.com/mig-{profile}.product"] = f"{product}-MIG-{profile}"
    return node(name, labels, resources)


def shared(name: str, model: str, gpus: int, replicas: int) -> Json:
    """A node whose GPUs are time-shared under their usual name."""
    product, memory = NVIDIA[model]
    labels = {
        "nvidia.com/gpu.product": f"{product}-SHARED",
        "nvidia.com/gpu.memory": str(memory),
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.replicas": str(replicas),
        "nvidia.com/gpu.sharing-strategy": "time-slicing",
    }
    return node(name, labels, {"nvidia.com/gpu": gpus * replicas})


def pod(name: str = "p", image: str = "registry.test/team/app:v1", **annotations: str) -> Json:
    """A pod of one container `main`; keywords are `anygpu.io/` keys with `_` for `-`."""
    keys = {f"anygpu.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": keys},
        "spec": {"containers": [{"name": "main", "image": image}]},
    }
