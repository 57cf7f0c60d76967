"""The real pynvml and amdsmi over stub libraries compiled here: what the agent reads, and how it takes failures."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stubgpus
import stublibs

from capability_db import partitions, resources
from capability_db.agent import devices, inventory, probe, reading
from capability_db.catalogue import Catalogue

NOW = "2026-11-27T00:00:00Z"
SILENT = "the kubelet is not asked here"
DRIVER_NOT_LOADED, LOST, RESET_REQUIRED, MISMATCH = 9, 15, 16, 18
AMD_IO, AMD_DRIVER_NOT_LOADED = 12, 34


class Node:
    """A node with stub libraries: its probes, and what the agent makes of their answers."""

    def __init__(self, vendor: devices.Vendor, stub: stublibs.Stub) -> None:
        self.vendor: devices.Vendor = vendor
        self.stub = stub
        self.time = 0.0
        self.probe = probe.Probe(vendor, 2.0, start_seconds=10, clock=lambda: time.monotonic() + self.time)
        self.memory = inventory.Memory()
        self.answer: reading.Answer | None = None

    def look(self, holders: inventory.Holders | str = SILENT) -> resources.NodeGPUsStatus:
        self.answer = self.probe.read()
        self.memory, status = inventory.look(self.memory, {self.vendor: self.answer}, holders, Catalogue.builtin(), NOW)
        return resources.NodeGPUsStatus.model_validate(status.model_dump(by_alias=True))  # every constraint checked

    def later(self, seconds: float = 120) -> None:
        """Past any back-off."""
        self.time += seconds


@pytest.fixture
def node(libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []
    number = itertools.count()

    def make(vendor: devices.Vendor, lines: dict[str, Any]) -> Node:
        stub = stublibs.Stub(tmp_path / f"{vendor}{next(number)}.txt", lines)
        for key, value in stublibs.environment(libraries, **{vendor: stub}).items():
            monkeypatch.setenv(key, value)
        made.append(Node(vendor, stub))
        return made[-1]

    yield make
    for each in made:
        each.probe.close()


def ready(status: resources.NodeGPUsStatus) -> tuple[str, str, str]:
    (found,) = (each for each in status.conditions if each.type == "Ready")
    return found.status, found.reason, found.message


# --- what they are ----------------------------------------------------------------------------------------------------


def chunks(vendor: str) -> list[list[str]]:
    named = [sku.id for sku in Catalogue.builtin() if sku.vendor == vendor]
    return [named[start : start + 16] for start in range(0, len(named), 16)]


@pytest.mark.parametrize("skus", chunks("nvidia"), ids=str)
def test_every_nvidia_model_is_known_with_its_memory_and_its_mig_profiles(
    node: Callable[..., Node], skus: list[str]
) -> None:
    status = node("nvidia", stubgpus.nvidia(*skus)).look()
    assert [device.sku for device in status.devices] == skus
    assert [device.memory_mib for device in status.devices] == [round(stubgpus.sku(each).memory_mib) for each in skus]
    for device in status.devices:
        key = stubgpus.sku(str(device.sku)).mig
        offered = {each.profile: (each.size, each.starts) for each in device.mig.placements} if device.mig else {}
        wanted = partitions.mig_geometry(key).profiles if key else ()
        assert offered == {each.name: (each.size, tuple(each.starts)) for each in wanted}
        assert device.target == (stubgpus.sku(str(device.sku)).target or "1.0")
        assert device.healthy
    assert [each.status for each in status.conditions if each.type == inventory.GEOMETRY] in ([], ["True"])
    assert status.drivers == (resources.Driver(vendor="nvidia", version="580.82.07", runtime="13.0"),)
    assert ready(status)[0] == "True"


@pytest.mark.parametrize("sku_id", [sku.id for sku in Catalogue.builtin() if sku.vendor == "amd" and sku.match.pci])
def test_every_amd_model_with_a_pci_id_of_its_own_is_known(node: Callable[..., Node], sku_id: str) -> None:
    status = node("amd", stubgpus.amd(sku_id)).look()
    (device,) = status.devices
    assert (device.sku, device.memory_mib) == (sku_id, round(stubgpus.sku(sku_id).memory_mib))
    assert device.target == stubgpus.sku(sku_id).target


def test_a_model_that_nobody_knows_is_unknown_and_reported_all_the_same(node: Callable[..., Node]) -> None:
    lines = stubgpus.nvidia("t4") | {"0.name": "NVIDIA T4000", "0.pci_id": "fffe"}
    (device,) = node("nvidia", lines).look().devices
    assert device.sku is None
    assert (device.product, device.memory_mib, device.pci_device_id) == ("NVIDIA T4000", 15360, "fffe")


def test_all_figures_of_an_nvidia_gpu_are_in_their_units(node: Callable[..., Node]) -> None:
    device = node("nvidia", stubgpus.nvidia("l40s", "l40s")).look().devices[1]
    assert device.model_dump(exclude_none=True, exclude={"holders"}) == {
        "index": 1,
        "vendor": "nvidia",
        "uuid": stubgpus.gpu_uuid(1),
        "pci_bus_id": "0000:11:00.0",
        "pci_device_id": "26b9",
        "product": "NVIDIA L40S",
        "sku": "l40s",
        "target": "8.9",
        "memory_mib": 46068,
        "memory_used_mib": 1000,
        "numa_node": 0,
        "healthy": True,
        "problems": (),
        "ecc": {"corrected": 3, "uncorrected": 0, "retired": 0, "pending": False, "remap_failed": False},
        "throttling": (),
        "temperature_c": 41,
        "power_watts": 70.0,
        "power_limit_watts": 350.0,
    }


def test_eight_gpus_on_nvswitches_are_all_joined(node: Callable[..., Node]) -> None:
    status = node("nvidia", stubgpus.nvidia(*["h100-sxm"] * 8, switches=18)).look()
    assert {link.between for link in status.links} == {*itertools.combinations(range(8), 2)}
    assert {(link.kind, link.count) for link in status.links} == {("nvlink", 18)}
    assert [device.numa_node for device in status.devices] == [0] * 4 + [1] * 4


def test_bridges_join_pairs_and_the_rest_shares_what_is_nearest(node: Callable[..., Node]) -> None:
    lines = stubgpus.nvidia(*["a100-pcie-80gb"] * 5)
    lines |= {f"0.peer.{link}": 1 for link in range(12)} | {f"1.peer.{link}": 0 for link in range(12)}
    lines["2.near.3"] = 10
    links = {link.between: (link.kind, link.count) for link in node("nvidia", lines).look().links}
    assert links[0, 1] == ("nvlink", 12)
    assert links[2, 3] == ("pcie", None)
    assert links[0, 2] == ("host", None)
    assert links[0, 4] == ("numa", None)
    assert len(links) == 10


def test_mig_instances_lie_where_the_driver_says_and_what_is_free_is_what_they_leave(
    node: Callable[..., Node],
) -> None:
    lines = stubgpus.nvidia("a100-sxm4-80gb", "a100-sxm4-80gb", "t4")
    lines |= stubgpus.cut(0, "a100-80gb", ("3g.40gb", 0), ("2g.20gb", 4), ("1g.10gb+me", 6))
    status = node("nvidia", lines).look(
        {stubgpus.mig_uuid(0, 1): (resources.Holder(namespace="n", pod="p", container="c"),)}
    )
    cut, whole, turing = (device.mig for device in status.devices)
    assert turing is None
    assert whole is not None
    assert not whole.enabled
    assert cut is not None
    assert cut.enabled
    assert [(each.profile, each.start, each.size, each.memory_mib, len(each.holders)) for each in cut.instances] == [
        ("3g.40gb", 0, 4, 40192, 0),
        ("2g.20gb", 4, 2, 19968, 1),
        ("1g.10gb+me", 6, 1, 9856, 0),
    ]
    assert [each.uuid for each in cut.instances] == [stubgpus.mig_uuid(0, nth) for nth in range(3)]
    # Unit 7 is left, where no profile of one unit begins.
    assert {each.profile: each.free for each in cut.placements if each.free} == {}


def test_one_free_place_is_offered_to_what_fits_there(node: Callable[..., Node]) -> None:
    lines = stubgpus.nvidia("h100-sxm") | stubgpus.cut(0, "h100-80gb", ("3g.40gb", 4), ("1g.10gb+me", 0))
    (device,) = node("nvidia", lines).look().devices
    assert device.mig is not None
    assert {each.profile: each.free for each in device.mig.placements if each.free} == {
        "1g.10gb": (1, 2, 3),  # no second +me
        "1g.20gb": (2,),
        "2g.20gb": (2,),
    }


def test_a_gpu_instance_that_is_no_device_yet_holds_its_place(node: Callable[..., Node]) -> None:
    lines = stubgpus.nvidia("a30") | stubgpus.cut(0, "a30", ("2g.12gb", 0))
    profile, start, size, *_ = lines["0.instance.0"].split()
    (device,) = node("nvidia", lines | {"0.instance.0": f"{profile} {start} {size}"}).look().devices
    assert device.mig is not None
    assert [(each.profile, each.uuid, each.start) for each in device.mig.instances] == [("2g.12gb", None, 0)]
    assert {each.profile: each.free for each in device.mig.placements}["2g.12gb"] == (2,)


def test_a_driver_with_other_mig_placements_than_known_is_believed_and_said(node: Callable[..., Node]) -> None:
    lines = stubgpus.nvidia("h200-sxm")
    number = next(key for key, value in lines.items() if " 3g.71gb " in f" {value} ")
    lines[number] = lines[number].replace("0,4", "0")
    status = node("nvidia", lines).look()
    (device,) = status.devices
    assert device.mig is not None
    assert {each.profile: each.starts for each in device.mig.placements}["3g.71gb"] == (0,)
    (condition,) = (each for each in status.conditions if each.type == inventory.GEOMETRY)
    assert (condition.status, condition.message) == ("False", "h200-sxm: 3g.71gb is 4 units at [0]")


@pytest.mark.parametrize(
    ("sku_id", "mode", "parts"),
    [
        ("mi300x", ("SPX", "NPS1"), 1),
        ("mi300x", ("CPX", "NPS4"), 8),
        ("mi325x", ("CPX", "NPS1"), 8),
        ("mi325x", ("DPX", "NPS2"), 2),
        ("mi300a", ("TPX", "NPS1"), 3),
    ],
)
def test_amd_partitions_are_devices_of_their_gpus_model(
    node: Callable[..., Node], sku_id: str, mode: tuple[str, str], parts: int
) -> None:
    status = node("amd", stubgpus.amd(sku_id, 2, mode)).look()
    assert len(status.devices) == 2 * parts
    assert {device.sku for device in status.devices} == {sku_id}
    assert {device.memory_mib for device in status.devices} == {round(stubgpus.sku(sku_id).memory_mib) // parts}
    assert {device.partition for device in status.devices} == {resources.Partition(compute=mode[0], memory=mode[1])}
    assert len({device.uuid for device in status.devices}) == 2 * parts
    assert [each.version for each in status.drivers] == ["6.12.12"]
    assert {link.kind for link in status.links} == {"xgmi"}
    assert len(status.links) == 2 * parts * (2 * parts - 1) // 2


def test_all_figures_of_an_amd_gpu_are_in_their_units(node: Callable[..., Node]) -> None:
    (device,) = node("amd", stubgpus.amd("mi210")).look().devices
    assert (device.sku, device.pci_device_id, device.pci_bus_id) == ("mi210", "740f", "0000:05:00.0")
    assert (device.memory_mib, device.memory_used_mib, device.numa_node) == (65536, 300, 0)
    assert (device.power_watts, device.power_limit_watts, device.temperature_c) == (140.0, 300.0, 45)
    assert device.partition is None


# --- how they are -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ({"rows": "0 1 1 0"}, "memory waits for a GPU reset to be retired after errors"),
        ({"rows": "2 1 0 1"}, "memory rows could not be remapped: the GPU needs service"),
        ({"ecc_volatile": 2}, "2 uncorrectable memory errors since the driver was loaded"),
        ({"xid": "79 1"}, "XID 79"),
        ({"rows": None, "retire_pending": 1}, "memory waits for a GPU reset to be retired after errors"),
        ({"error": LOST}, "lost: NVML: GPU is lost"),
    ],
)
def test_an_nvidia_gpu_that_is_not_well_says_why(
    node: Callable[..., Node], lines: dict[str, Any], problem: str
) -> None:
    there = node("nvidia", stubgpus.nvidia("a100-sxm4-40gb", "a100-sxm4-40gb"))
    assert all(device.healthy for device in there.look().devices)
    there.stub.set({f"1.{key}": value for key, value in lines.items()})
    well, ill = there.look().devices
    assert well.healthy
    assert (ill.healthy, ill.problems) == (False, (problem,))
    assert (ill.uuid, ill.sku, ill.memory_mib) == (stubgpus.gpu_uuid(1), "a100-sxm4-40gb", 40960)
    assert there.look().devices[1].problems == (problem,)  # an XID stays, though NVML tells it once


def test_retired_pages_are_counted_and_harm_nothing(node: Callable[..., Node]) -> None:
    lines = stubgpus.nvidia("v100-sxm2-16gb") | {
        "0.rows": None,
        "0.retired.0": 2,
        "0.retired.1": 1,
        "0.retire_pending": 0,
    }
    (device,) = node("nvidia", {key: value for key, value in lines.items() if value is not None}).look().devices
    assert device.ecc is not None
    assert (device.ecc.retired, device.ecc.pending, device.healthy) == (3, False, True)


def test_an_xid_that_a_program_causes_is_no_fault_of_the_gpu(node: Callable[..., Node]) -> None:
    there = node("nvidia", stubgpus.nvidia("t4"))
    there.look()
    there.stub.set({"0.xid": "31 1"})
    assert there.look().devices[0].healthy


def test_a_gpu_that_comes_back_is_well_again_its_xid_forgotten(node: Callable[..., Node]) -> None:
    there = node("nvidia", stubgpus.nvidia("h200-sxm", "h200-sxm"))
    there.look()
    there.stub.set({"0.xid": "79 1"})
    there.look()
    there.stub.set({"0.error": LOST})
    assert there.look().devices[0].problems == ("lost: NVML: GPU is lost",)
    there.stub.set({"0.error": None, "0.xid": None})
    assert there.look().devices[0].healthy


def test_a_gpu_that_the_driver_lists_no_more_stays_listed(node: Callable[..., Node]) -> None:
    there = node("nvidia", stubgpus.nvidia("b200", "b200", "b200", switches=18))
    assert len(there.look().links) == 3
    there.stub.set({"count": 2})
    for _ in range(3):
        status = there.look()
        assert [device.sku for device in status.devices] == ["b200"] * 3
        assert [device.problems for device in status.devices] == [(), (), ("lost: its driver lists it no more",)]
    assert {place for link in status.links for place in link.between} <= {0, 1}


def test_throttling_is_told_by_its_reason(node: Callable[..., Node]) -> None:
    there = node("nvidia", stubgpus.nvidia("gh200-480gb", throttle=0x01 | 0x04 | 0x40))
    assert there.look().devices[0].throttling == ("power cap", "hardware thermal slowdown")
    there = node("amd", stubgpus.amd("mi300x"))
    assert there.look().devices[0].throttling == ()
    there.stub.set({"0.held_power": 17})
    assert there.look().devices[0].throttling == ("power cap",)
    assert there.look().devices[0].throttling == ()


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ({"ecc_uncorrected": 1}, "1 uncorrectable memory errors since the driver was loaded"),
        ({"pages": 3, "pages_pending": 1}, "memory pages wait to be retired after errors"),
        ({"error": AMD_IO}, "lost: AMD SMI: "),
    ],
)
def test_an_amd_gpu_that_is_not_well_says_why(node: Callable[..., Node], lines: dict[str, Any], problem: str) -> None:
    there = node("amd", stubgpus.amd("mi325x", 2, ("SPX", "NPS1")))
    assert all(device.healthy for device in there.look().devices)
    there.stub.set({f"1.{key}": value for key, value in lines.items()})
    well, ill = there.look().devices
    assert well.healthy
    assert not ill.healthy
    assert ill.problems[0].startswith(problem)
    assert (ill.sku, ill.memory_mib) == ("mi325x", 262144)
    there.stub.set({f"1.{key}": None for key in lines} | {"1.pages": 0, "1.ecc_uncorrected": 0})
    assert all(device.healthy for device in there.look().devices)


def test_gpus_that_are_cut_another_way_are_no_lost_gpus(node: Callable[..., Node]) -> None:
    there = node("amd", stubgpus.amd("mi300x", 1, ("CPX", "NPS1")))
    assert len(there.look().devices) == 8
    there.stub.lines = stubgpus.amd("mi300x", 1, ("SPX", "NPS1"))
    there.stub.set()
    (device,) = there.look().devices
    assert device.healthy
    assert device.partition == resources.Partition(compute="SPX", memory="NPS1")


# --- when the library fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "lines"), [("nvidia", stubgpus.nvidia("t4", "l4")), ("amd", stubgpus.amd("mi210", 2))], ids=str
)
def test_a_call_that_hangs_is_ended_and_what_was_seen_stays(
    node: Callable[..., Node], vendor: devices.Vendor, lines: dict[str, Any]
) -> None:
    there = node(vendor, lines)
    before = there.look().devices
    pid = there.probe.pid
    there.stub.set({"1.hang": 1})
    began = time.monotonic()
    status = there.look()
    assert time.monotonic() - began < 6
    assert status.devices == before
    assert status.drivers[0].error == "the library did not answer within 2 s; its process was killed"
    assert ready(status) == ("False", "DriverFailed", f"{vendor}: {status.drivers[0].error}")
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    there.stub.set({"1.hang": None})
    status = there.look()
    assert (status.drivers[0].error, status.devices, ready(status)[0]) == (None, before, "True")


@pytest.mark.parametrize(
    ("vendor", "lines"), [("nvidia", stubgpus.nvidia("t4")), ("amd", stubgpus.amd("mi210"))], ids=str
)
def test_a_library_that_crashes_takes_nothing_with_it(
    node: Callable[..., Node], vendor: devices.Vendor, lines: dict[str, Any]
) -> None:
    there = node(vendor, lines)
    before = there.look().devices
    there.stub.set({"crash": 1})
    status = there.look()
    assert status.drivers[0].error == "the reading process ended: signal 6"
    assert status.devices == before
    there.stub.set({"crash": None})
    assert ready(there.look())[0] == "True"


def test_a_driver_that_is_reloaded_is_read_through_a_library_loaded_anew(node: Callable[..., Node]) -> None:
    there = node("nvidia", stubgpus.nvidia("h100-sxm"))
    there.look()
    there.stub.set({"0.xid": "48 1"})
    assert there.look().devices[0].problems == ("XID 48",)
    pid = there.probe.pid
    there.stub.set({"error": DRIVER_NOT_LOADED})
    for _ in range(4):
        status = there.look()
        assert status.drivers[0].error == "NVML: Driver Not Loaded"
        assert [device.sku for device in status.devices] == ["h100-sxm"]
        there.later()
    there.stub.set({"error": None, "0.xid": None, "driver": "590.10.01"})
    status = there.look()
    assert there.probe.pid != pid
    assert status.drivers[0].version == "590.10.01"
    assert status.devices[0].healthy  # what the old driver remembered is gone with it


def test_a_failing_library_is_asked_less_and_less_often(node: Callable[..., Node]) -> None:
    there = node("nvidia", stubgpus.nvidia("t4") | {"error": MISMATCH})
    started = set()
    for _ in range(20):
        there.look()
        started.add(there.probe._failures)
    assert started == {1, 2, 3}
    there.later(61)
    there.stub.set({"error": None})
    assert ready(there.look())[0] == "True"


def test_an_old_driver_that_lacks_functions_says_what_it_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = (
        "nvmlSystemGetCudaDriverVersion_v2",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetGpuInstanceProfileInfoV",
        "nvmlDeviceGetGpuInstanceById",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetRemappedRows",
        "nvmlEventSetCreate",
    )
    source, library = stublibs.HERE / "nvmlstub.c", tmp_path / stublibs.NVIDIA_LIBRARY
    stublibs._compile(source, library, *(f"-D{name}=not_{name}" for name in missing))
    lines = stubgpus.nvidia("a100-sxm4-40gb") | stubgpus.cut(0, "a100-40gb", ("1g.5gb", 3))
    stub = stublibs.Stub(tmp_path / "nvml.txt", lines)
    for key, value in stublibs.environment(tmp_path, nvidia=stub).items():
        monkeypatch.setenv(key, value)
    there = Node("nvidia", stub)
    (device,) = there.look().devices
    there.probe.close()
    assert (device.sku, device.memory_mib, device.memory_used_mib) == ("a100-sxm4-40gb", 40960, 512)
    assert device.mig is not None
    assert [(each.profile, each.start, each.memory_mib) for each in device.mig.instances] == [("1g.1gb", None, 4864)]
    assert device.healthy


@pytest.mark.parametrize("vendor", devices.VENDORS)
def test_without_its_library_a_vendor_is_absent(
    vendor: devices.Vendor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    asked = probe.Probe(vendor, 5.0, start_seconds=10)
    answer = asked.read()
    assert (answer.kind, answer.text) == ("absent", f"{inventory.LIBRARIES[vendor]} is not here")
    assert asked.pid is None
    assert asked.read() is answer  # and is not looked for at every turn


def test_a_library_of_another_version_is_a_failure_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lib").mkdir()
    source = tmp_path / "old.c"
    source.write_text("int amdsmi_init(void) { return 0; }\n")
    stublibs._compile(source, tmp_path / "lib" / "libamd_smi.so")
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    asked = probe.Probe("amd", 5.0, start_seconds=10)
    answer = asked.read()
    asked.close()
    assert answer.kind == "failed"
    assert answer.text.startswith("libamd_smi.so is of a version that amdsmi does not know: ")
