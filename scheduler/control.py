"""What the service writes to the cluster: SKU labels and a condition on nodes, events that say what a pod was given.

All are functions of the node table: what is written already is not written again, what fails is tried again, and two
replicas doing it at once write the same.
"""

import asyncio
import datetime
import random
import time
from collections.abc import Mapping
from typing import Any

import structlog
import urllib3

from capability_db import node_facts
from scheduler import decision, events, kube, kubeapi
from scheduler import fleet as fleets

CONFLICTS = (404, 409, 422)
"""Statuses that mean somebody was faster: the next event brings the truth."""
MAX_RETRY_SECONDS = 30.0
PARALLEL = 4
CONFLICT = "anygpu.io/GPUFactsConflict"
"""The node condition that says whether sources contradict each other about its GPUs."""
MAX_MESSAGE = 1024
MAX_EVENTS = 1000
"""Events waiting to be written; beyond this the newest are dropped, since the decision itself is on the pod."""

log = structlog.get_logger()


def label_changes(row: fleets.Row) -> dict[str, str | None]:
    """Labels to set on a node, or to remove (None), so that it carries what it should."""
    have = {key: value for key, value in (row.node.metadata.labels or {}).items() if node_facts.is_ours(key)}
    want = node_facts.node_labels(row.facts)
    changes: dict[str, str | None] = {key: value for key, value in want.items() if have.get(key) != value}
    changes.update(dict.fromkeys(have.keys() - want.keys()))
    return changes


def condition_change(row: fleets.Row, now: float) -> dict[str, Any] | None:
    """The condition GPUFactsConflict as it should be on the node, `now` in unix seconds; None: it is so already.

    A node on which sources never differed has none.
    """
    there = next((each for each in row.node.status.conditions or () if each.type == CONFLICT), None)
    message = "; ".join(row.facts.conflicts)[:MAX_MESSAGE]
    status = "True" if message else "False"
    if there is None and not message:
        return None
    if there is not None and there.status == status and (there.message or "") == message:
        return None
    time_now = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    since = there.last_transition_time if there is not None and there.status == status else None
    return {
        "type": CONFLICT,
        "status": status,
        "reason": "SourcesDisagree" if message else "SourcesAgree",
        "message": message,
        "lastTransitionTime": since or time_now,
        "lastHeartbeatTime": time_now,
    }


def decision_event(pod: kube.Pod, made: decision.Decision, now: float) -> dict[str, Any]:
    """The event that tells a pod's owner what was decided; its name makes writing it twice a conflict."""
    name = events.name(pod.metadata.name, made.id[:16], *(["bound"] if pod.spec.node_name else []))
    reason = "GPUUnavailable" if made.waits else "GPUChosen"
    return events.event(
        pod, name, by="webhook", action="Decide", reason=reason, note=made.reason, now=now, warning=made.waits
    )


class Writer:
    """Brings the cluster in line with the node table; `nudge` after each change of it."""

    def __init__(self, api: kubeapi.Api, fleet: fleets.Fleet) -> None:
        self._api, self._fleet = api, fleet
        self._dirty = asyncio.Event()
        self._events: dict[str, tuple[kube.Pod, decision.Decision]] = {}
        self._told: set[str] = set()
        self._open: set[str] = set()
        """Late and claim pods seen before their bind."""

    def nudge(self) -> None:
        """Say that something may have to be written."""
        self._dirty.set()

    def saw_pod(self, pod: kube.Pod) -> None:
        """Note a pod whose decision its owner should hear of."""
        uid, bound = pod.metadata.uid, bool(pod.spec.node_name)
        if uid is None or (uid not in self._open if bound else uid in self._told) or len(self._events) >= MAX_EVENTS:
            return
        made = decision.read(pod.annotations)
        if made is None:
            return
        self._told.add(uid)
        self._open.discard(uid)
        if not bound and made.binding != "early":
            self._open.add(uid)  # what it is given is known once it is bound
            if not made.waits:
                return
        self._events[uid] = (pod, made)
        self.nudge()

    def forgot_pod(self, uid: str) -> None:
        """Note that a pod is gone, so that memory does not grow with history."""
        self._told.discard(uid)
        self._open.discard(uid)
        self._events.pop(uid, None)

    async def run(self) -> None:
        """Write until cancelled."""
        failures = 0
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if await self._write_all():
                failures = 0
            else:
                failures += 1
                wait = min(MAX_RETRY_SECONDS, 0.5 * 2 ** min(failures, 10)) * random.uniform(0.5, 1)  # noqa: S311
                await asyncio.sleep(wait)
                self._dirty.set()

    async def _write_all(self) -> bool:
        labels = [(row.name, changes) for row in self._fleet.rows.values() if (changes := label_changes(row))]
        now = time.time()
        conditions = [(row.name, change) for row in self._fleet.rows.values() if (change := condition_change(row, now))]
        waiting, self._events = self._events, {}
        slots = asyncio.Semaphore(PARALLEL)
        done = await asyncio.gather(
            *(self._label(slots, name, changes) for name, changes in labels),
            *(self._condition(slots, name, change) for name, change in conditions),
            *(self._event(slots, pod, made) for pod, made in waiting.values()),
        )
        return all(done)

    async def _label(self, slots: asyncio.Semaphore, name: str, changes: Mapping[str, str | None]) -> bool:
        async with slots:
            return await self._try(
                "labelling a node", name, self._api.patch, f"/api/v1/nodes/{name}", {"metadata": {"labels": changes}}
            )

    async def _condition(self, slots: asyncio.Semaphore, name: str, change: Mapping[str, Any]) -> bool:
        def write(path: str, body: Mapping[str, Any]) -> Any:
            return self._api.patch(path, body, "strategic")  # merges the list of conditions by their type

        async with slots:
            return await self._try(
                "writing a node's condition",
                name,
                write,
                f"/api/v1/nodes/{name}/status",
                {"status": {"conditions": [change]}},
            )

    async def _event(self, slots: asyncio.Semaphore, pod: kube.Pod, made: decision.Decision) -> bool:
        path = events.collection(pod.metadata.namespace)
        async with slots:
            # An event lost to a broken connection is not worth a retry: the decision stands on the pod.
            await self._try("writing an event", pod.key, self._api.post, path, decision_event(pod, made, time.time()))
        return True

    async def _try(self, what: str, name: str, call: Any, path: str, body: Mapping[str, Any]) -> bool:
        try:
            await asyncio.to_thread(call, path, body)
        except kubeapi.ApiError as error:
            if error.status in CONFLICTS:
                return True
            log.warning(f"{what} failed", name=name, error=str(error))
            return False
        except (urllib3.exceptions.HTTPError, OSError) as error:
            log.warning(f"{what} failed", name=name, error=str(error))
            return False
        return True
