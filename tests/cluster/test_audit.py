"""The audit beside real watches: no drift however busy the cluster is, and what was lost is found and mended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import gpunodes
import placing
import pytest
import worlds
from cluster import Cluster
from kubernetes import config

from scheduler import audit, feeds, kube, kubeapi, reservations
from scheduler import fleet as fleets

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
GPU = "nvidia.com/gpu"


class Busy(threading.Thread):
    """Binds, changes and deletes pods, changes nodes and records, until told to stop."""

    def __init__(self, running: Cluster, namespace: str, nodes: list[str]) -> None:
        super().__init__(daemon=True)
        self.cluster, self.path, self.nodes = running, f"/api/v1/namespaces/{namespace}/pods", nodes
        self.stopping = threading.Event()
        self.done = 0

    def run(self) -> None:
        draw, pods = random.Random(7), list[str]()
        while not self.stopping.is_set():
            self.done += 1
            node = draw.choice(self.nodes)
            what = draw.choice(["pod", "pod", "gone", "label", "node", "record"])
            if what == "pod" and len(pods) < 20:
                name = f"p-{uuid.uuid4().hex[:8]}"
                self.cluster.api("POST", self.path, plain(name, draw.choice([node, node, None])))
                pods.append(name)
            elif what == "gone" and pods:
                name = pods.pop(draw.randrange(len(pods)))
                self.cluster.api("DELETE", f"{self.path}/{name}?gracePeriodSeconds=0", ok=[404])
            elif what == "label" and pods:
                self._patch(f"{self.path}/{draw.choice(pods)}", {"metadata": {"labels": {"n": str(self.done)}}})
            elif what == "node":
                status = {"status": {"allocatable": {GPU: str(draw.randint(1, 8))}}}
                self._patch(f"/api/v1/nodes/{node}/status", status)
            elif what == "record":
                uid = kube.PodUid(str(self.done))
                entries = {uid: reservations.Entry(uid, "x/y", {GPU: 1}, 0)} if draw.random() < 0.7 else {}
                wanted = reservations.document(reservations.Record(node, entries))
                self.cluster.api("POST", reservations.COLLECTION, wanted, ok=[409])
                self._patch(reservations.path_of(node), {"data": wanted["data"]})

    def _patch(self, path: str, body: Json) -> None:
        self.cluster.api("PATCH", path, body, content_type="application/merge-patch+json", ok=[404])

    def stop(self) -> None:
        self.stopping.set()
        self.join(30)


def plain(name: str, node: str | None) -> Json:
    made = placing.bound(name, node, {GPU: 1})
    del made["metadata"]["uid"], made["metadata"]["namespace"], made["status"]
    made["spec"]["schedulerName"] = "nobody"
    return made


@pytest.fixture
def nodes(control_plane: Cluster) -> Iterator[list[str]]:
    control_plane.api("POST", "/api/v1/namespaces", {"metadata": {"name": reservations.NAMESPACE}}, ok=[409])
    names = [f"audited-{uuid.uuid4().hex[:6]}" for _ in range(3)]
    control_plane.add_nodes([gpunodes.nvidia(name, "t4", 8) for name in names])
    yield names
    for name in names:
        control_plane.api("DELETE", reservations.path_of(name), ok=[404])
    control_plane.delete_nodes(names)


@contextlib.asynccontextmanager
async def following(running: Cluster, fleet: fleets.Fleet) -> AsyncIterator[audit.Audit]:
    """A node table that real watches keep, and its audit."""
    api = kubeapi.Api(config.new_client_from_config(str(running.kubeconfig)))
    loop = asyncio.get_running_loop()
    wanted, listed = feeds.feeds(fleet, ["early", "late"]), set[int]()

    def post(call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # a stream may still bring something when the test is over
            loop.call_soon_threadsafe(call)

    reflectors = [
        feed.reflector(api, post, functools.partial(listed.add, number)) for number, feed in enumerate(wanted)
    ]
    for reflector in reflectors:
        reflector.start()
    try:
        while len(listed) < len(wanted):
            await asyncio.sleep(0.01)
        yield audit.Audit(api, fleet, lambda: True, records=True)
    finally:
        for reflector in reflectors:
            reflector.stop()


def test_a_busy_cluster_does_not_drift(
    control_plane: Cluster, namespace: str, nodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAUSES_SECONDS", (0.1, 0.1, 0.5))  # harder than what is shipped
    busy = Busy(control_plane, namespace, nodes)
    fleet = fleets.Fleet(placing.CATALOGUE)

    async def main() -> None:
        async with following(control_plane, fleet) as tested:
            busy.start()
            for _ in range(40):
                assert await tested.step() == []
                await asyncio.sleep(0.05)
            assert busy.is_alive()
            assert busy.done > 100
            busy.stop()
            await asyncio.sleep(1)
            assert await tested.step() == []

    try:
        asyncio.run(main())
    finally:
        busy.stop()


class Deaf(fleets.Fleet):
    """A node table that some events do not reach."""

    deaf = False

    def apply_pod(self, pod: kube.Pod) -> None:
        if not self.deaf:
            super().apply_pod(pod)

    def remove_pod(self, uid: kube.PodUid) -> None:
        if not self.deaf:
            super().remove_pod(uid)

    def apply_reservations(self, record: reservations.Record) -> None:
        if not self.deaf:
            super().apply_reservations(record)


def test_what_was_lost_is_found_and_mended(
    control_plane: Cluster, namespace: str, nodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAUSES_SECONDS", (0.1, 0.1, 0.1))
    fleet = Deaf(placing.CATALOGUE)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    stays, goes = (control_plane.api("POST", pods, plain(name, nodes[0]))["metadata"]["uid"] for name in ("a", "b"))

    def uid_of(name: str) -> str:
        return str(control_plane.api("GET", f"{pods}/{name}")["metadata"]["uid"])

    async def main() -> None:
        async with following(control_plane, fleet) as tested:
            assert fleet.rows[nodes[0]].usage.amounts[GPU] == 2000
            await asyncio.sleep(1)  # kwok has run the pods
            fleet.deaf = True
            control_plane.api("POST", pods, plain("c", nodes[1]))
            control_plane.api("DELETE", f"{pods}/b?gracePeriodSeconds=0")
            entries = {kube.PodUid("x"): reservations.Entry(kube.PodUid("x"), "x/y", {GPU: 3}, 0)}
            promised = reservations.document(reservations.Record(nodes[2], entries))
            control_plane.api("POST", reservations.COLLECTION, promised)
            await asyncio.sleep(2)
            fleet.deaf = False
            found = {(each.what, each.name) for each in await tested.step()}
            assert found == {("pod", uid_of("c")), ("pod", goes), ("record", nodes[2])}
            taken = [fleet.rows[name].usage.amounts.get(GPU, 0) for name in nodes]
            assert (taken, fleet.held(nodes[2], GPU)) == ([1000, 1000, 0], 3)
            fleet.rows[nodes[0]].usage.amounts[GPU] = 0
            assert [(each.what, each.name) for each in await tested.step()] == [("amounts", nodes[0])]
            assert fleet.rows[nodes[0]].usage.amounts[GPU] == 1000
            assert await tested.step() == []
            assert worlds.counts(fleet)["adds up"]

    asyncio.run(main())
    assert uid_of("a") == stays
