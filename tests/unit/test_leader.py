"""Leader election, one look at a time, with a clock that the test moves."""

import asyncio
import threading
from typing import Any

import leases
import prometheus_client
import pytest
import structlog
import urllib3

from scheduler import kubeapi, leader

REFUSED = urllib3.exceptions.MaxRetryError(None, "/", OSError("refused"))  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Replica(leader.Leader):
    """A replica whose looks the test makes."""

    def __init__(self, api: leases.LeaseApi, clock: Clock) -> None:
        super().__init__(api, clock=clock)  # type: ignore[arg-type]

    def looks(self) -> bool:
        self._until = self.look()
        return self.is_leader


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def api() -> leases.LeaseApi:
    return leases.LeaseApi()


def test_the_first_leads_and_the_second_does_not(api: leases.LeaseApi, clock: Clock) -> None:
    first, second = Replica(api, clock), Replica(api, clock)
    assert first.looks()
    assert not second.looks()
    assert first.is_leader
    assert api.lease is not None
    assert api.lease["spec"]["holderIdentity"] == first.identity != second.identity
    assert (api.lease["spec"]["leaseDurationSeconds"], api.lease["spec"]["leaseTransitions"]) == (15, 0)


def test_nobody_leads_past_the_deadline_even_while_the_lease_still_names_him(
    api: leases.LeaseApi, clock: Clock
) -> None:
    first = Replica(api, clock)
    first.looks()
    clock.now += 9.9
    assert first.is_leader
    clock.now += 0.2
    assert not first.is_leader
    assert api.holder == first.identity
    assert first.looks()


def test_the_deadline_counts_from_before_the_request(api: leases.LeaseApi, clock: Clock) -> None:
    def slow(_: str) -> None:
        clock.now += 6

    first = Replica(api, clock)
    api.after = slow
    assert first.looks()  # a creation: one slow answer
    assert not first.looks()  # a read and a write: two of them


def test_another_takes_over_when_it_has_seen_the_lease_unchanged_for_its_duration(
    api: leases.LeaseApi, clock: Clock
) -> None:
    first, second = Replica(api, clock), Replica(api, clock)
    first.looks()
    clock.now += 14
    assert not second.looks()  # sees it for the first time
    clock.now += 14.9
    assert not second.looks()
    clock.now += 0.2
    assert second.looks()
    assert not first.looks()
    assert api.lease is not None
    assert api.lease["spec"]["leaseTransitions"] == 1


def test_a_renewal_is_a_change(api: leases.LeaseApi, clock: Clock) -> None:
    first, second = Replica(api, clock), Replica(api, clock)
    for _ in range(10):
        assert first.looks()
        assert not second.looks()
        clock.now += 10


def test_a_lease_given_back_is_free_at_once(api: leases.LeaseApi, clock: Clock) -> None:
    first, second = Replica(api, clock), Replica(api, clock)
    first.looks()
    second.looks()
    second.release()
    assert api.holder == first.identity  # it was not the second's to give
    first.release()
    assert api.holder is None
    assert second.looks()


def test_whoever_was_slower_to_write_conflicts(api: leases.LeaseApi, clock: Clock) -> None:
    first, second = Replica(api, clock), Replica(api, clock)
    first.looks()
    first.release()

    def faster(_: str) -> None:
        api.after = lambda _: None
        assert second.looks()

    api.after = faster
    with pytest.raises(kubeapi.ApiError) as conflict:
        first.look()
    assert conflict.value.status == 409
    assert api.holder == second.identity


@pytest.mark.parametrize("spec", [None, {}, {"holderIdentity": ""}, {"leaseDurationSeconds": 3}])
def test_a_lease_that_names_nobody_is_taken(api: leases.LeaseApi, clock: Clock, spec: Any) -> None:
    api.lease = {"metadata": {"name": "anygpu", "resourceVersion": "0", "labels": {"kept": "yes"}}, "spec": spec}
    first = Replica(api, clock)
    assert first.looks()
    assert api.lease["metadata"]["labels"] == {"kept": "yes"}
    assert api.holder == first.identity


def run(replica: leader.Leader, clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[tuple]:
    """Run a replica for so long by the test's clock; says at which second it led, and what the metric said."""
    seen: list[tuple] = []
    began = clock.now
    sleep = asyncio.sleep

    async def passes(delay: float) -> None:
        until = clock.now + delay
        while clock.now < until:
            metric = prometheus_client.REGISTRY.get_sample_value("anygpu_leader")
            seen.append((round(clock.now - began, 1), replica.is_leader, metric))
            clock.now += min(0.1, until - clock.now)
        await sleep(0)

    async def main() -> None:
        task = asyncio.create_task(replica.run())
        while clock.now - began < seconds:
            await sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(leader.asyncio, "sleep", passes)
    with structlog.testing.capture_logs():
        asyncio.run(main())
    return seen


def test_it_leads_while_it_runs_and_gives_the_lease_back(
    api: leases.LeaseApi, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Replica(api, clock)
    seen = run(first, clock, monkeypatch, 120)
    assert {(leads, metric) for _, leads, metric in seen} == {(True, 1.0)}
    assert 120 / 5 <= api.version <= 120 / 4 + 4  # renewed every 4 to 5 s
    assert not first.is_leader
    assert api.holder is None
    assert prometheus_client.REGISTRY.get_sample_value("anygpu_leader") == 0


@pytest.mark.parametrize(
    "error",
    [REFUSED, kubeapi.ApiError(500, "x"), kubeapi.ApiError(403, "x"), OSError("x"), KeyError("not foreseen")],
    ids=["refused", "500", "403", "os", "bug"],
)
def test_whatever_fails_is_tried_again_and_leading_goes_on_until_the_deadline(
    api: leases.LeaseApi, clock: Clock, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    began = clock.now

    def down(_: str) -> None:
        if 20 <= clock.now - began < 60:
            raise error

    api.before = down
    seen = run(Replica(api, clock), clock, monkeypatch, 100)
    # Renewed last between 15 and 20, again at the first look after 60.
    assert all(leads for second, leads, _ in seen if second < 25 or second > 62)
    assert not any(leads for second, leads, _ in seen if 30.1 < second < 60)


def test_a_call_that_hangs_stalls_neither_the_loop_nor_the_end(api: leases.LeaseApi, clock: Clock) -> None:
    free, hung = threading.Event(), threading.Event()
    first = Replica(api, clock)

    def hangs(_: str) -> None:
        hung.set()
        free.wait(10)

    async def main() -> None:
        api.before = hangs
        task = asyncio.create_task(first.run())
        while not hung.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.05)
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    # The call that hung took the Lease in the end; nobody leads by it, and the release came after.
    assert api.version == 2
    assert api.holder is None
    assert not first.is_leader
