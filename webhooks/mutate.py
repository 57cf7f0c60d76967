"""A pod at admission -> the pod as it will run, with the decision: pure, given the fleet and the image's variants.

What is injected is only ever added: the pod's own resources, affinity, tolerations, environment and scheduler stay,
and doing it twice changes nothing more.
"""

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from capability_db import quantities, vendors
from images import resolve
from scheduler import asks, decision, errors, fit, kube, needs, offers
from scheduler import fleet as fleets
from scheduler.ledger import Hold

Json = dict[str, Any]

VOID_DEVICES = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
"""CUDA images bake in `all`, which under NVIDIA's runtime shows every GPU to a container that asked none."""
SHM_VOLUME = "anygpu-shm"
MAX_REJECTIONS = 8
DEFAULT_TOLERATIONS = "node.kubernetes.io/"
"""What the apiserver's DefaultTolerationSeconds adds to every pod."""
BEST = {
    "pack": "the least capable GPU that fits",
    "cost": "the cheapest GPU that fits",
    "speed": "the fastest GPU that fits",
    "energy": "the GPU of fewest watts that fits",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """The answer to an admitted pod."""

    pod: Json
    decision: decision.Decision
    hold: Hold
    survey: offers.Survey
    warnings: tuple[str, ...] = ()


def admit(
    document: Json,
    pod: kube.Pod,
    question: asks.Question,
    image: resolve.Resolved,
    fleet: fleets.Fleet,
    new_id: Callable[[], str],
) -> Admission:
    """Choose for the pod and write the choice into a copy of its document.

    Raises InvalidNeeds where no GPU model could ever meet the needs, NothingFits where the image or the node that the
    pod names rules out every GPU.
    """
    never = fit.impossible(question.needs, fleet.catalogue, fleet.classes())
    if never:
        raise errors.InvalidNeeds([never])
    ask = question.ask(pod, image)
    survey = offers.survey(ask, fleet)
    choice = survey.choice
    if choice is None:
        have = ", ".join(sorted(image.by_vendor))
        lacks = offers.image_lacks(ask, fleet) or f"no {have} GPU model meets the pod's needs"
        raise errors.NothingFits(
            f"image {image.requested}: has variants for {have} only, none for a GPU that the pod needs ({lacks}); "
            "push that variant or relax the needs"
        )
    warnings = _check_named_node(pod, survey, choice)
    chosen = _variant(image, choice)
    one = {choice.device.vendor: lambda targets: all(chosen.runs_on(target) for target in targets)}
    admitted = offers.admitted_skus(dataclasses.replace(ask, runs_on=one), choice.device.resource, fleet)
    swapped = {} if image.pinned_by_user else _swapped(pod, question, chosen)
    made = _decide(pod, question, image, swapped, choice, admitted, survey, new_id())
    return Admission(
        _write(document, question, fleet, ask, admitted, made),
        made,
        Hold(made.resource, ask.count, made.node, frozenset(made.skus)),
        survey,
        warnings,
    )


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
            _write_container(container, made, asks_resource=True)
    return result


def _check_named_node(pod: kube.Pod, survey: offers.Survey, choice: offers.Choice) -> tuple[str, ...]:
    """Refuse a pod whose nodeName cannot serve it: the kubelet would start it without a device, and nothing waits."""
    name = pod.spec.node_name
    if not name:
        return ()
    verdict = next((verdict for verdict in survey.verdicts if verdict.name == name), None)
    if verdict is None:
        raise errors.NothingFits(f"spec.nodeName: {name!r} is no node of the cluster; drop it or name one that is")
    if verdict.offer is None:
        raise errors.NothingFits(
            f"spec.nodeName: {name} cannot serve the pod ({verdict.reason}); drop nodeName, so that one can be chosen"
        )
    if choice.node is None:
        return (f"node {name}, which the pod names, is full ({verdict.reason}): its kubelet will reject the pod",)
    return ()


def _decide(
    pod: kube.Pod,
    question: asks.Question,
    image: resolve.Resolved,
    swapped: dict[str, str],
    choice: offers.Choice,
    admitted: offers.Admitted,
    survey: offers.Survey,
    decision_id: str,
) -> decision.Decision:
    device = choice.device
    return decision.Decision(
        id=decision_id,
        vendor=device.vendor,
        resource=device.resource,
        count=question.needs.gpus,
        container=question.container.name,
        sku=device.skus[0].id if device.skus else None,
        skus=tuple(admitted.partitions),
        node=choice.node,
        images=swapped,
        reason=_reason(question.needs, choice, survey),
        kept=_kept(pod, question, image),
        rejected=_rejections(survey),
    )


def _reason(needed: needs.Needs, choice: offers.Choice, survey: offers.Survey) -> str:
    where = choice.device.label
    if choice.node is not None:
        fitting = sum(verdict.fits for verdict in survey.verdicts)
        best = BEST[needed.objective]
        if needed.objective == "cost" and any(sku.price_usd_hour is None for sku in choice.device.skus):
            best = f"no price is known, so {BEST['pack']}"
        first = f"of vendor {','.join(needed.vendors)}, in this order, " if len(needed.vendors) > 1 else ""
        return f"{where} on {choice.node}: {first}{best} (objective {needed.objective}); nodes that fit now: {fitting}"
    if choice.nodes:
        why = offers.in_words(verdict for verdict in survey.verdicts if verdict.offer)
        return f"waits for {where}: nodes that could serve it: {choice.nodes}, none can now ({why})"
    changes = offers.smallest_changes(survey.verdicts)
    hint = f"; a node would fit with {' or '.join(changes)}" if changes else ""
    why = offers.in_words(each for each in survey.verdicts if each.reason != offers.OTHER_NODE)
    return f"waits, asking for {where}: no node of the cluster could serve it ({why}){hint}"


def _rejections(survey: offers.Survey) -> tuple[decision.Rejection, ...]:
    counts: dict[tuple[str, str], int] = {}
    for verdict in survey.verdicts:
        if verdict.missing:
            what, _, reason = verdict.missing[0].text.partition(": ")
            key = (what, reason or what)
            counts[key] = counts.get(key, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        decision.Rejection(what=what, nodes=count, reason=reason) for (what, reason), count in ordered[:MAX_REJECTIONS]
    )


def _kept(pod: kube.Pod, question: asks.Question, image: resolve.Resolved) -> tuple[str, ...]:
    kept: list[str] = []
    if question.asks_resource:
        kept.append(f"resource {question.needs.resources[0]}: the pod asks it, the vendor follows")
    if image.pinned_by_user:
        kept.append(f"image {image.requested}: pinned by digest")
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity else None
    if affinity and affinity.required_during_scheduling_ignored_during_execution:
        kept.append("node affinity: and-ed with the SKUs that fit")
    if pod.spec.node_selector:
        kept.append("nodeSelector")
    if any(not (each.key or "").startswith(DEFAULT_TOLERATIONS) for each in pod.spec.tolerations or ()):
        kept.append("tolerations")
    if pod.spec.scheduler_name not in (None, "", "default-scheduler"):
        kept.append(f"schedulerName {pod.spec.scheduler_name}")
    named = kube.named_nodes(pod.spec)
    if named:
        kept.append(f"node {', '.join(named)}: the pod names it")
    return tuple(kept)


def _variant(image: resolve.Resolved, choice: offers.Choice) -> resolve.Pinned:
    """The first of the vendor's variants that runs on whatever device of the chosen class the pod is given."""
    targets = [sku.target for sku in choice.device.skus if sku.target]
    options = image.options[choice.device.vendor]
    return next(option for option in options if all(option.runs_on(target) for target in targets))


def _swapped(pod: kube.Pod, question: asks.Question, chosen: resolve.Pinned) -> dict[str, str]:
    """Container -> image for every container that names the same logical image as the one that gets the GPU."""
    return {each.name: chosen.image for each in pod.containers if each.image == question.container.image}


def _write(
    document: Json,
    question: asks.Question,
    fleet: fleets.Fleet,
    ask: offers.Ask,
    admitted: offers.Admitted,
    made: decision.Decision,
) -> Json:
    result = copy.deepcopy(document)
    metadata, spec = result.setdefault("metadata", {}), result["spec"]
    annotations = dict(metadata.get("annotations") or {})
    for key in [key for key in annotations if needs.is_written_back(key)]:
        del annotations[key]
    annotations[needs.DECISION] = made.model_dump_json()
    if made.images:
        requested = dict.fromkeys(made.images, question.container.image)
        annotations[needs.REQUESTED_IMAGE] = json.dumps(requested, sort_keys=True)
    metadata["annotations"] = annotations
    for container in _containers(spec):
        _write_container(container, made, asks_resource=question.asks_resource)
    if not spec.get("hostIPC"):
        _add_shm(spec, [each for each in _containers(spec) if _devices(each, made.resource) > 1])
    if ask.nodes is None:
        _and_affinity(spec, offers.node_label_terms(admitted))
    for taint in _gpu_taints(made, fleet):
        _tolerate(spec, taint)
    return result


def _containers(spec: Json) -> list[Json]:
    return [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]


def _objects(owner: Json, field: str) -> list[Json]:
    """A list that decisions do not read, hence nobody has checked; raises InvalidInput where it is none."""
    found = owner.get(field) or []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        of = f"container {owner['name']}" if "name" in owner else "spec"
        raise errors.InvalidInput(f"{of}: {field} is no list of objects")
    return found


def _write_container(container: Json, made: decision.Decision, *, asks_resource: bool) -> None:
    name = container.get("name")
    if name in made.images:
        container["image"] = made.images[name]
    if name == made.container:
        if not asks_resource:
            resources = container["resources"] = dict(container.get("resources") or {})
            for side in ("limits", "requests"):
                resources[side] = {**(resources.get(side) or {}), made.resource: str(made.count)}
        return
    asks_gpu = any(
        vendors.of_resource(resource)
        for side in ("limits", "requests")
        for resource in ((container.get("resources") or {}).get(side) or {})
    )
    env = _objects(container, "env")
    if (
        name in made.images
        and made.vendor == vendors.NVIDIA.name
        and not asks_gpu
        and all(each.get("name") != VOID_DEVICES["name"] for each in env)
    ):
        container["env"] = [*env, dict(VOID_DEVICES)]


def _devices(container: Json, resource: str) -> int:
    amount = ((container.get("resources") or {}).get("limits") or {}).get(resource, 0)
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


def _gpu_taints(made: decision.Decision, fleet: fleets.Fleet) -> list[tuple[str, str]]:
    """(key, effect) of the GPU taints on the nodes that could serve the pod with this resource."""
    vendor = vendors.VENDORS[made.vendor]
    found: set[tuple[str, str]] = set()
    serving = 0
    for row in fleet.rows.values():
        if any(pool.device.resource == made.resource for pool in row.facts.pools):
            serving += 1
            found |= {(taint.key, taint.effect) for taint in row.node.spec.taints or () if vendor.tolerates(taint.key)}
    if not serving:
        usual = made.resource if made.resource in vendor.taints else vendor.taints[0]
        found = {(usual, "NoSchedule")}  # nodes to come will likely carry the vendor's usual taint
    return sorted(found)


def _tolerate(spec: Json, taint: tuple[str, str]) -> None:
    key, effect = taint
    tolerations = spec.get("tolerations") or []
    have = kube.to_pod({"spec": {"tolerations": tolerations}}).spec.tolerations
    if not any(
        each.operator == "Exists" and (not each.key or each.key == key) and (not each.effect or each.effect == effect)
        for each in have or ()
    ):
        spec["tolerations"] = [*tolerations, {"key": key, "operator": "Exists", "effect": effect}]
