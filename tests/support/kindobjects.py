"""Objects of anygpu's kinds: a good one of each, every shipped SKU and model, and what is wrong in many ways."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from capability_db import models, resources, sku
from capability_db.catalogue import Catalogue

Json = dict[str, Any]
PROVENANCE = {"confidence": "known"}

GOOD: dict[str, Json] = {
    "GPUSKU": resources.document(
        "GPUSKU",
        "x100-sxm",
        spec={
            "vendor": "nvidia",
            "architecture": "hopper",
            "target": "9.0",
            "memoryGib": 80,
            "reportedMemoryMib": 81559,
            "bandwidthGbs": 3350,
            "tflops": {"fp16": 989, "fp8": 1978},
            "matrixTflops": {"fp64": 67},
            "formats": ["fp64", "fp16", "fp8"],
            "matrixUnit": "Tensor Core gen4",
            "matrixFormats": ["fp64", "fp16", "fp8"],
            "link": {"name": "NVLink4", "gbs": 900, "reach": "node"},
            "mig": "h100-80gb",
            "match": {"product": ["NVIDIA-X100"], "pci": ["fff0"], "cloud": ["cloud.example.com/gpu=x100"]},
        },
    ),
    "ModelProfile": resources.document(
        "ModelProfile",
        "tiny-1.5b",
        spec={
            "kind": "llm",
            "precision": "bf16",
            "parameters": 1_500_000_000,
            "layers": 28,
            "hiddenSize": 1536,
            "attentionHeads": 12,
            "kvHeads": 2,
            "headDim": 128,
            "ffnSize": 8960,
            "vocabulary": 151936,
            "maxContext": 32768,
            "weightsGib": {"fp8": 1.7},
        },
    ),
    "ImageSet": resources.document(
        "ImageSet",
        "llm-server",
        spec={
            "repository": "registry.example.com:5000/team/llm-server",
            "variants": [
                {
                    "vendor": "nvidia",
                    "tag": "{tag}-cuda12.4",
                    "requires": {"minDriver": "525.60.13", "minComputeCapability": "8.0"},
                    "env": [{"name": "A", "value": "1"}, {"name": "B"}],
                },
                {
                    "vendor": "amd",
                    "image": "registry.example.com/team/llm-server:v1-rocm6.2",
                    "requires": {"targets": ["gfx90a", "gfx942"], "minMemoryGib": 48, "architecture": "amd64"},
                    "args": ["--dtype", "bf16"],
                },
            ],
            "allowedNamespaces": ["team-a"],
        },
    ),
    "PlacementPolicy": resources.document(
        "PlacementPolicy",
        "default",
        spec={
            "vendors": ["amd", "nvidia"],
            "skus": ["h100-sxm", "mi300x"],
            "notSkus": ["t4"],
            "maxPriceUsdHour": 2.5,
            "weights": {"cost": 2, "pack": 0.5},
            "binding": "early",
            "prices": [{"sku": "h100-sxm", "nodeLabels": {"pool": "spot"}, "usdHour": 1.2}],
        },
    ),
    "NodeGPUs": resources.document(
        "NodeGPUs",
        "gpu-node-1",
        status={
            "observedGeneration": 1,
            "heartbeat": "2026-11-27T00:00:00Z",
            "drivers": [{"vendor": "nvidia", "version": "570.86.15", "runtime": "12.8"}],
            "devices": [
                {
                    "index": 0,
                    "vendor": "nvidia",
                    "uuid": "GPU-0",
                    "pciDeviceID": "2330",
                    "memoryMiB": 81559,
                    "ecc": {"corrected": 3, "pending": False},
                    "mig": {"enabled": True, "placements": [{"profile": "1g.10gb", "starts": [0, 1], "size": 1}]},
                    "holders": [{"namespace": "a", "pod": "b", "container": "c"}],
                },
                {"index": 1, "vendor": "nvidia", "healthy": False, "problems": ["XID 79"]},
            ],
            "links": [{"between": [0, 1], "kind": "nvlink", "count": 18}],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "Read",
                    "message": "",
                    "lastTransitionTime": "2026-11-27T00:00:00Z",
                    "observedGeneration": 1,
                }
            ],
        },
    ),
}


def shipped() -> Iterator[Json]:
    """Every shipped SKU and model profile as an object."""
    for kind, entries in (("GPUSKU", Catalogue.builtin()), ("ModelProfile", models.Profiles.builtin())):
        for entry in entries:
            yield resources.document(kind, entry.id, spec=spec_of(entry))


def spec_of(entry: sku.Sku | models.ModelProfile) -> Json:
    """What an object of the entry states: nothing that it leaves at its default."""
    return entry.model_dump(
        mode="json", by_alias=True, exclude={"id", "provenance"}, exclude_none=True, exclude_defaults=True
    )


@dataclass(frozen=True, slots=True)
class Bad:
    """A good object with one thing wrong."""

    kind: str
    what: str
    change: Mapping[str, Any]
    """Path (`spec.link.reach`, `spec.variants.0.tag`) -> value; `...` removes it."""
    says: str
    """A part of the API server's refusal."""
    unread: str = ""
    """Why the model takes it all the same; empty: it refuses too."""

    @property
    def document(self) -> Json:
        """The object."""
        made = copy.deepcopy(GOOD[self.kind])
        for path, value in self.change.items():
            *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
            holder: Any = made
            for step in way:
                holder = holder[step] if isinstance(holder, list) else holder.setdefault(step, {})
            if value is ...:
                del holder[last]
            else:
                holder[last] = value
        return made


COERCED = "the API server never lets such a type through, so the models need not be strict"
NAMED = "the rule is about the object's name, which is no field of the model"


def _many(kind: str, *rows: tuple[str, Mapping[str, Any], str] | tuple[str, Mapping[str, Any], str, str]) -> list[Bad]:
    return [Bad(kind, *row) for row in rows]


V = "spec.variants.0"

BAD: list[Bad] = [
    *_many(
        "GPUSKU",
        ("a misspelt field", {"spec.memroyGib": 80}, 'unknown field "spec.memroyGib"'),
        ("a field of the status in the spec", {"spec.conditions": []}, 'unknown field "spec.conditions"'),
        ("a rate of no known format", {"spec.tflops.fp6": 1}, 'unknown field "spec.tflops.fp6"'),
        ("no spec", {"spec": ...}, "spec: Required value"),
        ("no memory", {"spec.memoryGib": ...}, "spec.memoryGib: Required value"),
        ("no link", {"spec.link": ...}, "spec.link: Required value"),
        ("a misspelt vendor", {"spec.vendor": "nvida"}, 'spec.vendor: Unsupported value: "nvida": supported values'),
        ("no memory at all", {"spec.memoryGib": 0}, "spec.memoryGib in body should be greater than 0"),
        (
            "memory as text",
            {"spec.memoryGib": "80"},
            'spec.memoryGib in body must be of type number: "string"',
            COERCED,
        ),
        ("a target that YAML reads as a number", {"spec.target": 9.0}, "spec.target in body must be of type string"),
        ("a rate below zero", {"spec.tflops.fp8": -1}, "spec.tflops.fp8 in body should be greater than 0"),
        (
            "a rate of an unlisted format",
            {"spec.tflops.fp4": 1},
            "tflops.fp4: a rate of a format that formats does not",
        ),
        ("a matrix rate of one", {"spec.matrixTflops.fp32": 1}, "matrixTflops.fp32: a rate of a format that formats"),
        ("rates without formats", {"spec.formats": ..., "spec.matrixFormats": ...}, "add fp16 to formats"),
        ("a matrix format not listed", {"spec.matrixFormats": ["bf16"]}, "matrixFormats: lists a format that formats"),
        ("matrix formats of no unit", {"spec.matrixUnit": ...}, "matrixFormats: needs a matrixUnit"),
        ("an unknown format", {"spec.formats": ["fp5"]}, 'Unsupported value: "fp5": supported values: "fp64"'),
        ("a format twice", {"spec.matrixFormats": ["fp8", "fp8"]}, 'Duplicate value: "fp8"'),
        ("a product that no label can hold", {"spec.match.product": ["NVIDIA H100"]}, "spec.match.product[0] in body"),
        ("a PCI id in capitals", {"spec.match.pci": ["20B0"]}, "should match '^[0-9a-f]{4}$'"),
        ("a PCI id with its vendor", {"spec.match.pciShared": ["10de2330"]}, "spec.match.pciShared[0]"),
        ("a cloud label without a value", {"spec.match.cloud": ["gke-accelerator"]}, "spec.match.cloud[0] in body"),
        (
            "a part of a compute unit",
            {"spec.match.cuCount": 1.5},
            'spec.match.cuCount in body must be of type int64: "float64"',
        ),
        ("a link that reaches too far", {"spec.link.reach": "rack"}, 'Unsupported value: "rack"'),
        ("an unknown geometry", {"spec.mig": "h100"}, 'spec.mig: Unsupported value: "h100": supported values: "a30"'),
        ("MIG on AMD", {"spec.vendor": "amd", "spec.target": "gfx942"}, "mig: only nvidia GPUs have MIG"),
        ("AMD's modes on NVIDIA", {"spec.computeModes": ["CPX"]}, "computeModes and memoryModes: only amd GPUs"),
        ("a mode that is none", {"spec.memoryModes": ["nps4"]}, "should match '^NPS[0-9]$'"),
        ("AMD's target on NVIDIA", {"spec.target": "gfx942"}, "target: a CUDA compute capability for nvidia (9.0)"),
        ("bytes for MiB", {"spec.reportedMemoryMib": 85899345920}, "reportedMemoryMib: more than memoryGib"),
        ("no device on the card", {"spec.devicesPerCard": 0}, "devicesPerCard in body should be greater than or equal"),
        ("a price of nothing", {"spec.priceUsdHour": 0}, "spec.priceUsdHour in body should be greater than 0"),
        ("a generation to come", {"spec.pcieGen": 50}, "spec.pcieGen in body should be less than or equal to 9"),
        ("a resource of no domain", {"spec.resources": ["gpu"]}, "spec.resources[0] in body should match"),
        ("a name with a dot", {"metadata.name": "h100.sxm"}, "metadata.name: is the SKU id, of lower-case letters"),
        ("a name too long for labels", {"metadata.name": "x" * 51}, "metadata.name: Too long: may not be more than 50"),
    ),
    *_many(
        "ModelProfile",
        ("a misspelt field", {"spec.params": 7}, 'unknown field "spec.params"'),
        ("an unknown kind", {"spec.kind": "chatbot"}, 'spec.kind: Unsupported value: "chatbot"'),
        ("no precision", {"spec.precision": ...}, "spec.precision: Required value"),
        ("an unknown precision", {"spec.precision": "int4"}, 'spec.precision: Unsupported value: "int4"'),
        ("no parameter", {"spec.parameters": 0}, "spec.parameters in body should be greater than or equal to 1"),
        ("parameters in words", {"spec.parameters": "8B"}, 'spec.parameters in body must be of type integer: "string"'),
        ("half a layer", {"spec.layers": 32.5}, 'spec.layers in body must be of type int64: "float64"'),
        (
            "yes for true",
            {"spec.tiedEmbeddings": "yes"},
            "spec.tiedEmbeddings in body must be of type boolean",
            COERCED,
        ),
        ("a window of no layers", {"spec.slidingWindow": 4096}, "slidingWindow and slidingLayers go together"),
        (
            "more sliding layers than layers",
            {"spec.slidingWindow": 4096, "spec.slidingLayers": 29},
            "slidingLayers: more than layers",
        ),
        (
            "half a latent cache",
            {"spec.latentSize": 512, "spec.kvHeads": ...},
            "latentSize and ropeSize go together (kv_lora_rank, qk_rope_head_dim)",
        ),
        (
            "KV heads beside a latent cache",
            {"spec.latentSize": 512, "spec.ropeSize": 64},
            "kvHeads: the latent cache (latentSize) has none",
        ),
        ("more KV heads than heads", {"spec.kvHeads": 24}, "kvHeads: more than attentionHeads"),
        (
            "more active than there are",
            {"spec.activeParameters": 9_000_000_000},
            "activeParameters: more than parameters",
        ),
        ("weights of no known format", {"spec.weightsGib": {"q4": 1}}, 'unknown field "spec.weightsGib.q4"'),
        ("weights of nothing", {"spec.weightsGib.fp8": 0}, "spec.weightsGib.fp8 in body should be greater than 0"),
        ("memory below zero", {"spec.memoryGib": -1}, "spec.memoryGib in body should be greater than 0"),
        ("a name too long for annotations", {"metadata.name": "x" * 64}, "metadata.name: Too long"),
    ),
    *_many(
        "PlacementPolicy",
        (
            "another name",
            {"metadata.name": "mine"},
            "a namespace has one PlacementPolicy, and its name is default",
            NAMED,
        ),
        ("a field of another kind", {"spec.sku": "t4"}, 'unknown field "spec.sku"'),
        ("a misspelt vendor", {"spec.vendors": ["amd", "nvida"]}, 'spec.vendors[1]: Unsupported value: "nvida"'),
        ("a vendor twice", {"spec.vendors": ["amd", "amd"]}, 'spec.vendors[1]: Duplicate value: "amd"'),
        ("a SKU allowed and forbidden", {"spec.notSkus": ["mi300x"]}, "skus and notSkus: one is in both"),
        ("a SKU in capitals", {"spec.skus": ["H100"]}, "spec.skus[0] in body should match"),
        (
            "too many SKUs",
            {"spec.skus": [f"s{n}" for n in range(257)]},
            "spec.skus: Too many: 257: must have at most 256",
        ),
        ("weights of nothing", {"spec.weights": {"cost": 0}}, "weights: all are 0, which orders nothing"),
        (
            "a weight below zero",
            {"spec.weights.cost": -1},
            "spec.weights.cost in body should be greater than or equal to 0",
        ),
        (
            "a weight beyond measure",
            {"spec.weights.cost": 1e6},
            "spec.weights.cost in body should be less than or equal",
        ),
        ("weights and objective", {"spec.objective": "cost"}, "weights stand in place of one objective"),
        ("an unknown weight", {"spec.weights.latency": 1}, 'unknown field "spec.weights.latency"'),
        ("an unknown objective", {"spec.weights": ..., "spec.objective": "cheap"}, 'Unsupported value: "cheap"'),
        ("an unknown binding", {"spec.binding": "lazy"}, 'spec.binding: Unsupported value: "lazy"'),
        ("a cap of nothing", {"spec.maxPriceUsdHour": 0}, "spec.maxPriceUsdHour in body should be greater than 0"),
        ("a price of no SKU", {"spec.prices.0.sku": ...}, "spec.prices[0].sku: Required value"),
        ("a price of nothing", {"spec.prices.0.usdHour": 0}, "spec.prices[0].usdHour in body should be greater than 0"),
        (
            "a price for no label",
            {"spec.prices.0.nodeLabels": {}},
            "nodeLabels in body should have at least 1 properties",
        ),
        (
            "a value that no label has",
            {"spec.prices.0.nodeLabels": {"a": "b c"}},
            "spec.prices[0].nodeLabels.a in body",
        ),
    ),
    *_many(
        "ImageSet",
        ("no variants", {"spec.variants": []}, "spec.variants in body should have at least 1 items"),
        ("a variant of no vendor", {f"{V}.vendor": ...}, "spec.variants[0].vendor: Required value"),
        ("image and tag", {f"{V}.image": "a:b"}, "exactly one of image (a whole reference) and tag"),
        ("neither image nor tag", {f"{V}.tag": ...}, "exactly one of image (a whole reference) and tag"),
        ("a tag of no repository", {"spec.repository": ...}, "repository: a variant that states a tag needs it"),
        (
            "a repository as a URL",
            {"spec.repository": "https://registry.example.com/a"},
            "spec.repository in body should",
        ),
        ("a repository with a tag", {"spec.repository": "team/app:v1"}, "spec.repository in body should match"),
        (
            "an image with a space",
            {f"{V}.tag": ..., f"{V}.image": "team/app: v1"},
            "spec.variants[0].image in body should",
        ),
        ("another placeholder", {f"{V}.tag": "{vendor}-x"}, "spec.variants[0].tag in body should match"),
        (
            "a range of no capability",
            {f"{V}.requires.maxComputeCapability": "7.5"},
            "minComputeCapability: above maxComputeCapability",
        ),
        ("half a capability", {f"{V}.requires.minComputeCapability": "8"}, "minComputeCapability in body should match"),
        (
            "a capability on AMD",
            {"spec.variants.1.requires.minComputeCapability": "8.0"},
            "only GPUs of nvidia have a compute capability",
        ),
        ("a gfx target on NVIDIA", {f"{V}.requires.targets": ["gfx942"]}, "only GPUs of amd have gfx targets"),
        (
            "a target that is none",
            {"spec.variants.1.requires.targets": ["sm_90"]},
            "requires.targets[0] in body should",
        ),
        ("no memory", {"spec.variants.1.requires.minMemoryGib": 0}, "requires.minMemoryGib in body should be greater"),
        (
            "a CPU that is none",
            {f"{V}.requires.architecture": "x86"},
            'Unsupported value: "x86": supported values: "amd64"',
        ),
        ("a variable set twice", {f"{V}.env.1.name": "A"}, 'spec.variants[0].env[1]: Duplicate value: {"name":"A"}'),
        ("a variable that is none", {f"{V}.env.1.name": "MY-VAR"}, "spec.variants[0].env[1].name in body should match"),
        (
            "a namespace that is none",
            {"spec.allowedNamespaces": ["Team A"]},
            "spec.allowedNamespaces[0] in body should",
        ),
    ),
    *_many(
        "NodeGPUs",
        ("something to wish for", {"spec.gpus": 8}, 'unknown field "spec.gpus"'),
        ("a device of no vendor", {"status.devices.0.vendor": ...}, "status.devices[0].vendor: Required value"),
        ("an index below zero", {"status.devices.0.index": -1}, "status.devices[0].index: Invalid value: -1"),
        ("an unknown figure", {"status.devices.0.temperature": 40}, 'unknown field "status.devices[0].temperature"'),
        ("no memory", {"status.devices.0.memoryMiB": 0}, "status.devices[0].memoryMiB: Invalid value: 0"),
        (
            "a PCI id in capitals",
            {"status.devices.0.pciDeviceID": "20B0"},
            'status.devices[0].pciDeviceID: Invalid value: "20B0"',
        ),
        ("a holder of no container", {"status.devices.0.holders.0.container": ...}, "holders[0].container: Required"),
        (
            "too many devices",
            {"status.devices": [{"index": 0, "vendor": "amd"}] * 129},
            "status.devices: Too many: 129",
        ),
        ("a link of three", {"status.links.0.between": [0, 1, 1]}, "between: Too many: 3: must have at most 2"),
        ("a link of one", {"status.links.0.between": [0]}, "between in body should have at least 2 items"),
        ("a link to itself", {"status.links.0.between": [1, 1]}, "between: a link joins two different devices"),
        (
            "a link to nowhere",
            {"status.links.0.between": [0, 2]},
            "links: between names a place that devices does not have",
        ),
        ("a link of no kind", {"status.links.0.kind": "wifi"}, 'status.links[0].kind: Unsupported value: "wifi"'),
        ("a time that is none", {"status.heartbeat": "yesterday"}, 'status.heartbeat: Invalid value: "yesterday"'),
        ("a status of no condition", {"status.conditions.0.status": "yes"}, 'status: Unsupported value: "yes"'),
        (
            "a condition of no time",
            {"status.conditions.0.lastTransitionTime": ...},
            "lastTransitionTime: Required value",
        ),
        (
            "a reason in words",
            {"status.conditions.0.reason": "It is so"},
            'status.conditions[0].reason: Invalid value: "It is so"',
        ),
        (
            "a condition twice",
            {"status.conditions": GOOD["NodeGPUs"]["status"]["conditions"] * 2},
            'status.conditions[1]: Duplicate value: {"type":"Ready"}',
        ),
    ),
]


def read(document: Json) -> pydantic.BaseModel:
    """The object's spec, or a NodeGPUs's status, as the models read it; raises ValidationError."""
    kind, name = document["kind"], document["metadata"]["name"]
    if kind == "GPUSKU":
        resources.GPUSKUSpec.model_validate(document.get("spec"))
        return sku.Sku.model_validate({**document["spec"], "id": name, "provenance": PROVENANCE})
    if kind == "ModelProfile":
        return models.ModelProfile.model_validate({**document["spec"], "id": name, "provenance": PROVENANCE})
    if kind == "NodeGPUs":
        resources.NodeGPUsSpec.model_validate(document.get("spec", {}))
        return resources.NodeGPUsStatus.model_validate(document["status"])
    return resources.KINDS[kind].spec.model_validate(document.get("spec"))
