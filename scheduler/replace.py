"""The calls that replace one pod: an Event of its owner that counts it, then an eviction.

The Event comes first and its name is a number up to the limit, so that an owner's limit holds whatever crashes; the
eviction is of the very object that was judged, so that a pod bound meanwhile stays.
"""

import enum
from collections.abc import Callable
from typing import Any, Literal

from scheduler import events, kube, kubeapi, owners, stranded, watch

EVICT_TRIES = 4
NOT_FOUND, CONFLICT = 404, 409
BROKEN = (*watch.BROKEN, KeyError, TypeError)
"""What a call, or an answer that is not as the API has it, raises."""

Json = dict[str, Any]
InNeed = Callable[[Json], bool]


def event(
    name: str,
    pod: kube.Pod,
    owner: kube.OwnerReference | None,
    reason: Literal["GPUReplaced", "GPUNotReplaced"],
    note: str,
    now: float,
) -> Json:
    """An event that tells of a pod, and of its owner."""
    about = events.of_owner(owner, pod.metadata.namespace) if owner is not None else None
    warning = reason != "GPUReplaced"
    return events.event(
        pod, name, by="rescue", action="Rescue", reason=reason, note=note, now=now, warning=warning, related=about
    )


class Outcome(enum.Enum):
    """What became of a pod in need."""

    REPLACED = enum.auto()
    LEFT = enum.auto()
    """It stays, and an event says why."""
    AT_LIMIT = enum.auto()
    """Its owner has had its replacements."""
    GONE = enum.auto()
    """It is in need no more."""


class Hands:
    """The calls that a rescue takes; all block, and raise what BROKEN names."""

    def __init__(self, api: kubeapi.Api, per_owner: int, now: float) -> None:
        self._api, self._per_owner, self._now = api, per_owner, now

    def waiting(self, pod: kube.Pod, why: str) -> Outcome:
        """Replace an early pod that waits, if its owner allows."""
        live = self._live(pod)
        if live is None or not _waits(live):
            return Outcome.GONE
        pod = kube.to_pod(live)
        owner = owners.controller(pod)
        fate = self._job_fate(pod, owner) if owner and owners.kind(owner) == "job" else owners.fate(owner)
        if isinstance(fate, owners.Gone):
            return Outcome.GONE
        if owner is None or not fate.replaced:
            return self._tell(pod, owner, f"{why}, but {fate.says}")
        return self._replace(pod, owner, live, why, fate.says, _waits)

    def rejected(self, pod: kube.Pod, why: str) -> Outcome:
        """Remove a late pod that its kubelet rejected, where its owner would leave it lying about."""
        if owners.kind(owners.controller(pod)) in ("stateful", "daemons"):
            return Outcome.GONE  # they remove failed pods themselves
        live = self._live(pod)
        if live is None or not _rejected(live):
            return Outcome.GONE
        pod = kube.to_pod(live)
        owner = owners.controller(pod)
        if owner is not None and owners.kind(owner) == "job":
            return self._tell(pod, owner, f"{why}; {owners.counts_rejected(owner)}")
        if owner is None or owners.kind(owner) != "replicas":
            return self._tell(pod, owner, f"{why}; {owners.fate(owner).says}")
        return self._replace(pod, owner, live, why, f"{owners.named(owner)} makes a new pod by itself", _rejected)

    def _live(self, pod: kube.Pod) -> Json | None:
        """The pod as it is now; None: it is gone."""
        try:
            document: Json = self._api.get_json(_path(pod))
        except kubeapi.ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return document if document["metadata"]["uid"] == pod.metadata.uid else None

    def _job_fate(self, pod: kube.Pod, owner: kube.OwnerReference) -> owners.Fate | owners.Gone:
        namespace = pod.metadata.namespace or "default"
        labelled = pod.labels.get(owners.JOB_UID_LABEL) == owner.uid
        query = {"labelSelector": f"{owners.JOB_UID_LABEL}={owner.uid}"} if labelled else None
        # Pods first: what the Job counts in between is then counted twice, and not missed.
        pods = owners.pods_of(self._api.get_json(f"/api/v1/namespaces/{namespace}/pods", query), owner.uid)
        try:
            job = owners.to_job(self._api.get_json(f"/apis/batch/v1/namespaces/{namespace}/jobs/{owner.name}"))
        except kubeapi.ApiError as error:
            if error.status == NOT_FOUND:
                return owners.Gone()
            raise
        return owners.job_fate(job, pods, pod) if job.metadata.uid == owner.uid else owners.Gone()

    def _replace(
        self,
        pod: kube.Pod,
        owner: kube.OwnerReference,
        live: Json,
        why: str,
        remark: str,
        in_need: InNeed,
    ) -> Outcome:
        if not self._count(pod, owner, why, remark):
            self._post(
                event(
                    events.name(owner.name, owner.uid[:8], "rescue-limit"),
                    pod,
                    owner,
                    "GPUNotReplaced",
                    f"{why}, but {owners.named(owner)} had {self._per_owner} pods replaced within the hour, which is "
                    "the limit: delete the pod to have the choice made anew now",
                    self._now,
                )
            )
            return Outcome.AT_LIMIT
        return self._evict(pod, live, in_need)

    def _count(self, pod: kube.Pod, owner: kube.OwnerReference, why: str, remark: str) -> bool:
        """Write the replacement down under the owner's next number; False: none is left."""
        for number in range(1, self._per_owner + 1):
            note = f"{why}; replacing it ({number} of {self._per_owner} this hour)" + (f"; {remark}" if remark else "")
            name = events.name(owner.name, owner.uid[:8], f"rescue-{number}")
            if self._post(event(name, pod, owner, "GPUReplaced", note, self._now)) or self._is_about(pod, name):
                return True
        return False

    def _is_about(self, pod: kube.Pod, name: str) -> bool:
        """Whether an event tells of the pod: then an attempt was counted, and failed after that."""
        try:
            found = self._api.get_json(f"{events.collection(pod.metadata.namespace)}/{name}")
        except kubeapi.ApiError as error:
            if error.status == NOT_FOUND:  # its hour ended between the two calls
                return False
            raise
        return bool(found["regarding"].get("uid") == pod.metadata.uid)

    def _evict(self, pod: kube.Pod, live: Json | None, in_need: InNeed) -> Outcome:
        """Evict the pod as it was judged; where it has changed since, judge it again."""
        for _ in range(EVICT_TRIES):
            if live is None or not in_need(live):
                return Outcome.GONE
            version = live["metadata"]["resourceVersion"]
            body = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod.metadata.name, "namespace": pod.metadata.namespace or "default"},
                "deleteOptions": {"preconditions": {"uid": pod.metadata.uid, "resourceVersion": version}},
            }
            try:
                self._api.post(f"{_path(pod)}/eviction", body)
            except kubeapi.ApiError as error:
                if error.status == NOT_FOUND:
                    return Outcome.GONE
                if error.status != CONFLICT:
                    raise
                live = self._live(pod)
            else:
                return Outcome.REPLACED
        raise kubeapi.ApiError(CONFLICT, f"{pod.key} changes all the time")

    def _tell(self, pod: kube.Pod, owner: kube.OwnerReference | None, note: str) -> Outcome:
        name = events.name(pod.metadata.name, (pod.metadata.uid or "")[:8], "rescue-left")
        self._post(event(name, pod, owner, "GPUNotReplaced", note, self._now))
        return Outcome.LEFT

    def _post(self, document: Json) -> bool:
        """Write an event; False: one of its name is there."""
        try:
            self._api.post(events.collection(document["metadata"]["namespace"]), document)
        except kubeapi.ApiError as error:
            if error.status == CONFLICT:
                return False
            raise
        return True


def _waits(document: Json) -> bool:
    return stranded.waits_since(kube.to_pod(document)) is not None


def _rejected(document: Json) -> bool:
    return stranded.rejection(kube.to_pod(document)) is not None and not stranded.ever_ran(document)


def _path(pod: kube.Pod) -> str:
    return f"/api/v1/namespaces/{pod.metadata.namespace or 'default'}/pods/{pod.metadata.name}"
