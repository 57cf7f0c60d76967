"""What the service writes: node labels as they should be, events once, failures again."""

import asyncio
import re
from typing import Any

import gpunodes
import gpureports
import placing
import pytest
import urllib3

from scheduler import control, decision, kube, kubeapi
from scheduler import fleet as fleets

Json = dict[str, Any]


class FakeApi:
    """Keeps what was written; the first answers are the errors given."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.patched, self.posted = list(failures), [], []
        self.conditions: list[tuple[str, Json]] = []

    def patch(self, path: str, body: Json, kind: str = "merge") -> None:
        self._answer()
        if path.endswith("/status"):
            assert kind == "strategic"  # a merge patch would replace the kubelet's conditions
            self.conditions += [(path, each) for each in body["status"]["conditions"]]
            return
        self.patched.append((path, body["metadata"]["labels"]))

    def post(self, path: str, body: Json) -> None:
        self._answer()
        self.posted.append((path, body))

    def _answer(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


def labelled(node: Json, **labels: str) -> Json:
    node["metadata"]["labels"] |= {f"anygpu.io/{key}": value for key, value in labels.items()}
    return node


def decided(name: str = "p", node: str | None = "n") -> kube.Pod:
    made = decision.Decision(
        id=f"decision-of-{name}"[:64],
        vendor="nvidia",
        resource="nvidia.com/gpu",
        count=1,
        container="main",
        sku="t4",
        skus=("t4",),
        node=node,
        images={},
        reason="because",
    )
    document = placing.bound(name, None, {"nvidia.com/gpu": 1})
    document["metadata"]["annotations"] = {"anygpu.io/decision": made.model_dump_json()}
    return kube.to_pod(document)


def written(
    fleet: fleets.Fleet,
    api: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
    seen: list[kube.Pod] | None = None,
    rounds: int = 6,
) -> control.Writer:
    """Let the writer work until it has nothing to do; waits cost nothing."""
    writer = control.Writer(api, fleet)  # type: ignore[arg-type]
    waits: list[float] = []
    sleep = asyncio.sleep

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    async def main() -> None:
        for pod in seen or []:
            writer.saw_pod(pod)
        writer.nudge()
        task = asyncio.create_task(writer.run())
        for _ in range(rounds):
            await sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(control.asyncio, "sleep", no_sleep)
    asyncio.run(main())
    assert all(wait > 0 for wait in waits)
    return writer


def changes(node: Json) -> dict[str, str | None]:
    return control.label_changes(placing.fleet_of([node]).rows["n"])


def test_a_new_node_gets_its_labels() -> None:
    assert changes(gpunodes.nvidia("n", "t4", 4)) == {"anygpu.io/sku.t4": "4"}
    assert changes(gpunodes.mig_single("n", "a100-80", "1g.10gb", 7)) == {
        "anygpu.io/sku.a100-sxm4-80gb": "7",
        "anygpu.io/partition": "1g.10gb",
    }


def test_a_node_that_is_as_it_should_be_is_left_alone() -> None:
    assert changes(labelled(gpunodes.nvidia("n", "t4", 4), **{"sku.t4": "4"})) == {}
    assert changes(gpunodes.node("n")) == {}


def test_labels_that_no_longer_hold_are_changed_or_removed() -> None:
    node = labelled(gpunodes.nvidia("n", "t4", 4), **{"sku.t4": "8", "sku.l4": "1", "partition": "x", "other": "kept"})
    assert changes(node) == {"anygpu.io/sku.t4": "4", "anygpu.io/sku.l4": None, "anygpu.io/partition": None}


def test_a_conflict_between_sources_becomes_a_condition_once(monkeypatch: pytest.MonkeyPatch) -> None:
    node = labelled(gpunodes.nvidia("n", "a100-80", 8), **{"sku.h100-sxm": "8"})
    fleet = placing.fleet_of([node])
    fleet.apply_report(gpureports.to_report(gpureports.report("n", gpureports.several("h100", 8))))
    api = FakeApi()
    written(fleet, api, monkeypatch)
    ((path, condition),) = api.conditions
    assert path == "/api/v1/nodes/n/status"
    assert (condition["type"], condition["status"]) == (control.CONFLICT, "True")
    node["status"]["conditions"].append(condition)
    fleet.apply_node(kube.to_node(node))
    again = FakeApi()
    written(fleet, again, monkeypatch)
    assert (again.conditions, again.patched) == ([], [])


def test_the_labels_are_written_and_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = placing.fleet_of(
        [gpunodes.nvidia("a", "t4", 4), labelled(gpunodes.amd("b", "mi300x"), **{"sku.mi300x": "8"})]
    )
    api = FakeApi()
    written(fleet, api, monkeypatch)
    assert api.patched == [("/api/v1/nodes/a", {"anygpu.io/sku.t4": "4"})]


@pytest.mark.parametrize(
    "error",
    [kubeapi.ApiError(500, "x"), kubeapi.ApiError(429, "x"), urllib3.exceptions.ProtocolError("x"), OSError("x")],
    ids=["500", "429", "cut", "refused"],
)
def test_what_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    api = FakeApi(error, error)
    written(placing.fleet_of([gpunodes.nvidia("a", "t4", 4)]), api, monkeypatch)
    assert api.patched == [("/api/v1/nodes/a", {"anygpu.io/sku.t4": "4"})]


@pytest.mark.parametrize("status", [404, 409, 422])
def test_whoever_was_faster_is_not_fought(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    api = FakeApi(kubeapi.ApiError(status, "x"))
    written(placing.fleet_of([gpunodes.nvidia("a", "t4", 4)]), api, monkeypatch)
    assert (api.patched, api.failures) == ([], [])


def test_one_node_that_fails_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi(kubeapi.ApiError(500, "x"))
    written(placing.fleet_of([gpunodes.nvidia(name, "t4", 4) for name in "abc"]), api, monkeypatch, rounds=1)
    assert len(api.patched) >= 2


def test_the_owner_hears_of_a_decision_once(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi()
    pod = decided()
    writer = written(placing.fleet_of([]), api, monkeypatch, [pod, pod])
    assert [path for path, _ in api.posted] == ["/apis/events.k8s.io/v1/namespaces/default/events"]
    writer.saw_pod(pod)
    assert writer._events == {}
    writer.forgot_pod("uid-p")
    writer.saw_pod(pod)
    assert len(writer._events) == 1


def test_pods_that_run_or_were_not_decided_make_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi()
    runs = kube.to_json(decided())
    runs["spec"]["nodeName"] = "n"
    written(placing.fleet_of([]), api, monkeypatch, [kube.to_pod(runs), kube.to_pod(placing.bound("q", None, {}))])
    assert api.posted == []


def test_events_are_named_for_their_decision_so_that_two_replicas_write_one() -> None:
    pod = decided()
    made = decision.read(pod.annotations)
    assert made is not None
    first, second = (control.decision_event(pod, made, now) for now in (1_800_000_000.0, 1_900_000_000.0))
    assert first["metadata"] == second["metadata"] == {"name": "p.decision-of-p", "namespace": "default"}
    assert (first["reason"], first["type"], first["note"]) == ("GPUChosen", "Normal", "because")
    assert first["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "p",
        "namespace": "default",
        "uid": "uid-p",
    }
    waiting = control.decision_event(pod, made.model_copy(update={"node": None, "reason": "x" * 5000}), 0.0)
    assert (waiting["reason"], waiting["type"], len(waiting["note"])) == ("GPUUnavailable", "Warning", 1000)


@pytest.mark.parametrize("name", ["p", "p" * 253, "a" * 17 + "-" + "b" * 235, "a" * 236 + "." + "b" * 16])
def test_an_event_of_a_pod_with_a_long_name_has_a_valid_one(name: str) -> None:
    pod = decided(name)
    made = decision.read(pod.annotations)
    assert made is not None
    event = control.decision_event(pod, made, 0.0)["metadata"]["name"]
    assert len(event) <= 253
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    assert re.fullmatch(rf"{label}(\.{label})*", event)


def test_a_flood_of_events_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_EVENTS", 2)
    writer = control.Writer(FakeApi(), placing.fleet_of([]))  # type: ignore[arg-type]
    for number in range(5):
        writer.saw_pod(decided(f"p{number}"))
    assert len(writer._events) == 2


def test_of_a_late_pod_its_owner_hears_what_it_was_given_once_it_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("l4", "l4", 2), gpunodes.amd("mi210", "mi210", 2)])
    made = placing.admit(gpunodes.pod(memory="16Gi", binding="late"), fleet)
    made.pod["metadata"]["uid"] = "u1"
    specs = [made.pod["spec"] | ({"nodeName": node} if node else {}) for node in (None, None, "mi210", "mi210")]
    seen = [kube.to_pod(made.pod | {"spec": spec}) for spec in specs]
    api = FakeApi()
    written(placing.fleet_of([]), api, monkeypatch, seen)
    ((_, event),) = api.posted
    assert (event["reason"], event["metadata"]["name"][-6:]) == ("GPUChosen", ".bound")
