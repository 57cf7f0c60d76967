"""ResourceSlices as the vendors' DRA drivers publish them, for tests of any kind."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

NVIDIA = {
    "t4": ("Tesla T4", "15360Mi"),
    "l4": ("NVIDIA L4", "23034Mi"),
    "a100-40": ("NVIDIA A100-SXM4-40GB", "40960Mi"),
    "a100-80": ("NVIDIA A100-SXM4-80GB", "81920Mi"),
    "h100": ("NVIDIA H100 80GB HBM3", "81559Mi"),
    "h200": ("NVIDIA H200", "143771Mi"),
}
AMD = {
    "mi210": ("0x740f", "AMD Instinct MI210", "65520Mi"),
    "mi300x": ("0x74a1", "AMD_Instinct_MI300X_OAM", "196592Mi"),
    "mi325x": ("0x74a5", "AMD_Instinct_MI325_OAM", "262128Mi"),
}


def device(name: str, attributes: Json, memory: str | None, **more: Any) -> Json:
    """A device; attributes are texts, or values of the API where they are of another type."""
    capacity = {} if memory is None else {"memory": {"value": memory}}
    return {
        "name": name,
        "attributes": {key: {"string": each} if isinstance(each, str) else each for key, each in attributes.items()},
        "capacity": capacity,
    } | more


def nvidia(name: str, model: str, *, memory: str | None = None, **more: Any) -> Json:
    """A whole NVIDIA GPU."""
    product, usual = NVIDIA[model]
    attributes: Json = {
        "type": "gpu",
        "productName": product,
        "brand": "Nvidia",
        "uuid": f"GPU-{name}",
        "driverVersion": {"version": "580.126.20"},
        "resource.kubernetes.io/pciBusID": "0000:65:00.0",
        "resource.kubernetes.io/numaNode": {"int": 0},
    }
    return device(name, attributes, memory or usual, **more)


def mig(name: str, model: str, profile: str, memory: str, **more: Any) -> Json:
    """A MIG instance."""
    attributes = {"type": "mig", "productName": NVIDIA[model][0], "profile": profile, "parentUUID": "GPU-0"}
    return device(name, attributes, memory, **more)


def amd(name: str, model: str, *, memory: str | None = None, **more: Any) -> Json:
    """A whole AMD GPU."""
    pci, product, usual = AMD[model]
    attributes: Json = {
        "type": "amdgpu",
        "deviceID": pci,
        "productName": product,
        "partitionProfile": "spx_nps1",
        "driverVersion": {"version": "6.12.12"},
        "numaNode": {"int": 0},
    }
    return device(name, attributes, memory or usual, **more)


def partition(name: str, model: str, profile: str, memory: str, **more: Any) -> Json:
    """A partition of an AMD GPU."""
    pci, product, _ = AMD[model]
    attributes = {"type": "amdgpu-partition", "deviceID": pci, "productName": product, "partitionProfile": profile}
    return device(name, attributes, memory, **more)


def shareable(given: Json) -> Json:
    """The device as NVIDIA's driver publishes it with `--consumable-shares=memory`: claims take parts of its memory."""
    memory = given["capacity"]["memory"]["value"]
    policy = {"default": memory, "validRange": {"min": "1Mi", "max": memory, "step": "1Mi"}}
    capacity = given["capacity"] | {"memory": {"value": memory, "requestPolicy": policy}}
    return given | {"allowMultipleAllocations": True, "capacity": capacity}


def tainted(given: Json, effect: str = "NoSchedule") -> Json:
    """The device with the taint of a failed health check."""
    return given | {"taints": [{"key": "gpu.nvidia.com/xid", "value": "79", "effect": effect}]}


def resource_slice(
    node: str, driver: str, devices: list[Json], *, part: int = 0, parts: int = 1, generation: int = 1
) -> Json:
    """One slice of the node's pool at a driver."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-{driver}-{generation}-{part}"},
        "spec": {
            "driver": driver,
            "nodeName": node,
            "pool": {"name": node, "generation": generation, "resourceSliceCount": parts},
            "devices": devices,
        },
    }


def nvidia_slice(node: str, model: str, count: int) -> Json:
    """A node of whole NVIDIA GPUs."""
    return resource_slice(node, "gpu.nvidia.com", [nvidia(f"gpu-{index}", model) for index in range(count)])


def amd_slice(node: str, model: str, count: int) -> Json:
    """A node of whole AMD GPUs."""
    return resource_slice(node, "gpu.amd.com", [amd(f"gpu-{index}-{128 + index}", model) for index in range(count)])


def shared_slice(node: str, model: str, count: int, memory: str = "8Gi") -> Json:
    """A node of NVIDIA GPUs whose memory claims take parts of."""
    devices = [shareable(nvidia(f"gpu-{index}", model, memory=memory)) for index in range(count)]
    return resource_slice(node, "gpu.nvidia.com", devices)
