"""Two replicas of the service, both answering /bind, one of them paused at the worst moment: still no device twice."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import faults
import gpunodes
import httpx
import install
import pytest
from playgrounds import Playground

pytestmark = pytest.mark.cluster

Json = dict[str, Any]

PAUSED = install.service_name(2)
UNRESOLVED = "anygpu.invalid/unresolved"
POD = r"/pods/[^/?]+$"
POINTS = {
    "having heard nothing of its promise": ("PUT", r"/configmaps/node\.[^/?]+$", True),
    "before the image": ("PATCH", POD, False),
    "having heard nothing of the image": ("PATCH", POD, True),
    "before the Binding": ("POST", r"/binding$", False),
}
"""Where in its bind a replica is held, as (method, path, whether the answer is held and not the call)."""


class Replicas:
    """A playground with a second replica, which reaches the API server through a proxy."""

    def __init__(self, playground: Playground, proxy: faults.Proxy) -> None:
        self.playground, self.proxy = playground, proxy
        self.cluster = playground.cluster
        self.urls = [install.extender_url(self.cluster, replica) for replica in (1, 2)]

    def pod(self, name: str, **annotations: str) -> Json:
        """A created pod; with annotations a late one, else a plain one for the default scheduler."""
        document = gpunodes.pod(name, self.playground.image, **annotations)
        document["metadata"]["namespace"] = self.playground.namespace
        document["spec"]["terminationGracePeriodSeconds"] = 0
        if not annotations:
            document["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
        return self.cluster.api("POST", f"/api/v1/namespaces/{self.playground.namespace}/pods", document)

    def bind(self, replica: int, pod: Json, node: str) -> str:
        """What a replica answers to /bind: an error, or nothing."""
        metadata = pod["metadata"]
        body = {"PodName": metadata["name"], "PodNamespace": metadata["namespace"], "PodUID": metadata["uid"]}
        url = f"{self.urls[replica - 1]}/bind"
        answer = httpx.post(url, json=body | {"Node": node}, trust_env=False, timeout=120)
        return str(answer.json()["Error"])

    def node_of(self, pod: Json) -> str | None:
        """Where a pod is now."""
        metadata = pod["metadata"]
        found = self.cluster.api("GET", f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}")
        return found["spec"].get("nodeName")

    def promises(self, node: str) -> list[str]:
        """The pods that a node's record promises devices to."""
        found = self.cluster.api("GET", _record(node), ok=[404])
        return [entry["pod"] for entry in json.loads(found.get("data", {}).get("entries", "[]"))]

    def age(self, node: str) -> None:
        """Make a node's promises old, as time would."""
        found = self.cluster.api("GET", _record(node))
        entries = json.loads(found["data"]["entries"])
        found["data"]["entries"] = json.dumps([{**entry, "since": entry["since"] - 3600} for entry in entries])
        self.cluster.api("PUT", _record(node), found)


def _record(node: str) -> str:
    return f"/api/v1/namespaces/{install.NAMESPACE}/configmaps/node.{node}"


@pytest.fixture
def replicas(late_playground: Playground) -> Iterator[Replicas]:
    """Both run; anygpu-scheduler does not, so that the tests say who binds what."""
    running = late_playground.cluster
    keys = running.directory / "keys"
    with faults.Proxy(running.server, tls=(keys / "server.crt", keys / "server.key"), authority=running.ca) as proxy:
        install.start_service(running, bindings=install.ALL_BINDINGS, replica=2, apiserver=proxy.url)
        running.stop_scheduler(install.SCHEDULER)
        yield Replicas(late_playground, proxy)
        running.kill(PAUSED)
        install.start_scheduler(running)


@pytest.fixture
def node(replicas: Replicas) -> str:
    """A node of one GPU, of a name that no record has yet."""
    name = f"l4-{uuid.uuid4().hex[:8]}"
    replicas.playground.add_nodes([gpunodes.nvidia(name, "l4", 1)])
    return name


@pytest.mark.parametrize(
    ("point", "aged"),
    [*((point, True) for point in POINTS), ("before the Binding", False)],
    ids=lambda value: str(value),
)
def test_a_replica_paused_in_its_bind_for_longer_than_its_promise_lives(
    replicas: Replicas, node: str, point: str, aged: bool
) -> None:
    """Once in real time; else the promise is made old, for which a replica's clock is all the same."""
    method, path, answers = POINTS[point]
    pod = replicas.pod("paused", binding="late", memory="16Gi")
    held = replicas.proxy.hold(method, path, answers=answers)
    with futures.ThreadPoolExecutor(1) as pool:
        binding = pool.submit(replicas.bind, 2, pod, node)
        held.wait()
        replicas.cluster.pause(PAUSED)
        try:
            assert replicas.promises(node) == [f"{replicas.playground.namespace}/paused"]
            rival = replicas.pod("rival", binding="late", memory="16Gi")
            plain = replicas.pod("plain")
            assert "promised to others" in replicas.bind(1, rival, node)
            replicas.playground.wait("kube-scheduler to be told no", lambda: _denied(replicas, plain))
            assert replicas.node_of(plain) is None
            if aged:
                replicas.age(node)
            wait = "the device to be given to the plain pod"
            replicas.playground.wait(wait, lambda: replicas.node_of(plain) == node, timeout=90)
            assert "taken by pods" in replicas.bind(1, rival, node)
        finally:
            held.release()  # what was on its way arrives, while its sender still sleeps
            _settle(replicas)
            replicas.cluster.pause(PAUSED, resume=True)
        assert binding.result(60) != ""
    assert replicas.node_of(pod) is None
    replicas.playground.assert_within_capacity()
    assert _key(pod) not in replicas.promises(node)
    replicas.cluster.kubectl("delete", "pod", "plain", "-n", replicas.playground.namespace)
    assert replicas.bind(2, pod, node) == ""
    assert replicas.node_of(pod) == node


def test_a_paused_replica_whose_binding_arrived_has_bound_its_pod_once(replicas: Replicas, node: str) -> None:
    pod = replicas.pod("paused", binding="late", memory="16Gi")
    held = replicas.proxy.hold("POST", r"/binding$", answers=True)
    with futures.ThreadPoolExecutor(1) as pool:
        binding = pool.submit(replicas.bind, 2, pod, node)
        held.wait()
        replicas.cluster.pause(PAUSED)
        replicas.age(node)
        assert replicas.bind(1, pod, node) == "", "bound there already"
        rival = replicas.pod("rival", binding="late", memory="16Gi")
        assert "taken by pods" in replicas.bind(1, rival, node)
        held.release()
        replicas.cluster.pause(PAUSED, resume=True)
        assert binding.result(60) == ""
    replicas.playground.assert_within_capacity()


def test_two_replicas_share_a_nodes_devices_among_more_pods_than_it_has(replicas: Replicas) -> None:
    node = f"l4-{uuid.uuid4().hex[:8]}"
    replicas.playground.add_nodes([gpunodes.nvidia(node, "l4", 4)])
    pods = [replicas.pod(f"pod-{number}", binding="late", memory="16Gi") for number in range(10)]
    with futures.ThreadPoolExecutor(len(pods)) as pool:
        start = threading.Barrier(len(pods))

        def bind(number: int) -> str:
            start.wait()
            return replicas.bind(1 + number % 2, pods[number], node)

        first = list(pool.map(bind, range(len(pods))))
        # kube-scheduler tries again: who met too many conflicts gets what is left, and nobody gets more.
        again = [replicas.bind(1, pod, node) for pod in pods]
    bound = [replicas.node_of(pod) for pod in pods]
    assert bound.count(node) == 4
    assert [answer == "" for answer in again] == [found == node for found in bound]
    assert all(found == node for found, answer in zip(bound, first, strict=True) if answer == "")
    replicas.playground.assert_within_capacity()


def test_two_replicas_that_bind_one_pod_to_two_nodes_bind_it_once(replicas: Replicas) -> None:
    nodes = [f"l4-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    replicas.playground.add_nodes([gpunodes.nvidia(node, "l4", 1) for node in nodes])
    for number in range(5):
        pod = replicas.pod(f"pod-{number}", binding="late", memory="16Gi")
        with futures.ThreadPoolExecutor(2) as pool:
            first, second = pool.map(replicas.bind, (1, 2), (pod, pod), nodes)
        # Each may have made the other give up; then kube-scheduler tries again.
        assert first or second
        where = replicas.node_of(pod)
        assert (where == nodes[0], where == nodes[1]) == (first == "", second == "")
        assert where or not replicas.bind(1, pod, nodes[0])
        for node in nodes:
            assert node == where or _key(pod) not in replicas.promises(node)
        replicas.cluster.kubectl("delete", "pod", pod["metadata"]["name"], "-n", replicas.playground.namespace)


def _key(pod: Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _denied(replicas: Replicas, pod: Json) -> bool:
    """Whether kube-scheduler's Binding of the pod was refused because of the promise."""
    path = f"/apis/events.k8s.io/v1/namespaces/{pod['metadata']['namespace']}/events"
    events = replicas.cluster.api("GET", path)["items"]
    notes = [each.get("note", "") for each in events if each["regarding"].get("uid") == pod["metadata"]["uid"]]
    return any("promised to others" in note for note in notes)


def _settle(replicas: Replicas) -> None:
    """Return when the API server has answered what the proxy had held."""
    paths = [path for hold in replicas.proxy.holds for path in hold.caught]
    replicas.playground.wait("what was held to arrive", lambda: not any(map(replicas.proxy.under_way, paths)))
