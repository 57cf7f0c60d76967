"""The judge of a chaos run: sees every state of every pod and claim, and knows nothing of the product's code.

A watch brings each write in the order of the writes, so that devices promised twice for a moment are seen as well; a
list every half second is a second opinion. Who has a device: the pod that is bound, under the resource names that its
node lists, and the ResourceClaim that is allocated.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

Json = dict[str, Any]

Thing = tuple[str, str]
"""A node (or a pool of devices), and a resource name of it, or a device by driver and name."""
Holds = collections.Counter[Thing]

PODS = "/api/v1/pods"
CLAIMS = "/apis/resource.k8s.io/v1/resourceclaims"
OURS = ("late", "early", "claim")
"""Kinds of pods whose image anygpu chooses."""
METRIC = re.compile(r"^(anygpu_audit_drift|anygpu_audits_total) (\S+)$", re.MULTILINE)


@dataclasses.dataclass
class Findings:
    """What was found wrong so far."""

    promised_beyond: dict[Thing, int] = dataclasses.field(default_factory=dict)
    """(node, resource or device) -> most that was promised beyond what there is."""
    wrong_image: set[str] = dataclasses.field(default_factory=set)
    drift: float | None = None
    """The largest that any audit of the service found; None: it has made none."""
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
    """None for one that has ended, too."""
    asks: Mapping[str, int]
    """Resource -> devices that its containers ask, under whatever names."""
    images: tuple[str, ...]

    @classmethod
    def read(cls, document: Json) -> Pod:
        """The pod in a document."""
        metadata, spec = document["metadata"], document["spec"]
        labels = metadata.get("labels") or {}
        ended = document.get("status", {}).get("phase") in ("Succeeded", "Failed")
        asks: collections.Counter[str] = collections.Counter()
        for container in spec["containers"]:
            for resource, count in container.get("resources", {}).get("limits", {}).items():
                if "/" in resource:
                    asks[resource] += int(count)
        return cls(
            f"{metadata['namespace']}/{metadata['name']}",
            labels.get("app", ""),
            labels.get("chaos.test/kind", ""),
            None if ended else spec.get("nodeName"),
            asks,
            tuple(container["image"] for container in spec["containers"]),
        )


class Books:
    """Who holds what, as one source tells it."""

    def __init__(self, offered: Mapping[Thing, int], findings: Findings, source: str) -> None:
        self.offered, self._findings, self._source = offered, findings, source
        self.used: Holds = collections.Counter()
        self._held: dict[str, tuple[str, Holds]] = {}

    def put(self, uid: str, name: str, holds: Holds) -> None:
        """Write down what somebody holds now, and judge."""
        self.drop(uid)
        self._held[uid] = (name, holds)
        self.used.update(holds)
        for thing in holds:
            beyond = self.used[thing] - self.offered.get(thing, 0)
            if beyond > self._findings.promised_beyond.get(thing, 0):
                self._findings.promised_beyond[thing] = beyond
                holders = ", ".join(sorted(who for who, held in self._held.values() if held[thing]))
                self._findings.stories.append(
                    f"{' '.join(thing)}: {self.used[thing]} of {self.offered.get(thing, 0)} promised "
                    f"({self._source}): {holders}"
                )

    def drop(self, uid: str) -> None:
        """Write down that somebody holds nothing any more."""
        _, holds = self._held.pop(uid, ("", collections.Counter()))
        self.used.subtract(holds)


class Oracle:
    """Watches all pods and claims from `start` to `stop`.

    `vendors` says whose devices a node has, `images` for which vendor an image was built.
    """

    def __init__(
        self, client: httpx.Client, metrics: str, vendors: Mapping[str, str], images: Mapping[str, str]
    ) -> None:
        self._client, self._metrics, self._vendors, self._images = client, metrics, vendors, images
        self.findings = Findings()
        self._offered: dict[Thing, int] = {}
        self._pods: dict[str, Pod] = {}
        self._books = {path: Books({}, self.findings, "watch") for path in (PODS, CLAIMS)}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listed = {path: threading.Event() for path in self._books}
        self._threads = [
            *(threading.Thread(target=self._watch, args=(path,), daemon=True) for path in self._books),
            threading.Thread(target=self._sample, daemon=True),
        ]
        self.samples = self.events = 0
        self.audited: bool | None = False
        """Whether the service has made an audit since it was started the last time; None: it makes none."""

    def start(self) -> None:
        """Read nodes and slices, list the pods and begin; nodes and slices are to stay as they are."""
        self._offered = self._read_offered()
        for path in self._books:
            self._books[path] = Books(self._offered, self.findings, "watch")
        for thread in self._threads:
            thread.start()
        if not all(listed.wait(60) for listed in self._listed.values()):
            raise TimeoutError("the oracle does not get a list of the pods or of the claims")

    def stop(self) -> None:
        """Look no longer."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)

    def bound(self) -> collections.Counter[str]:
        """The app label -> pods of it that have a node, now."""
        with self._lock:
            return collections.Counter(pod.app for pod in self._pods.values() if pod.node)

    def unused(self) -> dict[Thing, int]:
        """What nobody holds now of what there is."""
        with self._lock:
            used = sum((books.used for books in self._books.values()), collections.Counter())
        return {thing: count - used[thing] for thing, count in self._offered.items() if count > used[thing]}

    def without_device(self) -> dict[str, str]:
        """The claim pods that are bound though no device of their node is allocated to them, and what is, now."""
        claims = {
            (each["metadata"]["namespace"], each["metadata"]["name"]): each for each in self._get(CLAIMS)["items"]
        }
        found: dict[str, str] = {}
        for document in self._get(PODS)["items"]:
            pod, status = Pod.read(document), document["status"]
            if not pod.node or pod.kind != "claim":
                continue
            names = [each.get("resourceClaimName") for each in status.get("resourceClaimStatuses") or []]
            names += [(status.get("extendedResourceClaimStatus") or {}).get("resourceClaimName")]
            given = [claims.get((document["metadata"]["namespace"], name or "")) for name in names if name]
            there = [_allocated(claim) if claim else collections.Counter() for claim in given]
            if not given or any(pool != pod.node for held in there for pool, _ in held) or not all(there):
                found[pod.name] = f"{pod.name} on {pod.node}: claims {names}, given {[list(held) for held in there]}"
        return found

    # How it sees

    def _get(self, path: str) -> Json:
        answer = self._client.get(path)
        answer.raise_for_status()
        found: Json = answer.json()
        return found

    def _read_offered(self) -> dict[Thing, int]:
        offered: dict[Thing, int] = {}
        for node in self._get("/api/v1/nodes")["items"]:
            for resource, count in node["status"]["allocatable"].items():
                if "/" in resource:
                    offered[node["metadata"]["name"], resource] = int(count)
        for each in self._get("/apis/resource.k8s.io/v1/resourceslices")["items"]:
            spec = each["spec"]
            for device in spec["devices"]:
                offered[spec["pool"]["name"], f"{spec['driver']}/{device['name']}"] = 1
        return offered

    def _watch(self, path: str) -> None:
        version = ""
        while not self._stopping.is_set():
            try:
                if not version:
                    version = self._list(path)
                    self._listed[path].set()
                for kind, document in self._stream(path, version):
                    version = document["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        self._see(path, kind, document)
                    if self._stopping.is_set():
                        return
            except _Gone:
                self._say("the oracle's watch was too old: what happened meanwhile is known from the lists alone")
                version = ""
            except httpx.TransportError:
                continue  # a quiet stream's time-out; the next one begins where this one ended

    def _list(self, path: str) -> str:
        found = self._get(path)
        with self._lock:
            self._books[path] = Books(self._offered, self.findings, "watch")
            if path == PODS:
                self._pods = {}
        for document in found["items"]:
            self._see(path, "ADDED", document)
        return str(found["metadata"]["resourceVersion"])

    def _stream(self, path: str, version: str) -> Iterator[tuple[str, Json]]:
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "60"}
        with self._client.stream("GET", path, params=query, timeout=5) as answer:
            if answer.status_code == httpx.codes.GONE:
                raise _Gone
            for line in answer.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _Gone
                yield event["type"], event["object"]

    def _see(self, path: str, kind: str, document: Json) -> None:
        uid = document["metadata"]["uid"]
        with self._lock:
            self.events += 1
            if kind == "DELETED":
                self._books[path].drop(uid)
                self._pods.pop(uid, None)
            else:
                self._enter(path, self._books[path], document, "watch")
                if path == PODS:
                    self._pods[uid] = Pod.read(document)

    def _enter(self, path: str, books: Books, document: Json, source: str) -> None:
        """Write one object into books, and judge it."""
        uid = document["metadata"]["uid"]
        if path == CLAIMS:
            books.put(uid, f"claim {document['metadata']['name']}", _allocated(document))
            return
        pod = Pod.read(document)
        # A kubelet passes over extended resources that its node does not list.
        held = {(pod.node or "", resource): count for resource, count in pod.asks.items()}
        books.put(uid, pod.name, collections.Counter({key: n for key, n in held.items() if key in self._offered}))
        self._judge_image(pod, source)

    def _sample(self) -> None:
        while not self._stopping.wait(0.5):
            for path in self._books:
                try:
                    found = self._get(path)["items"]
                except httpx.HTTPError as error:
                    self._say(f"a sample failed: {error!r}")
                    continue
                books = Books(self._offered, self.findings, "list")
                with self._lock:
                    for document in found:
                        self._enter(path, books, document, "list")
            self.samples += 1
            self._read_drift()

    def _read_drift(self) -> None:
        try:
            text = httpx.get(self._metrics, timeout=2, trust_env=False).text
        except httpx.TransportError:
            return  # it is dead just now
        said = {name: float(value) for name, value in METRIC.findall(text)}
        self.audited = said["anygpu_audits_total"] > 0 if "anygpu_audits_total" in said else None
        if self.audited:
            self.findings.drift = max(self.findings.drift or 0.0, abs(said["anygpu_audit_drift"]))

    def _judge_image(self, pod: Pod, source: str) -> None:
        if not pod.node or pod.kind not in OURS:
            return
        vendor = self._vendors.get(pod.node)
        wrong = [image for image in pod.images if self._images.get(image) != vendor]
        if wrong and pod.name not in self.findings.wrong_image:
            self.findings.wrong_image.add(pod.name)
            self._say(f"{pod.name} is bound to {pod.node} ({vendor}) with image {wrong[0]} ({source})")

    def _say(self, text: str) -> None:
        self.findings.stories.append(text)


class _Gone(Exception):
    """The version to watch from is too old."""


def _allocated(claim: Json) -> Holds:
    """The devices that a claim was given."""
    devices = claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results") or []
    return collections.Counter((each["pool"], f"{each['driver']}/{each['device']}") for each in devices)
