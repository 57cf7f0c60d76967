"""The judge of a chaos run: sees every state of every pod that the API had, and knows nothing of the product's code.

A watch brings each write to a pod in the order of the writes, so that devices promised twice for a moment are seen
as well; a list every half second is a second opinion.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx

Json = dict[str, Any]

OURS = ("late", "early", "claim")
"""Kinds of pods whose image anygpu chooses."""
UNRESOLVED = "anygpu.invalid/unresolved"
DRIFT = re.compile(r"^anygpu_audit_drift(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclasses.dataclass
class Findings:
    """What was found wrong so far."""

    promised_beyond: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    """(node, resource or device) -> most devices promised beyond what there are."""
    wrong_image: set[str] = dataclasses.field(default_factory=set)
    drift: float | None = None
    """The largest seen; None: the service never said."""
    stories: list[str] = dataclasses.field(default_factory=list)
    """In words, for whoever looks into it."""

    @property
    def double_promised(self) -> int:
        """Devices promised twice."""
        return sum(self.promised_beyond.values())


@dataclasses.dataclass(frozen=True)
class Pod:
    """What of a pod matters."""

    name: str
    app: str
    kind: str
    node: str | None
    holds: Mapping[str, int]
    """Resource -> devices that its containers ask, under whatever names."""
    images: tuple[str, ...]

    @classmethod
    def read(cls, document: Json) -> Pod:
        """The pod in a document; one that has ended, or waits, holds nothing."""
        metadata, spec = document["metadata"], document["spec"]
        labels = metadata.get("labels") or {}
        ended = document.get("status", {}).get("phase") in ("Succeeded", "Failed")
        holds: collections.Counter[str] = collections.Counter()
        for container in spec["containers"]:
            for resource, count in container.get("resources", {}).get("limits", {}).items():
                if "/" in resource:
                    holds[resource] += int(count)
        return cls(
            f"{metadata['namespace']}/{metadata['name']}",
            labels.get("app", ""),
            labels.get("chaos.test/kind", ""),
            None if ended else spec.get("nodeName"),
            holds,
            tuple(container["image"] for container in spec["containers"]),
        )


class Oracle:
    """Watches all pods from `start` to `stop`.

    `vendors` says whose devices a node has, `images` for which vendor an image was built.
    """

    def __init__(
        self, client: httpx.Client, metrics: str, vendors: Mapping[str, str], images: Mapping[str, str]
    ) -> None:
        self._client, self._metrics, self._vendors, self._images = client, metrics, vendors, images
        self.findings = Findings()
        self.offered: dict[str, dict[str, int]] = {}
        self._pods: dict[str, Pod] = {}
        self._used: collections.Counter[tuple[str, str]] = collections.Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listed = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"oracle {target.__name__}", daemon=True)
            for target in (self._watch, self._sample)
        ]
        self.samples = self.events = 0

    def start(self) -> None:
        """Read the nodes, list the pods and begin; the nodes are to stay as they are."""
        self.offered = _offered(self._get("/api/v1/nodes")["items"])
        for thread in self._threads:
            thread.start()
        if not self._listed.wait(60):
            raise TimeoutError("the oracle does not get a list of the pods")

    def stop(self) -> None:
        """Look no longer."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)

    def bound(self) -> collections.Counter[str]:
        """The app label -> pods of it that have a node, now."""
        with self._lock:
            return collections.Counter(pod.app for pod in self._pods.values() if pod.node)

    def unused(self) -> dict[tuple[str, str], int]:
        """(node, resource) -> devices that no pod has, now, for those where there are any."""
        with self._lock:
            left = {
                (node, resource): count - self._used[node, resource]
                for node, resources in self.offered.items()
                for resource, count in resources.items()
            }
        return {key: count for key, count in left.items() if count}

    # How it sees

    def _get(self, path: str) -> Json:
        answer = self._client.get(path)
        answer.raise_for_status()
        found: Json = answer.json()
        return found

    def _watch(self) -> None:
        version = ""
        while not self._stopping.is_set():
            try:
                if not version:
                    version = self._list()
                    self._listed.set()
                for kind, document in self._stream(version):
                    version = document["metadata"]["resourceVersion"]
                    self._see(kind, document)
                    if self._stopping.is_set():
                        return
            except _Gone:
                self._say("the oracle's watch was too old: what happened meanwhile is known from the lists alone")
                version = ""
            except httpx.TransportError:
                continue  # a quiet stream's time-out; the next one begins where this one ended

    def _list(self) -> str:
        found = self._get("/api/v1/pods")
        with self._lock:
            self._pods, self._used = {}, collections.Counter()
        for document in found["items"]:
            self._see("ADDED", document)
        return str(found["metadata"]["resourceVersion"])

    def _stream(self, version: str) -> Iterator[tuple[str, Json]]:
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "60"}
        with self._client.stream("GET", "/api/v1/pods", params=query, timeout=5) as answer:
            if answer.status_code == httpx.codes.GONE:
                raise _Gone
            for line in answer.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _Gone
                yield event["type"], event["object"]

    def _see(self, kind: str, document: Json) -> None:
        if kind == "BOOKMARK":
            return
        uid = document["metadata"]["uid"]
        with self._lock:
            self.events += 1
            self._count(self._pods.pop(uid, None), -1)
            if kind == "DELETED":
                return
            pod = self._pods[uid] = Pod.read(document)
            self._count(pod, 1)
            self._judge_image(pod, "watch")
            if pod.node:
                self._judge_use(self._used, pod.node, self._pods.values(), "watch")

    def _count(self, pod: Pod | None, sign: int) -> None:
        if pod is not None and pod.node:
            for resource, count in self._held(pod).items():
                self._used[pod.node, resource] += sign * count

    def _held(self, pod: Pod) -> dict[str, int]:
        """What the pod takes of its node: a kubelet passes over extended resources that its node does not list."""
        offered = self.offered.get(pod.node or "", {})
        return {resource: count for resource, count in pod.holds.items() if resource in offered}

    def _sample(self) -> None:
        while not self._stopping.wait(0.5):
            try:
                pods = [Pod.read(document) for document in self._get("/api/v1/pods")["items"]]
            except httpx.HTTPError as error:
                self._say(f"a sample failed: {error!r}")
                continue
            used: collections.Counter[tuple[str, str]] = collections.Counter()
            for pod in pods:
                for resource, count in self._held(pod).items():
                    used[pod.node or "", resource] += count
            with self._lock:
                self.samples += 1
                for pod in pods:
                    self._judge_image(pod, "list")
                for node in self.offered:
                    self._judge_use(used, node, pods, "list")
            self._read_drift()

    def _read_drift(self) -> None:
        try:
            text = httpx.get(self._metrics, timeout=2, trust_env=False).text
        except httpx.TransportError:
            return  # it is dead just now
        for value in DRIFT.findall(text):
            self.findings.drift = max(self.findings.drift or 0.0, abs(float(value)))

    # How it judges

    def _judge_use(self, used: Mapping[tuple[str, str], int], node: str, pods: Iterable[Pod], where: str) -> None:
        for resource, count in self.offered.get(node, {}).items():
            beyond = used[node, resource] - count
            if beyond > self.findings.promised_beyond.get((node, resource), 0):
                self.findings.promised_beyond[node, resource] = beyond
                there = ", ".join(sorted(pod.name for pod in pods if pod.node == node and resource in pod.holds))
                self._say(f"{node}: {used[node, resource]} of {count} {resource} promised ({where}): {there}")

    def _judge_image(self, pod: Pod, where: str) -> None:
        if not pod.node or pod.kind not in OURS:
            return
        vendor = self._vendors.get(pod.node)
        wrong = [image for image in pod.images if self._images.get(image) != vendor]
        if wrong and pod.name not in self.findings.wrong_image:
            self.findings.wrong_image.add(pod.name)
            self._say(f"{pod.name} is bound to {pod.node} ({vendor}) with image {wrong[0]} ({where})")

    def _say(self, text: str) -> None:
        self.findings.stories.append(text)


class _Gone(Exception):
    """The version to watch from is too old."""


def _offered(nodes: Iterable[Json]) -> dict[str, dict[str, int]]:
    return {
        node["metadata"]["name"]: {
            resource: int(count) for resource, count in node["status"]["allocatable"].items() if "/" in resource
        }
        for node in nodes
    }
