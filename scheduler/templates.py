"""ResourceClaimTemplates of claim pods: one for each distinct need in a namespace, made at admission, removed unused.

A template's name is the hash of what it says, so making one twice makes the same one. Each admission that relies on
one makes it, if it is not there, and notes the time on it; the cleaner removes those that no pod names and nobody
relied on lately, under the version that it read, and makes anew those that a waiting pod names and somebody removed.
"""

import asyncio
import datetime
import time
from collections.abc import Callable
from typing import Any

import structlog

from scheduler import asks, claims, decision, errors, kube, kubeapi, watch
from scheduler import fleet as fleets

Json = dict[str, Any]

USED_AT = "anygpu.io/used-at"
KEEP_SECONDS = 600.0
"""How long a template outlives its last admission at least: much longer than a pod takes to show in the watch."""
TOUCH_SECONDS = 60.0
ALREADY_THERE = 409
CONFLICTS = (404, 409)
MAX_KNOWN = 4096

log = structlog.get_logger()


class Templates:
    """Makes the templates that admitted pods name."""

    def __init__(self, api: kubeapi.Api, clock: Callable[[], float] = time.time) -> None:
        self._api, self._clock = api, clock
        self._touched: dict[tuple[str, str], float] = {}
        """When this process last noted that (namespace, name) is used."""

    async def ensure(self, template: Json) -> None:
        """Have the template in its namespace, marked as used now; raises what watch.BROKEN names."""
        metadata = template["metadata"]
        key, now = (metadata["namespace"], metadata["name"]), self._clock()
        mark = {"metadata": {"annotations": {USED_AT: _stamp(now)}}}
        path = path_of(metadata["namespace"])
        try:
            marked = {**template, "metadata": {**metadata, **mark["metadata"]}}
            await asyncio.to_thread(self._api.post, path, marked)
        except kubeapi.ApiError as error:
            if error.status != ALREADY_THERE:
                raise
            if now - self._touched.get(key, 0.0) < TOUCH_SECONDS:
                return
            # Removed since? Then the next call makes it; this pod is refused, and made again by its controller.
            await asyncio.to_thread(self._api.patch, f"{path}/{metadata['name']}", mark)
        if len(self._touched) >= MAX_KNOWN:
            self._touched.clear()
        self._touched[key] = now


class _Template(kube.Base, frozen=True):
    metadata: kube.Metadata = kube.Metadata()


async def clean(api: kubeapi.Api, fleet: fleets.Fleet, now: float) -> int:
    """Remove the templates that nothing uses, and make those that are missing; says how many were removed.

    Raises what watch.BROKEN names.
    """
    path = f"{claims.PATH}/resourceclaimtemplates"
    selector = {"labelSelector": f"{claims.TEMPLATE_LABEL}=true"}
    try:
        found = await asyncio.to_thread(watch.list_all, api, path, _Template, selector)
    except kubeapi.ApiError as error:
        if error.status == watch.NOT_FOUND:
            return 0  # no DRA here
        raise
    named = {
        (pod.metadata.namespace or "default", each.resource_claim_template_name): pod
        for pod in fleet.pods()
        for each in pod.spec.resource_claims or ()
    }
    there = {(each.metadata.namespace, each.metadata.name) for each in found}
    for key, pod in named.items():
        if key not in there and not pod.spec.node_name:
            await _make_anew(api, fleet, pod, key[1] or "", now)
    removed = 0
    for each in found:
        metadata = each.metadata
        used_at = _time((metadata.annotations or {}).get(USED_AT) or metadata.creation_timestamp or "")
        if (metadata.namespace, metadata.name) in named or now - used_at < KEEP_SECONDS:
            continue
        try:
            await asyncio.to_thread(
                api.delete,
                f"{path_of(metadata.namespace or 'default')}/{metadata.name}",
                metadata.uid or "",
                metadata.resource_version,
            )
        except kubeapi.ApiError as error:
            if error.status not in CONFLICTS:
                raise
            continue
        removed += 1
        log.info("template removed", namespace=metadata.namespace, name=metadata.name)
    return removed


async def _make_anew(api: kubeapi.Api, fleet: fleets.Fleet, pod: kube.Pod, name: str, now: float) -> None:
    """Make the template that a waiting pod of ours names, if its needs still make the same."""
    made = decision.read(pod.annotations)
    if made is None or made.binding != "claim":
        return  # somebody else's
    try:
        document = claims.template(pod.metadata.namespace or "default", _spec_of(pod, made, fleet))
    except errors.AnygpuError as error:
        log.warning("a template cannot be made anew", pod=pod.key, name=name, error=str(error))
        return
    if document["metadata"]["name"] != name:
        log.warning("a template cannot be made anew: the pod's needs make another now", pod=pod.key, name=name)
        return
    await Templates(api, lambda: now).ensure(document)
    log.info("template made anew", pod=pod.key, name=name)


def _spec_of(pod: kube.Pod, made: decision.Decision, fleet: fleets.Fleet) -> Json:
    question = asks.read(pod, fleet)
    return claims.template_spec(question.needs, claims.admitted(made.alternatives), fleet.catalogue, fleet.classes())


def path_of(namespace: str) -> str:
    """The API path of a namespace's templates."""
    return f"{claims.PATH}/namespaces/{namespace}/resourceclaimtemplates"


def _stamp(now: float) -> str:
    return datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="seconds")


def _time(stamp: str) -> float:
    """Unix seconds; 0 for what is no time."""
    try:
        return datetime.datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return 0.0
