"""/bind and its promises, one call at a time, against an API server in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import fakeapi
import gates
import gpunodes
import msgspec
import placing
import pytest

from scheduler import binder, binding, feeds, kube, reservations
from scheduler import fleet as fleets

Json = dict[str, Any]
PODS = "/api/v1/namespaces/default/pods"
NOW = 1_800_000_000.0


class Cluster:
    """One API server, and any number of replicas that know what it says."""

    def __init__(self, *nodes: Json) -> None:
        self.api: Any = fakeapi.FakeApi()
        self.gates = gates.Gates()
        self.now = NOW
        for node in nodes:
            self.api.post("/api/v1/nodes", node)

    def replica(self) -> binder.Binder:
        made = binder.Binder(self.api, fleets.Fleet(placing.CATALOGUE), lambda: self.now)
        self.heard(made)
        return made

    def heard(self, replica: binder.Binder) -> None:
        """A replica knows all that there is now."""
        for feed in feeds.feeds(replica._fleet, {"early", "late"}):
            feed.on_list([msgspec.convert(each, feed.kind) for each in self.api.list(feed.path, feed.selector)])

    def pod(self, name: str, count: int = 1, scheduler: str = binding.SCHEDULER) -> Json:
        document = placing.bound(name, None, {"nvidia.com/gpu": count})
        del document["metadata"]["uid"]
        document["spec"]["schedulerName"] = scheduler
        made: Json = self.api.post(PODS, document)
        return made

    def bind(self, replica: binder.Binder, pod: Json, node: str) -> gates.Operation:
        asked = binder.Arguments(pod["metadata"]["name"], "default", pod["metadata"]["uid"], node)
        return self.gates.start(f"bind {asked.key}", replica.bind(asked))

    def bound(self, replica: binder.Binder, pod: Json, node: str) -> None:
        """Bind it, undisturbed; raises what the bind does."""
        operation = self.bind(replica, pod, node)
        self.gates.finish(operation)
        operation.task.result()

    def let_in(self, replica: binder.Binder, name: str, node: str) -> None:
        """Show a replica the Binding of another scheduler, which names no uid."""
        asked = binder.Arguments(name, "default", kube.PodUid(""), node)
        operation = self.gates.start(f"admit {name}", replica.admit(asked, dry_run=False))
        self.gates.finish(operation)
        operation.task.result()

    def promised(self, node: str) -> list[str]:
        record = self.api.get_json(reservations.path_of(node))
        return sorted(entry["pod"] for entry in json.loads(record["data"]["entries"]))

    def on(self, node: str) -> list[str]:
        query = {"fieldSelector": f"spec.nodeName={node}"}
        return [pod["metadata"]["name"] for pod in self.api.list("/api/v1/pods", query)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(gpunodes.nvidia("n", "l4", 1))
    with gates.installed(binder):
        yield made
    made.gates.close()


def test_the_promise_of_a_pod_that_has_finished_is_nobodys(cluster: Cluster) -> None:
    replica, first, second = cluster.replica(), cluster.pod("first"), cluster.pod("second")
    cluster.bound(replica, first, "n")
    assert cluster.promised("n") == ["default/first"]
    cluster.api.patch(f"{PODS}/first/status", {"status": {"phase": "Succeeded"}})
    cluster.bound(replica, second, "n")
    assert cluster.on("n") == ["first", "second"]


def test_bindings_that_name_no_uid_are_counted_each(cluster: Cluster) -> None:
    replica = cluster.replica()
    for name in ("first", "second"):
        cluster.pod(name, scheduler="default-scheduler")
    cluster.let_in(replica, "first", "n")
    with pytest.raises(binder.CannotBind, match="0 are taken by pods and 1 promised to others"):
        cluster.let_in(replica, "second", "n")
    assert cluster.promised("n") == ["default/first"]


def test_a_record_that_came_and_went_is_not_taken_for_one_that_never_was(cluster: Cluster) -> None:
    paused, other, lagging = cluster.replica(), cluster.replica(), cluster.replica()
    first, second = cluster.pod("first"), cluster.pod("second")
    bind = cluster.bind(paused, first, "n")
    while bind.calls[0].name != f"post {reservations.COLLECTION}":
        cluster.gates.release(bind.calls[0])
    cluster.bound(other, second, "n")
    # A replica that has not heard of the node yet takes its record for one of a node that is gone.
    cluster.heard(lagging)
    lagging._fleet.remove_node("n")
    cluster.now += 1000
    cluster.gates.finish(cluster.gates.start("expire", lagging.expire()))
    assert cluster.api.list(reservations.COLLECTION) == []
    cluster.gates.finish(bind)
    assert cluster.on("n") == ["second"]
