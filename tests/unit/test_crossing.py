"""Pods of two schedulers that want one last device do not both get it, even if nobody can say no to the second."""

import asyncio
import json

import gpunodes
import placing
import pytest

from scheduler import binder, crossing, extender, kube
from scheduler import fleet as fleets

NVIDIA = "nvidia.com/gpu"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def one_device(clock: Clock) -> fleets.Fleet:
    fleet = placing.fleet_of([gpunodes.nvidia("a", "l4", 1), gpunodes.nvidia("b", "l4", 1)])
    fleet.crossing = crossing.Crossing(clock)
    return fleet


def filtered(fleet: fleets.Fleet, name: str, *nodes: str) -> list[str]:
    pod = placing.bound(name, None, {NVIDIA: 1})
    answer = extender.filter_nodes(json.dumps({"Pod": pod, "NodeNames": nodes}).encode(), fleet)
    found: list[str] = json.loads(answer)["NodeNames"]
    return found


def test_while_a_device_is_being_given_away_and_a_moment_longer_nobody_is_let_through_to_it() -> None:
    clock = Clock()
    fleet = one_device(clock)
    assert fleet.crossing is not None
    assert filtered(fleet, "e", "a", "b") == ["a", "b"]
    with fleet.crossing.binding(kube.PodUid("late"), "a", {NVIDIA: 1}):
        assert filtered(fleet, "e", "a", "b") == ["b"]
        assert fleet.crossing.freed() is None
    assert filtered(fleet, "e", "a") == []
    clock.now += crossing.LINGER_SECONDS + 0.1
    assert fleet.crossing.freed() == "a", "kube-scheduler may have parked the pod"
    assert filtered(fleet, "e", "a") == ["a"]


def test_beside_a_bind_no_more_are_let_through_than_there_is_room_for_all_of_them() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("a", "l4", 3)])
    fleet.crossing = crossing.Crossing(Clock())
    with fleet.crossing.binding(kube.PodUid("late"), "a", {NVIDIA: 1}):
        assert [filtered(fleet, name, "a") for name in ("e", "f", "g")] == [["a"], ["a"], []]
        assert filtered(fleet, "e", "a") == ["a"], "asked again it is not ahead of itself"
        fleet.apply_pod(kube.to_pod(placing.bound("e", "a", {NVIDIA: 1})))
        assert filtered(fleet, "g", "a") == [], "bound it takes what it was let through to"
        fleet.crossing.passed(kube.PodUid("uid-f"))
        assert filtered(fleet, "g", "a") == ["a"]


def test_a_binding_is_turned_away_where_those_that_wait_before_it_take_the_last_devices() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("a", "l4", 2)])
    fleet.crossing = crossing.Crossing(Clock())
    bind = binder.Binder(None, fleet)  # type: ignore[arg-type] - it does not come to a call
    for name in ("e", "f"):
        fleet.apply_pod(kube.to_pod(placing.bound(name, None, {NVIDIA: 1})))
    with (
        fleet.crossing.binding(kube.PodUid("late"), "a", {NVIDIA: 1}),
        fleet.crossing.arriving(kube.PodUid("uid-e"), "a", {NVIDIA: 1}),
        pytest.raises(binder.CannotBind, match=r"its last nvidia\.com/gpu is being given to another pod"),
    ):
        asked = binder.Arguments("f", "default", kube.PodUid("uid-f"), "a")
        asyncio.run(bind.admit(asked, dry_run=False))


def test_a_bind_lets_those_pass_that_were_let_through_before_it() -> None:
    clock = Clock()
    fleet = one_device(clock)
    bind = binder.Binder(None, fleet)  # type: ignore[arg-type] - it does not come to a call
    asked = binder.Arguments("late", "default", kube.PodUid("late"), "a")
    assert fleet.crossing is not None
    filtered(fleet, "e", "a")
    done: list[str] = []

    async def wait() -> None:
        await bind._let_pass(asked, {NVIDIA: 1})
        done.append("late")

    async def run() -> None:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.1)
        assert done == [], "it may be on its way to the only device"
        fleet.apply_pod(kube.to_pod(placing.bound("e", "b", {NVIDIA: 1})))
        await waiting
        filtered(fleet, "f", "a")
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.1)
        clock.now += crossing.PASS_SECONDS + 0.1
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())
    assert done == ["late", "late"]


def test_a_bind_with_room_for_all_waits_for_nobody() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("a", "l4", 2)])
    bind = binder.Binder(None, fleet)  # type: ignore[arg-type]
    filtered(fleet, "e", "a")
    asked = binder.Arguments("late", "default", kube.PodUid("late"), "a")
    asyncio.run(asyncio.wait_for(bind._let_pass(asked, {NVIDIA: 1}), 0.5))
