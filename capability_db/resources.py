"""The kinds that admins and agents write, group anygpu.io, version v1alpha1: pydantic models, from which CRDs are made.

`GPUSKU` and `ModelProfile` are one entry of the capability DB each, named by the object; `PlacementPolicy` is a
namespace's (`default`), or the cluster's (`default` in anygpu-system); `ImageSet` is a logical image; `NodeGPUs` is
what a node's agent reports in its status. Field names are camelCase in the API, as they stand here in data files.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from capability_db.models import ModelFigures
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
Ids = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=63)], ...], Field(max_length=256)]
Weight = Annotated[float, Field(ge=0, le=1000)]
LabelMap = Annotated[dict[str, str], Field(min_length=1, max_length=16)]


# --- PlacementPolicy --------------------------------------------------------------------------------------------------


class Price(Data):
    """What a device of a SKU costs, on nodes with some labels or on all."""

    sku: Annotated[str, Field(min_length=1, max_length=50)]
    node_labels: LabelMap | None = None
    """Labels that a node must have, all of them; of several prices that hold the one with most labels wins."""
    usd_hour: Positive
    """USD per device-hour."""


class Weights(Data):
    """How much each figure counts where no single objective is asked; 0: not at all.

    Devices are ordered by the product of capability^w, price^w, watts^w and (bandwidth * TFLOPS)^(-w/2).
    """

    pack: Weight = 0
    cost: Weight = 0
    speed: Weight = 0
    energy: Weight = 0


class PlacementPolicySpec(Data):
    """What pods of a namespace may have, and what holds where they say nothing."""

    vendors: Annotated[tuple[VendorName, ...], Field(max_length=3)] = ()
    """Vendors allowed; empty: all."""
    skus: Ids = ()
    """SKUs allowed; empty: all."""
    not_skus: Ids = ()
    """SKUs forbidden."""
    max_price_usd_hour: Positive | None = None
    """USD per device-hour that no pod may go beyond; a SKU without a price does not qualify then."""
    objective: Literal["pack", "cost", "speed", "energy"] | None = None
    weights: Weights | None = None
    """In place of one objective."""
    binding: Literal["early", "late", "claim"] | None = None
    prices: Annotated[tuple[Price, ...], Field(max_length=1024)] = ()
    """Prices of this cluster; only the cluster's own policy states them."""


# --- ImageSet ---------------------------------------------------------------------------------------------------------


class Requires(Data):
    """What a variant of an image needs of node and device; a figure not stated is read from the image."""

    min_driver: Text | None = None
    """The oldest driver, `525.60.13`."""
    min_compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = None
    max_compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = None
    targets: Annotated[tuple[Annotated[str, Field(pattern=r"^gfx[0-9a-f]{3,5}$")], ...], Field(max_length=64)] = ()
    """AMD targets that the image was built for."""
    min_memory_gib: Positive | None = None
    architecture: Literal["amd64", "arm64"] | None = None
    """Of the CPU."""


class EnvVar(Data):
    """One environment variable."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    value: Annotated[str, Field(max_length=4096)] = ""


class Variant(Data):
    """The image for one vendor: a whole reference, or a tag of the set's repository in which `{tag}` is the user's."""

    vendor: VendorName
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    tag: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    requires: Requires | None = None
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = ()
    args: Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(max_length=64)] = ()
    runtime_class_name: Text | None = None


class ImageSetSpec(Data):
    """One logical image and its variants."""

    repository: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=32)]
    allowed_namespaces: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=256)] = ()
    """Namespaces that may use it; empty: all."""


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
    holders: tuple[Holder, ...] = ()


class MigPlacement(Data):
    """A profile that the device offers."""

    profile: Text
    starts: tuple[Amount, ...]
    """Placement units at which an instance may begin on the empty device."""
    size: Count
    free: tuple[Amount, ...] = ()
    """Those at which one may begin now."""


class Mig(Data):
    """How a device is cut in MIG instances."""

    enabled: bool
    instances: tuple[MigInstance, ...] = ()
    placements: tuple[MigPlacement, ...] = ()


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
    vendor: VendorName
    uuid: Text | None = None
    pci_bus_id: Text | None = Field(default=None, alias="pciBusID")
    pci_device_id: Annotated[str, Field(pattern=r"^[0-9a-f]{4}$")] | None = Field(default=None, alias="pciDeviceID")
    product: Text | None = None
    """The driver's name of the model."""
    sku: Text | None = None
    """The SKU that the agent's own DB knows it as."""
    target: Text | None = None
    """CUDA compute capability (`9.0`) or gfx target (`gfx942`)."""
    compute_units: Count | None = None
    memory_mib: Count | None = Field(default=None, alias="memoryMiB")
    memory_used_mib: Amount | None = Field(default=None, alias="memoryUsedMiB")
    numa_node: Annotated[int, Field(ge=0)] | None = None
    healthy: bool = True
    problems: tuple[Text, ...] = ()
    """Why it is not healthy."""
    ecc: Ecc | None = None
    throttling: tuple[Text, ...] = ()
    """Why its clocks are held down."""
    temperature_c: int | None = None
    power_watts: Annotated[float, Field(ge=0)] | None = None
    power_limit_watts: Annotated[float, Field(ge=0)] | None = None
    mig: Mig | None = None
    partition: Partition | None = None
    holders: tuple[Holder, ...] = ()


class NodeLink(Data):
    """What joins two devices of the node."""

    between: Annotated[tuple[Amount, ...], Field(min_length=2, max_length=2)]
    """Their places in `devices`."""
    kind: Literal["nvlink", "xgmi", "pcie", "host", "numa"]
    """The nearest that they share: `pcie` a switch, `host` a host bridge or NUMA node, `numa` nothing closer."""
    count: Count | None = None
    """Links side by side."""


class Driver(Data):
    """One vendor's driver on the node."""

    vendor: VendorName
    version: Text | None = None
    runtime: Text | None = None
    """The newest CUDA that the driver runs; None: the vendor's driver names none."""
    error: Annotated[str, Field(max_length=1024)] | None = None
    """Why its devices could not be read; what is listed of them is what was seen last."""


class Condition(Data):
    """A condition as the API's other kinds have them (metav1.Condition)."""

    type: Text
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    last_transition_time: str
    observed_generation: Amount | None = None


class Status(Data):
    """What anygpu says of an object that people write."""

    observed_generation: Amount | None = None
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = ()


class NodeGPUsSpec(Data):
    """Nothing: a node's GPUs are what they are."""


class NodeGPUsStatus(Status):
    """The node's inventory."""

    drivers: Annotated[tuple[Driver, ...], Field(max_length=3)] = ()
    devices: Annotated[tuple[Device, ...], Field(max_length=128)] = ()
    links: Annotated[tuple[NodeLink, ...], Field(max_length=8192)] = ()
    heartbeat: str | None = None
    """When the agent last looked (RFC 3339)."""


# --- The kinds --------------------------------------------------------------------------------------------------------


class Kind(BaseModel):
    """One kind of object."""

    name: str
    plural: str
    short: tuple[str, ...]
    namespaced: bool
    spec: type[Data]
    status: type[Data]
    columns: tuple[tuple[str, str, str], ...]
    """(title, JSONPath, type) of what `kubectl get` shows."""
    description: str
    rules: tuple[tuple[str, str], ...] = ()
    """(CEL on the whole object, message)."""

    @property
    def path(self) -> str:
        """Where the API serves all objects of the kind."""
        return f"{API}/{self.plural}"


class GPUSKUSpec(SkuFigures):
    """One GPU model; the object's name is its id."""


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
            status=Status,
            columns=(
                ("Vendor", ".spec.vendor", "string"),
                ("Target", ".spec.target", "string"),
                ("GiB", ".spec.memoryGib", "number"),
                _READY,
            ),
            description="One GPU model, under its SKU id; in place of the shipped one of that id.",
        ),
        Kind(
            name="ModelProfile",
            plural="modelprofiles",
            short=("mprofile",),
            namespaced=False,
            spec=ModelProfileSpec,
            status=Status,
            columns=(
                ("Kind", ".spec.kind", "string"),
                ("Precision", ".spec.precision", "string"),
                ("Parameters", ".spec.parameters", "integer"),
                _READY,
            ),
            description="One model that pods may name; in place of the shipped one of that name.",
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
            status=Status,
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
