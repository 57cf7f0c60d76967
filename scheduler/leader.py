"""Which replica runs the controllers: the one that holds the Lease `anygpu`, and none past its deadline.

A replica leads from a renewal that the API accepted until DEADLINE after it began to ask for it, by its own monotonic
clock, looked at each time; others wait until they have seen the Lease unchanged for all its duration, which is longer.
So two never lead at once, whoever is paused or cut off, as long as nobody deletes the Lease. What a leader began just
before its deadline may still reach the API after it: each write carries preconditions of its own.

`kubernetes.leaderelection` (v37) ends at the first refused connection, renews without a timeout, trusts the wall clock,
and can neither be stopped nor asked whether it still leads.
"""

import asyncio
import contextlib
import datetime
import math
import random
import secrets
import socket
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import prometheus_client
import structlog

from scheduler import kubeapi, reservations, watch

NAME = "anygpu"
COLLECTION = f"/apis/coordination.k8s.io/v1/namespaces/{reservations.NAMESPACE}/leases"
LEASE_SECONDS = 15
RENEWALS, DEADLINE, LOOKS = 1 / 3, 2 / 3, 2 / 15
"""As parts of the Lease's duration: the leader renews this often, leads this long without, everybody else looks."""
RELEASE_SECONDS = 3.0
NOT_FOUND = 404

LEADER = prometheus_client.Gauge("anygpu_leader", "Whether this replica runs the controllers (1) or not (0)")

log = structlog.get_logger()


class Leader:
    """Takes and renews the Lease; ask `is_leader` before each action, not once."""

    def __init__(
        self,
        api: kubeapi.Api,
        lease_seconds: int = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        name: str = NAME,
    ) -> None:
        self.identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
        self._api, self._lease_seconds, self._clock, self._name = api, lease_seconds, clock, name
        self._until = -math.inf
        self._seen: tuple[Any, float] = (None, -math.inf)
        """What the Lease said when last it changed, and when that was seen."""

    @property
    def is_leader(self) -> bool:
        """Whether this replica leads at this moment."""
        return self._clock() < self._until

    async def run(self) -> None:
        """Take part until cancelled; then give the Lease back, so that another need not wait for its end."""
        LEADER.set_function(lambda: float(self.is_leader))
        loop = asyncio.get_running_loop()
        # A thread of its own: renewals must not wait behind other calls, and the release comes after the last of them.
        thread = futures.ThreadPoolExecutor(1, "lease")
        led = False
        try:
            while True:
                renewed = False
                try:
                    self._until = await loop.run_in_executor(thread, self.look)
                    renewed = self._until > -math.inf
                except watch.BROKEN as error:
                    log.warning("the lease could not be read or renewed", lease=self._name, error=str(error))
                except Exception:
                    log.exception("the lease could not be read or renewed", lease=self._name)
                if self.is_leader != led:
                    led = not led
                    log.info("leads" if led else "leads no more", lease=self._name, identity=self.identity)
                part = RENEWALS if renewed else LOOKS
                await asyncio.sleep(self._lease_seconds * part * random.uniform(0.8, 1))  # noqa: S311
        finally:
            self._until = -math.inf
            with contextlib.suppress(*watch.BROKEN):
                await asyncio.wait_for(loop.run_in_executor(thread, self.release), RELEASE_SECONDS)
            thread.shutdown(wait=False)

    def look(self) -> float:
        """Take or renew the Lease if it is free or ours; says until when we lead, -inf where another does.

        Raises what watch.BROKEN names, a conflict with whoever was faster too: then what was known holds on.
        """
        began = self._clock()
        lease = self._read()
        if lease is None:
            self._api.post(COLLECTION, self._held({"metadata": {"name": self._name}}))
        elif self._is_held_by_another(lease.get("spec") or {}):
            return -math.inf
        else:
            self._api.put(f"{COLLECTION}/{self._name}", self._held(lease))
        return began + self._lease_seconds * DEADLINE

    def release(self) -> None:
        """Give the Lease back if it is ours; raises as `look` does."""
        lease = self._read()
        if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self.identity:
            spec = {key: value for key, value in lease["spec"].items() if key != "holderIdentity"}
            self._api.put(f"{COLLECTION}/{self._name}", {**lease, "spec": {**spec, "renewTime": _now()}})

    def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._api.get_json(f"{COLLECTION}/{self._name}")
        except kubeapi.ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return found

    def _is_held_by_another(self, spec: dict[str, Any]) -> bool:
        now = self._clock()
        if spec != self._seen[0]:
            self._seen = (spec, now)  # the holder's clock is not ours: its time says only that something changed
        holder = spec.get("holderIdentity")
        lasts = spec.get("leaseDurationSeconds") or self._lease_seconds
        return bool(holder) and holder != self.identity and now - self._seen[1] <= lasts

    def _held(self, lease: dict[str, Any]) -> dict[str, Any]:
        spec = dict(lease.get("spec") or {})
        if spec.get("holderIdentity") != self.identity:
            spec["acquireTime"] = _now()
            spec["leaseTransitions"] = spec.get("leaseTransitions", -1) + 1
        ours = {"holderIdentity": self.identity, "leaseDurationSeconds": self._lease_seconds, "renewTime": _now()}
        return {**lease, "spec": {**spec, **ours}}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
