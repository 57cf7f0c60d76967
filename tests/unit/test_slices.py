"""ResourceSlices of the DRA drivers -> pools of devices, and which of them are free."""

from typing import Any

import dranodes
import msgspec
import pytest

from capability_db import node_facts, slices, vendors
from capability_db.catalogue import Catalogue
from capability_db.slices import Taken

BUILTIN = Catalogue.builtin()

# As the drivers' own documentation prints them.
NVIDIA_DOC = b"""
{"apiVersion":"resource.k8s.io/v1","kind":"ResourceSlice",
 "metadata":{"name":"00000-gpu.nvidia.com-ipp1-0033-4lpks"},
 "spec":{"driver":"gpu.nvidia.com","nodeName":"ipp1-0033",
  "pool":{"name":"ipp1-0033","generation":1,"resourceSliceCount":1},
  "devices":[
   {"name":"gpu-0",
    "attributes":{"type":{"string":"gpu"},"uuid":{"string":"GPU-2fa81118-5a5f-aa66-7660-471eed407181"},
     "productName":{"string":"NVIDIA A100-PCIE-40GB"},"brand":{"string":"Nvidia"},"architecture":{"string":"Ampere"},
     "cudaComputeCapability":{"version":"8.0.0"},"cudaDriverVersion":{"version":"13.0.0"},
     "driverVersion":{"version":"580.126.20"},"addressingMode":{"string":"HMM"},
     "resource.kubernetes.io/pciBusID":{"string":"0000:65:00.0"}},
    "capacity":{"memory":{"value":"40Gi"}}},
   {"name":"gpu-0-mig-1g.5gb-0",
    "attributes":{"type":{"string":"mig"},"parentUUID":{"string":"GPU-2fa81118-5a5f-aa66-7660-471eed407181"},
     "profile":{"string":"1g.5gb"},"productName":{"string":"NVIDIA A100-PCIE-40GB"}},
    "capacity":{"memory":{"value":"4864Mi"},"multiprocessors":{"value":"14"},"copyEngines":{"value":"1"}}}]}}
"""
AMD_DOC = b"""
{"apiVersion":"resource.k8s.io/v1","kind":"ResourceSlice",
 "metadata":{"name":"k8s-gpu-dra-driver-cluster-worker-gpu.amd.com-xxxxx"},
 "spec":{"driver":"gpu.amd.com","nodeName":"w","pool":{"name":"w","generation":1,"resourceSliceCount":1},
 "devices":[{"name":"gpu-0-128",
  "attributes":{"cardIndex":{"int":40},"deviceID":{"string":"994913940318892495"},
   "driverVersion":{"version":"6.12.12"},"family":{"string":"AI"},"partitionProfile":{"string":"spx_nps1"},
   "productName":{"string":"AMD_Instinct_MI300X_OAM"},"renderIndex":{"int":168},
   "resource.kubernetes.io/pcieRoot":{"string":"pci0003:00"},"type":{"string":"amdgpu"}},
  "capacity":{"computeUnits":{"value":"304"},"memory":{"value":"196592Mi"},"simdUnits":{"value":"1216"}}}]}}
"""


def read(*documents: Any) -> list[slices.ResourceSlice]:
    return [msgspec.convert(each, slices.ResourceSlice) for each in documents]


def pool(*documents: Any) -> node_facts.Pool:
    (found,) = slices.pools(read(*documents), BUILTIN)
    return found


def nvidia(*devices: Any, **more: Any) -> Any:
    return dranodes.resource_slice("n", "gpu.nvidia.com", list(devices), **more)


def amd(*devices: Any) -> Any:
    return dranodes.resource_slice("n", "gpu.amd.com", list(devices))


def intel(**attributes: str) -> Any:
    return dranodes.resource_slice("n", "gpu.intel.com", [dranodes.device("0000-56c0", attributes, "14248Mi")])


def test_nvidias_documented_slice_reads_as_a_gpu_and_a_mig_instance() -> None:
    whole, cut = slices.pools([msgspec.json.decode(NVIDIA_DOC, type=slices.ResourceSlice)], BUILTIN)
    assert (whole.device.label, whole.device.kind, whole.device.memory_mib) == ("a100-pcie-40gb", "whole", 40960)
    assert (cut.device.label, cut.device.kind, cut.device.memory_mib) == ("a100-pcie-40gb 1g.5gb", "slice", 4864)
    assert (cut.device.memory_share, cut.device.compute_share) == (1 / 8, 1 / 7)
    for each in (whole, cut):
        assert (each.device.resource, each.device.vendor, each.device.dra) == ("gpu.nvidia.com", "nvidia", True)
        assert each.device.memory_reported
        assert (each.allocatable, each.capacity, each.sku_counts) == (1, 1, (1,))


def test_amds_documented_slice_reads_as_a_gpu_named_by_its_product() -> None:
    """The old release writes a serial number as deviceID, which is no PCI id."""
    (found,) = slices.pools([msgspec.json.decode(AMD_DOC, type=slices.ResourceSlice)], BUILTIN)
    assert (found.device.label, found.device.kind, found.device.memory_mib) == ("mi300x", "whole", 196592)
    assert found.device.evidence == "gpu.amd.com/productName=AMD_Instinct_MI300X_OAM"


@pytest.mark.parametrize("pci", ["0x74a1", "0x74A1", "74a1"])
def test_an_amd_gpu_is_named_by_its_pci_id_whatever_its_product_is_called(pci: str) -> None:
    attributes = {"type": "amdgpu", "deviceID": pci, "productName": "AMD_Instinct_MI325_OAM"}
    found = pool(amd(dranodes.device("gpu-0-128", attributes, "196592Mi")))
    assert found.device.label == "mi300x"
    assert found.device.evidence == "gpu.amd.com/deviceID=74a1"


def test_a_pci_id_that_other_cards_carry_too_names_nothing() -> None:
    shared = {"type": "amdgpu", "deviceID": "0x740c"}
    found = pool(amd(dranodes.device("gpu-0-128", shared, "64Gi")))
    assert found.device.skus == ()
    assert found.device.evidence == "gpu.amd.com/deviceID=740c"


@pytest.mark.parametrize(
    ("attributes", "label"),
    [
        ({"pciId": "0x56c0", "model": "Flex 170"}, "flex-170"),
        ({"model": "Flex 170"}, "flex-170"),
        ({"pciId": "0x0bd0", "model": "Max 1550"}, "max-1550"),
        ({"pciId": "0x4626", "model": "Alder Lake-P"}, "unknown"),
    ],
)
def test_an_intel_gpu_has_no_type_and_a_model_with_a_space(attributes: dict[str, str], label: str) -> None:
    found = pool(intel(**attributes))
    assert (found.device.label, found.device.kind, found.device.vendor) == (label, "whole", "intel")


def test_an_unknown_model_is_named_as_a_gpusku_would_match_it() -> None:
    unknown = dranodes.device("gpu-0", {"type": "gpu", "productName": "NVIDIA X1 Ultra"}, "1Ti")
    assert pool(nvidia(unknown)).device.evidence == "gpu.nvidia.com/productName=NVIDIA-X1-Ultra"
    nameless = dranodes.device("gpu-0", {"type": "gpu"}, "1Ti")
    assert pool(nvidia(nameless)).device.evidence == "no attribute names the model"


def test_attributes_that_spell_out_the_drivers_domain_are_the_same() -> None:
    spelt = {"gpu.nvidia.com/type": "gpu", "gpu.nvidia.com/productName": "NVIDIA L4", "other.org/type": "vfio"}
    device = dranodes.device("gpu-0", spelt, None) | {"capacity": {"gpu.nvidia.com/memory": {"value": "23034Mi"}}}
    found = pool(nvidia(device))
    assert (found.device.label, found.device.memory_mib) == ("l4", 23034)


def test_devices_for_virtual_machines_and_of_other_drivers_are_no_gpus_of_ours() -> None:
    vfio = dranodes.device("gpu-vfio-0", {"type": "vfio", "productName": "NVIDIA L4", "deviceID": "0x27b8"}, None)
    typeless = dranodes.device("gpu-1", {"productName": "NVIDIA L4"}, None)
    other = dranodes.resource_slice("n", "compute-domain.nvidia.com", [dranodes.nvidia("gpu-0", "l4")])
    assert slices.pools(read(nvidia(vfio, typeless), other), BUILTIN) == ()


@pytest.mark.parametrize("profile", ["1g.10gb+me", "1g.10gb.me"])
def test_a_mig_profile_has_one_name_however_it_is_written(profile: str) -> None:
    found = pool(nvidia(dranodes.mig("m", "h100", profile, "9856Mi"))).device
    assert (found.mode, found.memory_share, found.compute_share) == ("1g.10gb+me", 1 / 8, 1 / 7)


def test_a_profile_that_the_model_does_not_have_has_unknown_parts() -> None:
    found = pool(nvidia(dranodes.mig("m", "h100", "9g.99gb", "99Gi"))).device
    assert (found.mode, found.memory_share, found.compute_share) == ("9g.99gb", None, None)


def test_an_amd_partition_has_its_part_of_the_gpu() -> None:
    found = pool(amd(dranodes.partition("gpu-1-129", "mi300x", "CPX_NPS4", "24574Mi"))).device
    assert (found.label, found.kind, found.memory_mib) == ("mi300x cpx_nps4", "slice", 24574)
    assert (found.memory_share, found.compute_share) == (1 / 8, 1 / 8)


def test_a_slice_without_a_profile_cannot_be_used() -> None:
    attributes = {"type": "mig", "productName": "NVIDIA L4"}
    found = pool(nvidia(dranodes.device("m", attributes, "9Gi"))).device
    assert found.kind == "slice"
    assert found.problem == "the driver gpu.nvidia.com publishes no profile of the slice"


@pytest.mark.parametrize("memory", [None, "0", "lots", "-5Gi"])
def test_memory_that_the_driver_cannot_read_is_unknown_and_not_the_databases(memory: str | None) -> None:
    device = dranodes.amd("gpu-0-128", "mi300x")
    device["capacity"] = {} if memory is None else {"memory": {"value": memory}}
    found = pool(amd(device)).device
    assert (found.memory_mib, found.memory_reported) == (None, False)


def test_a_device_that_many_claims_may_have_is_shared_and_offers_its_memory() -> None:
    found = pool(dranodes.shared_slice("n", "l4", 2)).device
    assert (found.kind, found.memory_mib, found.replicas, found.mode) == ("shared", 8192, None, None)
    assert (found.memory_share, found.compute_share) == (None, None)
    assert found.label == "l4 shared by unknown"


@pytest.mark.parametrize(
    ("policy", "mib"),
    [
        ({"validValues": ["1Gi", "4Gi"], "default": "1Gi"}, 4096),
        ({"validRange": {"min": "1Mi", "max": "3Gi"}, "default": "1Gi"}, 3072),
        ({"validRange": {"min": "1Mi", "max": "9Gi"}, "default": "1Gi"}, 8192),
        ({"validRange": {"min": "0"}, "default": "0"}, 8192),
        ({"default": "1Gi"}, 8192),
        (None, 8192),
    ],
)
def test_of_a_shared_device_a_pod_gets_at_most_what_the_drivers_policy_gives(policy: Any, mib: int) -> None:
    device = dranodes.shareable(dranodes.nvidia("gpu-0", "l4", memory="8Gi"))
    device["capacity"]["memory"]["requestPolicy"] = policy
    if policy is None:
        del device["capacity"]["memory"]["requestPolicy"]
    ((key, found),) = slices.devices(read(nvidia(device)), BUILTIN).items()
    assert key == ("gpu.nvidia.com", "n", "gpu-0")
    assert (found.device.memory_mib, found.memory_bytes) == (mib, 8 * 2**30)


def test_amds_partitions_on_demand_are_shared_devices_of_one_partitions_memory() -> None:
    """AutoPartition: one device stands for all partitions of a mode, and its memory is the whole GPU's."""
    attributes = {
        "type": "amdgpu-partition",
        "deviceID": "0x74a1",
        "computePartition": "cpx",
        "memoryPartition": "nps4",
    }
    device = dranodes.device("gpu-0-cpx-nps4", attributes, "196592Mi", allowMultipleAllocations=True)
    device["capacity"]["memory"]["requestPolicy"] = {"default": "24574Mi", "validValues": ["24574Mi"]}
    found = pool(amd(device)).device
    assert (found.kind, found.skus[0].id, found.memory_mib, found.problem) == ("shared", "mi300x", 24574, None)


def test_alike_devices_are_one_pool_and_others_are_others() -> None:
    devices = [
        dranodes.nvidia("gpu-0", "h100"),
        dranodes.nvidia("gpu-1", "h100"),
        dranodes.nvidia("gpu-2", "h100", memory="80Gi"),
        dranodes.mig("gpu-3-a", "h100", "3g.40gb", "40192Mi"),
        dranodes.mig("gpu-3-b", "h100", "3g.40gb", "40192Mi"),
        dranodes.nvidia("gpu-4", "l4"),
    ]
    found = slices.pools(read(nvidia(*devices)), BUILTIN)
    assert [(each.device.label, each.capacity) for each in found] == [
        ("h100-sxm", 2),
        ("h100-sxm", 1),
        ("h100-sxm 3g.40gb", 2),
        ("l4", 1),
    ]
    assert {each.device.resource for each in found} == {"gpu.nvidia.com"}


@pytest.mark.parametrize(("effect", "allocatable"), [("NoSchedule", 1), ("NoExecute", 1), ("None", 2)])
def test_a_tainted_device_is_there_and_not_to_be_had(effect: str, allocatable: int) -> None:
    sick = dranodes.tainted(dranodes.nvidia("gpu-1", "l4"), effect)
    found = pool(nvidia(dranodes.nvidia("gpu-0", "l4"), sick))
    assert (found.allocatable, found.capacity) == (allocatable, 2)


def test_only_the_newest_generation_of_a_pool_counts() -> None:
    old = nvidia(dranodes.nvidia("gpu-0", "l4"), dranodes.nvidia("gpu-1", "l4"), generation=3)
    new = nvidia(dranodes.nvidia("gpu-0", "t4"), generation=4)
    for documents in ([old, new], [new, old], [old, new, old]):
        assert pool(*documents).device.label == "t4"


def test_of_a_pool_whose_slices_are_not_all_there_nothing_can_be_had() -> None:
    one = nvidia(dranodes.nvidia("gpu-0", "l4"), part=0, parts=2)
    two = nvidia(dranodes.nvidia("gpu-1", "l4"), part=1, parts=2)
    assert (pool(one).allocatable, pool(one).capacity) == (0, 1)
    assert (pool(one, two).allocatable, pool(one, two).capacity) == (2, 2)


def test_the_order_of_slices_changes_nothing() -> None:
    documents = [
        nvidia(dranodes.nvidia("gpu-0", "l4"), part=0, parts=2),
        nvidia(dranodes.nvidia("gpu-1", "t4"), part=1, parts=2),
        amd(dranodes.amd("gpu-0-128", "mi300x")),
    ]
    found = slices.pools(read(*documents), BUILTIN)
    assert slices.pools(read(*reversed(documents)), BUILTIN) == found
    assert [each.device.label for each in found] == ["mi300x", "l4", "t4"]


def test_free_devices_are_counted_for_each_class_of_one_driver() -> None:
    document = nvidia(
        dranodes.nvidia("gpu-0", "h100"),
        dranodes.nvidia("gpu-1", "h100"),
        dranodes.tainted(dranodes.nvidia("gpu-2", "h100")),
        dranodes.mig("gpu-3-a", "h100", "3g.40gb", "40192Mi"),
    )
    published = slices.devices(read(document), BUILTIN)
    taken = [
        Taken(("gpu.nvidia.com", "n", "gpu-1")),
        Taken(("gpu.nvidia.com", "elsewhere", "gpu-0")),
        Taken(("nic.example.com", "n", "gpu-0")),
    ]
    left = {device.label: count for device, count in slices.free(published, taken).items()}
    assert left == {"h100-sxm": 1, "h100-sxm 3g.40gb": 1}


@pytest.mark.parametrize(("taken", "asked", "left"), [(3, 5, 1), (3, 6, 0), (0, 8, 1), (0, 9, 0), (8, None, 1)])
def test_a_shared_device_is_free_while_it_has_the_memory_left(taken: int, asked: int | None, left: int) -> None:
    published = slices.devices(read(dranodes.shared_slice("n", "l4", 1)), BUILTIN)
    held = [Taken(("gpu.nvidia.com", "n", "gpu-0"), taken * 2**30)]
    found = slices.free(published, held, None if asked is None else asked * 2**30)
    assert list(found.values()) == [left]


def test_a_dra_class_labels_the_node_with_its_models_and_no_partition() -> None:
    """The partition label is about what the device plugins' plain names stand for."""
    document = nvidia(dranodes.nvidia("gpu-0", "h100"), dranodes.mig("m", "h100", "3g.40gb", "40192Mi"))
    facts = node_facts.NodeFacts(slices.pools(read(document), BUILTIN), (), ())
    assert node_facts.node_labels(facts) == {"anygpu.io/sku.h100-sxm": "2"}


@pytest.mark.parametrize("driver", ["gpu.nvidia.com", "gpu.amd.com", "gpu.intel.com"])
def test_a_driver_is_no_resource_and_has_its_vendor(driver: str) -> None:
    assert vendors.of_resource(driver) is None
    vendor = vendors.of_driver(driver)
    assert vendor is not None
    assert vendor.driver.name == driver


@pytest.mark.parametrize("name", ["gpu.example.com", "compute-domain.nvidia.com", "nvidia.com/gpu", ""])
def test_other_drivers_are_nobodys(name: str) -> None:
    assert vendors.of_driver(name) is None
