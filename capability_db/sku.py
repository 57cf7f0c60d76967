"""One GPU model: what a device of it can do, as data states it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Format = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int8"]
FORMATS: tuple[Format, ...] = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int8")
VendorName = Literal["nvidia", "amd", "intel"]

Positive = Annotated[float, Field(gt=0)]


class Frozen(BaseModel):
    """Base of every value people write: immutable, and nothing unknown is let through."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Frozen):
    """Base of what stands in data files with its names as here, and in the API's objects in camelCase."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)


class Link(Data):
    """What joins several devices of the model; `reach` says how far it goes without looking at the node.

    `node`: every device of a node is on one island by construction (SXM, OAM). `bridge`: optional bridges join
    some cards, which node objects do not tell. `none`: PCIe or Ethernet only.
    """

    name: str
    gbs: Positive | None = None
    """Bidirectional GB/s a device."""
    reach: Literal["node", "bridge", "none"]


class Match(Data):
    """How node objects name the model: whole values, never substrings."""

    product: tuple[str, ...] = ()
    """Values of the vendor's product label."""
    pci: tuple[str, ...] = ()
    """PCI device ids in lower-case hex that mean this model and no other card."""
    pci_shared: tuple[str, ...] = ()
    """PCI device ids that other cards carry too; they count only together with another fact (memory_gib, cu_count)."""
    cu_count: int | None = None
    """AMD compute units of one device, which tell models with one PCI id apart."""
    cloud: tuple[str, ...] = ()
    """`key=value` node labels of clouds, exact."""


class Provenance(Frozen):
    """Where the figures were seen, and which of them are general knowledge."""

    confidence: Literal["seen", "mixed", "known"]
    known: tuple[str, ...] = ()
    """Fields that are general knowledge, not read in a source."""
    sources: tuple[str, ...] = ()
    notes: str = ""


class SkuFigures(Data):
    """Figures of one *card* as its sources print them; `devices_per_card` says how many devices Kubernetes sees in it.

    TFLOPS are dense. `tflops` holds the vector rate for fp64 and fp32 and the matrix rate for the rest;
    `matrix_tflops` holds the matrix rates of fp64 and fp32 where there are such.
    """

    vendor: VendorName
    architecture: str
    target: str | None = None
    """CUDA compute capability (`9.0`) or the compiler's target (`gfx942`)."""
    memory_gib: Positive
    reported_memory_mib: Annotated[int, Field(gt=0)] | None = None
    """What drivers report, where known; below the nominal size."""
    bandwidth_gbs: Positive | None = None
    tflops: dict[Format, Positive] = {}
    matrix_tflops: dict[Format, Positive] = {}
    formats: tuple[Format, ...] = ()
    """Number formats computed natively; a format not listed never qualifies."""
    matrix_unit: str | None = None
    matrix_formats: tuple[Format, ...] = ()
    """Formats that the tensor or matrix cores take."""
    link: Link
    pcie_gen: int | None = None
    mig: str | None = None
    """Key of the MIG geometry in `data/mig.yaml`; None: no MIG."""
    compute_modes: tuple[str, ...] = ()
    memory_modes: tuple[str, ...] = ()
    """AMD compute and memory partition modes, as the vendor writes them (`CPX`, `NPS4`)."""
    watts: Positive | None = None
    price_usd_hour: Positive | None = None
    resources: tuple[str, ...] = ()
    """Resource names that device plugins offer whole devices under, where not all of the vendor's are; empty: all."""
    devices_per_card: Annotated[int, Field(ge=1)] = 1
    match: Match


class Sku(SkuFigures):
    """One GPU model under its id."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=50)]
    provenance: Provenance

    @property
    def memory_mib(self) -> float:
        """MiB of one device: what drivers report where known, else the nominal size."""
        whole = self.reported_memory_mib or self.memory_gib * 1024
        return whole / self.devices_per_card

    def rate(self, number_format: Format, *, matrix: bool = False) -> float | None:
        """Dense TFLOPS of one device at a format; with `matrix`, the matrix rate where fp64 and fp32 have one."""
        stated = self.matrix_tflops.get(number_format) if matrix else None
        stated = stated or self.tflops.get(number_format)
        return None if stated is None else stated / self.devices_per_card

    @property
    def bandwidth(self) -> float | None:
        """Memory bandwidth of one device in GB/s."""
        return None if self.bandwidth_gbs is None else self.bandwidth_gbs / self.devices_per_card
