"""The agent's loop: look, tell what changed, and now and then tell all."""

import dataclasses
import datetime
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Final, Protocol

import structlog

from capability_db import resources
from capability_db.agent import devices, inventory, metrics, podresources, probe, reading
from capability_db.catalogue import Catalogue

BACK_OFF_SECONDS: Final = (1.0, 300.0)
"""Least and most between two attempts at an API that does not take the status."""

log = structlog.get_logger()


class NotTakenError(Exception):
    """The API did not take or give the status."""


class Sink(Protocol):
    """Where a status goes: the API, behind whoever speaks to it. Both raise NotTakenError."""

    def last(self) -> resources.NodeGPUsStatus | None:
        """What an earlier agent of this node reported; None: nothing that can be used."""

    def write(self, status: resources.NodeGPUsStatus) -> None:
        """Put the status in place of what was there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """How often."""

    period_seconds: float = 10.0
    beat_seconds: float = 300.0
    """Between two writes while nothing changes."""


class Eyes:
    """Looks at the node; remembers what it saw."""

    def __init__(
        self,
        probes: Mapping[devices.Vendor, probe.Probe],
        kubelet: podresources.Kubelet,
        catalogue: Catalogue,
        now: Callable[[], str],
    ) -> None:
        self._probes, self._kubelet, self._catalogue, self._now = probes, kubelet, catalogue, now
        self._memory = inventory.Memory()
        self._threads = futures.ThreadPoolExecutor(len(probes) + 1, "look")
        self._said: dict[str, str] = {}

    def remember(self, status: resources.NodeGPUsStatus) -> None:
        """Know what an earlier process reported, where this one has not looked yet."""
        if not self._memory.seen:
            self._memory = inventory.Memory.of(status)

    def look(self) -> resources.NodeGPUsStatus:
        """The node as it is now; takes the longest deadline at most, since all are asked at once."""
        asked = {vendor: self._threads.submit(self._read, vendor) for vendor in self._probes}
        holders = self._threads.submit(self._holders)
        answers = {vendor: each.result() for vendor, each in asked.items()}
        self._memory, status = inventory.look(self._memory, answers, holders.result(), self._catalogue, self._now())
        metrics.show(status.devices)
        return status

    def close(self) -> None:
        """End the child processes."""
        self._threads.shutdown()
        for each in self._probes.values():
            each.close()
        self._kubelet.close()

    def _read(self, vendor: devices.Vendor) -> reading.Answer:
        with metrics.READ_SECONDS.labels(vendor).time():
            answer = self._probes[vendor].read()
        if answer.kind == "failed":
            metrics.FAILURES.labels(vendor).inc()
        self._tell(vendor, "" if answer.kind == "ok" else answer.text)
        return answer

    def _holders(self) -> inventory.Holders | str:
        try:
            found = self._kubelet.holders()
        except podresources.PodResourcesError as error:
            metrics.FAILURES.labels("kubelet").inc()
            self._tell("kubelet", str(error))
            return str(error)
        self._tell("kubelet", "")
        return found

    def _tell(self, what: str, problem: str) -> None:
        if self._said.get(what, "") != problem:
            self._said[what] = problem
            log.warning("does not answer", what=what, why=problem) if problem else log.info("answers", what=what)


class Agent:
    """Tells a sink what it sees."""

    def __init__(
        self,
        eyes: Eyes,
        sink: Sink,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._eyes, self._sink, self._settings, self._clock, self._draw = eyes, sink, settings, clock, draw
        self._told: object = None
        """The essence of what the sink last took."""
        self._beat_at = -1.0
        self._not_before = -1.0
        self._back_off = 0.0
        self._knows_last = False

    def run(self, stop: threading.Event) -> None:
        """Look and tell once a period, until stopped."""
        due = self._clock()
        while not stop.is_set():
            try:
                self.step()
            except Exception:
                # One node's odd driver must not take its agent away; the next look may do better.
                metrics.FAILURES.labels("agent").inc()
                log.exception("a look failed")
            due = max(due + self._settings.period_seconds, self._clock())
            stop.wait(max(0.0, due - self._clock()))

    def step(self) -> None:
        """Look once; tell if something changed or the beat is due, and the API did not just refuse."""
        if not self._knows_last and self._clock() >= self._not_before:
            self._try(self._recall)
        status = self._eyes.look()
        essence, now = inventory.essence(status), self._clock()
        changed = essence != self._told
        if now < self._not_before or not (changed or now >= self._beat_at):
            return

        def write() -> None:
            self._sink.write(status)
            self._told = essence
            # Spread over the nodes, which a rollout starts all at once.
            self._beat_at = now + self._settings.beat_seconds * self._draw(0.9, 1.0)
            metrics.WRITES.labels("change" if changed else "beat").inc()
            metrics.HEARTBEAT.set_to_current_time()

        self._try(write)

    def _recall(self) -> None:
        last = self._sink.last()
        self._knows_last = True
        if last is not None:
            self._eyes.remember(last)

    def _try(self, call: Callable[[], None]) -> None:
        least, most = BACK_OFF_SECONDS
        try:
            call()
        except NotTakenError as error:
            metrics.FAILURES.labels("api").inc()
            self._back_off = min(most, max(least, 2 * self._back_off))
            wait = self._draw(self._back_off / 2, self._back_off)
            self._not_before = self._clock() + wait
            log.warning("the API took no status", why=str(error), again_in_seconds=round(wait, 1))
        else:
            self._back_off, self._not_before = 0.0, -1.0


def now() -> str:
    """The time as RFC 3339, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
