"""What is said of registered objects: a condition that moves only when it must, and one event a generation."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import placing
import pytest
import registering

from capability_db import registered
from scheduler import fleet as fleets
from scheduler import kubeapi, verdicts

Json = dict[str, Any]
LABEL = "NVIDIA-Next-64GB"
NOW = 1_774_000_000.0


class FakeApi:
    """Keeps what was written; each write may be answered by an error."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.patched, self.posted = list(failures), [], []

    def patch(self, path: str, body: Json) -> None:
        self._answer()
        self.patched.append((path, body))

    def post(self, path: str, body: Json) -> None:
        self._answer()
        self.posted.append((path, body))

    def _answer(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


def fleet_of(*objects: registered.Object) -> fleets.Fleet:
    fleet = placing.fleet_of([])
    for each in objects:
        fleet.registered.put(each.kind, each)
    fleet.use_registered()
    return fleet


def step(api: Any, fleet: fleets.Fleet, now: float = NOW) -> bool:
    return asyncio.run(verdicts.Reporter(api, fleet, lambda: True, lambda: now).step())


def written_back(fleet: fleets.Fleet, api: FakeApi) -> None:
    """What the watch brings after the writes."""
    for (key, found), (_, body) in zip(list(fleet.registered.objects()), api.patched, strict=True):
        status = msgspec.convert({k: v for k, v in body["status"].items() if v is not None}, registered.Status)
        fleet.registered.put(key.kind, msgspec.structs.replace(found, status=status))


def test_an_accepted_object_is_told_so_once() -> None:
    fleet, api = fleet_of(registering.sku("next-64", LABEL)), FakeApi()
    assert step(api, fleet)
    ((path, body),) = api.patched
    assert path == "/apis/anygpu.io/v1alpha1/gpuskus/next-64/status"
    assert body == {
        "metadata": {"resourceVersion": "1"},
        "status": {
            "observedGeneration": 1,
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "Accepted",
                    "message": "in force",
                    "lastTransitionTime": "2026-03-20T09:46:40Z",
                    "observedGeneration": 1,
                }
            ],
            "inForce": None,
        },
    }
    assert not api.posted
    written_back(fleet, api)
    again = FakeApi()
    assert step(again, fleet)
    assert not again.patched


def test_an_invalid_one_gets_an_event_and_keeps_its_transition_time() -> None:
    fleet, api = fleet_of(registering.policy("team-a", skus=["nothing"])), FakeApi()
    assert step(api, fleet)
    ((path, event),) = api.posted
    assert path == "/apis/events.k8s.io/v1/namespaces/team-a/events"
    assert (event["reason"], event["type"], event["metadata"]["name"]) == (
        "InvalidObject",
        "Warning",
        "default.placementpolicy.uid-Plac.1",
    )
    assert event["regarding"]["kind"] == "PlacementPolicy"
    assert event["note"].startswith("Invalid: spec.skus[0]: 'nothing' is no SKU")
    assert api.patched[0][0] == "/apis/anygpu.io/v1alpha1/namespaces/team-a/placementpolicies/default/status"
    written_back(fleet, api)
    # The next generation is wrong as well: another event, the same transition.
    fleet.registered.put(
        "PlacementPolicy",
        msgspec.structs.replace(
            next(found for _, found in fleet.registered.objects()),
            metadata=registered.Metadata(name="default", namespace="team-a", uid="uid-Plac", generation=2),
            spec={"skus": ["nothing-else"]},
        ),
    )
    fleet.use_registered()
    again = FakeApi()
    assert step(again, fleet, NOW + 60)
    assert [event["metadata"]["name"] for _, event in again.posted] == ["default.placementpolicy.uid-Plac.2"]
    (condition,) = again.patched[0][1]["status"]["conditions"]
    assert condition["lastTransitionTime"] == "2026-03-20T09:46:40Z"


def test_others_conditions_stay() -> None:
    other = registered.Condition(type="Reviewed", status="True", last_transition_time="2026-01-01T00:00:00Z")
    found = registering.made("GPUSKU", "next-64", registering.sku_spec(LABEL), conditions=[other])
    api = FakeApi()
    step(api, fleet_of(found))
    assert [each["type"] for each in api.patched[0][1]["status"]["conditions"]] == ["Reviewed", "Ready"]


def test_the_version_in_force_is_kept_while_the_object_is_wrong_and_dropped_after() -> None:
    fleet = fleet_of(registering.sku("next-64", LABEL))
    fleet.registered.put("GPUSKU", registering.sku("next-64", LABEL, generation=2, memoryGib=-1))
    fleet.use_registered()
    api = FakeApi()
    step(api, fleet)
    assert '"memoryGib":64' in api.patched[0][1]["status"]["inForce"]
    written_back(fleet, api)
    fleet.registered.put("GPUSKU", registering.sku("next-64", LABEL, generation=3, memoryGib=65))
    fleet.use_registered()
    again = FakeApi()
    step(again, fleet)
    assert again.patched[0][1]["status"]["inForce"] is None


@pytest.mark.parametrize(("status", "done"), [(409, True), (404, True), (500, False)])
def test_a_conflict_is_left_to_the_watch_and_other_failures_are_tried_again(status: int, done: bool) -> None:
    fleet = fleet_of(registering.sku("next-64", LABEL))
    assert step(FakeApi(kubeapi.ApiError(status, "")), fleet) is done


def test_only_the_leader_writes() -> None:
    async def run() -> FakeApi:
        api = FakeApi()
        reporter = verdicts.Reporter(api, fleet_of(registering.sku("n", LABEL)), lambda: False)  # type: ignore[arg-type]
        reporter.nudge()
        task = asyncio.create_task(reporter.run())
        await asyncio.sleep(0.05)
        task.cancel()
        return api

    assert not asyncio.run(run()).patched
