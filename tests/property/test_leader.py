"""At most one replica leads, however calls, failures, pauses and clocks fall."""

import contextlib
import math
import queue
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import hypothesis.strategies as st
import leases
from hypothesis import given, settings

from scheduler import kubeapi, leader

REPLICAS = 2


class Turns:
    """One replica, whose every call and every answer waits for the test to let it through or to lose it."""

    def __init__(self, api: leases.LeaseApi, pool: futures.Executor, now: list[float]) -> None:
        self._api, self._pool = api, pool
        self._gate: queue.Queue[str] = queue.Queue()
        self._reached: queue.Queue[str] = queue.Queue()
        self._working: futures.Future[float | None] | None = None
        self.leader = leader.Leader(self, clock=lambda: now[0])  # type: ignore[arg-type]

    def get_json(self, path: str) -> Any:
        return self._through(lambda: self._api.get_json(path))

    def post(self, path: str, body: Any) -> Any:
        return self._through(lambda: self._api.post(path, body))

    def put(self, path: str, body: Any) -> Any:
        return self._through(lambda: self._api.put(path, body))

    def _through(self, call: Any) -> Any:
        self._reached.put("a call")
        outcome = self._gate.get()
        if outcome == "lost":
            raise OSError("refused")
        answer = call()
        self._reached.put("its answer")
        if self._gate.get() == "lost":
            raise OSError("cut")
        return answer

    def _work(self, what: Any) -> Any:
        try:
            return what()
        except (kubeapi.ApiError, OSError):
            return None
        finally:
            self._reached.put("the end")

    def step(self, outcome: str) -> None:
        """Let one call of the replica happen; as `run` does, believe a look that ends."""
        if self._working is None:
            self._begin(self.leader.look)
            return
        self._gate.put(outcome)
        if self._reached.get() == "the end":
            ended, self._working = self._working, None
            until = ended.result()
            if until is not None:
                self.leader._until = until

    def stop(self) -> None:
        """End as `run` does when cancelled: lead no more, let the call under way end, give the Lease back."""
        self.leader._until = -math.inf
        self.finish()
        self._begin(self.leader.release)
        self.finish()

    def finish(self) -> None:
        """Let the work under way go through, and believe nothing of it."""
        while self._working is not None:
            self._gate.put("through")
            if self._reached.get() == "the end":
                self._working = None

    def _begin(self, what: Any) -> None:
        self._working = self._pool.submit(self._work, what)
        self._reached.get()

    def look(self) -> None:
        """Let the work under way and all of one more look go through."""
        self.finish()
        self.step("through")
        while self._working is not None:
            self.step("through")

    def take(self, step: str) -> None:
        """Do what one drawn step says."""
        if step == "look":
            self.look()
        elif step == "stop":
            self.stop()
        else:
            self.step(step)


REPLICA = st.integers(0, REPLICAS - 1)
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 5, 9, 12, 16])),
    st.tuples(st.just("look"), REPLICA),
    st.tuples(st.sampled_from(["through", "through", "through", "lost"]), REPLICA),
    st.tuples(st.sampled_from(["through", "through", "through", "stop"]), REPLICA),
)


@contextlib.contextmanager
def some(now: list[float]) -> Iterator[list[Turns]]:
    """Replicas of one Lease, on one clock."""
    api = leases.LeaseApi()
    with futures.ThreadPoolExecutor(REPLICAS) as pool:
        replicas = [Turns(api, pool, now) for _ in range(REPLICAS)]
        try:
            yield replicas
        finally:
            for each in replicas:
                each.finish()


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, min_size=10, max_size=40), REPLICA)
def test_two_never_lead_at_once_and_one_does_when_calls_go_through(steps: list[tuple[str, int]], survivor: int) -> None:
    now = [0.0]
    with some(now) as replicas:
        for step, which in steps:
            if step == "wait":
                now[0] += which
            else:
                replicas[which].take(step)
            assert sum(each.leader.is_leader for each in replicas) <= 1
        for _ in range(14):  # the others are gone
            now[0] += 2
            replicas[survivor].look()
        assert replicas[survivor].leader.is_leader
