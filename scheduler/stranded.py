"""Which pods would run if they were made anew: early ones that wait for the wrong resource, late ones that a kubelet
rejected.
"""

import copy
import datetime
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from images import resolve
from scheduler import asks, decision, errors, explain, kube, ledger, needs, offers
from scheduler import fleet as fleets

REJECTED_LATE_PODS = {"labelSelector": f"{needs.BINDING_LABEL}=late", "fieldSelector": "status.phase=Failed"}
REJECTIONS = ("OutOf", "UnexpectedAdmissionError")
"""How the reasons begin with which kubelets reject pods for want of devices (pkg/kubelet/lifecycle/predicate.go)."""


def waits_since(pod: kube.Pod, opted_out: Collection[str] = ()) -> float | None:
    """Since when (unix seconds) kube-scheduler finds no node for an early pod; None: it is no such pod."""
    if (
        pod.spec.node_name
        or pod.metadata.deletion_timestamp
        or pod.status.phase not in (None, "Pending")
        or pod.status.nominated_node_name  # its victims are going
        or not pod.unschedulable
        or needs.BINDING_LABEL in pod.labels
        or not asks.concerns(pod, opted_out)
    ):
        return None
    condition = next(each for each in pod.status.conditions or () if each.type == "PodScheduled")
    return _seconds(condition.last_transition_time or pod.metadata.creation_timestamp)


def _seconds(text: str | None) -> float | None:
    try:
        return datetime.datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None


def logical_image(pod: kube.Pod, made: decision.Decision) -> str | None:
    """The image that the user wrote for the container that gets the devices."""
    try:
        written = json.loads(pod.annotations.get(needs.REQUESTED_IMAGE, "{}"))
    except ValueError:
        written = None
    image = written.get(made.container) if isinstance(written, dict) else None
    if isinstance(image, str):
        return image
    return next((each.image for each in pod.containers if each.name == made.container), None)


def chance(pod: kube.Pod, made: decision.Decision, image: resolve.Resolved, fleet: fleets.Fleet) -> ledger.Hold | None:
    """What a new pod would take now, where nothing of what the pod waits for fits; None: nothing."""
    written = explain.undecided(explain.as_written(pod, made))
    try:
        ask = asks.read(written, fleet).ask(written, image)
    except errors.InvalidNeeds:
        return None  # as after an upgrade that knows fewer SKUs: the new pod would be refused
    choice = offers.survey(ask, fleet).choice
    if choice is None or choice.node is None or choice.device.resource == made.resource:
        return None
    own = ask.needs.model_copy(update={"resources": (made.resource,)})
    same = offers.survey(offers.Ask(ask.pod, own, ask.count, ask.runs_on, ask.nodes), fleet)
    if any(verdict.fits for verdict in same.verdicts):
        return None  # kube-scheduler has other reasons, which a new pod would meet again
    skus = frozenset(sku.id for sku in choice.device.skus)
    return ledger.Hold(choice.device.resource, ask.count, choice.node, skus)


def most_free(fleet: fleets.Fleet) -> dict[str, int]:
    """The most devices that one node has free of each GPU resource, where that is any."""
    found: dict[str, int] = {}
    for row in fleet.rows.values():
        for pool in row.facts.pools:
            resource = pool.device.resource
            free = row.free(resource) - fleet.held(row.name, resource)
            if free > found.get(resource, 0):
                found[resource] = free
    return found


def as_if(fleet: fleets.Fleet, uid: kube.PodUid, holds: Iterable[ledger.Hold]) -> fleets.Fleet:
    """The fleet with a pod's own hold left out, and other holds added; the fleet itself stays as it is."""
    added = list(holds)
    if not added and uid not in fleet.ledger:
        return fleet
    held = ledger.Ledger()
    for key, hold in fleet.ledger.items():
        if key != uid:
            held.put(key, hold)
    for number, hold in enumerate(added):
        held.put(f"successor-{number}", hold)
    seen = copy.copy(fleet)
    seen.ledger = held
    return seen


def rejection(pod: kube.Pod, opted_out: Collection[str] = ()) -> str | None:
    """Why a kubelet rejected a late pod; None: it is no such pod."""
    reason = pod.status.reason or ""
    if (
        pod.status.phase != "Failed"
        or pod.metadata.deletion_timestamp
        or not reason.startswith(REJECTIONS)
        or pod.labels.get(needs.BINDING_LABEL) != "late"
        or not asks.concerns(pod, opted_out)
    ):
        return None
    return f"the kubelet of {pod.spec.node_name} rejected it ({reason}): {pod.status.message or 'it says no more'}"


def ever_ran(document: Mapping[str, Any]) -> bool:
    """Whether a container of the pod ever ran: a kubelet that restarts may reject what had run before."""
    status = document.get("status") or {}
    return any(
        (each.get(field) or {}).keys() & {"running", "terminated"}
        for kind in ("containerStatuses", "initContainerStatuses")
        for each in status.get(kind) or ()
        for field in ("state", "lastState")
    )
