"""The audit tells lag from drift, finds sums that are wrong, and mends both."""

import asyncio
from collections.abc import Callable
from typing import Any

import gpunodes
import placing
import prometheus_client
import pytest
import structlog
import worlds

from scheduler import audit, decision, kube, ledger, reservations
from scheduler import fleet as fleets

Json = dict[str, Any]
GPU = "nvidia.com/gpu"
EXPECTED_ON_N = decision.Decision(
    id="decision-of-x",
    vendor="nvidia",
    resource=GPU,
    count=1,
    container="main",
    sku="t4",
    skus=("t4",),
    node="n",
    images={},
    reason="because",
).model_dump_json()


def record(node: str, *uids: str) -> Json:
    entries = {kube.PodUid(uid): reservations.Entry(kube.PodUid(uid), f"default/{uid}", {GPU: 1}, 0) for uid in uids}
    return reservations.document(reservations.Record(node, entries))


class Run:
    """A world of two nodes, three pods and a record, a node table that follows it, and audits of it."""

    def __init__(self) -> None:
        self.world = worlds.World()
        self.pauses: list[float] = []
        self.told: list[Any] = []
        self.meanwhile: Callable[[int], None] = lambda _: None
        self.put("node", "n", gpunodes.nvidia("n", "t4", 4))
        self.put("node", "m", gpunodes.nvidia("m", "t4", 4))
        self.put("pod", "uid-a", placing.bound("a", "n", {GPU: 2, "cpu": 1}))
        self.put("pod", "uid-b", placing.bound("b", "m", {GPU: 1}))
        self.put("pod", "uid-waits", placing.bound("waits", None, {GPU: 1}))
        self.put("record", "n", record("n", "uid-waits"))
        self.fleet = self.world.true()

    def put(self, what: str, key: str, document: Json) -> worlds.Event:
        return self.world.put(what, key, document)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.meanwhile(len(self.pauses))

    def audit(self, synced: bool = True) -> set[tuple[str, str]]:
        self.pauses.clear()
        tested = audit.Audit(self.world, self.fleet, lambda: synced, records=True, sleep=self._sleep)  # type: ignore[arg-type]
        with structlog.testing.capture_logs() as self.told:
            found = asyncio.run(tested.step())
        assert (found == []) == (self.told == [])
        return {(each.what, each.name) for each in found}

    def is_true(self) -> bool:
        return worlds.counts(self.fleet) == worlds.counts(self.world.true())


def metric(name: str) -> float:
    found = prometheus_client.REGISTRY.get_sample_value(name)
    assert found is not None
    return found


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_table_that_is_true_takes_one_look(run: Run) -> None:
    before = metric("anygpu_audits_total")
    assert run.audit() == set()
    assert run.pauses == []
    assert run.world.lists == 3
    assert metric("anygpu_audit_drift") == 0
    assert metric("anygpu_audits_total") == before + 1
    assert metric("anygpu_audit_timestamp_seconds") > 1.7e9


def test_nothing_is_looked_at_before_the_first_lists_are_in(run: Run) -> None:
    assert run.audit(synced=False) == set()
    assert run.world.lists == 0


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (lambda run: run.put("pod", "uid-c", placing.bound("c", "n", {GPU: 1})), ("pod", "uid-c")),
        (lambda run: run.put("pod", "uid-waits", placing.bound("waits", "n", {GPU: 1})), ("pod", "uid-waits")),
        (lambda run: run.world.delete("pod", "uid-a"), ("pod", "uid-a")),
        (lambda run: run.put("node", "n", gpunodes.nvidia("n", "t4", 3)), ("node", "n")),
        (lambda run: run.world.delete("node", "m"), ("node", "m")),
        (lambda run: run.put("node", "o", gpunodes.amd("o", "mi300x")), ("node", "o")),
        (lambda run: run.put("record", "n", record("n")), ("record", "n")),
        (lambda run: run.put("record", "m", record("m", "uid-waits")), ("record", "m")),
        (lambda run: run.world.delete("record", "n"), ("record", "n")),
    ],
)
def test_an_event_that_was_lost_is_found_and_mended(
    run: Run, lost: Callable[[Run], object], named: tuple[str, str]
) -> None:
    lost(run)
    assert not run.is_true()
    assert run.audit() == {named}
    assert run.pauses == list(audit.PAUSES_SECONDS)
    assert metric("anygpu_audit_drift") == 1
    assert [(each["log_level"], each.get("name")) for each in run.told] == [("error", named[1]), ("error", None)]
    assert run.is_true()
    assert run.audit() == set()
    assert metric("anygpu_audit_drift") == 0


def test_an_object_that_changed_back_is_no_difference(run: Run) -> None:
    run.put("pod", "uid-a", placing.bound("a", "n", {GPU: 2, "cpu": 1}))  # another version that says the same
    assert run.audit() == set()
    assert run.pauses == []


def test_a_watch_that_lags_is_no_drift(run: Run) -> None:
    late = run.put("pod", "uid-c", placing.bound("c", "n", {GPU: 1}))

    def arrives(pause: int) -> None:
        if pause == len(audit.PAUSES_SECONDS):
            worlds.apply(run.fleet, late)

    run.meanwhile = arrives
    assert run.audit() == set()
    assert len(run.pauses) == len(audit.PAUSES_SECONDS)


def test_a_watch_that_always_lags_one_change_behind_is_no_drift(run: Run) -> None:
    late = [run.put("node", "n", gpunodes.nvidia("n", "t4", 1))]

    def goes_on(pause: int) -> None:
        worlds.apply(run.fleet, late.pop())
        late.append(run.put("node", "n", gpunodes.nvidia("n", "t4", 1 + pause % 2)))

    run.meanwhile = goes_on
    assert run.audit() == set()


def test_what_an_event_brings_while_the_last_list_is_on_its_way_is_not_undone(run: Run) -> None:
    run.world.delete("pod", "uid-a")  # its event is lost
    newer = placing.bound("b", "n", {GPU: 1})
    get = run.world.get

    def listing(path: str, query: Any, timeout: Any = None) -> Any:
        answer = get(path, query)
        if path == "/api/v1/pods" and len(run.pauses) == len(audit.PAUSES_SECONDS):
            worlds.apply(run.fleet, run.put("pod", "uid-b", newer))  # newer than the list
        return answer

    run.world.get = listing  # type: ignore[method-assign]
    assert run.audit() == {("pod", "uid-a")}
    assert run.is_true()


def test_an_object_that_moves_on_between_the_last_look_and_the_mending_is_left_alone(run: Run) -> None:
    lost = run.put("pod", "uid-a", placing.bound("a", "m", {GPU: 2}))
    tested = audit.Audit(run.world, run.fleet, lambda: True, records=True, sleep=run._sleep)  # type: ignore[arg-type]

    async def main() -> list[audit.Difference]:
        found = await tested._look()
        worlds.apply(run.fleet, lost)
        return await tested._in_slices(tested._mend(found.values()))

    assert asyncio.run(main()) == []
    assert run.is_true()


def amounts(fleet: fleets.Fleet) -> None:
    fleet.rows["n"].usage.amounts[GPU] -= 1000


def pods_of_a_node(fleet: fleets.Fleet) -> None:
    fleet.rows["n"].usage.pods.popitem()


def a_hold(fleet: fleets.Fleet) -> None:
    fleet.ledger.put("uid-b", ledger.Hold(GPU, 1, "n", frozenset()))


def sums_of_holds(fleet: fleets.Fleet) -> None:
    fleet.ledger._on_node["n", GPU] = 1


def a_promise(fleet: fleets.Fleet) -> None:
    fleet.promises.drop(f"uid-waits@n/{GPU}")


def sums_of_promises(fleet: fleets.Fleet) -> None:
    fleet.promises._on_node["n", GPU] = 7


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (amounts, {"amounts"}),
        (pods_of_a_node, {"pods on a node"}),
        (a_hold, {"hold"}),
        (sums_of_holds, {"holds on a node"}),
        (a_promise, {"promise"}),
        (sums_of_promises, {"promises on a node"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sums_that_are_not_those_of_the_objects_are_found_at_once_and_mended(
    run: Run, spoil: Callable[[fleets.Fleet], None], what: set[str]
) -> None:
    spoil(run.fleet)
    assert not run.is_true()
    assert {found for found, _ in run.audit()} == what
    assert run.pauses == []
    assert run.is_true()
    assert run.audit() == set()


def test_holds_that_have_nothing_to_do_with_the_api_are_no_drift(run: Run) -> None:
    unschedulable = placing.bound("x", None, {GPU: 1})
    unschedulable["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    unschedulable["metadata"]["annotations"] = {"anygpu.io/decision": EXPECTED_ON_N}
    worlds.apply(run.fleet, run.put("pod", "uid-x", unschedulable))
    run.fleet.ledger.reserve("decision-1", ledger.Hold(GPU, 1, "n", frozenset()), 0)  # admitted a moment ago
    assert run.audit() == set()
    assert run.fleet.ledger.on_node("n", GPU) == 2
    run.fleet.ledger.expire(1)
    run.fleet.ledger.expire(100)  # the hold of a pod that found no room has lapsed
    assert run.fleet.ledger.on_node("n", GPU) == 0
    assert run.audit() == set()


def test_the_record_of_a_pod_that_is_gone_promises_nothing(run: Run) -> None:
    worlds.apply(run.fleet, run.world.delete("pod", "uid-waits"))
    assert list(run.fleet.promises.items()) == []
    assert run.audit() == set()


def test_audits_go_on_whatever_fails(run: Run) -> None:
    asked: list[str] = []

    def broken(path: str, query: Any, timeout: Any = None) -> Any:
        asked.append(path)
        raise OSError("refused") if len(asked) < 3 else KeyError("not foreseen")

    run.world.get = broken  # type: ignore[method-assign]
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    async def main() -> None:
        tested = audit.Audit(run.world, run.fleet, lambda: True, records=False, sleep=sleep)  # type: ignore[arg-type]
        task = asyncio.create_task(tested.run(interval=7))
        while len(asked) < 5:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with structlog.testing.capture_logs():
        asyncio.run(main())
    assert set(waits) == {audit.FIRST_SECONDS, 7}


def test_a_flood_of_differences_is_told_in_part(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_TOLD", 2)
    for number in range(9):
        run.put("pod", f"uid-{number}", placing.bound(str(number), "n", {GPU: 0}))
    assert len(run.audit()) == 9
    assert len(run.told) == 3
    assert run.told[-1]["differences"] == 9
