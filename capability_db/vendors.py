"""The GPU vendors: one definition each of resources, labels and taints; besides `reported`, nothing branches on one."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from capability_db import partitions
from capability_db.catalogue import Catalogue
from capability_db.sku import Sku, VendorName

Labels = Mapping[str, str]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Named:
    """What a driver says of one device's model; None: it does not say."""

    product: str | None = None
    """The driver's name of the model, spaces and all."""
    pci_device_id: str | None = None
    memory_mib: float | None = None
    compute_units: int | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node's labels say about the devices behind one resource name."""

    skus: tuple[Sku, ...] = ()
    """Every model that a device of the resource may be; empty: unknown."""
    counts: tuple[int, ...] = ()
    """Devices of each model, where the labels say; else empty."""
    memory_mib: float | None = None
    """What the labels report for one device as the resource offers it, before sharing."""
    mode: str | None = None
    """MIG profile (`3g.40gb`) or AMD partition mode (`cpx_nps4`); None: whole devices."""
    memory_share: float | None = 1.0
    """This device's part of the whole device's memory and bandwidth; None: unknown."""
    compute_share: float | None = 1.0
    """This device's part of the whole device's TFLOPS; None: unknown."""
    replicas: int | None = 1
    """How many pods time-share the device; None: shared by an unknown number."""
    evidence: str = "no label names the model"
    """The label that a GPUSKU could match."""
    problem: str | None = None
    """Why nothing of the resource can be used."""


@dataclass(frozen=True, slots=True)
class Driver:
    """How a vendor's DRA driver publishes GPUs: names of attributes, in the domain that is the driver's own name."""

    name: str
    product: str
    """The model's name, written as the product label is, spaces aside."""
    space: str
    """What the label writes for a space."""
    part: Callable[[Sku, str], tuple[str, partitions.Share | None]]
    """(model, profile) -> the mode's name, and what such a slice has of the whole device; None: unknown."""
    pci: str | None = None
    """The PCI device id, with or without `0x`; some releases write other numbers there, which are no such id."""
    type: str = "type"
    whole: str | None = None
    """The type of whole devices; None: the driver publishes no type, and whole devices only."""
    slice: str | None = None
    """The type of slices; other types, as VFIO devices for virtual machines, are nothing for containers."""
    profile: str | None = None
    """The MIG profile or partition mode of a slice."""
    memory: str = "memory"
    """The capacity in bytes."""
    compute_units: str = "computeUnits"
    """The capacity that counts AMD's compute units."""

    def products(self, sku: Sku) -> tuple[str, ...]:
        """The model's names, without spaces."""
        return sku.match.product

    def pci_ids(self, sku: Sku) -> tuple[str, ...]:
        """The PCI device ids that mean this model alone, of a driver that publishes them."""
        return sku.match.pci if self.pci else ()

    def publishes(self, sku: Sku) -> bool:
        """Whether the attributes can tell the model from others."""
        return bool(self.products(sku) or self.pci_ids(sku))


def pci_id(text: str) -> str:
    """The one form of a PCI device id: `740f`."""
    return text.lower().replace("0x", "")


def mode_key(mode: str) -> str:
    """The one form of a mode that is written in several ways: `1g.10gb.me`, `cpx_nps4`."""
    return mode.lower().replace("+", ".")


@dataclass(frozen=True, slots=True)
class Vendor:
    """Everything that sets one vendor apart."""

    name: VendorName
    title: str
    resources: tuple[str, ...]
    """Resource names of devices, the usual one first; what stands behind them depends on the node's settings."""
    partition_resource: re.Pattern[str]
    """Resource names of partitions; group `mode`."""
    partition_prefix: str
    """What stands before the mode in such a name."""
    taints: tuple[str, ...]
    """Taint keys that mean "GPU pods only" and are tolerated for pods given this vendor's GPU."""
    pci_vendor: str
    shared_suffix: str | None
    """What the device plugin appends to a resource name that it time-shares, if it is told to rename."""
    shares: bool
    """Whether the device plugin may offer one device several times."""
    identify: Callable[[str, str | None, Labels, int, Catalogue], Identity]
    """(resource, partition mode in its name, node labels, devices, catalogue) -> Identity."""
    recognise: Callable[[Named, Catalogue], Sku | None]
    """The one model that a driver's words mean; None: they leave two or none."""
    several_partitions: bool
    """Whether one container can use several partitions (CUDA sees only the first MIG instance)."""
    driver: Driver
    """The DRA driver; never beside the device plugin on the same devices."""
    compute_keys: tuple[str, ...] = ()
    """Labels worth showing as the driver and runtime version."""
    unhealthy_label: re.Pattern[str] | None = None
    """Node labels whose value `unhealthy` says so of one GPU; group `id`."""
    unhealthy_taints: tuple[str, ...] = ()
    """Taint keys that say so of all the vendor's GPUs of the node."""

    def owns(self, resource: str) -> bool:
        """Whether a resource name is this vendor's."""
        name = self._unshared(resource)
        return name in self.resources or self.partition_resource.fullmatch(name) is not None

    def tolerates(self, taint: str) -> bool:
        """Whether a taint key only keeps pods without this vendor's GPU away."""
        return taint in self.taints or self.owns(taint)

    def unhealthy(self, labels: Labels) -> list[str]:
        """The ids of the GPUs that node labels call unhealthy, in a stable order."""
        if self.unhealthy_label is None:
            return []
        found = ((self.unhealthy_label.fullmatch(key), value) for key, value in labels.items())
        return sorted(match["id"] for match, value in found if match and value == "unhealthy")

    def mode_in(self, resource: str) -> str | None:
        """The partition mode that a resource name carries."""
        found = self.partition_resource.fullmatch(self._unshared(resource))
        return found.group("mode") if found else None

    def identify_published(
        self, attributes: Labels, memory_mib: float | None, compute_units: int | None, catalogue: Catalogue
    ) -> Identity | None:
        """What a device of the DRA driver is, by its attributes and capacities; None: nothing for a container."""
        driver = self.driver
        kind = attributes.get(driver.type)
        if driver.whole is not None and kind not in (driver.whole, driver.slice):
            return None
        sku, evidence = self._published_model(attributes, catalogue)
        identity = Identity(skus=(sku,) if sku else (), memory_mib=memory_mib, evidence=evidence)
        if driver.whole is None or kind == driver.whole:
            return identity if sku else self._by_capacity(identity, attributes, compute_units, catalogue)
        profile = attributes.get(driver.profile or "")
        mode, share = driver.part(sku, profile) if sku and profile else (profile or "unknown", None)
        return replace(
            identity,
            mode=mode,
            memory_share=share.memory if share else None,
            compute_share=share.compute if share else None,
            problem=None if profile else f"the driver {driver.name} publishes no {driver.profile} of the slice",
        )

    def _by_capacity(
        self, identity: Identity, attributes: Labels, compute_units: int | None, catalogue: Catalogue
    ) -> Identity:
        """The identity of a device whose capacities tell its model from others with its PCI id, where they do."""
        driver = self.driver
        device_id = attributes.get(driver.pci) if driver.pci else None
        named = Named(attributes.get(driver.product), device_id, identity.memory_mib, compute_units)
        sku = self.recognise(named, catalogue) if device_id else None
        if sku is None:
            return identity
        problem = f"no attribute of the driver {driver.name} names the model alone, so that no claim can ask for it"
        return replace(identity, skus=(sku,), problem=problem)

    def _published_model(self, attributes: Labels, catalogue: Catalogue) -> tuple[Sku | None, str]:
        driver, found = self.driver, "no attribute names the model"
        if driver.pci is not None and driver.pci in attributes:
            device_id = pci_id(attributes[driver.pci])
            found = f"{driver.name}/{driver.pci}={device_id}"
            owner = next((sku for sku in catalogue.by_pci(self.name, device_id) if device_id in sku.match.pci), None)
            if owner is not None:
                return owner, found
        if driver.product in attributes:
            label = attributes[driver.product].replace(" ", driver.space)
            return catalogue.by_product(self.name, label), f"{driver.name}/{driver.product}={label}"
        return None, found

    def _unshared(self, resource: str) -> str:
        return resource.removesuffix(self.shared_suffix) if self.shared_suffix else resource

    def partition_name(self, mode: str) -> str:
        """The resource name of a partition mode under the `mixed` strategy."""
        return self.partition_prefix + mode.replace("+", ".")


PLAUSIBLE = 0.1
"""Part by which a device's memory may differ from the SKU's where a PCI id alone names the model: a virtual GPU has the
id of the whole one and a part of its memory."""


def _by_driver(vendor: VendorName, label: str | None, named: Named, catalogue: Catalogue) -> Sku | None:
    """The model by the product name as the vendor's label has it, else by a PCI id that no other card has."""
    sku = catalogue.by_product(vendor, label) if label else None
    if sku is not None or named.pci_device_id is None:
        return sku
    device_id = pci_id(named.pci_device_id)
    owner = next((each for each in catalogue.by_pci(vendor, device_id) if device_id in each.match.pci), None)
    memory = named.memory_mib
    if owner is None or (memory is not None and abs(memory - owner.memory_mib) > PLAUSIBLE * owner.memory_mib):
        return None
    return owner


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else None


# --- NVIDIA: GPU feature discovery (internal/lm), then the clouds' labels -------------------------------------------

_MIG_PRODUCT = re.compile(r"(?P<product>.+)-MIG-(?P<mode>[0-9A-Za-z](?:.*[0-9A-Za-z])?)")


def _nvidia(resource: str, mode: str | None, labels: Labels, devices: int, catalogue: Catalogue) -> Identity:
    prefix = f"nvidia.com/mig-{mode}" if mode else "nvidia.com/gpu"
    product = labels.get(f"{prefix}.product") or labels.get("nvidia.com/gpu.product")
    shared = resource.endswith(".shared")
    problem = None
    sku: Sku | None = None
    evidence = "no label names the model"
    if product is not None:
        # `-SHARED` stands only on resources that were shared without being renamed.
        if product.endswith("-SHARED"):
            product, shared = product.removesuffix("-SHARED"), True
        if found := _MIG_PRODUCT.fullmatch(product):
            product, in_label = found["product"], found["mode"]
            if in_label == "INVALID":
                problem = "MIG strategy single, but the node's GPUs do not agree on one profile"
            mode = mode or in_label
        # Without what sharing and MIG append: the value that a GPUSKU would match.
        evidence = f"nvidia.com/gpu.product={product}"
        sku = catalogue.by_product("nvidia", product)
    else:
        sku, cloud = _by_cloud("nvidia", labels, catalogue)
        evidence = cloud or evidence
    by_gke = None if mode else labels.get("cloud.google.com/gke-gpu-partition-size") or None
    mode = mode or by_gke
    replicas: int | None = _number(labels.get(f"{prefix}.replicas"))
    strategy = labels.get(f"{prefix}.sharing-strategy", "none")
    gke_clients = _number(labels.get("cloud.google.com/gke-max-shared-clients-per-gpu"))
    if gke_clients and gke_clients > 1:
        shared, replicas = True, gke_clients
    if (replicas or 0) > 1 and strategy in ("time-slicing", "mps"):
        shared = True
    if shared and (replicas is None or replicas < 2):
        physical = _number(labels.get(f"{prefix}.count"))
        replicas = devices // physical if physical and devices % physical == 0 and devices > physical else None
    memory_share: float | None = 1.0
    compute_share: float | None = 1.0
    if mode:
        memory_share = compute_share = None
        profile = partitions.mig_profile(sku.mig, mode) if sku and sku.mig else None
        if sku and sku.mig and profile:
            mode = profile.name
            share = partitions.mig_share(partitions.mig_geometry(sku.mig), profile)
            memory_share, compute_share = share.memory, share.compute
    # GKE's plugin cuts devices whose labels then still tell of the whole.
    memory = None if by_gke else _number(labels.get(f"{prefix}.memory"))
    if mode and not memory and sku and sku.mig and (profile := partitions.mig_profile(sku.mig, mode)):
        memory = partitions.mig_memory_mib(sku.memory_mib, partitions.mig_geometry(sku.mig), profile)
    return Identity(
        skus=(sku,) if sku else (),
        memory_mib=memory or None,
        mode=mode,
        memory_share=memory_share,
        compute_share=compute_share,
        replicas=replicas if shared else 1,
        evidence=evidence,
        problem=problem,
    )


def _nvidia_model(named: Named, catalogue: Catalogue) -> Sku | None:
    # As GPU feature discovery writes it (internal/lm/resource.go): what no label may hold is dropped.
    label = re.sub(r"[^A-Za-z0-9_. -]", "", named.product or "").strip().replace(" ", "-")
    return _by_driver("nvidia", label, named, catalogue)


def _by_cloud(vendor: VendorName, labels: Labels, catalogue: Catalogue) -> tuple[Sku | None, str | None]:
    sku = catalogue.by_cloud(labels)
    if sku is not None and sku.vendor == vendor:
        return sku, None
    for key in (
        "cloud.google.com/gke-accelerator",
        "karpenter.k8s.aws/instance-gpu-name",
        "eks.amazonaws.com/instance-gpu-name",
        "karpenter.azure.com/sku-gpu-name",
        "gpu.nvidia.com/model",
    ):
        if key in labels:
            return None, f"{key}={labels[key]}"
    return None, None


# --- AMD: k8s-node-labeller ------------------------------------------------------------------------------------------


def _amd_values(name: str, labels: Labels) -> dict[str, int | None]:
    """Values of `amd.com/gpu.NAME` in both forms: plain (all devices alike) and `NAME.VALUE=COUNT`."""
    for prefix in (f"amd.com/gpu.{name}", f"beta.amd.com/gpu.{name}"):
        if prefix in labels:
            return {labels[prefix]: None}
    counted: dict[str, int | None] = {}
    for prefix in (f"amd.com/gpu.{name}.", f"beta.amd.com/gpu.{name}."):
        for key, value in labels.items():
            if key.startswith(prefix):
                counted.setdefault(key.removeprefix(prefix), _number(value))
    return counted


def _only(values: Sequence[Value]) -> Value | None:
    """The value that all devices share; None where there is none such."""
    return values[0] if len(values) == 1 else None


def _amd_vram_mib(text: str) -> float | None:
    found = re.fullmatch(r"([0-9]{1,6})([GMT])", text)
    if not found:
        return None
    return int(found[1]) * {"M": 1 / 1024, "G": 1, "T": 1024}[found[2]] * 1024


def _amd_sku(device_id: str, product: str | None, vram: float | None, cus: int | None, db: Catalogue) -> Sku | None:
    """The one model that the facts leave; None where two are left or none."""
    candidates = db.by_pci("amd", device_id.lower().removeprefix("0x"))
    if len(candidates) == 1 and device_id.lower().removeprefix("0x") in candidates[0].match.pci:
        return candidates[0]
    by_product = db.by_product("amd", product) if product else None
    if by_product is not None and (not candidates or by_product in candidates):
        return by_product
    left = [
        sku
        for sku in candidates
        if (sku.match.cu_count is not None and sku.match.cu_count == cus)
        or (sku.match.cu_count is None and vram is not None and abs(vram - sku.memory_mib) < 0.02 * sku.memory_mib)
    ]
    # A shared id that leaves one candidate of ours still belongs to cards we do not know, unless memory told it apart.
    return left[0] if len(left) == 1 and len(candidates) > 1 else None


def _amd_model(named: Named, catalogue: Catalogue) -> Sku | None:
    label = re.sub(r"[()]", "", named.product or "").strip().replace(" ", "_") or None
    if named.pci_device_id is None:
        return catalogue.by_product("amd", label) if label else None
    return _amd_sku(named.pci_device_id, label, named.memory_mib, named.compute_units, catalogue)


def _amd(resource: str, mode: str | None, labels: Labels, devices: int, catalogue: Catalogue) -> Identity:
    ids = _amd_values("device-id", labels)
    products = list(_amd_values("product-name", labels))
    vrams = [_amd_vram_mib(text) for text in _amd_values("vram", labels)]
    cus = [_number(text) for text in _amd_values("cu-count", labels)]
    product, vram, cu = _only(products), _only(vrams), _only(cus)
    found: list[Sku | None]
    if ids:
        evidence = ", ".join(f"amd.com/gpu.device-id={device_id}" for device_id in ids)
        found = [_amd_sku(device_id, product, vram, cu, catalogue) for device_id in ids]
    elif products:
        evidence = ", ".join(f"amd.com/gpu.product-name={name}" for name in products)
        found = [catalogue.by_product("amd", name) for name in products]
    else:
        sku, cloud = _by_cloud("amd", labels, catalogue)
        evidence = cloud or "no label names the model"
        found = [sku]
    skus = tuple({sku.id: sku for sku in found if sku is not None}.values()) if all(found) else ()
    label_mode = labels.get("amd.com/gpu.compute-memory-partition") or labels.get("amd.com/compute-memory-partition")
    mode = (mode or label_mode or "").lower() or None
    parsed = partitions.amd_mode(mode) if mode else None
    parts: int | None = 1
    if mode and parsed and parsed.compute == "SPX":
        mode = None
    elif mode:
        counts = {partitions.amd_parts(sku, parsed.compute) for sku in skus} if parsed else set()
        parts = counts.pop() if len(counts) == 1 else None
    smallest = min((sku.memory_mib for sku in skus), default=None)
    memory: float | None = vram
    if mode is None and smallest and memory and memory < 0.75 * smallest:
        mode, parts = "partition", None  # less memory than the model has: a partition that no label names
    if mode and parts and smallest and (memory is None or memory > 0.75 * smallest):
        memory = (memory or smallest) / parts  # the label tells the whole device's memory
    elif mode and not parts and smallest and memory and memory > 0.75 * smallest:
        memory = None  # the whole device's, of which the part is not known
    share = 1 / parts if parts else (memory / smallest if memory and smallest else None)
    return Identity(
        skus=skus,
        counts=tuple(count or devices for count in ids.values()) if len(skus) == len(ids) > 1 else (),
        memory_mib=memory,
        mode=mode,
        memory_share=share,
        compute_share=share,
        evidence=evidence,
    )


# --- Intel: NFD rules of the device plugins --------------------------------------------------------------------------

_INTEL_DEVICE = re.compile(r"gpu\.intel\.com/device-id\.[0-9a-f]{4}-(?P<id>[0-9a-f]{4})\.(?:present|count)")


def _intel(resource: str, mode: str | None, labels: Labels, devices: int, catalogue: Catalogue) -> Identity:
    found: dict[str, Sku | None] = {}
    if resource == "habana.ai/gaudi":
        return Identity()  # the labels tell of Intel's GPUs, and none of Gaudi's model
    if product := labels.get("gpu.intel.com/product"):
        found[f"gpu.intel.com/product={product}"] = catalogue.by_product("intel", product)
    else:
        for key in sorted(labels):
            if match := _INTEL_DEVICE.fullmatch(key):
                owners = [sku for sku in catalogue.by_pci("intel", match["id"]) if match["id"] in sku.match.pci]
                found[f"gpu.intel.com/device-id={match['id']}"] = owners[0] if owners else None
    physical = _number(labels.get("gpu.intel.com/device.count"))
    # -shared-dev-num makes one GPU several resources; no label says so, but the counts do.
    replicas = devices // physical if physical and devices > physical and devices % physical == 0 else 1
    return Identity(
        skus=tuple(sku for sku in found.values() if sku) if found and all(found.values()) else (),
        replicas=replicas,
        evidence=", ".join(found) or "no label names the model",
    )


def _intel_model(named: Named, catalogue: Catalogue) -> Sku | None:
    return _by_driver("intel", (named.product or "").strip().replace(" ", "_"), named, catalogue)


# --- DRA drivers: kubernetes-sigs/dra-driver-nvidia-gpu (deviceinfo.go), ROCm/k8s-gpu-dra-driver (deviceinfo.go,
# docs/driver-attributes.md), intel/intel-resource-drivers-for-kubernetes (node_state.go, models.go) -------------------


def _mig_part(sku: Sku, profile: str) -> tuple[str, partitions.Share | None]:
    found = partitions.mig_profile(sku.mig, profile) if sku.mig else None
    if sku.mig is None or found is None:
        return profile, None
    return found.name, partitions.mig_share(partitions.mig_geometry(sku.mig), found)


def _amd_part(sku: Sku, profile: str) -> tuple[str, partitions.Share | None]:
    mode = partitions.amd_mode(profile)
    parts = partitions.amd_parts(sku, mode.compute) if mode else None
    return profile.lower(), partitions.Share(memory=1 / parts, compute=1 / parts) if parts else None


def _no_part(sku: Sku, profile: str) -> tuple[str, partitions.Share | None]:
    return profile, None


NVIDIA: Final = Vendor(
    name="nvidia",
    title="NVIDIA",
    resources=("nvidia.com/gpu",),
    partition_resource=re.compile(r"nvidia\.com/mig-(?P<mode>[0-9a-z.-]+)"),
    partition_prefix="nvidia.com/mig-",
    taints=("nvidia.com/gpu",),
    pci_vendor="10de",
    shared_suffix=".shared",
    shares=True,
    identify=_nvidia,
    recognise=_nvidia_model,
    several_partitions=False,
    driver=Driver(
        name="gpu.nvidia.com",
        product="productName",
        space="-",
        part=_mig_part,
        whole="gpu",
        slice="mig",
        profile="profile",
    ),
    compute_keys=("nvidia.com/cuda.driver-version.full", "nvidia.com/cuda.runtime-version.full"),
)
AMD: Final = Vendor(
    name="amd",
    title="AMD",
    resources=("amd.com/gpu",),
    partition_resource=re.compile(r"amd\.com/(?P<mode>[sdtqc]px_nps[1248])"),
    partition_prefix="amd.com/",
    taints=("amd.com/gpu",),
    pci_vendor="1002",
    shared_suffix=None,
    shares=False,
    identify=_amd,
    recognise=_amd_model,
    several_partitions=True,
    driver=Driver(
        name="gpu.amd.com",
        product="productName",
        space="_",
        part=_amd_part,
        pci="deviceID",
        whole="amdgpu",
        slice="amdgpu-partition",
        profile="partitionProfile",
    ),
    compute_keys=("amd.com/gpu.driver-version",),
    unhealthy_label=re.compile(r"metricsexporter\.amd\.com\.gpu\.(?P<id>.+)\.state"),
    unhealthy_taints=("amd-gpu-unhealthy",),
)
INTEL: Final = Vendor(
    name="intel",
    title="Intel",
    resources=("gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi"),
    partition_resource=re.compile(r"(?!)(?P<mode>)"),
    partition_prefix="gpu.intel.com/",
    taints=("gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi"),
    pci_vendor="8086",
    shared_suffix=None,
    shares=True,
    identify=_intel,
    recognise=_intel_model,
    several_partitions=True,
    driver=Driver(name="gpu.intel.com", product="model", space="_", part=_no_part, pci="pciId"),
)

VENDORS: Final[dict[VendorName, Vendor]] = {vendor.name: vendor for vendor in (NVIDIA, AMD, INTEL)}


def of_resource(resource: str) -> Vendor | None:
    """The vendor whose device plugin publishes a resource name."""
    return next((vendor for vendor in VENDORS.values() if vendor.owns(resource)), None)


def of_driver(name: str) -> Vendor | None:
    """The vendor whose DRA driver has the name."""
    return next((vendor for vendor in VENDORS.values() if vendor.driver.name == name), None)


def gpu_resources(names: Iterable[str]) -> list[str]:
    """The GPU resource names among `names`, in their order."""
    return [name for name in names if of_resource(name)]


def known_resources() -> list[str]:
    """Every resource name that a device plugin of a known vendor may publish, for kube-scheduler's managedResources."""
    names: list[str] = []
    for vendor in VENDORS.values():
        modes = partitions.all_modes(vendor.name)
        for name in (*vendor.resources, *(vendor.partition_name(mode) for mode in modes)):
            names += [name, name + vendor.shared_suffix] if vendor.shared_suffix else [name]
    return names
