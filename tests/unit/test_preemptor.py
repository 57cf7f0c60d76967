"""Plans of preemption carried out: every write in its order, under its precondition, and what becomes of refusals."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import gpunodes
import placing
import pytest
import urllib3

from scheduler import fleet as fleets
from scheduler import kube, kubeapi, preemptor, reservations

Json = dict[str, Any]
NOW = 1_800_000_000.0


class Answer:
    """A response whose body is JSON."""

    def __init__(self, document: Json) -> None:
        self.data = json.dumps(document).encode()


class FakeApi:
    """Records writes in their order; `refuse` names the answers to paths that end so."""

    def __init__(self, **refuse: Exception | Json) -> None:
        self.refuse = refuse
        self.writes: list[tuple[str, Json]] = []
        self.budgets: list[Json] = []
        self.version = 100
        self.before: Callable[[str], None] = lambda path: None

    def get(self, path: str, query: Json) -> Answer:
        assert path == "/apis/policy/v1/poddisruptionbudgets"
        self._judge("budgets")
        return Answer({"items": self.budgets})

    def post(self, path: str, body: Json) -> Json:
        kind = path.rpartition("/")[2]
        self.before(path)
        name = path.split("/")[-2] if kind == "eviction" else body["metadata"]["name"]
        made = self._judge(name) or self._judge(kind)
        self.writes.append((f"POST {kind} {name}", body))
        return made or self._kept(body)

    def put(self, path: str, body: Json) -> Json:
        made = self._judge("configmaps")
        self.writes.append((f"PUT configmaps {path.rpartition('/')[2]}", body))
        return made or self._kept(body)

    def _kept(self, body: Json) -> Json:
        self.version += 1
        return {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}

    def _judge(self, key: str) -> Json | None:
        answer = self.refuse.get(key.replace("-", "_").replace(".", "_"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def done(self) -> list[str]:
        return [what for what, _ in self.writes]

    def events(self) -> list[Json]:
        return [body for what, body in self.writes if what.startswith("POST events")]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def low(name: str, node: str = "n", *, priority: int = 0, gpu: int = 1, **labels: str) -> Json:
    made = placing.bound(name, node, {"nvidia.com/gpu": gpu})
    made["spec"]["priority"] = priority
    made["metadata"]["labels"] = labels
    return made


def high(name: str = "high", *, priority: int = 100, gpu: int = 1, owner: str | None = None) -> Json:
    made = placing.bound(name, None, {"nvidia.com/gpu": gpu})
    made["spec"] |= {"priority": priority, "schedulerName": "anygpu-scheduler"}
    made["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    if owner:
        reference = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": owner, "controller": True}
        made["metadata"]["ownerReferences"] = [reference]
    return made


def full(*pods: Json, nodes: int = 1, gpus: int = 2) -> fleets.Fleet:
    names = ["n", "m", "o"][:nodes]
    return placing.fleet_of([gpunodes.nvidia(name, "l4", gpus) for name in names], pods)


def preempting(fleet: fleets.Fleet, api: FakeApi, clock: Clock | None = None, **more: Any) -> preemptor.Preemptor:
    return preemptor.Preemptor(api, fleet, clock=clock or Clock(), **more)  # type: ignore[arg-type]


def step(fleet: fleets.Fleet, api: FakeApi) -> int:
    return asyncio.run(preempting(fleet, api).step())


def entries(body: Json) -> list[Json]:
    found: list[Json] = json.loads(body["data"]["entries"])
    return found


HOLD, A, B = "POST configmaps node.n", "POST eviction a", "POST eviction b"
A_TOLD, TOLD = "POST events a.uid-a.preempted-uid-high", "POST events high.uid-high.preempting-1"


def test_the_devices_are_held_then_victims_go_then_events_say_so() -> None:
    api = FakeApi()
    assert step(full(low("a"), low("b", priority=5), high()), api) == 1
    assert api.done == [HOLD, A, A_TOLD, TOLD]
    hold, eviction, victim, owner = [body for _, body in api.writes]
    assert entries(hold) == [
        {"uid": "uid-high", "pod": "default/high", "devices": {"nvidia.com/gpu": 1}, "since": NOW, "kind": "preempt"}
    ]
    assert "resourceVersion" not in hold["metadata"]
    assert eviction == {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "a", "namespace": "default"},
        "deleteOptions": {"preconditions": {"uid": "uid-a"}},
    }
    assert (victim["reason"], victim["note"]) == ("Preempted", "Preempted by pod uid-high on node n")
    assert (victim["action"], victim["type"], victim["regarding"]["name"]) == ("Preempting", "Normal", "a")
    assert victim["related"]["uid"] == "uid-high"
    assert owner["reason"] == "Preempting"
    assert owner["note"] == (
        "evicting 1 pod of priority 0 or less from n frees nvidia.com/gpu: 1; held for this pod for 60 s"
    )
    assert owner["regarding"]["uid"] == "uid-high"


def test_a_record_that_is_there_is_replaced_under_the_version_that_the_plan_knew() -> None:
    fleet, api = full(low("a", gpu=2), high()), FakeApi()
    other = reservations.Entry(kube.PodUid("x"), "default/x", {"amd.com/gpu": 1}, NOW)
    fleet.apply_reservations(reservations.Record("n", {other.uid: other}, "42"))
    assert step(fleet, api) == 1
    assert api.done[0] == "PUT configmaps node.n"
    assert api.writes[0][1]["metadata"]["resourceVersion"] == "42"
    assert {each["uid"] for each in entries(api.writes[0][1])} == {"x", "uid-high"}


@pytest.mark.parametrize(
    "error",
    [kubeapi.ApiError(409, "x"), kubeapi.ApiError(500, "x"), urllib3.exceptions.ProtocolError("x"), OSError("x")],
    ids=["409", "500", "cut", "refused"],
)
def test_without_the_hold_nobody_is_evicted(error: Exception) -> None:
    api = FakeApi(configmaps=error)
    assert step(full(low("a", gpu=2), high()), api) == 0
    assert api.done == []


def test_without_the_budgets_nobody_is_evicted() -> None:
    api = FakeApi(budgets=OSError("x"))
    assert step(full(low("a", gpu=2), high()), api) == 0
    assert api.done == []


def test_budgets_are_those_of_the_api() -> None:
    api = FakeApi()
    api.budgets = [
        {
            "metadata": {"name": "b", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "minAvailable": 1},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 1},
        }
    ]
    assert step(full(low("a", app="web"), low("b", priority=50), high()), api) == 1
    assert "POST eviction b" in api.done


@pytest.mark.parametrize(
    "answer",
    [kubeapi.ApiError(429, "x"), kubeapi.ApiError(500, "x"), {"kind": "Status", "status": "Failure", "code": 500}],
    ids=["429", "500", "a failure under a status of success"],
)
def test_a_refused_first_eviction_gives_the_devices_back(answer: Exception | Json) -> None:
    api = FakeApi(a=answer)
    assert step(full(low("a", gpu=2), high()), api) == 0
    assert [what for what in api.done if "eviction" not in what] == [HOLD, "PUT configmaps node.n"]
    released = api.writes[-1][1]
    assert entries(released) == []
    assert released["metadata"]["resourceVersion"] == "101", "the version that the hold was answered with"


def test_after_a_refusal_nobody_more_goes_and_what_is_free_stays_held() -> None:
    api = FakeApi(b=kubeapi.ApiError(429, "x"))
    assert step(full(low("a"), low("b"), high(gpu=2)), api) == 1
    assert api.done == [HOLD, A, A_TOLD, TOLD]
    assert "1 of 2 evicted" in api.events()[-1]["note"]


@pytest.mark.parametrize("status", [404, 409])
def test_a_victim_that_is_gone_already_has_freed_its_devices(status: int) -> None:
    api = FakeApi(a=kubeapi.ApiError(status, "x"))
    assert step(full(low("a"), low("b"), high(gpu=2)), api) == 1
    assert api.done[:2] == [HOLD, B]
    assert "PUT configmaps node.n" not in api.done


def test_an_eviction_whose_answer_is_lost_may_have_happened_so_the_hold_stays() -> None:
    api = FakeApi(a=urllib3.exceptions.ProtocolError("x"))
    assert step(full(low("a"), low("b"), high(gpu=2)), api) == 0
    assert api.done == [HOLD]


def test_whoever_leads_no_more_evicts_nobody() -> None:
    api, leads = FakeApi(), [True, False]
    fleet = full(low("a", gpu=2), high())
    assert asyncio.run(preempting(fleet, api, leads=lambda: leads.pop(0)).step()) == 0
    assert api.done == [HOLD]
    assert asyncio.run(preempting(fleet, FakeApi(), leads=lambda: False).step()) == 0


def test_a_plan_of_before_a_pause_is_given_up() -> None:
    api, clock = FakeApi(), Clock()

    def pause(path: str) -> None:
        clock.now += 11

    api.before = pause
    assert asyncio.run(preempting(full(low("a", gpu=2), high()), api, clock).step()) == 0
    assert api.done == [HOLD]


def test_while_victims_go_the_pod_is_not_planned_again_and_its_hold_is_renewed() -> None:
    going = low("a", gpu=2)
    going["metadata"]["deletionTimestamp"] = "2027-01-15T08:05:00Z"
    fleet, api, clock = full(going, low("b", "m", gpu=2), high(), nodes=2), FakeApi(), Clock()
    held = reservations.Entry(kube.PodUid("uid-high"), "default/high", {"nvidia.com/gpu": 1}, NOW, "preempt")
    fleet.apply_reservations(reservations.Record("n", {held.uid: held}, "7"))
    work = preempting(fleet, api, clock)
    clock.now = NOW + 29
    assert asyncio.run(work.step()) == 0
    assert api.done == []
    clock.now = NOW + 31
    assert asyncio.run(work.step()) == 0
    assert api.done == ["PUT configmaps node.n"]
    assert entries(api.writes[0][1])[0]["since"] == NOW + 31


def test_a_hold_that_a_dead_leader_left_before_its_evictions_is_used() -> None:
    fleet, api = full(low("a", gpu=2), low("b", "m", gpu=2), high(), nodes=2), FakeApi()
    held = reservations.Entry(kube.PodUid("uid-high"), "default/high", {"nvidia.com/gpu": 1}, NOW - 3, "preempt")
    fleet.apply_reservations(reservations.Record("m", {held.uid: held}, "7"))
    assert step(fleet, api) == 1
    assert api.done[:2] == ["PUT configmaps node.m", B]


@pytest.mark.parametrize("age", [1, 100])
def test_a_pod_whose_bind_is_under_way_is_left_alone_until_that_is_given_up(age: float) -> None:
    fleet, api = full(low("a", gpu=2), high()), FakeApi()
    promised = reservations.Entry(kube.PodUid("uid-high"), "default/high", {"nvidia.com/gpu": 1}, NOW - age, "late")
    fleet.apply_reservations(reservations.Record("n", {promised.uid: promised}, "7"))
    assert step(fleet, api) == 0
    assert api.done == []


def test_the_most_important_pod_comes_first_and_a_step_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemptor, "MAX_PLANS", 2)
    api = FakeApi()
    pods = [high(f"high-{priority}", priority=priority) for priority in (10, 30, 20)]
    fleet = full(*(low(f"low-{name}", name, gpu=2) for name in "nmo"), *pods, nodes=3)
    for name in "nmo":
        fleet.apply_reservations(reservations.Record(name, {}, "1"))
    asyncio.run(preempting(fleet, api).step())
    held = [entries(body)[0]["pod"] for what, body in api.writes if what.startswith("PUT")]
    assert held == ["default/high-30", "default/high-20"]


def test_two_pods_of_one_step_do_not_count_on_the_same_record() -> None:
    """The second is planned with a version that the first has replaced: it meets a conflict."""
    fleet, api = full(low("a"), low("b"), high("one"), high("two")), FakeApi()
    taken: list[str] = []

    def replaced(path: str) -> None:
        if path.endswith("configmaps"):
            if taken:
                raise kubeapi.ApiError(409, "exists")
            taken.append(path)

    api.before = replaced
    assert step(fleet, api) == 1
    assert [what for what in api.done if "eviction" in what] == [A]


def test_pods_alike_for_which_nothing_helps_rest_together() -> None:
    fleet = full(low("a", priority=50), low("b"), high("one", gpu=3, owner="r"), high("two", gpu=3, owner="r"))
    api, clock = FakeApi(), Clock()
    work = preempting(fleet, api, clock)
    looked: list[str] = []
    plan = work._plan
    work._plan = lambda pod, *more: looked.append(pod.key) or plan(pod, *more)  # type: ignore[method-assign, func-returns-value]
    asyncio.run(work.step())
    asyncio.run(work.step())
    assert looked == ["default/one"]
    clock.now += preemptor.REST_SECONDS + 1
    asyncio.run(work.step())
    assert looked == ["default/one", "default/one"]


def test_a_pod_that_goes_on_waiting_evicts_only_so_often() -> None:
    """Whatever keeps it out, it is not what was freed for it: the count is in the API, and survives a restart."""
    fleet, api, clock = full(low("a", gpu=2), high()), FakeApi(), Clock()
    names: set[str] = set()
    post = api.post

    def once(path: str, body: Json) -> Json:
        if path.endswith("/events") and body["metadata"]["name"] in names:
            raise kubeapi.ApiError(409, "exists")
        answer = post(path, body)
        if path.endswith("/events"):
            names.add(body["metadata"]["name"])
        return answer

    api.post = once  # type: ignore[method-assign]
    work = preempting(fleet, api, clock)
    rounds = [asyncio.run(work.step()) for _ in range(8)]
    assert rounds == [1] * preemptor.MAX_PREEMPTIONS + [0] * 3
    assert "nobody more is evicted for it, after 5 times within the hour" in api.events()[-1]["note"]
    restarted = preempting(fleet, api, clock)
    assert [asyncio.run(restarted.step()) for _ in range(3)] == [1, 0, 0]
    clock.now += preemptor.EVENT_SECONDS + 1
    assert asyncio.run(restarted.step()) == 1


def test_nothing_is_asked_of_the_api_where_nobody_could_preempt() -> None:
    api = FakeApi(budgets=AssertionError("asked"))
    assert step(full(low("a", priority=100, gpu=2), high()), api) == 0
    assert step(full(low("a", gpu=2)), api) == 0


def test_a_pod_that_was_bound_meanwhile_is_left_alone() -> None:
    fleet, api = full(low("a", gpu=2), high()), FakeApi()
    bound = high()
    bound["spec"]["nodeName"] = "n"
    get = api.get

    def slow(path: str, query: Json) -> Answer:
        fleet.apply_pod(kube.to_pod(bound))
        return get(path, query)

    api.get = slow  # type: ignore[method-assign]
    assert step(fleet, api) == 0
    assert api.done == []


def test_an_event_that_cannot_be_written_changes_nothing() -> None:
    for error in (kubeapi.ApiError(500, "x"), OSError("x")):
        api = FakeApi(events=error)
        assert step(full(low("a", gpu=2), high()), api) == 1
        assert api.done == [HOLD, A]
