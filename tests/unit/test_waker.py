"""kube-scheduler is woken when devices came free for pods that wait, and otherwise left in peace."""

import asyncio
from typing import Any

import gpunodes
import placing
import pytest

from scheduler import fleet as fleets
from scheduler import kube, kubeapi, reservations, waker

Json = dict[str, Any]


class FakeApi:
    """Keeps which nodes were touched; the first answers are the errors given."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.touched = list(failures), []

    def patch(self, path: str, body: Json) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.touched.append((path, body["metadata"]["annotations"]))


def waits(**spec: str) -> Json:
    made = placing.bound("late", None, {"nvidia.com/gpu": 1})
    made["spec"] |= {"schedulerName": "anygpu-scheduler", **spec}
    made["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    return made


def full(*pods: Json) -> fleets.Fleet:
    running = [placing.bound(name, name, {"nvidia.com/gpu": 1}) for name in ("a", "b")]
    return placing.fleet_of([gpunodes.nvidia(name, "l4", 1) for name in ("a", "b")], [*running, *pods])


def waking(fleet: fleets.Fleet, api: FakeApi) -> waker.Waker:
    return waker.Waker(api, fleet, lambda: 1_800_000_000.0)  # type: ignore[arg-type]


def test_the_node_is_touched_once_whose_device_came_free() -> None:
    fleet, api = full(waits()), FakeApi()
    work = waking(fleet, api)
    assert asyncio.run(work.step()) is None
    fleet.remove_pod(kube.PodUid("uid-b"))
    assert [asyncio.run(work.step()) for _ in range(3)] == ["b", None, None]
    assert api.touched == [("/api/v1/nodes/b", {"anygpu.io/freed": "2027-01-15T08:00:00.000+00:00"})]


def test_a_promise_that_ends_frees_a_device_too() -> None:
    fleet, api = full(waits()), FakeApi()
    entry = reservations.Entry(kube.PodUid("x"), "default/x", {"nvidia.com/gpu": 1}, 0.0)
    fleet.remove_pod(kube.PodUid("uid-b"))
    fleet.apply_reservations(reservations.Record("b", {entry.uid: entry}, "1"))
    work = waking(fleet, api)
    assert asyncio.run(work.step()) == "b", "it may be the waiting pod's own"
    assert asyncio.run(work.step()) is None
    fleet.apply_reservations(reservations.Record("b", {}, "2"))
    assert asyncio.run(work.step()) == "b"


@pytest.mark.parametrize(
    "pod", [waits(schedulerName="default-scheduler"), waits(nodeName="a"), {**waits(), "status": {}}]
)
def test_nobody_is_woken_where_no_pod_waits_for_what_we_count(pod: Json) -> None:
    fleet, api = full(pod), FakeApi()
    work = waking(fleet, api)
    fleet.remove_pod(kube.PodUid("uid-b"))
    assert asyncio.run(work.step()) is None
    assert api.touched == []


def test_what_came_free_before_the_pod_began_to_wait_counts_once() -> None:
    fleet, api = full(), FakeApi()
    work = waking(fleet, api)
    fleet.remove_pod(kube.PodUid("uid-b"))
    assert asyncio.run(work.step()) is None
    fleet.apply_pod(kube.to_pod(waits()))
    assert [asyncio.run(work.step()) for _ in range(2)] == ["b", None]


@pytest.mark.parametrize("error", [kubeapi.ApiError(404, "x"), OSError("x")], ids=["404", "refused"])
def test_a_wake_that_failed_is_tried_again(error: Exception) -> None:
    fleet, api = full(waits()), FakeApi(error)
    work = waking(fleet, api)
    asyncio.run(work.step())
    fleet.remove_pod(kube.PodUid("uid-b"))
    assert [asyncio.run(work.step()) for _ in range(3)] == ["b", "b", None]
    assert len(api.touched) == 1
