"""Carries plans of preemption out, one write after the other, so that death or a pause between any two does no harm.

1. The devices are held: an entry of the pod's own in the node's record, written under the version of the record that
   the plan was made with. From then on nobody else is bound to them, before and after the victims go.
2. The victims are evicted through the eviction API, which keeps to PodDisruptionBudgets by itself, each by its uid.
3. Events say so, under names that make writing them twice a conflict.

A victim's deletion wakes the pod in kube-scheduler; its bind replaces the entry. An entry that no bind follows
expires. Whatever is left undone the next step sees and plans anew.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import prometheus_client
import structlog

from scheduler import budgets, events, kube, kubeapi, preempt, reservations, watch
from scheduler import fleet as fleets

Json = dict[str, Any]

MAX_PLANS = 4
"""Plans carried out in one step; the next follows soon."""
PLANNING_SECONDS = 0.1
"""What one step may spend on planning, since nothing else is answered meanwhile; one pod is looked at in any case."""
REST_SECONDS = 10.0
"""How long a pod is left alone for which no plan was found, and those alike."""
MAX_PREEMPTIONS = 5
"""Evictions for one pod within the hour that events live: a pod that still waits then waits for something else."""
EVENT_SECONDS = 3600.0
OLD_SECONDS = 10.0
"""The age at which a plan is given up, for whoever was paused."""
NOT_FOUND, CONFLICT = 404, 409

EVICTED = prometheus_client.Counter("anygpu_evicted_total", "Pods evicted for pods of higher priority")

Outcome = Literal["evicted", "gone", "refused", "unknown"]

log = structlog.get_logger()


class Preemptor:
    """Makes room for waiting pods that a lower priority keeps out; run `step` every second or two, on one replica."""

    def __init__(
        self,
        api: kubeapi.Api,
        fleet: fleets.Fleet,
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._fleet, self._leads, self._clock = api, fleet, leads, clock
        self._resting: dict[str, float] = {}
        """Pod, or the owner of pods alike -> until when. Only spares work: a restart forgets it."""

    async def step(self) -> int:
        """Make room for the pods that wait for it, the most important first; says how many pods were evicted."""
        now = self._clock()
        self._resting = {key: until for key, until in self._resting.items() if until > now}
        around = preempt.scene(self._fleet, now)
        pods = [
            pod
            for pod in preempt.waiting(self._fleet)
            if kube.priority(pod) > around.lowest and self._resting.keys().isdisjoint((pod.identity, _alike(pod)))
        ]
        if not pods or not self._leads():
            return 0
        try:
            guards = await asyncio.to_thread(self._budgets)
        except watch.BROKEN as error:
            log.warning("the disruption budgets could not be read; nobody is evicted", error=str(error))
            return 0
        evicted = plans = 0
        spent = 0.0
        for waiting in pods:
            pod = self._fleet.by_uid(waiting.identity)
            if pod is None or pod.spec.node_name or _alike(pod) in self._resting:
                continue
            if plans == MAX_PLANS or spent > PLANNING_SECONDS:
                break
            began = time.perf_counter()
            plan = self._plan(pod, around, guards)
            spent += time.perf_counter() - began
            if plan is not None:
                plans += 1
                evicted += await self._carry_out(pod, plan)
        return evicted

    def _plan(self, pod: kube.Pod, around: preempt.Scene, guards: budgets.Budgets) -> preempt.Plan | None:
        """What is to be done for the pod; None: nothing now."""
        now = self._clock()
        entries = self._fleet.promised_to(pod.identity)
        if any(entry.kind != "preempt" for entry in entries.values()):
            return None  # a bind is under way, or about to be given up, which takes a write to the pod first
        held = {node: entry for node, entry in entries.items() if not entry.is_due(now)}
        plan = preempt.plan(pod, around, guards, held) if held else None
        if plan is not None and not plan.victims:
            # Victims are going there. Their devices are held for as long as that takes.
            half = reservations.LIVES_SECONDS["preempt"] / 2
            return plan if now - held[plan.node].since > half else None
        plan = preempt.plan(pod, around, guards)
        if plan is None:
            self._resting[_alike(pod)] = now + REST_SECONDS
        return plan

    async def _carry_out(self, pod: kube.Pod, plan: preempt.Plan) -> int:
        began = self._clock()
        held = await self._hold(pod, plan, began)
        if held is None:
            return 0
        outcomes: list[Outcome] = []
        for victim in plan.victims:
            if not self._leads() or self._clock() - began > OLD_SECONDS:
                break
            outcome = await self._evict(victim)
            outcomes.append(outcome)
            if outcome == "evicted":
                EVICTED.inc()
                await self._write(victim, _victim_event(victim, pod, plan.node, self._clock()))
            if outcome in ("refused", "unknown"):
                break  # the next step plans with what is true then
        evicted = outcomes.count("evicted")
        log.info(
            "makes room",
            pod=pod.key,
            uid=pod.metadata.uid,
            node=plan.node,
            devices=dict(plan.devices),
            victims=[victim.key for victim in plan.victims],
            outcomes=outcomes,
        )
        if evicted:
            await self._tell(pod, plan, evicted)
        elif "refused" in outcomes and self._leads():
            await self._release(pod, held)
        return evicted

    def _budgets(self) -> budgets.Budgets:
        return budgets.read(self._api.get(budgets.COLLECTION, {}).data)

    # --- The writes --------------------------------------------------------------------------------------------------

    async def _hold(self, pod: kube.Pod, plan: preempt.Plan, now: float) -> reservations.Record | None:
        """The node's record with the pod's entry; None: somebody else wrote it since the plan was made."""
        known = self._fleet.reservations.get(plan.node) or reservations.Record(plan.node, {})
        return await self._replace(
            known.put(reservations.Entry(pod.identity, pod.key, dict(plan.devices), now, "preempt"))
        )

    async def _release(self, pod: kube.Pod, held: reservations.Record) -> None:
        """Take the pod's entry back, if nobody wrote since; else it expires."""
        await self._replace(held.without({pod.identity}))

    async def _replace(self, record: reservations.Record) -> reservations.Record | None:
        document = reservations.document(record)
        try:
            if record.version is None:
                answer = await asyncio.to_thread(self._api.post, reservations.COLLECTION, document)
            else:
                answer = await asyncio.to_thread(self._api.put, reservations.path_of(record.node), document)
        except watch.BROKEN as error:
            if not isinstance(error, kubeapi.ApiError) or error.status not in (NOT_FOUND, CONFLICT):
                log.warning("holding devices failed", node=record.node, error=str(error))
            return None
        return reservations.read(answer)

    async def _evict(self, victim: kube.Pod) -> Outcome:
        namespace, name = victim.metadata.namespace or "default", victim.metadata.name
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": victim.metadata.uid}},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        try:
            answer = await asyncio.to_thread(self._api.post, path, body)
        except kubeapi.ApiError as error:
            if error.status in (NOT_FOUND, CONFLICT):
                return "gone"  # nobody, or another pod, has its name
            log.info("eviction refused", pod=victim.key, error=str(error))
            return "refused"
        except watch.BROKEN as error:
            log.warning("eviction failed", pod=victim.key, error=str(error))
            return "unknown"
        # A pod of several budgets is answered with a failure under a status of success.
        return "refused" if isinstance(answer, Mapping) and answer.get("status") == "Failure" else "evicted"

    async def _tell(self, pod: kube.Pod, plan: preempt.Plan, evicted: int) -> None:
        """Tell the pod's owner, under the first number that is free; when all are taken, leave the pod alone."""
        for number in range(1, MAX_PREEMPTIONS + 1):
            event = _preemptor_event(pod, plan, evicted, number, self._clock())
            if await self._write(pod, event):
                if number < MAX_PREEMPTIONS:
                    return
                break
        self._resting[pod.identity] = self._clock() + EVENT_SECONDS

    async def _write(self, pod: kube.Pod, event: Json) -> bool:
        """Write an event; says whether its name was free. One that is lost is no harm: what it tells of is done."""
        path = events.collection(pod.metadata.namespace)
        try:
            await asyncio.to_thread(self._api.post, path, event)
        except kubeapi.ApiError as error:
            if error.status == CONFLICT:
                return False
            log.warning("writing an event failed", name=pod.key, error=str(error))
        except watch.BROKEN as error:
            log.warning("writing an event failed", name=pod.key, error=str(error))
        return True


def _alike(pod: kube.Pod) -> str:
    """What pods of one template share."""
    owners = pod.metadata.owner_references or ()
    return next((owner.uid for owner in owners if owner.controller), pod.identity)


def _victim_event(victim: kube.Pod, pod: kube.Pod, node: str, now: float) -> Json:
    """In kube-scheduler's words (pkg/scheduler/framework/preemption/executor.go): the other pod is not named."""
    note = f"Preempted by pod {pod.metadata.uid} on node {node}"
    what = f"preempted-{(pod.metadata.uid or '')[:8]}"
    return _event(victim, what, "Preempted", note, now, events.of_pod(pod))


def _preemptor_event(pod: kube.Pod, plan: preempt.Plan, evicted: int, number: int, now: float) -> Json:
    lives = f"{reservations.LIVES_SECONDS['preempt']:g} s"
    many = f"{evicted} of {len(plan.victims)} evicted; " if evicted < len(plan.victims) else ""
    note = f"{plan.why}; {many}held for this pod for {lives}"
    if number == MAX_PREEMPTIONS:
        note += f"; nobody more is evicted for it, after {number} times within the hour"
    return _event(pod, f"preempting-{number}", "Preempting", note, now)


def _event(pod: kube.Pod, what: str, reason: str, note: str, now: float, related: Json | None = None) -> Json:
    name = events.name(pod.metadata.name, (pod.metadata.uid or "")[:8], what)
    return events.event(
        pod, name, by="preemptor", action="Preempting", reason=reason, note=note, now=now, related=related
    )
