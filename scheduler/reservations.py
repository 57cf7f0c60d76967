"""What one node's devices are promised to and not yet held by: an object of the API, written by compare-and-swap.

Whoever binds a pod that takes GPUs writes it down here first, under the object's resourceVersion, having read the
node's record before its pods. So of two who want the last device one meets a conflict, whichever process they are in,
and whatever became of them since. Bound pods are counted as pods; their entries are spent.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import msgspec

from scheduler import kube

NAMESPACE = "anygpu-system"
LABEL = "anygpu.io/reservations"
SELECTOR = {"labelSelector": f"{LABEL}=true"}
MAX_NAME = 253

Kind = Literal["late", "admitted", "preempt"]

LIVES_SECONDS: dict[Kind, float] = {"late": 30.0, "admitted": 90.0, "preempt": 60.0}
"""How long an entry stands without a bound pod. `late`: a bind of ours takes a second at most, and a later one starts
with a new entry. `admitted`: the apiserver gives up a request, here the Binding that we let through, after 60 s.
`preempt`: what the evicted pods may take to go."""


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    """Devices promised to one pod."""

    uid: kube.PodUid
    pod: str
    """`namespace/name`"""
    devices: Mapping[str, int]
    """Resource name -> devices, for the names that the node offers."""
    since: float
    """Unix seconds, by the clock of whoever wrote it. It only says when to look whether anything followed."""
    kind: Kind = "late"

    def is_due(self, now: float) -> bool:
        """Whether a Binding should have followed by now."""
        return now - self.since > LIVES_SECONDS[self.kind]


class Record(msgspec.Struct, frozen=True):
    """All entries of one node, with the version of the object that they were read from."""

    node: str
    entries: Mapping[kube.PodUid, Entry]
    version: str | None = None
    """resourceVersion; None: the object does not exist yet."""

    def put(self, entry: Entry) -> "Record":
        """The record with an entry, in place of the pod's old one."""
        return Record(self.node, {**self.entries, entry.uid: entry}, self.version)

    def without(self, uids: Collection[kube.PodUid]) -> "Record":
        """The record without some pods' entries."""
        return Record(self.node, {uid: each for uid, each in self.entries.items() if uid not in uids}, self.version)

    def promised(self, resource: str, besides: Collection[kube.PodUid] = ()) -> int:
        """Devices of a resource that entries speak for, those of some pods left out."""
        return sum(each.devices.get(resource, 0) for each in self.entries.values() if each.uid not in besides)


def name_of(node: str) -> str:
    """The name of a node's object: one name a node, whatever its length."""
    name = f"node.{node}"
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(node.encode()).hexdigest()[:16]
        name = f"{name[: MAX_NAME - 17].rstrip('-.')}-{digest}"
    return name


def path_of(node: str) -> str:
    """The API path of a node's object."""
    return f"{COLLECTION}/{name_of(node)}"


COLLECTION = f"/api/v1/namespaces/{NAMESPACE}/configmaps"


def read(document: Any) -> Record | None:
    """The record that a ConfigMap (parsed JSON) holds; None: it is none of ours."""
    try:
        return of(msgspec.convert(document, kube.ConfigMap))
    except msgspec.ValidationError:
        return None


def of(found: kube.ConfigMap) -> Record | None:
    """The record that a ConfigMap holds; None: it names no node. Entries that nobody can read are dropped."""
    data = found.data or {}
    node = data.get("node")
    if not node:
        return None
    return Record(node, {entry.uid: entry for entry in _entries(data)}, found.metadata.resource_version)


def _entries(data: Mapping[str, str]) -> Iterable[Entry]:
    try:
        return _decoder.decode(data.get("entries", "[]"))
    except msgspec.DecodeError:
        return ()  # edited by hand: what it promised is lost, what is bound is not


_decoder = msgspec.json.Decoder(list[Entry])


def document(record_: Record) -> dict[str, Any]:
    """The ConfigMap of a record, with its version as the precondition of a replacement."""
    metadata: dict[str, Any] = {"name": name_of(record_.node), "namespace": NAMESPACE, "labels": {LABEL: "true"}}
    if record_.version is not None:
        metadata["resourceVersion"] = record_.version
    entries = sorted(record_.entries.values(), key=lambda entry: (entry.since, entry.uid))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"node": record_.node, "entries": msgspec.json.encode(entries).decode()},
    }
