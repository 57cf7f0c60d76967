"""A decision -> the pod's document that carries it: only ever added to, and twice the same as once."""

import copy
import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any

from capability_db import quantities, vendors
from scheduler import asks, binding, claims, decision, errors, kube, needs

Json = dict[str, Any]

SHM_VOLUME = "anygpu-shm"


@dataclasses.dataclass(frozen=True, slots=True)
class Besides:
    """What a pod is given besides what its decision records."""

    image: str
    """The logical image that its containers asked."""
    terms: list[list[dict[str, object]]]
    """Node selector terms of the nodes that may serve it; empty: it names its node."""
    taints: Collection[tuple[str, str]]
    """(key, effect) of taints to tolerate."""
    template: str | None = None
    """The ResourceClaimTemplate that it claims by."""


def without_forgeries(document: Json, pod: kube.Pod) -> Json:
    """The pod without keys that only anygpu writes; a mirror pod, which cannot be changed, as it is."""
    forged = [key for key in pod.annotations if needs.is_written_back(key)]
    if not forged or asks.MIRROR_ANNOTATION in pod.annotations:
        return document
    metadata = document["metadata"]
    kept = {key: value for key, value in metadata["annotations"].items() if key not in forged}
    return {**document, "metadata": {**metadata, "annotations": kept}}


def again(document: Json, made: decision.Decision) -> Json:
    """The pod with a decision of a moment ago applied to containers that another webhook added since."""
    result = copy.deepcopy(document)
    for container in _containers(result["spec"]):
        if container.get("name") in made.images or container.get("name") == made.container:
            _write_container(container, made)
    return result


def write(document: Json, made: decision.Decision, besides: Besides) -> Json:
    """A copy of the pod's document with everything in it that the decision wants."""
    result = copy.deepcopy(document)
    metadata, spec = result.setdefault("metadata", {}), result["spec"]
    annotations = dict(metadata.get("annotations") or {})
    for key in [key for key in annotations if needs.is_written_back(key)]:
        del annotations[key]
    annotations[needs.DECISION] = made.model_dump_json()
    if made.images:
        annotations[needs.REQUESTED_IMAGE] = json.dumps(dict.fromkeys(made.images, besides.image), sort_keys=True)
    metadata["annotations"] = annotations
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != needs.BINDING_LABEL}
    if made.binding != "early":
        labels[needs.BINDING_LABEL] = made.binding
    if labels or metadata.get("labels"):
        metadata["labels"] = labels
    if made.binding == "late":
        spec["schedulerName"] = binding.SCHEDULER
    for container in _containers(spec):
        _write_container(container, made)
    if besides.template is not None:
        _claim(spec, made, besides.template)
    if not spec.get("hostIPC"):
        several = made.container if made.count > 1 and made.injected else None
        _add_shm(spec, [each for each in _containers(spec) if each.get("name") == several or _devices(each, made) > 1])
    if besides.terms:
        _and_affinity(spec, besides.terms)
    for taint in besides.taints:
        _tolerate(spec, taint)
    return result


def _claim(spec: Json, made: decision.Decision, template: str) -> None:
    """Have the container claim devices by a template."""
    ours = {"name": claims.CLAIM_NAME, "resourceClaimTemplateName": template}
    others = [each for each in _objects(spec, "resourceClaims") if each.get("name") != claims.CLAIM_NAME]
    spec["resourceClaims"] = [*others, ours]
    for container in _containers(spec):
        if container.get("name") == made.container:
            resources = container["resources"] = dict(container.get("resources") or {})
            kept = [each for each in _objects(resources, "claims") if each.get("name") != claims.CLAIM_NAME]
            resources["claims"] = [*kept, {"name": claims.CLAIM_NAME}]


def _containers(spec: Json) -> list[Json]:
    return [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]


def _objects(owner: Json, field: str) -> list[Json]:
    """A list that decisions do not read, hence nobody has checked; raises InvalidInput where it is none."""
    found = owner.get(field) or []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        of = f"container {owner['name']}" if "name" in owner else "spec"
        raise errors.InvalidInput(f"{of}: {field} is no list of objects")
    return found


def _write_container(container: Json, made: decision.Decision) -> None:
    name = container.get("name")
    late = made.binding != "early"
    if name in made.images:
        container["image"] = binding.UNRESOLVED if late else made.images[name]
    if name == made.container:
        if made.injected:
            resources = container["resources"] = dict(container.get("resources") or {})
            counts = {resource: str(count) for resource, count in made.injected.items()}
            for side in ("limits", "requests"):
                resources[side] = {**(resources.get(side) or {}), **counts}
        if late:
            _add_env(container, binding.VENDOR_ENV, _from_annotation(needs.BOUND_VENDOR))
        return
    asks_gpu = any(
        vendors.of_resource(resource)
        for side in ("limits", "requests")
        for resource in ((container.get("resources") or {}).get(side) or {})
    )
    _objects(container, "env")
    if name in made.images and not asks_gpu:
        if late:
            for variable in dict.fromkeys(variable for each in made.alternatives for variable in each.env):
                _add_env(container, variable, _from_annotation(f"{needs.ENV_PREFIX}{variable}"))
        elif made.vendor == vendors.NVIDIA.name:
            variable, value = binding.VOID_DEVICES
            _add_env(container, variable, {"value": value})


def _add_env(container: Json, name: str, value: Json) -> None:
    env = _objects(container, "env")
    if all(each.get("name") != name for each in env):
        container["env"] = [*env, {"name": name, **value}]


def _from_annotation(key: str) -> Json:
    """An environment value that the container reads from the pod's annotation when it starts, hence after the bind."""
    return {"valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{key}']"}}}


def _devices(container: Json, made: decision.Decision) -> int:
    amount = ((container.get("resources") or {}).get("limits") or {}).get(made.resource, 0)
    return quantities.units(str(amount))


def _add_shm(spec: Json, containers: list[Json]) -> None:
    """Give containers shared memory: the runtime's 64 MiB is too little for NCCL and RCCL between devices."""
    volumes = _objects(spec, "volumes")
    ours = {"name": SHM_VOLUME, "emptyDir": {"medium": "Memory"}}
    taken = {volume.get("name") for volume in volumes if volume != ours}
    while ours["name"] in taken:
        ours["name"] = f"{ours['name']}-x"
    for container in containers:
        mounts = _objects(container, "volumeMounts")
        if any(str(mount.get("mountPath", "")).rstrip("/") == "/dev/shm" for mount in mounts):  # noqa: S108
            continue
        container["volumeMounts"] = [*mounts, {"name": ours["name"], "mountPath": "/dev/shm"}]  # noqa: S108
        if ours not in volumes:
            volumes = spec["volumes"] = [*volumes, ours]


def _and_affinity(spec: Json, ours: list[list[dict[str, object]]]) -> None:
    """And the user's required node affinity with one of our terms: terms are or-ed, so each pairs with each."""
    affinity = spec["affinity"] = dict(spec.get("affinity") or {})
    node = affinity["nodeAffinity"] = dict(affinity.get("nodeAffinity") or {})
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    given: list[Json] = (node.get(required) or {}).get("nodeSelectorTerms") or []
    # An empty term matches nothing: it must not become one of ours.
    theirs = [term for term in given if term.get("matchExpressions") or term.get("matchFields")] if given else [{}]
    if all(any(_contains(term, mine) for mine in ours) for term in theirs):
        return
    node[required] = {
        "nodeSelectorTerms": [
            {**term, "matchExpressions": [*(term.get("matchExpressions") or []), *copy.deepcopy(mine)]}
            for term in theirs
            for mine in ours
        ]
    }


def _contains(term: Mapping[str, Any], expressions: list[dict[str, object]]) -> bool:
    have = term.get("matchExpressions") or []
    return all(expression in have for expression in expressions)


def _tolerate(spec: Json, taint: tuple[str, str]) -> None:
    key, effect = taint
    tolerations = spec.get("tolerations") or []
    have = kube.to_pod({"spec": {"tolerations": tolerations}}).spec.tolerations
    if not any(
        each.operator == "Exists" and (not each.key or each.key == key) and (not each.effect or each.effect == effect)
        for each in have or ()
    ):
        spec["tolerations"] = [*tolerations, {"key": key, "operator": "Exists", "effect": effect}]
