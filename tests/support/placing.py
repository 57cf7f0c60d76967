"""Fleets, admissions and strategies that tests of decisions share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import gpunodes
from hypothesis import strategies as st

from capability_db.catalogue import Catalogue
from images import errors as image_errors
from images import reference, resolve
from scheduler import asks, kube
from scheduler import fleet as fleets
from webhooks import mutate

Json = dict[str, Any]

CATALOGUE = Catalogue.builtin()
DIGEST = "sha256:" + "0123456789abcdef" * 4
PINNED = f"registry.test/app@{DIGEST}"
"""An image that no registry is asked for, and that any vendor may run."""


class FakeLookup:
    """A registry of the tags given; `down` makes it answer nobody."""

    def __init__(self, *tags: str, down: bool = False) -> None:
        self.there, self.down, self.asked = tags, down, 0

    async def tags(self, image: reference.Reference) -> tuple[str, ...]:
        self.asked += 1
        if self.down:
            raise image_errors.RegistryUnreachable(f"registry {image.registry}: no answer")
        return self.there

    async def digest(self, image: reference.Reference) -> str:
        if self.down:
            raise image_errors.RegistryUnreachable(f"registry {image.registry}: no answer")
        if image.tag not in self.there:
            raise image_errors.NotFound(f"{image}: not found")
        return "sha256:" + (image.tag or "").encode().hex().ljust(64, "0")[:64]


def image(*vendors: str) -> resolve.Resolved:
    """A logical image with a variant for each vendor; none given: nvidia and amd."""
    tags = [f"v1-{vendor}" for vendor in vendors or ("nvidia", "amd")]
    resolver = resolve.Resolver(FakeLookup(*tags))
    return asyncio.run(resolver.variants("registry.test/team/app:v1"))


IMAGE = image()


def fleet_of(nodes: Iterable[Json], pods: Iterable[Json] = ()) -> fleets.Fleet:
    """The node table of documents."""
    fleet = fleets.Fleet(CATALOGUE)
    fleet.replace([kube.to_node(each) for each in nodes], [kube.to_pod(each) for each in pods])
    return fleet


def ids() -> Callable[[], str]:
    """Ids that count up."""
    numbers = itertools.count(1)
    return lambda: f"decision-{next(numbers):04}"


def admit(document: Json, fleet: fleets.Fleet, resolved: resolve.Resolved = IMAGE) -> mutate.Admission:
    """Admit a pod document as the webhook does; the fleet is left as it was."""
    pod = kube.to_pod(document)
    question = asks.read(pod, fleet)
    return mutate.admit(document, pod, question, resolved, fleet, ids())


def bound(name: str, node: str | None, resources: dict[str, int], phase: str = "Running") -> Json:
    """A plain pod of one container that takes resources, on a node or on none yet."""
    amounts = {key: str(count) for key, count in resources.items()}
    spec: Json = {"containers": [{"name": "main", "image": "x", "resources": {"limits": amounts, "requests": amounts}}]}
    if node:
        spec["nodeName"] = node
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": spec,
        "status": {"phase": phase if node else "Pending"},
    }


def two_models(name: str, count: int) -> Json:
    """A node of MI210 and MI300X under one resource name: the kubelet gives either."""
    labels = {
        f"amd.com/gpu.{key}.{value}": str(count)
        for key, values in {
            "device-id": ("740f", "74a1"),
            "product-name": ("Instinct_MI210", "AMD_Instinct_MI300X_OAM"),
        }.items()
        for value in values
    }
    return gpunodes.node(name, labels, {"amd.com/gpu": 2 * count})


def shared_beside_mig(name: str, replicas: int) -> Json:
    """A node in MIG mixed strategy whose whole GPUs are time-shared."""
    made = gpunodes.mig_mixed(name, "a100-80", 2 * replicas, **{"3g.40gb": 2})
    made["metadata"]["labels"] |= {
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-SHARED",
        "nvidia.com/gpu.count": "2",
        "nvidia.com/gpu.replicas": str(replicas),
        "nvidia.com/gpu.sharing-strategy": "time-slicing",
    }
    return made


def _taint() -> st.SearchStrategy[str | None]:
    return st.sampled_from([None, None, "nvidia.com/gpu", "amd.com/gpu", "team/owned"])


@st.composite
def gpu_node(draw: st.DrawFn, name: str) -> Json:
    """One node of any of the kinds that gpunodes builds, sometimes cordoned, not ready or with failed devices."""
    nvidia = st.sampled_from(sorted(gpunodes.NVIDIA))
    count = draw(st.integers(0, 4))
    kind = draw(st.integers(0, 9))
    made: Json
    if kind <= 1:
        made = gpunodes.nvidia(name, draw(nvidia), count, taint=draw(_taint()))
    elif kind == 2:
        made = gpunodes.amd(name, draw(st.sampled_from(sorted(gpunodes.AMD))), count, taint=draw(_taint()))
    elif kind == 3:
        made = gpunodes.amd(name, "mi300x", count * 2, mode=draw(st.sampled_from(["cpx_nps4", "dpx_nps1", "spx_nps1"])))
    elif kind == 4:
        made = gpunodes.mig_single(name, "a100-80", draw(st.sampled_from(["1g.10gb", "3g.40gb"])), count)
    elif kind == 5:
        made = gpunodes.mig_mixed(
            name, draw(st.sampled_from(["a100-80", "h100"])), count, **{"3g.40gb": draw(st.integers(0, 2))}
        )
    elif kind == 6:
        made = gpunodes.shared(name, draw(st.sampled_from(["t4", "l4"])), max(count, 1), draw(st.integers(2, 4)))
    elif kind == 7:
        made = two_models(name, max(count, 1))
    elif kind == 8:
        made = shared_beside_mig(name, draw(st.integers(2, 4)))
    else:
        made = gpunodes.node(name)
    fate = draw(st.integers(0, 11))
    if fate == 0:
        made["spec"]["unschedulable"] = True
    elif fate == 1:
        made["status"]["conditions"] = [{"type": "Ready", "status": draw(st.sampled_from(["False", "Unknown"]))}]
    elif fate == 2:
        for resource in made["status"]["allocatable"]:
            if "/" in resource:
                made["status"]["allocatable"][resource] = "0"
    return made


@st.composite
def gpu_nodes(draw: st.DrawFn, most: int = 8) -> list[Json]:
    """A mixed fleet."""
    return [draw(gpu_node(f"node-{number}")) for number in range(draw(st.integers(1, most)))]


NEEDS = st.fixed_dictionaries(
    {},
    optional={
        "gpus": st.sampled_from(["1", "1", "2", "4"]),
        "memory": st.sampled_from(["10Gi", "16G", "24G", "40Gi", "64Gi", "80G", "150G"]),
        "precision": st.sampled_from(["fp16", "bf16", "fp8", "bf16,fp16", "int8"]),
        "matrix_cores": st.sampled_from(["required", "preferred", "none"]),
        "vendor": st.sampled_from(["nvidia", "amd", "nvidia,amd", "amd,nvidia"]),
        "share": st.sampled_from(["whole", "slice", "any"]),
        "objective": st.sampled_from(["pack", "cost", "speed", "energy"]),
        "not_sku": st.sampled_from(["t4", "h100-sxm,mi300x"]),
    },
)
"""Annotations (in `gpunodes.pod`'s spelling) that a fleet of `gpu_nodes` can mostly serve."""
