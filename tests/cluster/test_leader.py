"""Leader election against the real API server: one leads, another takes over, and a paused one never leads on."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import components
import pytest
from cluster import Cluster
from kubernetes import config

from scheduler import kubeapi, leader, reservations

pytestmark = pytest.mark.cluster

Json = dict[str, Any]

PROCESS = """
import asyncio, json, sys, time
from scheduler import kubeapi, leader

async def main():
    ours = leader.Leader(kubeapi.connect(), lease_seconds=int(sys.argv[2]), name=sys.argv[1])
    task = asyncio.create_task(ours.run())
    before, led = time.time(), None
    while True:
        now, leads = time.time(), ours.is_leader
        if leads != led or now - before > 1:
            print(json.dumps({"at": now, "leads": leads}), flush=True)
        before, led = now, leads
        await asyncio.sleep(0.005)

asyncio.run(main())
"""


@pytest.fixture
def lease(control_plane: Cluster) -> str:
    control_plane.api("POST", "/api/v1/namespaces", {"metadata": {"name": reservations.NAMESPACE}}, ok=[409])
    return f"test-{uuid.uuid4().hex[:8]}"


def connected(control_plane: Cluster, kind: type[kubeapi.Api] = kubeapi.Api) -> Any:
    return kind(config.new_client_from_config(str(control_plane.kubeconfig)))


def spec_of(control_plane: Cluster, lease: str) -> Json:
    found: Json = control_plane.api("GET", f"{leader.COLLECTION}/{lease}")["spec"]
    return found


async def until(check: Callable[[], object], seconds: float = 20) -> float:
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_one_of_two_leads_and_gives_the_lease_to_the_other(control_plane: Cluster, lease: str) -> None:
    async def main() -> None:
        api = connected(control_plane)
        first, second = (leader.Leader(api, name=lease) for _ in range(2))
        one = asyncio.create_task(first.run())
        await until(lambda: first.is_leader)
        other = asyncio.create_task(second.run())
        for _ in range(60):
            assert (first.is_leader, second.is_leader) == (True, False)
            await asyncio.sleep(0.1)
        held = spec_of(control_plane, lease)
        assert held["holderIdentity"] == first.identity
        assert held["leaseDurationSeconds"] == 15
        await ended(one)
        assert not first.is_leader
        assert await until(lambda: second.is_leader) < 4  # not the 15 s that a crash costs
        assert spec_of(control_plane, lease)["leaseTransitions"] == 1
        await ended(other)
        assert "holderIdentity" not in spec_of(control_plane, lease)

    asyncio.run(main())


class Pausing(kubeapi.Api):
    """An API whose writes wait for as long as they are told."""

    go = threading.Event()
    waiting = threading.Event()

    def put(self, path: str, body: Any) -> Any:
        self.waiting.set()
        self.go.wait(60)
        return super().put(path, body)


def test_one_paused_between_its_read_and_its_write_conflicts_with_who_took_over(
    control_plane: Cluster, lease: str
) -> None:
    ahead = 0.0

    async def main() -> None:
        nonlocal ahead
        pausing = connected(control_plane, Pausing)
        first = leader.Leader(pausing, 2, name=lease)
        second = leader.Leader(connected(control_plane), 2, lambda: time.monotonic() + ahead, name=lease)
        pausing.go.set()
        one = asyncio.create_task(first.run())
        await until(lambda: first.is_leader)
        pausing.waiting.clear()
        pausing.go.clear()
        await until(pausing.waiting.is_set)  # it has read that the Lease is its own, and writes no more
        other = asyncio.create_task(second.run())
        await until(lambda: second._seen[0] is not None)
        assert not second.is_leader
        ahead = 2.5  # the other's clock runs on while the first is paused
        await until(lambda: second.is_leader)
        await until(lambda: not first.is_leader)
        pausing.go.set()
        for _ in range(100):
            assert not first.is_leader
            await asyncio.sleep(0.01)
        assert spec_of(control_plane, lease)["holderIdentity"] == second.identity
        await ended(one)
        assert second.is_leader  # the first had nothing to give back
        await ended(other)

    asyncio.run(main())


def test_a_stopped_process_leads_no_more_from_the_moment_it_goes_on(control_plane: Cluster, lease: str) -> None:
    names = [f"{lease}-{which}" for which in "ab"]

    def said(name: str) -> list[Json]:
        return [
            json.loads(line) for line in control_plane.log(name).read_text().splitlines() if line.startswith('{"at')
        ]

    def leads(name: str) -> bool:
        lines = said(name)
        return bool(lines) and lines[-1]["leads"]

    def start(name: str) -> None:
        command = [sys.executable, "-c", PROCESS, lease, "2"]
        control_plane.spawn(name, command, env={"KUBECONFIG": str(control_plane.kubeconfig)}, ready=lambda: said(name))

    try:
        start(names[0])
        control_plane.wait("the first to lead", lambda: leads(names[0]))
        start(names[1])
        control_plane.pause(names[0])
        paused = time.time()
        control_plane.wait("the second to take over", lambda: leads(names[1]))
        assert time.time() - paused > 1  # not before the Lease had ended
        control_plane.pause(names[0], resume=True)
        control_plane.wait("the first to say that it was paused", lambda: said(names[0])[-1]["at"] > paused + 1)
        # From the first look after the pause on, before any answer from the API.
        assert not [line for line in said(names[0]) if line["at"] > paused + 1 and line["leads"]]
        time.sleep(2)
        assert (leads(names[0]), leads(names[1])) == (False, True)
        control_plane.kill(names[1])  # kill -9: nobody gives the Lease back
        control_plane.wait("the first to lead again", lambda: leads(names[0]))
    finally:
        for name in names:
            control_plane.kill(name)


def test_a_restart_of_the_api_server_ends_nothing(control_plane: Cluster, lease: str) -> None:
    async def main() -> None:
        first = leader.Leader(connected(control_plane), name=lease)
        task = asyncio.create_task(first.run())
        await until(lambda: first.is_leader)
        before = spec_of(control_plane, lease)
        control_plane.kill(components.APISERVER)
        await asyncio.sleep(6)  # at least one renewal fails
        assert not task.done()
        control_plane.restart(components.APISERVER)  # here, since a process dies with the thread that started it
        await until(lambda: spec_of(control_plane, lease)["renewTime"] != before["renewTime"], 30)
        await until(lambda: first.is_leader)
        after = spec_of(control_plane, lease)
        assert (after["holderIdentity"], after["acquireTime"]) == (first.identity, before["acquireTime"])
        await ended(task)

    asyncio.run(main())
