"""What a chaos run puts into a cluster: mixed nodes, and pods that ask for exactly as many devices as these have.

Pods of one pool can use any of its devices and no other's, so that every device ends used whatever lands where:

- ``a`` and ``b`` are of two vendors, whole GPUs; ``c`` too, MIG instances and AMD partitions;
- ``d`` is NVIDIA's alone: there late, early and plain pods go for the same last devices all the time.

Early and plain pods of a two-vendor pool are bound to one vendor when they are made; they come in the first wave, in
which either vendor alone has room for everybody.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import gpunodes

Json = dict[str, Any]
Kind = Literal["late", "early", "plain", "passing", "claim"]
"""`passing`: a plain pod that is deleted midway, for others to take its device."""

POOL = "chaos.test/pool"
KIND = "chaos.test/kind"
NEEDS: Mapping[str, Mapping[str, str]] = {
    "a": {"sku": "t4,l4,mi210"},
    "b": {"sku": "a100-sxm4-80gb,mi300x"},
    "c": {"share": "slice", "memory": "20Gi"},
    "d": {"sku": "h100-sxm"},
}
SELECTED = ("c",)
"""Pools whose pods name them in a nodeSelector: a pod that may have a slice may have a whole GPU too."""
MAKERS: Mapping[str, tuple[str, Callable[[str, int], Json]]] = {
    "t4": ("a", lambda name, count: gpunodes.nvidia(name, "t4", count, taint="nvidia.com/gpu")),
    "l4": ("a", lambda name, count: gpunodes.nvidia(name, "l4", count)),
    "mi210": ("a", lambda name, count: gpunodes.amd(name, "mi210", count)),
    "a100": ("b", lambda name, count: gpunodes.nvidia(name, "a100-80", count)),
    "mi300x": ("b", lambda name, count: gpunodes.amd(name, "mi300x", count, taint="amd.com/gpu")),
    "mig": ("c", lambda name, count: _mig(name, count)),
    "cpx": ("c", lambda name, count: gpunodes.amd(name, "mi300x", count, mode="cpx_nps4")),
    "h100": ("d", lambda name, count: gpunodes.nvidia(name, "h100", count)),
}
REST = (
    "h100",
    "h100",
    "l4",
    "mi210",
    "h100",
    "mi300x",
    "t4",
    "h100",
    "mi210",
    "l4",
    "h100",
    "cpx",
    "mig",
    "mi210",
    "a100",
    "mi300x",
)
#: One of each first, so that a small run has them all.
ORDER = (*MAKERS, *REST)


def _mig(name: str, count: int) -> Json:
    """A node all of whose GPUs are cut in instances: NVIDIA's plugin offers no whole one there, not even none."""
    node = gpunodes.mig_mixed(name, "a100-80", 0, **{"3g.40gb": count})
    for side in ("allocatable", "capacity"):
        del node["status"][side]["nvidia.com/gpu"]
    return node


@dataclasses.dataclass(frozen=True)
class Workload:
    """A pod, or what makes several."""

    name: str
    kind: Kind
    pool: str
    pods: int
    wave: int
    path: str
    document: Json


@dataclasses.dataclass(frozen=True)
class Plan:
    """The nodes, who made each, and what is to run on them."""

    nodes: list[Json]
    vendors: dict[str, str]
    workloads: list[Workload]


def plan(pods: int, nodes: int, image: str, namespace: str, seed: int) -> Plan:
    """A plan with this many late pods, and three early and plain pods each for every twenty of them."""
    others = round(pods * 0.15)
    devices = pods + 2 * others
    if nodes < len(MAKERS) or devices < 3 * nodes:
        raise ValueError(f"{nodes} nodes for {pods} pods: {len(MAKERS)} nodes at least, and 3 devices for each")
    dice = random.Random(seed)
    made: list[Json] = []
    vendors: dict[str, str] = {}
    room: dict[str, dict[str, int]] = {pool: {"nvidia": 0, "amd": 0} for pool in NEEDS}
    for number, count in enumerate(_counts(devices, nodes, dice)):
        kind = ORDER[number % len(ORDER)]
        pool, make = MAKERS[kind]
        node = make(f"{kind}-{number:03}", count)
        node["metadata"]["labels"][POOL] = pool
        made.append(node)
        vendor = "amd" if any(key.startswith("amd.com/") for key in node["status"]["allocatable"]) else "nvidia"
        vendors[node["metadata"]["name"]] = vendor
        for resource, amount in node["status"]["allocatable"].items():
            if "/" in resource:
                room[pool][vendor] += int(amount)
    workloads = list(_workloads(room, others, _Maker(image, namespace, dice)))
    assert sum(each.pods for each in workloads if each.kind not in ("late", "passing")) == 2 * others
    assert sum(each.pods for each in workloads if each.kind == "late") == pods
    return Plan(made, vendors, workloads)


def _counts(devices: int, nodes: int, dice: random.Random) -> list[int]:
    """So many devices on so many nodes, unevenly."""
    counts = [devices // nodes + (number < devices % nodes) for number in range(nodes)]
    for left, right in zip(range(0, nodes - 1, 2), range(1, nodes, 2), strict=False):
        shift = dice.randint(0, min(3, counts[right] - 2))
        counts[left] += shift
        counts[right] -= shift
    return counts


def _workloads(room: Mapping[str, Mapping[str, int]], others: int, maker: _Maker) -> Iterator[Workload]:
    size = {pool: sum(by_vendor.values()) for pool, by_vendor in room.items()}
    at_d = min(others, size["d"] * 3 // 10)
    either = {pool: min(room[pool].values()) for pool in ("a", "b")}
    at_a = round((others - at_d) * either["a"] / sum(either.values()))
    shares = {"a": at_a, "b": others - at_d - at_a, "c": 0, "d": at_d}
    for pool, share in shares.items():
        late = size[pool] - 2 * share
        together = min(room[pool].values()) - 2 * share
        if together < 0 and pool != "d":
            raise ValueError(f"pool {pool}: {2 * share} early and plain pods do not fit on one vendor; take more nodes")
        first = late if pool == "d" else min(together, late // 2)
        for wave, count in ((1, first), (2, late - first)):
            yield from maker.several("late", pool, count, wave, {"binding": "late", **NEEDS[pool]})
        yield from maker.several("early", pool, share, 1, NEEDS[pool])
        for number in range(share):
            resource = "amd.com/gpu" if number % 2 and pool != "d" else "nvidia.com/gpu"
            yield maker.plain("plain", pool, resource, wave=1)
    for _ in range(max(1, size["d"] // 8)):
        yield maker.plain("passing", "d", "nvidia.com/gpu", wave=0)


class _Maker:
    """Makes workloads with names of their own."""

    def __init__(self, image: str, namespace: str, dice: random.Random) -> None:
        self._image, self._namespace, self._dice, self._number = image, namespace, dice, 0

    def several(self, kind: Kind, pool: str, pods: int, wave: int, needs: Mapping[str, str]) -> Iterator[Workload]:
        """Pods of one kind: some of a Deployment's, some of a ReplicaSet's, some nobody's."""
        owned = {"deployments": pods * 2 // 5, "replicasets": pods // 5}
        for plural, replicas in owned.items():
            if replicas:
                yield self._owned(kind, pool, plural, replicas, wave, needs)
        for _ in range(pods - sum(owned.values())):
            yield self._bare(kind, pool, wave, self._template(kind, pool, needs))

    def plain(self, kind: Kind, pool: str, resource: str, wave: int) -> Workload:
        """A pod that names a vendor's resource itself and knows nothing of anygpu."""
        vendor = resource.partition(".")[0]
        spec = {
            "containers": [{"name": "main", "image": "busybox", "resources": {"limits": {resource: "1"}}}],
            "nodeSelector": {POOL: pool},
            "tolerations": [{"key": f"{vendor}.com/gpu", "operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
        }
        return self._bare(kind, pool, wave, {"metadata": {"labels": {KIND: kind}}, "spec": spec})

    def _name(self, kind: str, pool: str) -> str:
        self._number += 1
        return f"{kind}-{pool}-{self._number:04}"

    def _template(self, kind: str, pool: str, needs: Mapping[str, str]) -> Json:
        return {
            "metadata": {
                "labels": {KIND: kind},
                "annotations": {f"anygpu.io/{key}": value for key, value in needs.items()},
            },
            "spec": {
                "containers": [{"name": "main", "image": self._image}],
                "terminationGracePeriodSeconds": 0,
                **({"nodeSelector": {POOL: pool}} if pool in SELECTED else {}),
            },
        }

    def _bare(self, kind: Kind, pool: str, wave: int, template: Json) -> Workload:
        name = self._name(kind, pool)
        metadata = {**template["metadata"], "name": name, "namespace": self._namespace}
        metadata["labels"] = {**metadata["labels"], "app": name}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        return Workload(name, kind, pool, 1, wave, f"/api/v1/namespaces/{self._namespace}/pods", document)

    def _owned(
        self, kind: Kind, pool: str, plural: str, replicas: int, wave: int, needs: Mapping[str, str]
    ) -> Workload:
        name = self._name(kind, pool)
        template = self._template(kind, pool, needs)
        template["metadata"]["labels"]["app"] = name
        document = {
            "apiVersion": "apps/v1",
            "kind": {"deployments": "Deployment", "replicasets": "ReplicaSet"}[plural],
            "metadata": {"name": name, "namespace": self._namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
        }
        return Workload(
            name, kind, pool, replicas, wave, f"/apis/apps/v1/namespaces/{self._namespace}/{plural}", document
        )
