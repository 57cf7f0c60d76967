"""Pods that would run if they were made anew are replaced: early ones that wait for the wrong resource, late ones that
a kubelet rejected.

The leader alone does this. What it remembers only spares it work: what must hold after a crash is in the API.
"""

import asyncio
import collections
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal

import prometheus_client
import structlog

from images import errors as image_errors
from images import resolve
from scheduler import decision, kube, kubeapi, ledger, owners, replace, stranded
from scheduler import fleet as fleets

EVERY_SECONDS = 3.0
RETRY_SECONDS = 30.0
"""Until a pod is looked at again after an attempt."""
OWNER_RESTS_SECONDS = 300.0
"""Until an owner's next pod is looked at, after one was left alone or the limit was reached."""
POD_RESTS_SECONDS = 3600.0
"""Until a pod that was left alone is looked at again."""

REPLACED = prometheus_client.Counter(
    "anygpu_replaced_total", "Pods evicted so that their owner makes new ones", ["reason"]
)

Variants = Callable[[str], Awaitable[resolve.Resolved]]
Reason = Literal["waiting", "rejected"]

log = structlog.get_logger()


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """How much is done, and how fast."""

    after_seconds: float = 60.0
    """How long a pod waits before it is looked at."""
    settle_seconds: float = 15.0
    """How long another device must stay free: kube-scheduler gives it to pods that wait for it within 10 s."""
    per_owner: int = 3
    """Replacements for one owner while their events live: an hour, by the apiserver's default."""
    per_minute: int = 10
    """Replacements for all owners."""
    looks: int = 5
    """Pods a step that nodes are surveyed for: with 5,000 nodes each delays other answers by 50 ms."""


DEFAULT = Limits()


@dataclasses.dataclass(frozen=True, slots=True)
class Successor:
    """A pod that an owner is about to make."""

    owner: str
    known: frozenset[kube.PodUid]
    """The owner's pods before it."""
    hold: ledger.Hold
    """What it will take."""
    until: float
    """When it is given up, in unix seconds."""


class Rescuer:
    """Replaces pods in need, while this process leads; to be run once the fleet is complete."""

    def __init__(
        self,
        api: kubeapi.Api,
        fleet: fleets.Fleet,
        variants: Variants,
        limits: Limits = DEFAULT,
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._fleet, self._variants = api, fleet, variants
        self._limits, self._leads, self._clock = limits, leads, clock
        self._rejected: dict[kube.PodUid, kube.Pod] = {}
        self._free_since: dict[str, float] = {}
        """By owner, or by bare pod: since when a look found another device."""
        self._looked: dict[str, float] = {}
        self._rests: dict[str, float] = {}
        """Owners and pods that are not looked at, until when."""
        self._expected: list[Successor] = []
        """Those that the node table does not know yet."""
        self._recent: collections.deque[float] = collections.deque()

    def saw_failed(self, pod: kube.Pod) -> None:
        """Note a failed late pod; `stranded.REJECTED_LATE_PODS` selects them."""
        if stranded.rejection(pod, self._fleet.opted_out):
            self._rejected[pod.identity] = pod

    def forgot(self, uid: kube.PodUid) -> None:
        """Note that a failed late pod is gone."""
        self._rejected.pop(uid, None)

    async def run(self) -> None:
        """Rescue until cancelled, whenever this process leads."""
        while True:
            try:
                if self._leads():
                    await self.step()
            except Exception:
                log.exception("rescue failed")
            await asyncio.sleep(EVERY_SECONDS)

    async def step(self) -> None:
        """Look at some pods, and replace those that are in need."""
        now = self._clock()
        self._expected = _still_expected([each for each in self._expected if each.until > now], self._fleet.pods())
        self._rests = {key: until for key, until in self._rests.items() if until > now}
        for pod in list(self._rejected.values()):
            await self._consider_rejected(pod)
        groups = self._waiting(now)
        free = stranded.most_free(self._fleet) if groups else {}
        self._looked = {key: at for key, at in self._looked.items() if key in groups}
        self._free_since = {key: at for key, at in self._free_since.items() if key in groups and free}
        looks = self._limits.looks if free else 0
        # Those that had a chance first, then whoever was not looked at for longest; of these the oldest.
        for key in sorted(groups, key=lambda key: (key not in self._free_since, self._looked.get(key, 0.0))):
            for pod in groups[key]:
                if looks <= 0 or not self._may_replace(now):
                    return
                looks -= 1
                self._looked[key] = now
                if not await self._consider_waiting(key, pod, free, now):
                    break

    def _waiting(self, now: float) -> dict[str, list[kube.Pod]]:
        """Early pods that wait for too long, by owner, the oldest first."""
        found: list[tuple[float, kube.Pod]] = []
        for pod in self._fleet.pods():
            since = stranded.waits_since(pod, self._fleet.opted_out)
            if since is not None and now - since > self._limits.after_seconds and pod.identity not in self._rests:
                found.append((since, pod))
        groups: dict[str, list[kube.Pod]] = {}
        for _, pod in sorted(found, key=lambda each: (each[0], each[1].identity)):
            key = _group(pod)
            if key not in self._rests:
                groups.setdefault(key, []).append(pod)
        return groups

    def _may_replace(self, now: float) -> bool:
        while self._recent and self._recent[0] <= now - 60:
            self._recent.popleft()
        return len(self._recent) < self._limits.per_minute

    async def _consider_waiting(self, key: str, pod: kube.Pod, free: Mapping[str, int], now: float) -> bool:
        """Replace a waiting pod if that helps; says whether the owner's next pod is worth a look."""
        made = decision.read(pod.annotations)
        if made is None or made.binding != "early":
            self._rests[pod.identity] = now + POD_RESTS_SECONDS
            return True
        any_free = any(count >= made.count for resource, count in free.items() if resource != made.resource)
        found = await self._chance(pod, made) if any_free else None
        if found is None:
            self._free_since.pop(key, None)
            return False
        if now - self._free_since.setdefault(key, now) < self._limits.settle_seconds:
            return False
        since = stranded.waits_since(pod, self._fleet.opted_out)
        if since is None:
            return True
        why = f"waited {now - since:.0f} s for {made.resource}, {found.resource} is free on {found.node}"
        known = frozenset(each.identity for each in self._fleet.pods() if _group(each) == key)
        outcome = await self._act(pod, "waiting", why)
        if outcome is replace.Outcome.REPLACED:
            self._expected.append(Successor(key, known, found, now + ledger.RESERVATION_SECONDS))
        return outcome in (replace.Outcome.REPLACED, replace.Outcome.GONE)

    async def _chance(self, pod: kube.Pod, made: decision.Decision) -> ledger.Hold | None:
        try:
            image = await self._variants(stranded.logical_image(pod, made) or "")
        except image_errors.ImageError as error:
            log.info("no rescue without the image's variants", pod=pod.key, error=str(error))
            return None
        await asyncio.sleep(0)  # answers come first
        self._expected = _still_expected(self._expected, self._fleet.pods())
        seen = stranded.as_if(self._fleet, pod.identity, [each.hold for each in self._expected])
        return stranded.chance(pod, made, image, seen)

    async def _consider_rejected(self, pod: kube.Pod) -> None:
        now = self._clock()
        if pod.identity in self._rests or _group(pod) in self._rests or not self._may_replace(now):
            return
        why = stranded.rejection(pod, self._fleet.opted_out)
        outcome = await self._act(pod, "rejected", why) if why else replace.Outcome.GONE
        if outcome not in (None, replace.Outcome.AT_LIMIT):
            self._rejected.pop(pod.identity, None)

    async def _act(self, pod: kube.Pod, reason: Reason, why: str) -> replace.Outcome | None:
        """Do it, and say for how long the pod and its owner are left in peace; None: it failed."""
        if not self._leads():
            return None
        now = self._clock()
        hands = replace.Hands(self._api, self._limits.per_owner, now)
        call = hands.waiting if reason == "waiting" else hands.rejected
        self._rests[pod.identity] = now + RETRY_SECONDS
        try:
            outcome = await asyncio.to_thread(call, pod, why)
        except replace.BROKEN as error:
            log.warning("a rescue failed", pod=pod.key, why=why, error=str(error))
            self._rests[_group(pod)] = now + RETRY_SECONDS
            return None
        if outcome is replace.Outcome.REPLACED:
            self._recent.append(now)
            REPLACED.labels(reason).inc()
        elif outcome is not replace.Outcome.GONE:
            self._rests[_group(pod)] = now + OWNER_RESTS_SECONDS
            if outcome is replace.Outcome.LEFT:
                self._rests[pod.identity] = now + POD_RESTS_SECONDS
        log.info("rescue", pod=pod.key, outcome=outcome.name, why=why)
        return outcome


def _still_expected(expected: list[Successor], pods: Iterable[kube.Pod]) -> list[Successor]:
    """The successors that none of the pods is: each new pod of an owner is one."""
    owners_ = {each.owner for each in expected}
    new: dict[str, list[kube.PodUid]] = {}
    for pod in pods if owners_ else ():
        if (owner := _group(pod)) in owners_:
            new.setdefault(owner, []).append(pod.identity)
    left: list[Successor] = []
    here: set[kube.PodUid] = set()
    for each in expected:
        uid = next((uid for uid in new.get(each.owner, ()) if uid not in each.known | here), None)
        if uid is None:
            left.append(each)
        else:
            here.add(uid)
    return [dataclasses.replace(each, known=each.known | here) for each in left]


def _group(pod: kube.Pod) -> str:
    owner = owners.controller(pod)
    return owner.uid if owner else pod.identity
