"""One GPU model: what a device of it can do, as data states it."""

import re
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from capability_db.rules import DISTINCT, SET, Rule, none

Format = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int8"]
FORMATS: tuple[Format, ...] = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int8")
VendorName = Literal["nvidia", "amd", "intel"]

Positive = Annotated[float, Field(gt=0)]
Word = Annotated[str, Field(min_length=1, max_length=63)]
"""A short name."""
PciId = Annotated[str, Field(pattern=r"^[0-9a-f]{4}$", max_length=4)]
"""A PCI device id in lower-case hex."""
LabelValue = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$", max_length=63)]
_PAIR: Final = r"[A-Za-z0-9][A-Za-z0-9_./-]*=[A-Za-z0-9_.-]+"
CloudLabels = Annotated[str, Field(pattern=rf"^{_PAIR}(,{_PAIR})*$", max_length=512)]
SKU_ID: Final = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
SKU_ID_LENGTH: Final = 50

Formats = Annotated[tuple[Format, ...], Field(max_length=len(FORMATS), json_schema_extra=SET), DISTINCT]


class Frozen(BaseModel):
    """Base of every value people write: immutable, and nothing unknown is let through."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Frozen):
    """Base of what stands in data files with its names as here, and in the API's objects in camelCase."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)

    rules: ClassVar[tuple[Rule, ...]] = ()
    """What must hold across its fields."""

    @model_validator(mode="after")
    def _obeys(self) -> Self:
        broken = [rule.message for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self


class Link(Data):
    """What joins several devices of the model; `reach` says how far it goes without looking at the node.

    `node`: every device of a node is on one island by construction (SXM, OAM). `bridge`: optional bridges join
    some cards, which node objects do not tell. `none`: PCIe or Ethernet only.
    """

    name: Word
    """With its generation, `NVLink4`."""
    gbs: Positive | None = None
    """Bidirectional GB/s a device."""
    reach: Literal["node", "bridge", "none"]
    """How far it goes without looking at the node."""


class Match(Data):
    """How node objects name the model: whole values, never substrings."""

    product: Annotated[tuple[LabelValue, ...], Field(max_length=64, json_schema_extra=SET), DISTINCT] = ()
    """Values of the vendor's product label."""
    pci: Annotated[tuple[PciId, ...], Field(max_length=64, json_schema_extra=SET), DISTINCT] = ()
    """PCI device ids in lower-case hex that mean this model and no other card."""
    pci_shared: Annotated[tuple[PciId, ...], Field(max_length=64, json_schema_extra=SET), DISTINCT] = ()
    """PCI device ids that other cards carry too; they count only with `memory_gib` or `cu_count` besides."""
    cu_count: Annotated[int, Field(ge=1, le=4096)] | None = None
    """AMD compute units of one device, which tell models with one PCI id apart."""
    cloud: Annotated[tuple[CloudLabels, ...], Field(max_length=64, json_schema_extra=SET), DISTINCT] = ()
    """`key=value` node labels of clouds, exact."""


class Provenance(Frozen):
    """Where the figures were seen, and which of them are general knowledge."""

    confidence: Literal["seen", "mixed", "known"]
    known: tuple[str, ...] = ()
    """Fields that are general knowledge, not read in a source."""
    sources: tuple[str, ...] = ()
    notes: str = ""


ComputeMode = Annotated[str, Field(pattern=r"^[A-Z]PX$", max_length=3)]
MemoryMode = Annotated[str, Field(pattern=r"^NPS[0-9]$", max_length=4)]
ResourceName = Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9_.-]+$", min_length=3, max_length=253)]

_TARGETS: Final = {"nvidia": re.compile(r"[0-9]{1,2}\.[0-9]\Z"), "amd": re.compile(r"gfx[0-9a-f]{3,5}\Z")}


def _rates(field: str, number_format: Format) -> Rule:
    """That a rate is of a listed format."""
    rate, name = f"self.{to_camel(field)}", f"{to_camel(field)}.{number_format}"
    return Rule(
        f"!has({rate}) || !has({rate}.{number_format}) || (has(self.formats) && '{number_format}' in self.formats)",
        lambda sku: number_format not in getattr(sku, field) or number_format in sku.formats,
        f"{name}: a rate of a format that formats does not list; add {number_format} to formats, or leave it out",
    )


_RATES: Final = tuple(_rates(field, each) for field in ("tflops", "matrix_tflops") for each in FORMATS)


class SkuFigures(Data):
    """Figures of one *card* as its sources print them; `devices_per_card` says how many devices Kubernetes sees in it.

    TFLOPS are dense. `tflops` holds the vector rate for fp64 and fp32 and the matrix rate for the rest;
    `matrix_tflops` holds the matrix rates of fp64 and fp32 where there are such.
    """

    vendor: VendorName
    architecture: Word
    """The vendor's name of the generation, in lower case: `hopper`, `cdna3`."""
    target: Word | None = None
    """CUDA compute capability (`9.0`) or the compiler's target (`gfx942`)."""
    memory_gib: Positive
    """Nominal size."""
    reported_memory_mib: Annotated[int, Field(gt=0)] | None = None
    """What drivers report, where known; below the nominal size."""
    bandwidth_gbs: Positive | None = None
    """Of the memory, in GB/s."""
    tflops: dict[Format, Positive] = {}
    """Dense TFLOPS by format: the vector rate for fp64 and fp32, the matrix rate for the rest."""
    matrix_tflops: dict[Format, Positive] = {}
    """Dense TFLOPS of the matrix cores, where they have rates of fp64 and fp32."""
    formats: Formats = ()
    """Number formats computed natively; a format not listed never qualifies."""
    matrix_unit: Word | None = None
    """The generation of tensor or matrix cores."""
    matrix_formats: Formats = ()
    """Formats that the tensor or matrix cores take."""
    link: Link
    pcie_gen: Annotated[int, Field(ge=1, le=9)] | None = None
    """Generation of PCI Express."""
    mig: Word | None = None
    """The MIG geometry, by its key in anygpu's data; not stated: no MIG."""
    compute_modes: Annotated[tuple[ComputeMode, ...], Field(max_length=8, json_schema_extra=SET), DISTINCT] = ()
    """AMD compute partition modes, as the vendor writes them (`CPX`)."""
    memory_modes: Annotated[tuple[MemoryMode, ...], Field(max_length=8, json_schema_extra=SET), DISTINCT] = ()
    """AMD memory partition modes (`NPS4`)."""
    watts: Positive | None = None
    """Of the board."""
    price_usd_hour: Positive | None = None
    """USD per device-hour, everywhere; prices by node are a policy's."""
    resources: Annotated[tuple[ResourceName, ...], Field(max_length=16, json_schema_extra=SET), DISTINCT] = ()
    """Resource names that device plugins offer whole devices under, where not all of the vendor's are; empty: all."""
    devices_per_card: Annotated[int, Field(ge=1, le=64)] = 1
    """Devices that Kubernetes sees in one card."""
    match: Match

    rules: ClassVar[tuple[Rule, ...]] = (
        *_RATES,
        Rule(
            "!has(self.matrixFormats) || self.matrixFormats.all(each, has(self.formats) && each in self.formats)",
            lambda sku: {*sku.matrix_formats} <= {*sku.formats},
            "matrixFormats: lists a format that formats does not; add it to formats too",
        ),
        Rule(
            f"{none('self.matrixFormats')} || has(self.matrixUnit)",
            lambda sku: not sku.matrix_formats or sku.matrix_unit is not None,
            "matrixFormats: needs a matrixUnit, the tensor or matrix cores that take them",
        ),
        Rule(
            "!has(self.reportedMemoryMib) || double(self.reportedMemoryMib) <= self.memoryGib * 1034.24",
            lambda sku: sku.reported_memory_mib is None or sku.reported_memory_mib <= sku.memory_gib * 1034.24,
            "reportedMemoryMib: more than memoryGib and 1 % of it; the one is in MiB, the other in GiB",
        ),
        Rule(
            "!has(self.mig) || self.vendor == 'nvidia'",
            lambda sku: sku.mig is None or sku.vendor == "nvidia",
            "mig: only nvidia GPUs have MIG; those of amd have computeModes and memoryModes",
        ),
        Rule(
            f"self.vendor == 'amd' || ({none('self.computeModes')} && {none('self.memoryModes')})",
            lambda sku: sku.vendor == "amd" or not (sku.compute_modes or sku.memory_modes),
            "computeModes and memoryModes: only amd GPUs have them; those of nvidia have mig",
        ),
        Rule(
            "!has(self.target) || self.vendor == 'intel' || self.target.matches("
            "self.vendor == 'nvidia' ? '^[0-9]{1,2}[.][0-9]$' : '^gfx[0-9a-f]{3,5}$')",
            lambda sku: sku.target is None or sku.vendor == "intel" or bool(_TARGETS[sku.vendor].match(sku.target)),
            "target: a CUDA compute capability for nvidia (9.0), the compiler's gfx target for amd (gfx942)",
        ),
    )


class Sku(SkuFigures):
    """One GPU model under its id."""

    id: Annotated[str, Field(pattern=SKU_ID, max_length=SKU_ID_LENGTH)]
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
