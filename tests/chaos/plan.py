"""What a chaos run puts into a cluster: mixed nodes, and pods that ask for exactly as many devices as these have.

Pods of one pool can use any of its devices and no other's, so that every device ends used whatever lands where. Most
pools are of two vendors. In pool ``d``, NVIDIA's alone, pods that anygpu binds and pods that others bind go for the
same last devices all the time. Early and plain pods of a two-vendor pool are tied to one vendor when they are made:
they come in the first wave, in which either vendor alone has room for everybody.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import dranodes
import gpunodes

Json = dict[str, Any]
Kind = Literal["late", "early", "plain", "passing", "claim"]
"""`passing`: a plain pod that is deleted midway, for others to take its device."""

POOL = "chaos.test/pool"
KIND = "chaos.test/kind"
SLICES = "/apis/resource.k8s.io/v1/resourceslices"
USERS_CLAIM = "users-h100"
"""The ResourceClaimTemplate of plain pods, which know nothing of anygpu; and its DeviceClass."""


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
    """The nodes, whose devices each has, and what is to run on them."""

    nodes: list[Json]
    vendors: dict[str, str]
    objects: list[tuple[str, Json]]
    """(collection, object) that must be there first."""
    workloads: list[Workload]


@dataclasses.dataclass(frozen=True)
class Model:
    """A kind of node."""

    pool: str
    vendor: str
    make: Callable[[str, int], Json]
    """(name, devices) -> a Node, or a ResourceSlice."""


LATE_NEEDS: Mapping[str, Mapping[str, str]] = {
    "a": {"sku": "t4,l4,mi210"},
    "b": {"sku": "a100-sxm4-80gb,mi300x"},
    "c": {"share": "slice", "memory": "20Gi"},
    "d": {"sku": "h100-sxm"},
}
LATE_MODELS: Mapping[str, Model] = {
    "t4": Model("a", "nvidia", lambda name, count: gpunodes.nvidia(name, "t4", count, taint="nvidia.com/gpu")),
    "l4": Model("a", "nvidia", lambda name, count: gpunodes.nvidia(name, "l4", count)),
    "mi210": Model("a", "amd", lambda name, count: gpunodes.amd(name, "mi210", count)),
    "a100": Model("b", "nvidia", lambda name, count: gpunodes.nvidia(name, "a100-80", count)),
    "mi300x": Model("b", "amd", lambda name, count: gpunodes.amd(name, "mi300x", count, taint="amd.com/gpu")),
    "mig": Model("c", "nvidia", lambda name, count: _mig(name, count)),
    "cpx": Model("c", "amd", lambda name, count: gpunodes.amd(name, "mi300x", count, mode="cpx_nps4")),
    "h100": Model("d", "nvidia", lambda name, count: gpunodes.nvidia(name, "h100", count)),
}
#: The kinds of node over and over: one of each first, so that a small run has them all.
LATE_ORDER = (
    *LATE_MODELS,
    *("h100", "h100", "l4", "mi210", "h100", "mi300x", "t4", "h100"),
    *("mi210", "l4", "h100", "cpx", "mig", "mi210", "a100", "mi300x"),
)

CLAIM_NEEDS: Mapping[str, Mapping[str, str]] = {
    "a": {"sku": "l4,mi210"},
    "b": {"sku": "a100-sxm4-80gb,mi300x"},
    "c": {},  # nothing in particular: the neutral resource anygpu.io/gpu
    "d": {"sku": "h100-sxm"},
}
CLAIM_MODELS: Mapping[str, Model] = {
    "l4": Model("a", "nvidia", lambda name, count: dranodes.nvidia_slice(name, "l4", count)),
    "mi210": Model("a", "amd", lambda name, count: dranodes.amd_slice(name, "mi210", count)),
    "a100": Model("b", "nvidia", lambda name, count: dranodes.nvidia_slice(name, "a100-80", count)),
    "mi300x": Model("b", "amd", lambda name, count: dranodes.amd_slice(name, "mi300x", count)),
    "t4": Model("c", "nvidia", lambda name, count: dranodes.nvidia_slice(name, "t4", count)),
    "mi325x": Model("c", "amd", lambda name, count: dranodes.amd_slice(name, "mi325x", count)),
    "h100": Model("d", "nvidia", lambda name, count: dranodes.nvidia_slice(name, "h100", count)),
}
CLAIM_ORDER = (*CLAIM_MODELS, "h100")

SELECTED = ("c",)
"""Pools whose pods name them in a nodeSelector: by their needs alone they could go elsewhere, too."""


def _mig(name: str, count: int) -> Json:
    """A node all of whose GPUs are cut in instances: NVIDIA's plugin offers no whole one there, not even none."""
    node = gpunodes.mig_mixed(name, "a100-80", 0, **{"3g.40gb": count})
    for side in ("allocatable", "capacity"):
        del node["status"][side]["nvidia.com/gpu"]
    return node


def late(pods: int, nodes: int, image: str, namespace: str, seed: int) -> Plan:
    """This many late pods, and three early and three plain ones for every twenty of them."""
    others = round(pods * 0.15)
    dice = random.Random(seed)
    counts = _counts(pods + 2 * others, nodes, len(LATE_MODELS), dice)
    made, vendors, room = _build(LATE_MODELS, LATE_ORDER, counts)
    size = {pool: sum(by_vendor.values()) for pool, by_vendor in room.items()}
    at_d = min(others, size["d"] * 3 // 10)
    either = {pool: min(room[pool].values()) for pool in ("a", "b")}
    at_a = round((others - at_d) * either["a"] / sum(either.values()))
    shares = {"a": at_a, "b": others - at_d - at_a, "c": 0, "d": at_d}
    maker = _Maker(image, namespace)
    workloads: list[Workload] = []
    for pool, share in shares.items():
        count = size[pool] - 2 * share
        together = min(room[pool].values()) - 2 * share
        if together < 0 and pool != "d":
            raise ValueError(f"pool {pool}: {2 * share} early and plain pods do not fit on one vendor; take more nodes")
        first = count if pool == "d" else min(together, count // 2)
        for wave, part in ((1, first), (2, count - first)):
            workloads += maker.several("late", pool, part, wave, LATE_NEEDS[pool])
        workloads += maker.several("early", pool, share, 1, LATE_NEEDS[pool])
        for number in range(share):
            vendor = "amd" if number % 2 and pool != "d" else "nvidia"
            workloads.append(maker.plain("plain", pool, 1, f"{vendor}.com/gpu"))
    workloads += [maker.plain("passing", "d", 0, "nvidia.com/gpu") for _ in range(max(1, size["d"] // 8))]
    return Plan(made, vendors, [], _checked(workloads, "late", pods, 2 * others))


def claims(pods: int, nodes: int, image: str, namespace: str, seed: int) -> Plan:
    """This many claim pods, and plain ones with claims of their own, three for every twenty of them."""
    dice = random.Random(seed)
    others = round(pods * 0.15)
    counts = _counts(pods + others, nodes, len(CLAIM_MODELS), dice)
    made, vendors, room = _build(CLAIM_MODELS, CLAIM_ORDER, counts)
    maker = _Maker(image, namespace)
    workloads: list[Workload] = []
    for pool, by_vendor in room.items():
        share = others if pool == "d" else 0
        count = sum(by_vendor.values()) - share
        if count < 0:
            raise ValueError(f"pool {pool}: no room for {share} plain pods; take more nodes")
        for wave, part in ((1, count // 2), (2, count - count // 2)):
            workloads += maker.several("claim", pool, part, wave, CLAIM_NEEDS[pool])
        workloads += [maker.plain("plain", pool, 1, None) for _ in range(share)]
    workloads += [maker.plain("passing", "d", 0, None) for _ in range(max(1, others // 4))]
    templates = f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaimtemplates"
    objects = [("/apis/resource.k8s.io/v1/deviceclasses", _users_class()), (templates, _users_template(namespace))]
    bare = [gpunodes.node(each["spec"]["nodeName"]) for each in made]
    for node, each in zip(bare, made, strict=True):
        node["metadata"]["labels"][POOL] = CLAIM_MODELS[each["spec"]["nodeName"].partition("-")[0]].pool
        objects.append((SLICES, each))
    return Plan(bare, vendors, objects, _checked(workloads, "claim", pods, others))


def _counts(devices: int, nodes: int, kinds: int, dice: random.Random) -> list[int]:
    """So many devices on so many nodes, unevenly."""
    if nodes < kinds or devices < 2 * nodes:
        raise ValueError(f"{nodes} nodes for {devices} devices: at least {kinds} nodes, and 2 devices for each")
    counts = [devices // nodes + (number < devices % nodes) for number in range(nodes)]
    for left, right in zip(range(0, nodes - 1, 2), range(1, nodes, 2), strict=False):
        shift = dice.randint(0, min(3, counts[right] - 1))
        counts[left] += shift
        counts[right] -= shift
    return counts


def _build(
    models: Mapping[str, Model], order: Sequence[str], counts: Sequence[int]
) -> tuple[list[Json], dict[str, str], dict[str, dict[str, int]]]:
    """The nodes or slices, whose devices each node has, and the devices by pool and vendor."""
    made: list[Json] = []
    vendors: dict[str, str] = {}
    room = {model.pool: {"nvidia": 0, "amd": 0} for model in models.values()}
    for number, count in enumerate(counts):
        kind = order[number % len(order)]
        model, name = models[kind], f"{kind}-{number:03}"
        each = model.make(name, count)
        each["metadata"].setdefault("labels", {})[POOL] = model.pool
        made.append(each)
        vendors[name] = model.vendor
        room[model.pool][model.vendor] += count
    return made, vendors, room


def _checked(workloads: list[Workload], main: Kind, pods: int, others: int) -> list[Workload]:
    found = {kind: sum(each.pods for each in workloads if each.kind == kind) for kind in {w.kind for w in workloads}}
    assert found[main] == pods, found
    assert sum(found.values()) - found["passing"] == pods + others, found
    return workloads


def _users_class() -> Json:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": USERS_CLAIM},
        "spec": {
            "selectors": [
                {"cel": {"expression": 'device.driver == "gpu.nvidia.com"'}},
                {"cel": {"expression": 'device.attributes["gpu.nvidia.com"].productName == "NVIDIA H100 80GB HBM3"'}},
            ]
        },
    }


def _users_template(namespace: str) -> Json:
    request = {"name": "gpu", "exactly": {"deviceClassName": USERS_CLAIM}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": USERS_CLAIM, "namespace": namespace},
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }


class _Maker:
    """Makes workloads with names of their own."""

    def __init__(self, image: str, namespace: str) -> None:
        self._image, self._namespace, self._number = image, namespace, 0

    def several(self, kind: Kind, pool: str, pods: int, wave: int, needs: Mapping[str, str]) -> Iterator[Workload]:
        """Pods of one kind: some of a Deployment's, some of a ReplicaSet's, some nobody's."""
        asked = {"binding": kind, **needs}
        owned = {"deployments": pods * 2 // 5, "replicasets": pods // 5}
        for plural, replicas in owned.items():
            if replicas:
                yield self._owned(kind, pool, plural, replicas, wave, self._template(kind, pool, asked))
        for _ in range(pods - sum(owned.values())):
            yield self._bare(kind, pool, wave, self._template(kind, pool, asked))

    def plain(self, kind: Kind, pool: str, wave: int, resource: str | None) -> Workload:
        """A pod that names a vendor's resource itself, or has a claim of its user's, and knows nothing of anygpu."""
        container: Json = {"name": "main", "image": "busybox"}
        spec: Json = {"containers": [container], "nodeSelector": {POOL: pool}, "terminationGracePeriodSeconds": 0}
        if resource:
            container["resources"] = {"limits": {resource: "1"}}
            spec["tolerations"] = [{"key": resource, "operator": "Exists"}]
        else:
            container["resources"] = {"claims": [{"name": "gpu"}]}
            spec["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": USERS_CLAIM}]
        return self._bare(kind, pool, wave, {"metadata": {"labels": {KIND: kind}}, "spec": spec})

    def _name(self, kind: str, pool: str) -> str:
        self._number += 1
        return f"{kind}-{pool}-{self._number:04}"

    def _template(self, kind: str, pool: str, asked: Mapping[str, str]) -> Json:
        annotations = {f"anygpu.io/{key}": value for key, value in asked.items()}
        return {
            "metadata": {"labels": {KIND: kind}, "annotations": annotations},
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

    def _owned(self, kind: Kind, pool: str, plural: str, replicas: int, wave: int, template: Json) -> Workload:
        name = self._name(kind, pool)
        template["metadata"]["labels"]["app"] = name
        document = {
            "apiVersion": "apps/v1",
            "kind": {"deployments": "Deployment", "replicasets": "ReplicaSet"}[plural],
            "metadata": {"name": name, "namespace": self._namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
        }
        path = f"/apis/apps/v1/namespaces/{self._namespace}/{plural}"
        return Workload(name, kind, pool, replicas, wave, path, document)
