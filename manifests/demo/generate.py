"""Writes `cluster.yaml`: a made-up mixed cluster in the form that `kubectl get nodes,pods -A -o yaml` prints.

    python manifests/demo/generate.py

The same text comes out every time. Labels are those of GPU feature discovery 0.20 and the GPU operator, of AMD's node
labeller, of Intel's device plugins and of Node Feature Discovery; memory figures are what drivers report.
"""

import hashlib
import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
Labels = dict[str, str]

TARGET = Path(__file__).with_name("cluster.yaml")

BORN, STARTED, HEARTBEAT, LOST = (
    "2026-09-01T08:00:00Z",
    "2026-11-02T06:30:00Z",
    "2026-11-20T09:59:41Z",
    "2026-11-20T04:12:07Z",
)
GIB_IN_KI = 1024 * 1024
ZONES = ("hall-a", "hall-b", "hall-c")


def _uid(*parts: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, "/".join(("demo", *parts))))


# --- Nodes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One kind of server."""

    instance: str
    cpu: int
    memory_gib: int
    gpu_labels: Labels = field(default_factory=dict)
    gpus: Mapping[str, int] = field(default_factory=dict)
    """Resource name -> devices."""
    taint: str | None = None
    cpu_vendor: str = "AMD"
    pci: tuple[str, ...] = ()
    """PCI vendors beside the board's own display chip."""


@dataclass(frozen=True, kw_only=True)
class Nvidia:
    """What NVIDIA's tools say of one model."""

    product: str
    memory_mib: int
    family: str
    compute: str
    machine: str
    mig: bool = False
    driver: str = "580.126.20"
    cuda: str = "13.0"

    def labels(self, count: int, changes: Labels | None = None) -> Labels:
        """The labels of a node of whole GPUs; `changes`, by key without prefix, win."""
        major, minor, revision = self.driver.split(".")
        cuda_major, cuda_minor = self.cuda.split(".")
        found = {
            "cuda.driver-version.full": self.driver,
            "cuda.driver-version.major": major,
            "cuda.driver-version.minor": minor,
            "cuda.driver-version.revision": revision,
            "cuda.driver.major": major,
            "cuda.driver.minor": minor,
            "cuda.driver.rev": revision,
            "cuda.runtime-version.full": self.cuda,
            "cuda.runtime-version.major": cuda_major,
            "cuda.runtime-version.minor": cuda_minor,
            "cuda.runtime.major": cuda_major,
            "cuda.runtime.minor": cuda_minor,
            "gfd.timestamp": "1793601012",
            "gpu-driver-upgrade-state": "upgrade-done",
            "gpu.compute.major": self.compute.split(".")[0],
            "gpu.compute.minor": self.compute.split(".")[1],
            "gpu.count": str(count),
            "gpu.family": self.family,
            "gpu.machine": self.machine,
            "gpu.memory": str(self.memory_mib),
            "gpu.mode": "compute",
            "gpu.present": "true",
            "gpu.product": self.product,
            "gpu.replicas": "1",
            "gpu.sharing-strategy": "none",
            "mig.capable": "true" if self.mig else "false",
            "mig.strategy": "single",
            "mps.capable": "false",
        }
        operands = ["container-toolkit", "dcgm", "dcgm-exporter", "device-plugin", "driver", "gpu-feature-discovery"]
        operands += ["node-status-exporter", "operator-validator"]
        if self.mig:
            operands.append("mig-manager")
            found |= {"mig.config": "all-disabled", "mig.config.state": "success"}
        found |= {f"gpu.deploy.{operand}": "true" for operand in operands}
        return {f"nvidia.com/{key}": value for key, value in (found | (changes or {})).items()}


@dataclass(frozen=True, kw_only=True)
class MigProfile:
    """What GPU feature discovery says of one MIG profile."""

    name: str
    memory_mib: int
    multiprocessors: int
    slices: int
    copy: int
    decoders: int

    def attributes(self, prefix: str, product: str, count: int) -> Labels:
        """The labels of `count` instances of a product."""
        values = {
            "count": count,
            "engines.copy": self.copy,
            "engines.decoder": self.decoders,
            "engines.encoder": 0,
            "engines.jpeg": 0,
            "engines.ofa": 0,
            "memory": self.memory_mib,
            "multiprocessors": self.multiprocessors,
            "product": f"{product}-MIG-{self.name}",
            "replicas": 1,
            "sharing-strategy": "none",
            "slices.ci": self.slices,
            "slices.gi": self.slices,
        }
        return {f"nvidia.com/{prefix}.{key}": str(value) for key, value in values.items()}


def _amd(product: str, device_id: str, vram: str, count: int, cus: int, mode: str | None) -> Labels:
    """The labels of AMD's node labeller on a node of like GPUs; the device plugin's own count stands in resources.

    In CPX the device id and the memory are those of the cards, while compute units are counted per partition.
    """
    parts = 8 if mode and mode.startswith("cpx") else 1
    per_card = {"device-id": device_id, "family": "AI", "product-name": product, "vram": vram}
    per_part = {"cu-count": str(cus // parts), "simd-count": str(4 * cus // parts)}
    labels = {"amd.com/gpu.driver-version": "6.14.14", "feature.node.kubernetes.io/amd-gpu": "true"}
    for name, value in (per_card | per_part).items():
        times = count * parts if name in per_part else count
        labels |= {f"amd.com/gpu.{name}": value, f"beta.amd.com/gpu.{name}": value}
        labels[f"beta.amd.com/gpu.{name}.{value}"] = str(times)
    supported = "true" if mode else "false"
    labels |= {
        "amd.com/gpu.compute-partitioning-supported": supported,
        "amd.com/gpu.memory-partitioning-supported": supported,
    }
    return labels | ({"amd.com/gpu.compute-memory-partition": mode} if mode else {})


A100_40 = Nvidia(
    product="NVIDIA-A100-SXM4-40GB",
    memory_mib=40960,
    family="ampere",
    compute="8.0",
    machine="DGXA100-920-23687-2530-000",
    mig=True,
    driver="570.133.20",
    cuda="12.8",
)
A100_80 = Nvidia(
    product="NVIDIA-A100-SXM4-80GB",
    memory_mib=81920,
    family="ampere",
    compute="8.0",
    machine="DGXA100-920-23687-2531-000",
    mig=True,
)
H100 = Nvidia(
    product="NVIDIA-H100-80GB-HBM3",
    memory_mib=81559,
    family="hopper",
    compute="9.0",
    machine="DGXH100",
    mig=True,
)
L4 = Nvidia(product="NVIDIA-L4", memory_mib=23034, family="ada-lovelace", compute="8.9", machine="PowerEdge-R760xa")
T4 = Nvidia(
    product="Tesla-T4",
    memory_mib=15360,
    family="turing",
    compute="7.5",
    machine="PowerEdge-R740",
    driver="550.127.08",
    cuda="12.4",
)
QUADRO = Nvidia(
    product="Quadro-RTX-8000", memory_mib=46080, family="turing", compute="7.5", machine="Precision-7920-Rack"
)

MIG_1G = MigProfile(name="1g.10gb", memory_mib=9728, multiprocessors=14, slices=1, copy=1, decoders=0)
MIG_2G = MigProfile(name="2g.20gb", memory_mib=19968, multiprocessors=28, slices=2, copy=2, decoders=1)
MIG_3G = MigProfile(name="3g.40gb", memory_mib=40192, multiprocessors=42, slices=3, copy=3, decoders=2)

NVIDIA_GPU, AMD_GPU, INTEL_GPU = "nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915"


def _nvidia(model: Nvidia, count: int, instance: str, cpu: int, memory_gib: int, **rest: Any) -> Machine:
    given: Json = {"gpu_labels": model.labels(count), "gpus": {NVIDIA_GPU: count}, "pci": ("10de",)}
    return Machine(instance=instance, cpu=cpu, memory_gib=memory_gib, **(given | rest))


def _mig_mixed() -> Machine:
    """All eight GPUs cut as mig-parted's `all-balanced`; the plain name stays listed, at 0."""
    counts = ((MIG_1G, 16), (MIG_2G, 8), (MIG_3G, 8))
    labels = A100_80.labels(
        8,
        {
            "gpu.replicas": "0",
            "mig.strategy": "mixed",
            "mig.config": "all-balanced",
            "device-plugin.config": "mig-mixed",
        },
    )
    for profile, count in counts:
        labels |= profile.attributes(f"mig-{profile.name}", A100_80.product, count)
    gpus = {NVIDIA_GPU: 0} | {f"nvidia.com/mig-{profile.name}": count for profile, count in counts}
    return _nvidia(A100_80, 8, "gpu-a100-80x8", 256, 2048, gpu_labels=labels, gpus=gpus, taint=NVIDIA_GPU)


def _mig_single() -> Machine:
    """All eight GPUs cut into seven 1g.10gb: 56 instances under the plain name."""
    labels = A100_80.labels(8, {"mig.config": "all-1g.10gb"}) | MIG_1G.attributes("gpu", A100_80.product, 56)
    rest: Json = {"gpu_labels": labels, "gpus": {NVIDIA_GPU: 56}, "taint": NVIDIA_GPU}
    return _nvidia(A100_80, 8, "gpu-a100-80x8", 256, 2048, **rest)


def _time_sliced() -> Machine:
    """Four T4 that up to four pods each share; the resource is not renamed."""
    labels = T4.labels(
        4,
        {
            "gpu.product": "Tesla-T4-SHARED",
            "gpu.replicas": "4",
            "gpu.sharing-strategy": "time-slicing",
            "device-plugin.config": "time-slicing-4",
        },
    )
    return _nvidia(T4, 4, "gpu-t4x4", 64, 384, gpu_labels=labels, gpus={NVIDIA_GPU: 16}, cpu_vendor="Intel")


def _instinct(instance: str, labels: Labels, devices: int, cpu: int, memory_gib: int, taint: str | None) -> Machine:
    return Machine(
        instance=instance,
        cpu=cpu,
        memory_gib=memory_gib,
        gpu_labels=labels,
        gpus={AMD_GPU: devices},
        taint=taint,
        pci=("1002",),
    )


MI300X = _amd("AMD_Instinct_MI300X_OAM", "74a1", "192G", 8, 304, "spx_nps1")
MI300X_CPX = _amd("AMD_Instinct_MI300X_OAM", "74a1", "192G", 8, 304, "cpx_nps4")
MI325X = _amd("AMD_Instinct_MI325_OAM", "74a5", "256G", 8, 304, "spx_nps1")
MI210 = _amd("Instinct_MI210", "740f", "64G", 4, 104, None)
MAX_1100 = {
    "gpu.intel.com/device-id.0380-0bda.count": "4",
    "gpu.intel.com/device-id.0380-0bda.present": "true",
    "gpu.intel.com/device.count": "4",
    "gpu.intel.com/family": "Max_Series",
    "gpu.intel.com/product": "Max_1100",
    "intel.feature.node.kubernetes.io/gpu": "true",
}

MACHINES: dict[str, tuple[int, Machine]] = {
    "a100-40": (6, _nvidia(A100_40, 8, "gpu-a100-40x8", 256, 1024)),
    "a100-80": (5, _nvidia(A100_80, 8, "gpu-a100-80x8", 256, 2048, taint=NVIDIA_GPU)),
    "a100-80-mig-mixed": (1, _mig_mixed()),
    "a100-80-mig-single": (1, _mig_single()),
    "h100": (5, _nvidia(H100, 8, "gpu-h100x8", 224, 2048, taint=NVIDIA_GPU, cpu_vendor="Intel")),
    "l4": (5, _nvidia(L4, 4, "gpu-l4x4", 96, 512, cpu_vendor="Intel")),
    "t4": (4, _nvidia(T4, 4, "gpu-t4x4", 64, 384, cpu_vendor="Intel")),
    "t4-shared": (1, _time_sliced()),
    "lab": (1, _nvidia(QUADRO, 2, "workstation", 48, 256, cpu_vendor="Intel")),
    "mi210": (4, _instinct("gpu-mi210x4", MI210, 4, 128, 1024, None)),
    "mi300x": (5, _instinct("gpu-mi300x8", MI300X, 8, 192, 2048, AMD_GPU)),
    "mi300x-cpx": (1, _instinct("gpu-mi300x8", MI300X_CPX, 64, 192, 2048, AMD_GPU)),
    "mi325x": (3, _instinct("gpu-mi325x8", MI325X, 8, 192, 3072, AMD_GPU)),
    "max1100": (
        1,
        Machine(
            instance="gpu-max1100x4",
            cpu=112,
            memory_gib=1024,
            gpu_labels=MAX_1100,
            gpus={INTEL_GPU: 4},
            cpu_vendor="Intel",
            pci=("8086",),
        ),
    ),
    "cpu": (5, Machine(instance="cpu-64", cpu=64, memory_gib=256)),
    "control-plane": (
        1,
        Machine(instance="cpu-16", cpu=16, memory_gib=64, taint="node-role.kubernetes.io/control-plane"),
    ),
}
"""Name -> how many, of what kind; nodes are called NAME-01 and so on, a single one NAME-01 too."""


def _conditions() -> list[Json]:
    rows = (
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    )
    return [
        {
            "lastHeartbeatTime": HEARTBEAT,
            "lastTransitionTime": STARTED,
            "message": message,
            "reason": reason,
            "status": status,
            "type": kind,
        }
        for kind, status, reason, message in rows
    ]


def _host_labels(name: str, machine: Machine, zone: str) -> Labels:
    pci = {f"feature.node.kubernetes.io/pci-{vendor}.present": "true" for vendor in ("1a03", *machine.pci)}
    return pci | {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/instance-type": machine.instance,
        "beta.kubernetes.io/os": "linux",
        "feature.node.kubernetes.io/cpu-cpuid.AVX512F": "true",
        "feature.node.kubernetes.io/cpu-hardware_multithreading": "true",
        "feature.node.kubernetes.io/cpu-model.vendor_id": machine.cpu_vendor,
        "feature.node.kubernetes.io/kernel-version.full": "6.8.0-86-generic",
        "feature.node.kubernetes.io/kernel-version.major": "6",
        "feature.node.kubernetes.io/kernel-version.minor": "8",
        "feature.node.kubernetes.io/memory-numa": "true",
        "feature.node.kubernetes.io/system-os_release.ID": "ubuntu",
        "feature.node.kubernetes.io/system-os_release.VERSION_ID": "24.04",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": machine.instance,
        "topology.kubernetes.io/region": "campus",
        "topology.kubernetes.io/zone": zone,
    }


def _node(name: str, machine: Machine, number: int) -> Json:
    zone = ZONES[number % len(ZONES)]
    labels = _host_labels(name, machine, zone) | machine.gpu_labels
    memory_ki = machine.memory_gib * GIB_IN_KI - 8_211_456
    disk_ki = 1_843_193_100
    gpus = {resource: str(count) for resource, count in machine.gpus.items()}
    capacity = {
        "cpu": str(machine.cpu),
        "ephemeral-storage": f"{disk_ki}Ki",
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
        "memory": f"{memory_ki}Ki",
        "pods": "110",
        **gpus,
    }
    allocatable = capacity | {
        "cpu": f"{machine.cpu * 1000 - 500}m",
        # The kubelet keeps a tenth back for its eviction threshold and prints the rest in bytes.
        "ephemeral-storage": str(disk_ki * 1024 * 9 // 10),
        "memory": f"{memory_ki - 2 * GIB_IN_KI}Ki",
    }
    spec: Json = {"podCIDR": f"10.244.{number}.0/24", "podCIDRs": [f"10.244.{number}.0/24"]}
    if machine.taint:
        labels |= {machine.taint: ""} if machine.taint.startswith("node-role") else {}
        spec["taints"] = [{"effect": "NoSchedule", "key": machine.taint}]
        if machine.taint == NVIDIA_GPU:
            spec["taints"][0]["value"] = "present"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
            "creationTimestamp": BORN,
            "labels": labels,
            "name": name,
            "resourceVersion": str(81_400_000 + 97 * number),
            "uid": _uid("node", name),
        },
        "spec": spec,
        "status": {
            "addresses": [
                {"address": f"10.12.{number // 250}.{10 + number}", "type": "InternalIP"},
                {"address": name, "type": "Hostname"},
            ],
            "allocatable": allocatable,
            "capacity": capacity,
            "conditions": _conditions(),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": _uid("boot", name),
                "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": "6.8.0-86-generic",
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.36.2",
                "machineID": hashlib.sha256(name.encode()).hexdigest()[:32],
                "operatingSystem": "linux",
                "osImage": "Ubuntu 24.04.3 LTS",
                "systemUUID": _uid("system", name),
            },
        },
    }


def _cordon(node: Json) -> None:
    node["spec"]["unschedulable"] = True
    node["spec"].setdefault("taints", []).append(
        {"effect": "NoSchedule", "key": "node.kubernetes.io/unschedulable", "timeAdded": HEARTBEAT}
    )


def _lose(node: Json) -> None:
    """The kubelet stopped answering: the node lifecycle controller sets every condition to Unknown and taints."""
    for condition in node["status"]["conditions"]:
        condition |= {
            "lastHeartbeatTime": "2026-11-20T04:11:22Z",
            "lastTransitionTime": LOST,
            "message": "Kubelet stopped posting node status.",
            "reason": "NodeStatusUnknown",
            "status": "Unknown",
        }
    node["spec"].setdefault("taints", []).extend(
        {"effect": effect, "key": "node.kubernetes.io/unreachable", "timeAdded": LOST}
        for effect in ("NoSchedule", "NoExecute")
    )


def _break_devices(resource: str, healthy: int, labels: Labels) -> Callable[[Json], None]:
    """Unhealthy devices leave allocatable, not capacity."""

    def apply(node: Json) -> None:
        node["status"]["allocatable"][resource] = str(healthy)
        node["metadata"]["labels"] |= labels

    return apply


INCIDENTS: dict[str, Callable[[Json], None]] = {
    "a100-40-05": _cordon,
    "h100-05": _lose,
    "l4-04": _break_devices(NVIDIA_GPU, 3, {}),
    "mi300x-05": _break_devices(
        AMD_GPU,
        6,
        {"metricsexporter.amd.com.gpu.2.state": "unhealthy", "metricsexporter.amd.com.gpu.3.state": "unhealthy"},
    ),
}


def nodes() -> Iterator[Json]:
    """All nodes, by name as the API server lists them."""
    names = [
        (f"{name}-{index:02}", machine) for name, (count, machine) in MACHINES.items() for index in range(1, count + 1)
    ]
    for number, (name, machine) in enumerate(sorted(names, key=lambda each: each[0]), 1):
        node = _node(name, machine, number)
        if incident := INCIDENTS.get(name):
            incident(node)
        yield node


# --- Pods -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One pod that is there already."""

    name: str
    node: str | None
    namespace: str = "default"
    image: str = "registry.demo/team/job:2026.11"
    cpu: str = "4"
    memory: str = "32Gi"
    gpus: Mapping[str, int] = field(default_factory=dict)
    phase: str = "Running"
    waits: str = ""
    """What kube-scheduler said of a pending pod."""
    annotations: Labels = field(default_factory=dict)
    selector: Labels = field(default_factory=dict)


def _used(node: str, *counts: int, namespace: str, name: str, resource: str, **rest: Any) -> list[Workload]:
    """Pods called NAME-0, NAME-1 … on a node, each with so many devices."""
    return [
        Workload(name=f"{name}-{index}", node=node, namespace=namespace, gpus={resource: count}, **rest)
        for index, count in enumerate(counts)
    ]


_TRAIN: Json = {"namespace": "research", "cpu": "32", "memory": "256Gi"}
_SERVE: Json = {"namespace": "serving", "cpu": "8", "memory": "48Gi"}
_SMALL: Json = {"namespace": "notebooks", "cpu": "2", "memory": "12Gi"}

WORKLOADS: tuple[Workload, ...] = (
    # Full nodes
    *_used("h100-02", 8, name="pretrain-moe", resource=NVIDIA_GPU, **_TRAIN),
    *_used("a100-80-01", 4, 4, name="finetune-70b", resource=NVIDIA_GPU, **_TRAIN),
    *_used("a100-40-01", 8, name="diffusion", resource=NVIDIA_GPU, **_TRAIN),
    *_used("l4-01", 1, 1, 2, name="asr", resource=NVIDIA_GPU, **_SERVE),
    *_used("mi300x-01", 8, name="pretrain-dense", resource=AMD_GPU, **_TRAIN),
    *_used("mi325x-01", 8, name="serve-405b", resource=AMD_GPU, **_TRAIN),
    # Partly used nodes
    *_used("h100-01", 4, 2, name="serve-chat", resource=NVIDIA_GPU, **_SERVE),
    *_used("a100-80-02", 4, 2, name="eval-suite", resource=NVIDIA_GPU, **_TRAIN),
    *_used("a100-40-02", 1, 2, name="rerank", resource=NVIDIA_GPU, **_SERVE),
    *_used("l4-02", 1, name="ocr", resource=NVIDIA_GPU, **_SERVE),
    *_used("t4-01", 1, 1, name="thumbnails", resource=NVIDIA_GPU, **_SMALL),
    *_used("mi210-01", 2, name="weather", resource=AMD_GPU, **_TRAIN),
    *_used("mi300x-02", 4, name="serve-code", resource=AMD_GPU, **_SERVE),
    *_used("mi325x-02", 2, name="serve-vision", resource=AMD_GPU, **_SERVE),
    *_used("mi325x-03", 4, name="long-context", resource=AMD_GPU, **_SERVE),
    # Parts of GPUs
    *_used("a100-80-mig-mixed-01", 1, 1, name="notebook-ana", resource="nvidia.com/mig-1g.10gb", **_SMALL),
    *_used("a100-80-mig-mixed-01", 1, name="notebook-bo", resource="nvidia.com/mig-3g.40gb", **_SMALL),
    *_used("a100-80-mig-single-01", 1, name="notebook-chi", resource=NVIDIA_GPU, **_SMALL),
    *_used("mi300x-cpx-01", 8, name="embed-batch", resource=AMD_GPU, **_SERVE),
    *_used("t4-shared-01", 1, 1, name="class-301", resource=NVIDIA_GPU, **_SMALL),
    # Done: its GPUs are free again
    *_used("h100-03", 8, name="benchmark", resource=NVIDIA_GPU, phase="Succeeded", **_TRAIN),
    # No GPU
    Workload(name="coredns-0", node="control-plane-01", namespace="kube-system", cpu="100m", memory="170Mi"),
    Workload(name="prometheus-0", node="cpu-01", namespace="monitoring", cpu="4", memory="48Gi"),
    Workload(name="postgres-0", node="cpu-02", namespace="data", cpu="8", memory="64Gi"),
    Workload(name="web-0", node="cpu-03", namespace="web", cpu="2", memory="4Gi"),
    Workload(name="web-1", node="cpu-04", namespace="web", cpu="2", memory="4Gi"),
    Workload(name="tokenizer-0", node="a100-40-03", namespace="research", cpu="96", memory="64Gi"),
    # Waiting
    Workload(
        name="serve-671b-0",
        node=None,
        namespace="serving",
        image="registry.demo/team/llm-server:v1",
        cpu="16",
        memory="128Gi",
        phase="Pending",
        waits="0/49 nodes are available.",
        annotations={"anygpu.io/gpus": "8", "anygpu.io/memory": "200Gi", "anygpu.io/precision": "fp8"},
    ),
    Workload(
        name="pretrain-next-0",
        node=None,
        gpus={NVIDIA_GPU: 8},
        selector={"nvidia.com/gpu.product": "NVIDIA-B200"},
        phase="Pending",
        waits="0/49 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, "
        "1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 1 node(s) were unschedulable, "
        "37 node(s) didn't match Pod's node affinity/selector, 9 node(s) had untolerated taint {amd.com/gpu: }.",
        **_TRAIN,
    ),
)


def _pod(workload: Workload, number: int) -> Json:
    amounts = {"cpu": workload.cpu, "memory": workload.memory}
    gpus = {resource: str(count) for resource, count in workload.gpus.items()}
    spec: Json = {
        "containers": [
            {
                "image": workload.image,
                "imagePullPolicy": "IfNotPresent",
                "name": "main",
                "resources": {"limits": {"memory": workload.memory} | gpus, "requests": amounts | gpus},
            }
        ],
        "priority": 0,
        "restartPolicy": "Never" if workload.phase == "Succeeded" else "Always",
        "schedulerName": "default-scheduler",
        "serviceAccountName": "default",
        "tolerations": [
            {"effect": "NoExecute", "key": f"node.kubernetes.io/{key}", "operator": "Exists", "tolerationSeconds": 300}
            for key in ("not-ready", "unreachable")
        ]
        # As the ExtendedResourceToleration admission plugin adds them.
        + [{"key": resource, "operator": "Exists"} for resource in gpus],
    }
    if workload.node:
        spec["nodeName"] = workload.node
    if workload.selector:
        spec["nodeSelector"] = workload.selector
    metadata: Json = {
        "creationTimestamp": STARTED if workload.node else HEARTBEAT,
        "labels": {"app": workload.name.rpartition("-")[0]},
        "name": workload.name,
        "namespace": workload.namespace,
        "resourceVersion": str(81_390_000 + 13 * number),
        "uid": _uid("pod", workload.namespace, workload.name),
    }
    if workload.annotations:
        metadata["annotations"] = workload.annotations
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": _pod_status(workload),
    }


def _pod_status(workload: Workload) -> Json:
    if workload.node is None:
        waiting = {
            "lastProbeTime": None,
            "lastTransitionTime": HEARTBEAT,
            "message": workload.waits,
            "reason": "Unschedulable",
            "status": "False",
            "type": "PodScheduled",
        }
        return {"conditions": [waiting], "phase": "Pending", "qosClass": "Burstable"}
    ready = "True" if workload.phase == "Running" else "False"
    return {
        "conditions": [
            {"lastProbeTime": None, "lastTransitionTime": STARTED, "status": status, "type": kind}
            for kind, status in (("Initialized", "True"), ("Ready", ready), ("PodScheduled", "True"))
        ],
        "phase": workload.phase,
        "qosClass": "Burstable",
        "startTime": STARTED,
    }


def pods() -> Iterator[Json]:
    """All pods, by namespace and name."""
    ordered = sorted(WORKLOADS, key=lambda each: (each.namespace, each.name))
    return (_pod(workload, number) for number, workload in enumerate(ordered, 1))


# --- The file ---------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Writes every value out, without anchors, as kubectl does."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never refer back."""
        return True


def render() -> str:
    """The text of `cluster.yaml`."""
    cluster = {
        "apiVersion": "v1",
        "items": list(itertools.chain(nodes(), pods())),
        "kind": "List",
        "metadata": {"resourceVersion": ""},
    }
    return yaml.dump(cluster, Dumper=_Dumper, width=1000)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
