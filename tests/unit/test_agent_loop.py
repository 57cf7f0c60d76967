"""When the agent writes: on change, on the slow beat, and never in a hurry at an API that does not answer."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from capability_db import resources
from capability_db.agent import inventory, loop, mig, reading
from capability_db.catalogue import Catalogue

GPU = reading.Gpu(
    index=0,
    uuid="GPU-a",
    pci_device_id="1eb8",
    product="Tesla T4",
    memory_mib=15360,
    memory_used_mib=5,
    temperature_c=40,
    power_watts=20,
    errors=reading.Errors(corrected=1, uncorrected=0),
)


class Eyes:
    """What is seen, in place of a node."""

    def __init__(self) -> None:
        self.memory = inventory.Memory()
        self.gpus: tuple[reading.Gpu, ...] = (GPU,)
        self.remembered: list[Any] = []

    def look(self) -> resources.NodeGPUsStatus:
        answer = reading.Answer("ok", reading.Reading("550.54", "12.4", self.gpus))
        self.memory, status = inventory.look(
            self.memory,
            {"nvidia": answer, "amd": reading.Answer("absent")},
            {},
            Catalogue.builtin(),
            "2026-11-27T00:00:00Z",
        )
        return status

    def remember(self, status: resources.NodeGPUsStatus) -> None:
        self.remembered.append(status)


class Sink:
    """An API that answers while it is `up`."""

    def __init__(self) -> None:
        self.up, self.asked = True, 0
        self.written: list[resources.NodeGPUsStatus] = []

    def last(self) -> resources.NodeGPUsStatus | None:
        self.asked += 1
        if not self.up:
            raise loop.NotTakenError("refused")
        return self.written[-1] if self.written else None

    def write(self, status: resources.NodeGPUsStatus) -> None:
        self.asked += 1
        if not self.up:
            raise loop.NotTakenError("refused")
        self.written.append(status)


@dataclasses.dataclass
class World:
    """An agent, its node, its API and its clock."""

    eyes: Eyes
    sink: Sink
    agent: loop.Agent
    time: float = 0.0

    def step(self, seconds: float = 10) -> int:
        self.time += seconds
        before = len(self.sink.written)
        self.agent.step()
        return len(self.sink.written) - before


@pytest.fixture
def world() -> World:
    eyes, sink = Eyes(), Sink()
    made: World = World(eyes, sink, None)  # type: ignore[arg-type]
    made.agent = loop.Agent(eyes, sink, loop.Settings(10, 300), lambda: made.time, lambda low, high: high)  # type: ignore[arg-type]
    return made


def change(world: World, **figures: Any) -> None:
    import msgspec

    world.eyes.gpus = (msgspec.structs.replace(world.eyes.gpus[0], **figures),)


def test_what_changes_is_written_at_once_and_what_does_not_on_the_beat(world: World) -> None:
    assert [world.step() for _ in range(5)] == [1, 0, 0, 0, 0]
    change(world, problems=("ill",))
    assert [world.step() for _ in range(3)] == [1, 0, 0]
    assert sum(world.step() for _ in range(60)) == 2


@pytest.mark.parametrize(
    "figures",
    [
        {"temperature_c": 70},
        {"power_watts": 68.5},
        {"memory_used_mib": 9000},
        {"errors": reading.Errors(corrected=2, uncorrected=0)},
        {"throttling": ("power cap",)},
    ],
    ids=lambda figures: next(iter(figures)),
)
def test_what_changes_all_the_time_waits_for_the_beat(world: World, figures: dict[str, Any]) -> None:
    world.step()
    change(world, **figures)
    assert sum(world.step() for _ in range(28)) == 0
    assert sum(world.step() for _ in range(2)) == 1
    written = world.sink.written[-1].devices[0].model_dump()
    assert all(written[key] == value for key, value in figures.items() if key != "errors")


@pytest.mark.parametrize(
    "figures",
    [
        {"errors": reading.Errors(corrected=1, uncorrected=1)},
        {"throttling": ("hardware thermal slowdown",)},
        {"lost": "NVML: GPU is lost"},
        {"xids": (79,)},
        {"mig": True, "instances": (reading.Instance("1g.5gb", "MIG-1", 0, 1, 4864),)},
        {"memory_mib": 15000},
    ],
    ids=lambda figures: next(iter(figures)),
)
def test_what_placement_or_people_must_know_is_written_at_once(world: World, figures: dict[str, Any]) -> None:
    world.step()
    change(world, **figures)
    assert world.step() == 1


def test_an_api_that_does_not_answer_is_asked_less_and_less_often_and_hears_all_afterwards(world: World) -> None:
    world.sink.up = False
    for _ in range(360):  # an hour
        assert world.step() == 0
    assert 10 < world.sink.asked < 30
    world.sink.up = True
    assert sum(world.step() for _ in range(31)) == 1
    change(world, problems=("ill",))
    assert world.step() == 1  # and it is trusted again


def test_a_look_that_fails_ends_nothing(world: World) -> None:
    stop = threading.Event()
    looks: list[int] = []

    def look() -> resources.NodeGPUsStatus:
        looks.append(1)
        if len(looks) == 3:
            stop.set()
        raise ValueError("an odd driver")

    world.eyes.look = look  # type: ignore[method-assign]
    world.agent._settings = loop.Settings(0.01, 300)
    world.agent.run(stop)
    assert len(looks) == 3


def test_partitions_that_share_a_uuid_are_told_apart_by_their_address() -> None:
    parts = tuple(
        reading.Gpu(index=n, uuid="u", pci_bus_id=f"0000:05:00.{n}", names=(f"0000:05:00.{n}",), compute_mode="CPX")
        for n in range(8)
    )
    answers = {"amd": reading.Answer("ok", reading.Reading(gpus=parts))}
    holders = {f"0000:05:00.{n}": (resources.Holder(namespace="n", pod=f"p{n}", container="c"),) for n in range(8)}
    memory = inventory.Memory()
    for _ in range(2):
        memory, status = inventory.look(memory, answers, holders, Catalogue.builtin(), "2026-11-27T00:00:00Z")
        assert [device.holders[0].pod for device in status.devices] == [f"p{n}" for n in range(8)]
        assert all(device.healthy for device in status.devices)


def test_what_an_earlier_agent_wrote_is_known_before_the_first_look(world: World) -> None:
    world.sink.written.append(world.eyes.look())
    world.step()
    assert world.eyes.remembered == world.sink.written[:1]


def test_a_restarted_agent_shows_what_was_seen_last_while_the_library_fails() -> None:
    eyes = Eyes()
    status = eyes.look()
    memory = inventory.Memory.of(resources.NodeGPUsStatus.model_validate(status.model_dump(by_alias=True)))
    _, status = inventory.look(
        memory,
        {"nvidia": reading.Answer("failed", text="NVML: broken")},
        {},
        Catalogue.builtin(),
        "2026-11-27T00:01:00Z",
    )
    assert [device.uuid for device in status.devices] == ["GPU-a"]
    assert status.drivers[0].error == "NVML: broken"
    (ready,) = (each for each in status.conditions if each.type == inventory.READY)
    assert (ready.status, ready.last_transition_time) == ("False", "2026-11-27T00:01:00Z")


def test_a_condition_keeps_the_time_since_which_it_holds() -> None:
    eyes = Eyes()
    eyes.look()
    _, status = inventory.look(
        eyes.memory,
        {"nvidia": reading.Answer("ok", reading.Reading(gpus=(GPU,)))},
        "the kubelet is silent",
        Catalogue.builtin(),
        "2026-11-27T00:05:00Z",
    )
    assert {each.type: (each.status, each.last_transition_time[14:16]) for each in status.conditions} == {
        "Ready": ("True", "00"),
        "HoldersKnown": ("False", "05"),
    }


def test_holders_stay_as_they_were_while_the_kubelet_is_silent() -> None:
    holder = resources.Holder(namespace="n", pod="p", container="c")
    answers = {"nvidia": reading.Answer("ok", reading.Reading(gpus=(GPU,)))}
    memory, status = inventory.look(
        inventory.Memory(), answers, {"GPU-a": (holder,)}, Catalogue.builtin(), "2026-11-27T00:00:00Z"
    )
    assert status.devices[0].holders == (holder,)
    _, status = inventory.look(memory, answers, "silent", Catalogue.builtin(), "2026-11-27T00:00:10Z")
    assert status.devices[0].holders == (holder,)


@pytest.mark.parametrize(
    ("slices", "memory", "whole", "name"),
    [
        (1, 4864, 40960, "1g.5gb"),
        (1, 9856, 40960, "1g.10gb"),
        (3, 40192, 81920, "3g.40gb"),
        (7, 80384, 81920, "7g.80gb"),
        (4, 47488, 95830, "4g.47gb"),
        (2, 12032, 24576, "2g.12gb"),
    ],
)
def test_a_profile_that_an_old_driver_does_not_name_is_named_as_nvidia_does(
    slices: int, memory: int, whole: int, name: str
) -> None:
    assert mig.profile_name(slices, memory, whole) == name


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "1g.5gb"),
        ("NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb", "1c.3g.40gb"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb+me", "1g.5gb+me"),
        ("NVIDIA A100-SXM4-40GB", None),
        (None, None),
    ],
)
def test_the_profile_stands_in_a_mig_devices_name(name: str | None, profile: str | None) -> None:
    assert mig.profile_in_name(name) == profile
