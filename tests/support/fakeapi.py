"""An API server in memory, with the semantics that compare-and-swap over the real one relies on.

For tests of what interleaves between calls, which the real one cannot be told; that the real one behaves like this is
tested against it. Sources: apiserver pkg/registry/generic/registry/store.go, pkg/endpoints/handlers/patch.go;
kubernetes pkg/registry/core/pod/storage/storage.go (Binding), pkg/registry/core/pod/strategy.go (grace, status).
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from typing import Any

from scheduler import kubeapi

Json = dict[str, Any]

MERGE_KEYS = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name", "conditions": "type"}
"""Lists that a strategic merge patch merges element by element."""
HAVE_STATUS = ("pods", "nodes")
CREATED = "2026-01-01T00:00:00Z"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What `get` answers: the bytes, as the transport's response has them."""

    data: bytes
    status: int = 200


@dataclasses.dataclass(frozen=True)
class Path:
    """An API path in its parts."""

    resource: str
    namespace: str | None
    name: str | None
    subresource: str | None


@dataclasses.dataclass(frozen=True)
class Change:
    """One write: the object before and after it; None: it was not, or is not any more."""

    version: int
    resource: str
    before: Json | None
    after: Json | None


def parse(path: str) -> Path:
    """The parts of a path."""
    parts = path.strip("/").split("/")
    rest: list[str | None] = [*parts[2 if parts[0] == "api" else 3 :]]
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = (*rest, None, None)[:3]
    return Path(resource or "", namespace, name, subresource)


class FakeApi:
    """Objects under one global resourceVersion, and the log of all writes; nothing handed out is ever changed."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str | None, str], Json] = {}
        """By resource, namespace and name."""
        self.version = 0
        self.log: list[Change] = []

    # --- kubeapi.Api --------------------------------------------------------------------------------------------------

    def get(self, path: str, query: Mapping[str, str], timeout: Any = None) -> Answer:
        at = parse(path)
        if at.name is not None:
            return Answer(json.dumps(self._find(at)).encode())
        items = self.list(path, query)
        return Answer(json.dumps({"metadata": {"resourceVersion": str(self.version)}, "items": items}).encode())

    def get_json(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        return json.loads(self.get(path, query or {}).data)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        at = parse(path)
        if at.subresource == "binding":
            return self._bind(at, body)
        document = _copy(body)
        metadata = document.setdefault("metadata", {})
        if metadata.get("resourceVersion"):
            raise kubeapi.ApiError(400, "resourceVersion should not be set on objects to be created")
        if (at.resource, at.namespace, metadata["name"]) in self.objects:
            raise kubeapi.ApiError(409, f"{at.resource} {metadata['name']} already exists")
        metadata |= {"uid": str(uuid.UUID(int=self.version + 1)), "creationTimestamp": CREATED}
        if at.namespace:
            metadata["namespace"] = at.namespace
        if at.resource == "pods":
            document["status"] = {"phase": "Pending"}
        return self._store(dataclasses.replace(at, name=metadata["name"]), document)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        at = parse(path)
        old = self._find(at)
        given = body["metadata"]
        self._check(old, given.get("uid"), given.get("resourceVersion"))
        kept = {
            key: old["metadata"][key]
            for key in ("uid", "creationTimestamp", "deletionTimestamp")
            if key in old["metadata"]
        }
        document = _copy({**body, "metadata": {**given, **kept}})
        if at.namespace:
            document["metadata"]["namespace"] = at.namespace
        return self._replace(at, old, document)

    def patch(self, path: str, body: Mapping[str, Any], kind: kubeapi.PatchKind = "merge") -> Any:
        at = parse(path)
        old = self._find(at)
        given = body.get("metadata") or {}
        self._check(old, given.get("uid"), given.get("resourceVersion"))
        return self._replace(at, old, _merge(old, body, strategic=kind == "strategic"))

    def delete(self, path: str, uid: str | None = None, resource_version: str | None = None) -> None:
        """Delete; a pod that is on a node stays, with a deletionTimestamp, until `remove` (its kubelet) ends it."""
        at = parse(path)
        old = self._find(at)
        self._check(old, uid, resource_version)
        running = old.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        if at.resource == "pods" and old["spec"].get("nodeName") and running:
            if "deletionTimestamp" not in old["metadata"]:
                self._store(at, {**old, "metadata": {**old["metadata"], "deletionTimestamp": CREATED}})
            return
        self.remove(path)

    # --- What others in the cluster do -----------------------------------------------------------------------------

    def remove(self, path: str) -> None:
        """Take an object away at once."""
        at = parse(path)
        old = self._find(at)
        self.version += 1
        del self.objects[(at.resource, at.namespace, at.name or "")]
        self.log.append(Change(self.version, at.resource, old, None))

    def list(self, path: str, query: Mapping[str, str] | None = None) -> list[Json]:
        """The objects at a path that the selectors of a query admit, in the order of the real server."""
        at = parse(path)
        found = [
            (namespace or "", name, document)
            for (resource, namespace, name), document in self.objects.items()
            if resource == at.resource and at.namespace in (None, namespace) and _selected(document, query or {})
        ]
        return [document for *_, document in sorted(found, key=lambda each: each[:2])]

    def watch(self, path: str, since: int, query: Mapping[str, str] | None = None) -> list[tuple[int, str, Json]]:
        """(version, type, object) of each event after a version, as a watch with these selectors sends them.

        An object that the selectors admit no longer is sent as DELETED, as it was (apiserver cacher/cache_watcher.go).
        """
        at = parse(path)
        found: list[tuple[int, str, Json]] = []
        for change in self.log[since:]:  # every write adds one, so that the log's index is the version
            if change.resource != at.resource:
                continue
            was = change.before is not None and _selected(change.before, query or {})
            now = change.after is not None and _selected(change.after, query or {})
            if now:
                found.append((change.version, "MODIFIED" if was else "ADDED", change.after or {}))
            elif was and change.before is not None:
                metadata = {**change.before["metadata"], "resourceVersion": str(change.version)}
                found.append((change.version, "DELETED", {**change.before, "metadata": metadata}))
        return found

    # --- How --------------------------------------------------------------------------------------------------------

    def _find(self, at: Path) -> Json:
        found = self.objects.get((at.resource, at.namespace, at.name or ""))
        if found is None:
            raise kubeapi.ApiError(404, f"{at.resource} {at.name} not found")
        return found

    @staticmethod
    def _check(old: Json, uid: str | None, version: str | None) -> None:
        metadata = old["metadata"]
        if uid and uid != metadata["uid"]:
            raise kubeapi.ApiError(409, f"uid is {metadata['uid']}, the precondition is {uid}")
        if version and version != metadata["resourceVersion"]:
            raise kubeapi.ApiError(409, f"the object has been modified: {metadata['resourceVersion']}, not {version}")

    def _replace(self, at: Path, old: Json, new: Json) -> Json:
        """Store an update, unless it changes nothing; status and the rest have an endpoint each."""
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if at.subresource == "status":
            new = {**old, "status": new.get("status") or {}}
        elif at.resource in HAVE_STATUS:
            new = {**new, "status": old.get("status") or {}}
        if at.resource == "pods" and _fixed(new["spec"]) != _fixed(old["spec"]):
            raise kubeapi.ApiError(422, "pod updates may not change fields other than images")
        return _copy(old if new == old else self._store(at, new))

    def _store(self, at: Path, document: Json) -> Json:
        self.version += 1
        key = (at.resource, at.namespace, at.name or "")
        before = self.objects.get(key)
        document = {**document, "metadata": {**document["metadata"], "resourceVersion": str(self.version)}}
        self.objects[key] = document
        self.log.append(Change(self.version, at.resource, before, document))
        return _copy(document)

    def _bind(self, at: Path, body: Mapping[str, Any]) -> Json:
        old = self._find(at)
        given = body["metadata"]
        self._check(old, given.get("uid"), given.get("resourceVersion"))
        if "deletionTimestamp" in old["metadata"]:
            raise kubeapi.ApiError(409, f"pod {at.name} is being deleted, cannot be assigned to a host")
        if old["spec"].get("nodeName"):
            raise kubeapi.ApiError(409, f"pod {at.name} is already assigned to node {old['spec']['nodeName']}")
        if old["spec"].get("schedulingGates"):
            raise kubeapi.ApiError(409, f"pod {at.name} has non-empty .spec.schedulingGates")
        document = _copy(old)
        document["spec"]["nodeName"] = body["target"]["name"]
        if given.get("annotations"):
            document["metadata"].setdefault("annotations", {}).update(given["annotations"])
        others = [each for each in document["status"].get("conditions", []) if each["type"] != "PodScheduled"]
        document["status"]["conditions"] = [*others, {"type": "PodScheduled", "status": "True"}]
        self._store(at, document)
        return {"kind": "Status", "status": "Success", "code": 201}


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _fixed(spec: Json) -> Json:
    """What of a pod's spec an update may not change."""
    fixed = _copy(spec)
    for field in ("containers", "initContainers"):
        for container in fixed.get(field) or []:
            container.pop("image", None)
    fixed.pop("tolerations", None)
    fixed.pop("activeDeadlineSeconds", None)
    return fixed


def _merge(old: Any, change: Any, *, strategic: bool) -> Any:
    """RFC 7386, or the part of strategic merge that pods need: null deletes, the lists of MERGE_KEYS merge by key."""
    if not isinstance(change, Mapping):
        return _copy(change)
    merged: Json = _copy(old) if isinstance(old, Mapping) else {}
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        elif strategic and name in MERGE_KEYS and isinstance(value, list):
            merged[name] = _merge_list(merged.get(name) or [], value, MERGE_KEYS[name])
        else:
            merged[name] = _merge(merged.get(name), value, strategic=strategic)
    return merged


def _merge_list(old: list[Json], change: list[Json], key: str) -> list[Json]:
    by_key = {each[key]: each for each in change}
    kept = [_merge(each, by_key.pop(each[key], {}), strategic=True) for each in old]
    return [*kept, *(_merge({}, each, strategic=True) for each in change if each[key] in by_key)]


def _selected(document: Json, query: Mapping[str, str]) -> bool:
    labels = document["metadata"].get("labels") or {}
    fields = {
        "metadata.name": document["metadata"]["name"],
        "spec.nodeName": document.get("spec", {}).get("nodeName", ""),
        "status.phase": document.get("status", {}).get("phase", ""),
    }
    return _holds(query.get("labelSelector"), labels) and _holds(query.get("fieldSelector"), fields)


def _holds(selector: str | None, values: Mapping[str, str]) -> bool:
    """Whether an equality-based selector holds."""
    for term in selector.split(",") if selector else ():
        name, _, value = term.partition("=")
        unequal = name.endswith("!")
        if (values.get(name.rstrip("!")) == value.lstrip("=")) == unequal:
            return False
    return True
