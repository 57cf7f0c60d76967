"""YAML and JSON documents as people have them: snapshots of clusters, pods, workloads, Lists."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import yaml

from capability_db import registered, reports, resources, slices
from scheduler import claims, errors, kube, needs, quota, reservations
from scheduler import fleet as fleets

Json = dict[str, Any]

TEMPLATES: dict[str, tuple[str, ...]] = {
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
"""Where each kind keeps its pod template."""


MAX_DEPTH = 500
SUFFIXES = (".yaml", ".yml", ".json")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, with dates left as the text that Kubernetes has them as."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _refuse(loader: yaml.SafeLoader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(None, None, f"{node.tag} has no JSON form", node.start_mark)


for _tag in ("binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _refuse)


def parse(text: str, source: str) -> list[Json]:
    """The documents in YAML or JSON text, Lists as they are; raises InvalidInput naming the source."""
    no_json: json.JSONDecodeError | None = None
    try:
        documents = _load_json(text)
    except json.JSONDecodeError as error:
        documents, no_json = None, error
    except (RecursionError, ValueError) as error:  # the latter for numbers of thousands of digits
        raise errors.InvalidInput(f"{source}: no JSON: {error}") from error
    try:
        documents = list(_load_yaml(text)) if documents is None else documents
    # PyYAML's constructors raise the middle three for explicit tags (`!!bool x`).
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        if no_json is not None:
            raise errors.InvalidInput(f"{source}: no JSON: {no_json}") from error
        raise errors.InvalidInput(f"{source}: no YAML: {' '.join(str(error).split())[:300]}") from error
    found = [document for document in documents if document is not None]
    if "&" in text:
        _check_size(found, 100_000 + 10 * len(text), source)
    for document in found:
        _check(document, source)
    return found


def _load_json(text: str) -> list[Any] | None:
    """The JSON document that a text is, many times faster than as YAML; None: it does not look like one."""
    if not text.lstrip().startswith("{"):
        return None
    documents: list[Any] = []
    decoder = json.JSONDecoder()
    left = text.lstrip()
    while left:  # one after the other, as `kubectl get -o json >> file` leaves them
        document, end = decoder.raw_decode(left)
        documents.append(document)
        left = left[end:].lstrip()
    return documents


def _load_yaml(text: str) -> Iterator[Any]:
    """The YAML documents of a text; raises RecursionError where they nest deeper than any object does.

    libyaml's composer recurses in C: without the look beforehand the process would crash.
    """
    deepest = max((len(line) - len(line.lstrip(" -?:")) for line in text.splitlines()), default=0)
    if deepest + text.count("[") + text.count("{") > MAX_DEPTH:
        depth = 0
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise RecursionError(f"it nests deeper than {MAX_DEPTH} levels")
    yield from yaml.load_all(text, _Loader)


def _check_size(documents: list[Any], most: int, source: str) -> None:
    """Raise InvalidInput where YAML aliases make a document part of itself, or of more than `most` values."""
    sizes: dict[int, float] = {}

    def size(value: Any) -> float:
        if not isinstance(value, dict | list):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = math.inf  # until its parts are known, which it must not be among
            parts = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(each) for each in parts)
        return sizes[id(value)]

    try:
        fits = size(documents) <= most
    except RecursionError:
        fits = False
    if not fits:
        raise errors.InvalidInput(f"{source}: no YAML of a cluster: its aliases (&, *) nest without end or too deeply")


def _check(document: Any, source: str) -> None:
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise errors.InvalidInput(f"{source}: holds something that is no Kubernetes object (an object has a kind)")


def is_list(document: Json) -> bool:
    """Whether a document is a List of objects."""
    return document["kind"].endswith("List") and isinstance(document.get("items"), list)


def opened(documents: Iterable[Json], source: str) -> list[Json]:
    """The objects of documents, Lists opened at any depth; raises InvalidInput."""
    found: list[Json] = []
    for document in documents:
        if not is_list(document):
            found.append(document)
            continue
        # The items of a typed list (PodList) leave their kind out.
        kind = document["kind"].removesuffix("List")
        items = [{"kind": kind, **item} if isinstance(item, dict) and kind else item for item in document["items"]]
        for item in items:
            _check(item, source)
        found += opened(items, source)
    return found


def read(path: Path | str) -> list[Json]:
    """The documents in a file, or in the files of a folder; raises InvalidInput naming the file."""
    path = Path(path)
    try:
        if path.is_dir():
            files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and each.name[0] != ".")
            if not files:
                raise errors.InvalidInput(f"{path}: the folder holds no .yaml, .yml or .json file")
            return [document for each in files for document in _read_file(each)]
        return _read_file(path)
    except OSError as error:
        raise errors.InvalidInput(f"{path}: cannot be read: {error}") from error


def _read_file(path: Path) -> list[Json]:
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise errors.InvalidInput(f"{path}: cannot be read: {error}") from error


def load(fleet: fleets.Fleet, documents: Iterable[Json], source: str) -> None:
    """Fill the node table from a snapshot's nodes and pods, whatever else is in it; raises InvalidInput."""
    objects = opened(documents, source)
    nodes = [to_node(each, source) for each in objects if each["kind"] == "Node"]
    if not nodes:
        raise errors.InvalidInput(f"{source}: holds no Node; make a snapshot with: kubectl get nodes,pods -A -o yaml")
    namespaces = [_metadata(each) for each in objects if each["kind"] == "Namespace"]
    fleet.opted_out = {
        str(each.get("name"))
        for each in namespaces
        if isinstance(labels := each.get("labels"), dict) and labels.get(needs.INJECT_LABEL) == "false"
    }
    ours = [each for each in objects if str(each.get("apiVersion", "")).startswith(f"{resources.GROUP}/")]
    for kind in registered.KINDS:
        fleet.registered.replace(kind, [_as(kind, each, source) for each in ours if each["kind"] == kind])
    fleet.use_registered()
    fleet.replace(nodes, [to_pod(each, source) for each in objects if each["kind"] == "Pod"])
    found: dict[str, list[Any]] = {kind: [] for kind in _OTHERS if kind not in registered.KINDS}
    for each in objects:
        labels = _metadata(each).get("labels")
        is_record = isinstance(labels, dict) and reservations.LABEL in labels
        if each["kind"] in found and (each["kind"] != "ConfigMap" or is_record):
            found[each["kind"]].append(_as(each["kind"], each, source))
    fleet.replace(records=[record for each in found["ConfigMap"] if (record := reservations.of(each))])
    fleet.quotas.replace(found["ResourceQuota"])
    fleet.replace_dra(found["ResourceSlice"], found["ResourceClaim"])
    fleet.replace_reports(found["NodeGPUs"])
    fleet.device_classes = {
        each.metadata.name: each.spec.extended_resource_name for each in found["DeviceClass"]
    } or None


_OTHERS: dict[str, type[Any]] = {
    "ConfigMap": kube.ConfigMap,
    "ResourceSlice": slices.ResourceSlice,
    "ResourceClaim": claims.Claim,
    "DeviceClass": kube.DeviceClass,
    "ResourceQuota": quota.ResourceQuota,
    "NodeGPUs": reports.NodeGPUs,
    **dict.fromkeys(registered.KINDS, registered.Object),
}


def _as(kind: str, document: Json, source: str) -> Any:
    """The object of a document that decisions read; raises InvalidInput naming the field that is wrong."""
    try:
        return msgspec.convert(kube.without_nulls(document), _OTHERS[kind])
    except (msgspec.ValidationError, RecursionError) as error:
        raise errors.InvalidInput(f"{source}: {describe(document)}: {error}") from error


def to_node(document: Json, source: str) -> kube.Node:
    """The node of a document; raises InvalidInput naming the field that is wrong."""
    try:
        node = kube.to_node(document)
    except (msgspec.ValidationError, RecursionError) as error:
        raise errors.InvalidInput(f"{source}: {describe(document)}: {_hint(document, error)}") from error
    if not node.metadata.name:
        raise errors.InvalidInput(f"{source}: {describe(document)}: metadata.name is missing")
    return node


def to_pod(document: Json, source: str) -> kube.Pod:
    """The pod of a document; raises InvalidInput naming the field that is wrong."""
    try:
        return kube.to_pod(document)
    except (msgspec.ValidationError, RecursionError) as error:
        raise errors.InvalidInput(f"{source}: {describe(document)}: {_hint(document, error)}") from error


def describe(document: Json) -> str:
    """An object as messages name it: kind and name."""
    return f"{document.get('kind', 'object')} {_metadata(document).get('name') or 'without a name'}"


def _metadata(document: Json) -> Json:
    metadata = document.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _hint(document: Json, error: Exception) -> str:
    """What is wrong, with the key of an unquoted value, the usual slip (`anygpu.io/gpus: 2`), named."""
    metadata = document.get("metadata")
    for field in ("annotations", "labels"):
        values = metadata.get(field) if isinstance(metadata, dict) else None
        for key, value in values.items() if isinstance(values, dict) else ():
            if value is not None and not isinstance(value, str):
                return f"metadata.{field}: {key}: {repr(value)[:80]} is no string; quote it"
    return str(error)


def pod_of(document: Json, source: str) -> Json:
    """The pod that a document is, or that its template makes; raises InvalidInput for a kind that makes no pods."""
    kind = document["kind"]
    if kind == "Pod":
        return document
    if kind not in TEMPLATES:
        raise errors.InvalidInput(
            f"{source}: {describe(document)} makes no pods; give a Pod, {', '.join(TEMPLATES)} or a List"
        )
    template: Any = document
    for key in TEMPLATES[kind]:
        template = template.get(key) if isinstance(template, dict) else None
    if not isinstance(template, dict):
        raise errors.InvalidInput(f"{source}: {describe(document)} has no {'.'.join(TEMPLATES[kind])}")
    owner = document.get("metadata")
    owner = owner if isinstance(owner, dict) else {}
    metadata = dict(template.get("metadata") or {}) if isinstance(template.get("metadata") or {}, dict) else {}
    metadata.setdefault("name", owner.get("name") or "pod")
    if owner.get("namespace"):
        metadata["namespace"] = owner["namespace"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.get("spec") or {}}
