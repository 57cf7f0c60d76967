"""The kinds that admins and agents write, group anygpu.io, version v1alpha1: pydantic models, from which CRDs are made.

`GPUSKU` and `ModelProfile` are one entry of the capability DB each, named by the object; `PlacementPolicy` is a
namespace's (`default`), or the cluster's (`default` in anygpu-system); `ImageSet` is a logical image; `NodeGPUs` is
what a node's agent reports in its status. Field names are camelCase in the API, as they stand here in data files.
"""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, Field

from capability_db import models, partitions, rules, sku
from capability_db.models import ModelFigures
from capability_db.rules import DISTINCT, SET, Rule
from capability_db.sku import Data, Positive, SkuFigures, VendorName

GROUP: Final = "anygpu.io"
VERSION: Final = "v1alpha1"
API: Final = f"/apis/{GROUP}/{VERSION}"
SYSTEM_NAMESPACE: Final = "anygpu-system"
DEFAULT: Final = "default"
"""The one name that a PlacementPolicy may have."""

Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1, max_length=253)]
SkuId = Annotated[str, Field(pattern=sku.SKU_ID, min_length=1, max_length=sku.SKU_ID_LENGTH)]
SkuIds = Annotated[tuple[SkuId, ...], Field(max_length=256, json_schema_extra=SET), DISTINCT]
Weight = Annotated[float, Field(ge=0, le=1000)]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$", max_length=63)]
LabelMap = Annotated[dict[str, LabelValue], Field(min_length=1, max_length=16)]
Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
Time = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$",
        max_length=40,
        json_schema_extra={"format": "date-time"},
    ),
]
"""RFC 3339."""


# --- PlacementPolicy --------------------------------------------------------------------------------------------------


class Price(Data):
    """What a device of a SKU costs, on nodes with some labels or on all."""

    sku: SkuId
    """Its id, as `anygpu skus` lists it."""
    node_labels: LabelMap | None = None
    """Labels that a node must have, all of them; of several prices that hold the one with most labels wins."""
    usd_hour: Positive
    """USD per device-hour."""


class Weights(Data):
    """How much each figure counts where no single objective is asked; 0: not at all.

    Devices are ordered by the product of capability^w, price^w, watts^w and (bandwidth * TFLOPS)^(-w/2).
    """

    pack: Weight = 0
    """Of the least capable GPU that fits."""
    cost: Weight = 0
    """Of the cheapest."""
    speed: Weight = 0
    """Of bandwidth and TFLOPS."""
    energy: Weight = 0
    """Of the fewest watts."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[self.pack, self.cost, self.speed, self.energy].exists(each, each > 0.0)",
            lambda weights: any((weights.pack, weights.cost, weights.speed, weights.energy)),
            "weights: all are 0, which orders nothing; give one of pack, cost, speed, energy more",
        ),
    )


class PlacementPolicySpec(Data):
    """What pods of a namespace may have, and what holds where they say nothing."""

    vendors: Annotated[tuple[VendorName, ...], Field(max_length=3, json_schema_extra=SET), DISTINCT] = ()
    """Vendors allowed; empty: all."""
    skus: SkuIds = ()
    """SKUs allowed; empty: all."""
    not_skus: SkuIds = ()
    """SKUs forbidden."""
    max_price_usd_hour: Positive | None = None
    """USD per device-hour that no pod may go beyond; a SKU without a price does not qualify then."""
    objective: Literal["pack", "cost", "speed", "energy"] | None = None
    """What breaks the tie among nodes that fit."""
    weights: Weights | None = None
    """In place of one objective."""
    binding: Literal["early", "late", "claim"] | None = None
    """When the vendor of a pod is decided."""
    prices: Annotated[tuple[Price, ...], Field(max_length=1024)] = ()
    """Prices of this cluster; only the cluster's own policy states them."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.skus) || !has(self.notSkus) || self.skus.all(each, !(each in self.notSkus))",
            lambda spec: {*spec.skus}.isdisjoint(spec.not_skus),
            "skus and notSkus: one is in both; a SKU is allowed or forbidden",
        ),
        Rule(
            "!has(self.weights) || !has(self.objective)",
            lambda spec: spec.weights is None or spec.objective is None,
            "weights and objective: weights stand in place of one objective; leave one of them out",
        ),
    )


# --- ImageSet ---------------------------------------------------------------------------------------------------------


ComputeCapability = Annotated[str, Field(pattern=r"^[0-9]{1,2}[.][0-9]$", max_length=4)]
GfxTarget = Annotated[str, Field(pattern=r"^gfx[0-9a-f]{3,5}$", max_length=8)]


class Requires(Data):
    """What a variant of an image needs of node and device; a figure not stated is read from the image."""

    min_driver: Text | None = None
    """The oldest driver, `525.60.13`."""
    min_compute_capability: ComputeCapability | None = None
    """The lowest CUDA compute capability, `8.0`."""
    max_compute_capability: ComputeCapability | None = None
    """The highest, where the image has no code for newer ones."""
    targets: Annotated[tuple[GfxTarget, ...], Field(max_length=64, json_schema_extra=SET), DISTINCT] = ()
    """AMD targets that the image was built for."""
    min_memory_gib: Positive | None = None
    """GiB of one device."""
    architecture: Literal["amd64", "arm64"] | None = None
    """Of the CPU."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.minComputeCapability) || !has(self.maxComputeCapability)"
            " || double(self.minComputeCapability) <= double(self.maxComputeCapability)",
            lambda needs: (
                needs.min_compute_capability is None
                or needs.max_compute_capability is None
                or float(needs.min_compute_capability) <= float(needs.max_compute_capability)
            ),
            "minComputeCapability: above maxComputeCapability, so that no GPU qualifies",
        ),
    )


class EnvVar(Data):
    """One environment variable."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Letters, digits and underscores."""
    value: Annotated[str, Field(max_length=4096)] = ""


Env = Annotated[
    tuple[EnvVar, ...], Field(max_length=64, json_schema_extra=rules.keyed("name")), rules.distinct_by("name")
]
_REPOSITORY: Final = r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
_TAG: Final = r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha(256|384|512):[0-9a-f]{64,128})?"
RepositoryName = Annotated[str, Field(pattern=f"^{_REPOSITORY}$", min_length=1, max_length=255)]
ImageName = Annotated[str, Field(pattern=f"^{_REPOSITORY}{_TAG}$", min_length=1, max_length=512)]
TagTemplate = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9_]|[{]tag[}])([A-Za-z0-9_.-]|[{]tag[}])*$", min_length=1, max_length=256)
]


class Variant(Data):
    """The image for one vendor: a whole reference, or a tag of the set's repository in which `{tag}` is the user's."""

    vendor: VendorName
    image: ImageName | None = None
    """The whole reference, `registry.example.com/team/app:v1-cuda12`."""
    tag: TagTemplate | None = None
    """A tag of the set's repository, `{tag}-rocm`."""
    requires: Requires | None = None
    env: Env = ()
    """Environment that the container gets with this variant."""
    args: Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(max_length=64)] = ()
    """Arguments that the container gets with this variant."""
    runtime_class_name: Text | None = None
    """The RuntimeClass that the pod gets."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.image) != has(self.tag)",
            lambda variant: (variant.image is None) != (variant.tag is None),
            "a variant states exactly one of image (a whole reference) and tag (of the set's repository)",
        ),
        Rule(
            "self.vendor == 'nvidia' || !has(self.requires)"
            " || (!has(self.requires.minComputeCapability) && !has(self.requires.maxComputeCapability))",
            lambda variant: (
                variant.vendor == "nvidia"
                or variant.requires is None
                or (variant.requires.min_compute_capability is None and variant.requires.max_compute_capability is None)
            ),
            "requires: only GPUs of nvidia have a compute capability; those of amd have targets",
        ),
        Rule(
            f"self.vendor == 'amd' || !has(self.requires) || {rules.none('self.requires.targets')}",
            lambda variant: variant.vendor == "amd" or variant.requires is None or not variant.requires.targets,
            "requires: only GPUs of amd have gfx targets; those of nvidia have a compute capability",
        ),
    )


class ImageSetSpec(Data):
    """One logical image and its variants."""

    repository: RepositoryName | None = None
    """Where the variants that state a tag are, `registry.example.com/team/app`."""
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=32)]
    """What there is, by vendor; a vendor without one is no candidate."""
    allowed_namespaces: Annotated[tuple[Namespace, ...], Field(max_length=256, json_schema_extra=SET), DISTINCT] = ()
    """Namespaces that may use it; empty: all."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.repository) || self.variants.all(each, !has(each.tag))",
            lambda spec: spec.repository is not None or all(each.tag is None for each in spec.variants),
            "repository: a variant that states a tag needs it",
        ),
    )


# --- NodeGPUs ---------------------------------------------------------------------------------------------------------


class Holder(Data):
    """A container that holds a device, as the kubelet says (PodResources)."""

    namespace: Text
    pod: Text
    container: Text


class MigInstance(Data):
    """One MIG instance of a device."""

    profile: Text
    uuid: Text | None = None
    start: Amount | None = None
    """Placement unit where it begins."""
    size: Count | None = None
    memory_mib: Amount | None = Field(default=None, alias="memoryMiB")
    holders: Annotated[tuple[Holder, ...], Field(max_length=128)] = ()


class MigPlacement(Data):
    """A profile that the device offers."""

    profile: Text
    starts: Annotated[tuple[Amount, ...], Field(max_length=64)]
    """Placement units at which an instance may begin on the empty device."""
    size: Count
    free: Annotated[tuple[Amount, ...], Field(max_length=64)] = ()
    """Those at which one may begin now."""


class Mig(Data):
    """How a device is cut in MIG instances."""

    enabled: bool
    instances: Annotated[tuple[MigInstance, ...], Field(max_length=32)] = ()
    placements: Annotated[tuple[MigPlacement, ...], Field(max_length=64)] = ()


class Partition(Data):
    """An AMD device's partition modes: `CPX`, `NPS4`."""

    compute: Text
    memory: Text | None = None


class Ecc(Data):
    """Memory errors since the device was made, and memory that was retired for them."""

    corrected: Amount | None = None
    uncorrected: Amount | None = None
    retired: Amount | None = None
    """Pages retired, or rows remapped."""
    pending: bool | None = None
    """Whether a retirement waits for a reset."""
    remap_failed: bool | None = None


class Device(Data):
    """One GPU, as its driver reports it; what the driver does not report is unknown."""

    index: Amount
    """The driver's own number of it."""
    vendor: VendorName
    uuid: Text | None = None
    """The driver's own name of it."""
    pci_bus_id: Text | None = Field(default=None, alias="pciBusID")
    """Its address, `0000:1b:00.0`."""
    pci_device_id: sku.PciId | None = Field(default=None, alias="pciDeviceID")
    """The model of the card, in four lower-case hex digits."""
    product: Text | None = None
    """The driver's name of the model."""
    sku: Text | None = None
    """The SKU that the agent's own DB knows it as."""
    target: Text | None = None
    """CUDA compute capability (`9.0`) or gfx target (`gfx942`)."""
    compute_units: Count | None = None
    memory_mib: Count | None = Field(default=None, alias="memoryMiB")
    """All of its memory."""
    memory_used_mib: Amount | None = Field(default=None, alias="memoryUsedMiB")
    numa_node: Annotated[int, Field(ge=0)] | None = None
    healthy: bool = True
    problems: Annotated[tuple[Text, ...], Field(max_length=32)] = ()
    """Why it is not healthy."""
    ecc: Ecc | None = None
    throttling: Annotated[tuple[Text, ...], Field(max_length=32)] = ()
    """Why its clocks are held down."""
    temperature_c: int | None = None
    power_watts: Annotated[float, Field(ge=0)] | None = None
    power_limit_watts: Annotated[float, Field(ge=0)] | None = None
    mig: Mig | None = None
    partition: Partition | None = None
    holders: Annotated[tuple[Holder, ...], Field(max_length=128)] = ()


class NodeLink(Data):
    """What joins two devices of the node."""

    between: Annotated[tuple[Amount, ...], Field(min_length=2, max_length=2)]
    """Their places in `devices`."""
    kind: Literal["nvlink", "xgmi", "pcie", "host", "numa"]
    """The nearest that they share: `pcie` a switch, `host` a host bridge or NUMA node, `numa` nothing closer."""
    count: Count | None = None
    """Links side by side."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.between[0] != self.between[1]",
            lambda link: link.between[0] != link.between[1],
            "between: a link joins two different devices",
        ),
    )


class Driver(Data):
    """One vendor's driver on the node."""

    vendor: VendorName
    version: Text | None = None
    runtime: Text | None = None
    """The newest CUDA that the driver runs; not stated: the vendor's driver names none."""
    error: Annotated[str, Field(max_length=1024)] | None = None
    """Why its devices could not be read; what is listed of them is what was seen last."""


class Condition(Data):
    """A condition as the API's other kinds have them (metav1.Condition)."""

    type: Text
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    last_transition_time: Time
    observed_generation: Amount | None = None


class Status(Data):
    """What anygpu says of an object that people write."""

    observed_generation: Amount | None = None
    """The generation of the spec that this is about."""
    conditions: Annotated[
        tuple[Condition, ...], Field(max_length=8, json_schema_extra=rules.keyed("type")), rules.distinct_by("type")
    ] = ()


class RegisteredStatus(Status):
    """What anygpu says of an entry of the capability DB, or of a policy."""

    in_force: Annotated[str, Field(max_length=1 << 20)] | None = None
    """The spec (JSON) that counts while the object's own is not valid; not stated: its own counts, or none."""


class NodeGPUsSpec(Data):
    """Nothing: a node's GPUs are what they are."""


class NodeGPUsStatus(Status):
    """The node's inventory."""

    drivers: Annotated[tuple[Driver, ...], Field(max_length=3)] = ()
    devices: Annotated[tuple[Device, ...], Field(max_length=128)] = ()
    links: Annotated[tuple[NodeLink, ...], Field(max_length=8192)] = ()
    heartbeat: Time | None = None
    """When the agent last looked (RFC 3339)."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.links) || self.links.all(link, has(self.devices)"
            " && link.between.all(place, place < size(self.devices)))",
            lambda status: all(place < len(status.devices) for link in status.links for place in link.between),
            "links: between names a place that devices does not have",
        ),
    )


# --- The kinds --------------------------------------------------------------------------------------------------------


class Kind(BaseModel):
    """One kind of object."""

    name: str
    """What `kind` says."""
    plural: str
    short: tuple[str, ...]
    namespaced: bool
    spec: type[Data]
    status: type[Data]
    columns: tuple[tuple[str, str, str], ...]
    """(title, JSONPath, type) of what `kubectl get` shows."""
    description: str
    name_length: int = 253
    """Characters that an object's name may have."""
    rules: tuple[tuple[str, str], ...] = ()
    """(CEL on the whole object, message)."""

    @property
    def path(self) -> str:
        """Where the API serves all objects of the kind."""
        return f"{API}/{self.plural}"


def _known_geometry(key: str) -> str:
    """The key; raises where no MIG geometry has it."""
    if key not in partitions.mig_keys():
        raise ValueError(f"{key!r} is no geometry; known are {', '.join(partitions.mig_keys())}")
    return key


def _geometries(schema: dict[str, Any]) -> None:
    """Adds the keys of all geometries to a schema, when one is made: importing reads no data."""
    schema["enum"] = [*partitions.mig_keys()]


class GPUSKUSpec(SkuFigures):
    """One GPU model; the object's name is its id.

    Figures are those of one card, as its sources print them; `devices_per_card` says how many devices Kubernetes sees
    in it. What is not stated is unknown, and never qualifies. TFLOPS are dense.
    """

    mig: Annotated[str, AfterValidator(_known_geometry), Field(json_schema_extra=_geometries)] | None = None
    """The MIG geometry; not stated: no MIG."""


class ModelProfileSpec(ModelFigures):
    """One model's shape, or its plain needs; the object's name is its id."""


_READY = ("Ready", '.status.conditions[?(@.type=="Ready")].status', "string")

KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind(
            name="GPUSKU",
            plural="gpuskus",
            short=("gpusku", "sku"),
            namespaced=False,
            spec=GPUSKUSpec,
            status=RegisteredStatus,
            columns=(
                ("Vendor", ".spec.vendor", "string"),
                ("Target", ".spec.target", "string"),
                ("GiB", ".spec.memoryGib", "number"),
                _READY,
            ),
            description="One GPU model, under its SKU id; in place of the shipped one of that id.",
            name_length=sku.SKU_ID_LENGTH,
            rules=(
                (
                    f"self.metadata.name.matches('{sku.SKU_ID}')",
                    "metadata.name: is the SKU id, of lower-case letters, digits and inner dashes, h100-sxm",
                ),
                (
                    "self.spec.vendor == oldSelf.spec.vendor",
                    "spec.vendor: a GPU model never changes its vendor; delete the object and create it anew",
                ),
            ),
        ),
        Kind(
            name="ModelProfile",
            plural="modelprofiles",
            short=("mprofile",),
            namespaced=False,
            spec=ModelProfileSpec,
            status=RegisteredStatus,
            columns=(
                ("Kind", ".spec.kind", "string"),
                ("Precision", ".spec.precision", "string"),
                ("Parameters", ".spec.parameters", "integer"),
                _READY,
            ),
            description="One model that pods may name; in place of the shipped one of that name.",
            name_length=models.MODEL_ID_LENGTH,
        ),
        Kind(
            name="ImageSet",
            plural="imagesets",
            short=("imgset",),
            namespaced=False,
            spec=ImageSetSpec,
            status=Status,
            columns=(("Repository", ".spec.repository", "string"), _READY),
            description="One logical image and its variants by vendor.",
        ),
        Kind(
            name="PlacementPolicy",
            plural="placementpolicies",
            short=("gpupolicy",),
            namespaced=True,
            spec=PlacementPolicySpec,
            status=RegisteredStatus,
            columns=(
                ("Objective", ".spec.objective", "string"),
                ("Binding", ".spec.binding", "string"),
                ("MaxPrice", ".spec.maxPriceUsdHour", "number"),
                _READY,
            ),
            description="What GPUs pods of a namespace may have; in anygpu-system, those of all namespaces.",
            rules=(
                ("self.metadata.name == 'default'", "a namespace has one PlacementPolicy, and its name is default"),
            ),
        ),
        Kind(
            name="NodeGPUs",
            plural="nodegpus",
            short=("ngpu",),
            namespaced=False,
            spec=NodeGPUsSpec,
            status=NodeGPUsStatus,
            columns=(("Heartbeat", ".status.heartbeat", "string"), _READY),
            description="The GPUs of one node, as its agent sees them; the name is the node's.",
        ),
    )
}


def document(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    """An object of a kind, as the API takes it."""
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": name}, **fields}
