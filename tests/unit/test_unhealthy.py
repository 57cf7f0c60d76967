"""Devices that a source calls unhealthy are given to nobody, and whoever is refused for it is told so."""

from __future__ import annotations

import json
from typing import Any

import fakeapi
import gates
import gpunodes
import gpureports
import msgspec
import placing
import pytest

from scheduler import asks, binder, binding, extender, feeds, kube, offers
from scheduler import fleet as fleets

Json = dict[str, Any]
GPU = "nvidia.com/gpu"
LOST = "2 of 4 unhealthy (GPU-t4-0: lost; GPU-t4-1: XID 79)"


def devices() -> list[Json]:
    first, second, *rest = gpureports.several("t4", 4)
    return [gpureports.sick(first, "lost"), gpureports.sick(second, "XID 79"), *rest]


def fleet(*, taken: int = 0) -> fleets.Fleet:
    """A node of four T4, of which two are unhealthy by its agent alone, and pods on some."""
    made = placing.fleet_of(
        [gpunodes.nvidia("n", "t4", 4)],
        [placing.bound(f"x{number}", "n", {GPU: 1}) for number in range(taken)],
    )
    made.apply_report(gpureports.to_report(gpureports.report("n", devices())))
    return made


def reason(table: fleets.Fleet, pod: Json) -> str | None:
    made = kube.to_pod(pod)
    question = asks.read(made, table)
    (verdict,) = offers.survey(question.ask(made, None), table).verdicts
    return verdict.reason


def asking(count: int, *, injected: bool = False) -> Json:
    pod = gpunodes.pod(gpus=str(count))
    if injected:
        amounts = {GPU: str(count)}
        pod["spec"]["containers"][0]["resources"] = {"limits": amounts, "requests": amounts}
    return pod


def filtered(table: fleets.Fleet, pod: Json) -> dict[str, str]:
    body = json.dumps({"Pod": pod, "NodeNames": ["n"]}).encode()
    found: dict[str, str] = json.loads(extender.filter_nodes(body, table))["FailedAndUnresolvableNodes"]
    return found


def test_a_pod_that_asks_more_than_is_healthy_is_told_why() -> None:
    assert reason(fleet(), asking(2)) is None
    assert reason(fleet(), asking(3)) == f"t4: 2 {GPU}, 3 asked, {LOST}"
    assert reason(fleet(taken=1), asking(2)) == f"1 of 2 {GPU} free, 2 asked; {LOST}"


@pytest.mark.parametrize("injected", [False, True], ids=["not injected", "injected"])
def test_filter_counts_what_kube_scheduler_takes_for_healthy(injected: bool) -> None:
    """Its own count is the node's allocatable, which still has the lost devices."""
    assert filtered(fleet(), asking(2, injected=injected)) == {}
    assert filtered(fleet(taken=2), asking(1, injected=injected)) == {"n": f"{extender.NOT_FREE}; {LOST}"}
    assert filtered(fleet(), asking(3, injected=injected)) == {"n": f"{extender.NOT_FREE}; {LOST}"}


def test_once_the_device_plugin_withholds_them_kube_scheduler_counts_alone() -> None:
    table = fleet(taken=2)
    node = gpunodes.nvidia("n", "t4", 4)
    node["status"]["allocatable"][GPU] = "2"
    table.apply_node(kube.to_node(node))
    assert filtered(table, asking(1, injected=True)) == {}
    assert reason(table, asking(1)) == f"0 of 2 {GPU} free, 1 asked; {LOST}"


def test_bind_promises_no_unhealthy_device() -> None:
    api: Any = fakeapi.FakeApi()
    api.post("/api/v1/nodes", gpunodes.nvidia("n", "t4", 4))
    api.post("/apis/anygpu.io/v1alpha1/nodegpus", gpureports.report("n", devices()))
    with gates.installed(binder):
        control = gates.Gates()
        replica = binder.Binder(api, fleets.Fleet(placing.CATALOGUE), lambda: 1_800_000_000.0)
        for feed in feeds.feeds(replica._fleet, {"early", "late"}):
            feed.on_list([msgspec.convert(each, feed.kind) for each in api.list(feed.path, feed.selector)])
        pods = []
        for name in ("first", "second"):
            document = placing.bound(name, None, {GPU: 2})
            del document["metadata"]["uid"]
            document["spec"]["schedulerName"] = binding.SCHEDULER
            pods.append(api.post("/api/v1/namespaces/default/pods", document))
        operations = []
        for pod in pods:
            asked = binder.Arguments(pod["metadata"]["name"], "default", pod["metadata"]["uid"], "n")
            operations.append(control.start(f"bind {asked.key}", replica.bind(asked)))
            control.finish(operations[-1])
        operations[0].task.result()
        with pytest.raises(binder.CannotBind, match=r"2 nvidia\.com/gpu asked, and of 2 there"):
            operations[1].task.result()
        control.close()
