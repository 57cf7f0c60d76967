"""Who has to go so that a pod gets its devices, and who never does."""

from collections.abc import Iterable
from typing import Any

import gpunodes
import placing
import pytest

from scheduler import budgets, decision, kube, preempt, reservations
from scheduler import fleet as fleets

Json = dict[str, Any]
NOW = 1_800_000_000.0
UNSCHEDULABLE = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]


def runs(name: str, node: str = "n", *, priority: int = 0, started: int = 0, **amounts: Any) -> Json:
    """A plain pod on a node; `gpu` and `amd` are devices, `started` a minute of 2026."""
    made = placing.bound(name, node, {_NAMES.get(key, key): amount for key, amount in amounts.items()})
    made["spec"]["priority"] = priority
    made["status"]["startTime"] = f"2026-01-01T{started // 60:02}:{started % 60:02}:00Z"
    made["metadata"]["labels"] = {"app": name.partition("-")[0]}
    return made


_NAMES = {"gpu": "nvidia.com/gpu", "amd": "amd.com/gpu"}


def waits(name: str = "high", *, priority: int = 100, **amounts: Any) -> Json:
    """A plain pod that anygpu-scheduler found no node for."""
    made = placing.bound(name, None, {_NAMES.get(key, key): amount for key, amount in amounts.items()})
    made["spec"] |= {"priority": priority, "schedulerName": "anygpu-scheduler"}
    made["status"]["conditions"] = UNSCHEDULABLE
    return made


def late(name: str = "high", *, priority: int = 100, **annotations: str) -> Json:
    """A late pod as the webhook leaves it, for either vendor's SKUs."""
    made = waits(name, priority=priority, gpu=1, amd=1)
    found = decision.Decision(
        id=f"decision-{name}",
        binding="late",
        vendor="nvidia",
        resource="nvidia.com/gpu",
        count=1,
        container="main",
        sku=None,
        skus=("l4", "mi210"),
        node=None,
        images={"main": "x"},
        reason="because",
        injected={"nvidia.com/gpu": 1, "amd.com/gpu": 1},
        alternatives=(
            decision.Alternative(resource="nvidia.com/gpu", vendor="nvidia", skus=("l4",), images={}),
            decision.Alternative(resource="amd.com/gpu", vendor="amd", skus=("mi210",), images={}),
        ),
    )
    keys = {f"anygpu.io/{key}": value for key, value in {"binding": "late", **annotations}.items()}
    made["metadata"]["annotations"] = keys | {"anygpu.io/decision": found.model_dump_json()}
    return made


def budget(allowed: int, **labels: str) -> budgets.Budget:
    return budgets.Budget(
        metadata=kube.Metadata(name=f"budget-{len(labels)}-{'-'.join(labels.values())}", namespace="default"),
        spec=budgets.BudgetSpec(selector=kube.LabelSelector(match_labels=labels)),
        status=budgets.BudgetStatus(disruptions_allowed=allowed),
    )


def leaves(pod: Json, due: str = "2027-01-15T08:00:30Z") -> Json:
    pod["metadata"]["deletionTimestamp"] = due
    return pod


def planned(
    pod: Json,
    nodes: list[Json],
    pods: Iterable[Json],
    guards: Iterable[budgets.Budget] = (),
    records: Iterable[reservations.Record] = (),
) -> preempt.Plan | None:
    fleet = placing.fleet_of(nodes, [*pods, pod])
    fleet.replace(records=records)
    return plan(pod, fleet, guards)


def plan(pod: Json, fleet: fleets.Fleet, guards: Iterable[budgets.Budget] = ()) -> preempt.Plan | None:
    return preempt.plan(kube.to_pod(pod), preempt.scene(fleet, NOW), budgets.Budgets(guards))


def victims(found: preempt.Plan | None) -> list[str] | None:
    return None if found is None else [pod.metadata.name for pod in found.victims]


def test_the_pod_of_lowest_priority_goes() -> None:
    found = planned(
        waits(gpu=1), [gpunodes.nvidia("n", "l4", 2)], [runs("a", priority=5, gpu=1), runs("b", priority=3, gpu=1)]
    )
    assert found is not None
    assert (found.node, found.devices, victims(found)) == ("n", {"nvidia.com/gpu": 1}, ["b"])
    assert found.why == "evicting 1 pod of priority 3 or less from n frees nvidia.com/gpu: 1"


def test_nobody_of_the_same_priority_goes() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 1)]
    assert planned(waits(gpu=1), nodes, [runs("a", priority=100, gpu=1), runs("b", cpu=1)]) is None
    assert planned(waits(gpu=1), nodes, [runs("a", priority=101, gpu=1), runs("b", cpu=1)]) is None


def test_a_pod_that_fits_as_things_are_evicts_nobody() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 1), gpunodes.nvidia("m", "l4", 1)]
    assert planned(waits(gpu=1), nodes, [runs("a", gpu=1)]) is None


def test_a_pod_that_never_preempts_evicts_nobody() -> None:
    pod = waits(gpu=1)
    pod["spec"]["preemptionPolicy"] = "Never"
    nodes, pods = [gpunodes.nvidia("n", "l4", 1)], [runs("a", gpu=1)]
    assert planned(pod, nodes, pods) is None
    assert preempt.waiting(placing.fleet_of(nodes, [*pods, pod])) == []
    pod["spec"]["preemptionPolicy"] = "PreemptLowerPriority"
    assert victims(planned(pod, nodes, pods)) == ["a"]


def test_a_pod_without_a_device_is_none_of_ours() -> None:
    assert planned(waits(cpu=64), [gpunodes.node("n")], [runs("a", cpu=64)]) is None


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"namespace": "kube-system"}},
        {"metadata": {"namespace": "anygpu-system"}},
        {"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}},
    ],
    ids=["kube-system", "anygpu-system", "static"],
)
def test_system_pods_and_static_pods_stay(change: Json) -> None:
    victim = runs("a", gpu=1)
    victim["metadata"] |= change["metadata"]
    assert planned(waits(gpu=1), [gpunodes.nvidia("n", "l4", 1)], [victim]) is None


def test_a_daemon_sets_pod_may_go_as_kube_scheduler_has_it() -> None:
    victim = runs("a", gpu=1)
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": True}
    victim["metadata"]["ownerReferences"] = [owner]
    assert victims(planned(waits(gpu=1), [gpunodes.nvidia("n", "l4", 1)], [victim])) == ["a"]


def test_whoever_is_not_needed_is_spared_the_most_important_first() -> None:
    pods = [runs("a", priority=1, gpu=1), runs("b", priority=2, gpu=2), runs("c", priority=3, gpu=4), runs("d", gpu=1)]
    nodes = [gpunodes.nvidia("n", "l4", 8)]
    assert victims(planned(waits(gpu=2), nodes, pods)) == ["d", "a"]
    assert victims(planned(waits(gpu=3), nodes, pods)) == ["d", "b"]
    assert victims(planned(waits(gpu=8), nodes, pods)) == ["d", "a", "b", "c"]


def test_of_pods_alike_those_go_that_have_run_least() -> None:
    pods = [runs(name, started=minute, gpu=1) for name, minute in {"a": 5, "b": 30, "c": 10, "d": 20}.items()]
    starting = runs("e", gpu=1)
    del starting["status"]["startTime"]
    assert victims(planned(waits(gpu=3), [gpunodes.nvidia("n", "l4", 5)], [*pods, starting])) == ["e", "b", "d"]


@pytest.mark.parametrize(
    ("kept", "taken"),
    [
        ([runs("k", "kept", priority=2, gpu=2)], [runs("t", "taken", priority=1, gpu=2)]),
        (
            [runs("k-1", "kept", gpu=1), runs("k-2", "kept", gpu=1, started=900)],
            [runs("t", "taken", gpu=2, started=5)],
        ),
        ([runs("k", "kept", gpu=4)], [runs("t", "taken", gpu=2), runs("u", "taken", gpu=2)]),
        ([runs("k", "kept", gpu=4, started=10)], [runs("t", "taken", gpu=4, started=20)]),
        (
            [runs("k", "kept", priority=-5, gpu=2), runs("l", "kept", priority=-9, gpu=2)],
            [runs("t", "taken", priority=-5, gpu=4)],
        ),
    ],
    ids=["lowest priority", "fewest pods", "fewest devices lost", "ran least", "fewest pods below 0"],
)
def test_the_node_is_chosen_where_the_loss_is_smallest(kept: list[Json], taken: list[Json]) -> None:
    count = sum(int(pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) for pod in kept)
    asked = 4 if any("-9" in str(pod["spec"]["priority"]) for pod in kept) else 2
    nodes = [gpunodes.nvidia("kept", "l4", count), gpunodes.nvidia("taken", "l4", max(count, 2))]
    found = planned(waits(gpu=asked), nodes, [*kept, *taken])
    assert found is not None
    assert found.node == "taken"


def test_equal_nodes_are_told_apart_by_name() -> None:
    nodes = [gpunodes.nvidia(name, "l4", 1) for name in ("b", "a", "c")]
    found = planned(waits(gpu=1), nodes, [runs(f"on-{name}", name, gpu=1) for name in "abc"])
    assert found is not None
    assert found.node == "a"


def test_cpu_and_the_number_of_pods_are_made_room_for_as_well() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 2)]
    pods = [runs("small", gpu=1, cpu=1), runs("big", priority=1, gpu=1, cpu=40), runs("cpu", priority=2, cpu=20)]
    assert victims(planned(waits(gpu=1, cpu=4), nodes, pods)) == ["small"]
    assert victims(planned(waits(gpu=1, cpu=5), nodes, pods)) == ["big"], "the cheaper one frees too little cpu"
    assert victims(planned(waits(gpu=1, cpu=62), nodes, pods)) == ["big", "cpu"]
    nodes[0]["status"]["allocatable"]["pods"] = "2"
    crowd = [runs("a", gpu=1), runs("b", priority=1, cpu=1)]
    assert victims(planned(waits(gpu=1), nodes, crowd)) == ["a"], "a device is free, a place is not"


def test_a_free_device_without_cpu_beside_it_costs_whoever_has_the_cpu() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 2)]
    pods = [runs("gpu", priority=1, gpu=1, cpu=1), runs("hog", cpu=62)]
    assert victims(planned(waits(gpu=1, cpu=4), nodes, pods)) == ["hog"]


def test_pods_that_are_leaving_are_waited_for() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 2), gpunodes.nvidia("m", "l4", 1)]
    pods = [leaves(runs("a", priority=500, gpu=1)), runs("b", gpu=1), runs("c", "m", gpu=1)]
    found = planned(waits(gpu=1), nodes, pods)
    assert found is not None
    assert (found.node, victims(found)) == ("n", [])
    assert found.why == "pods that are leaving n free nvidia.com/gpu: 1"
    found = planned(waits(gpu=2), nodes, pods)
    assert victims(found) == ["b"], "only what is still missing is freed"


def test_a_pod_that_should_be_gone_long_since_is_not_leaving() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 1), gpunodes.nvidia("m", "l4", 1)]
    pods = [leaves(runs("a", gpu=1), due="2027-01-15T07:58:00Z"), runs("b", "m", priority=50, gpu=1)]
    assert victims(planned(waits(gpu=1), nodes, pods)) == ["b"]


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node["spec"].update(unschedulable=True),
        lambda node: node["spec"].update(taints=[{"key": "team/owned", "effect": "NoSchedule"}]),
        lambda node: node["status"].update(conditions=[{"type": "Ready", "status": "False"}]),
        lambda node: node["metadata"]["labels"].update({"zone": "b"}),
        lambda node: node["status"]["allocatable"].update({"nvidia.com/gpu": "1"}),
    ],
    ids=["cordoned", "tainted", "not ready", "another zone", "too few devices"],
)
def test_nodes_that_would_never_take_the_pod_lose_nobody(change: Any) -> None:
    node = gpunodes.nvidia("n", "l4", 2)
    node["metadata"]["labels"]["zone"] = "a"
    change(node)
    pod = waits(gpu=2)
    pod["spec"]["nodeSelector"] = {"zone": "a"}
    assert planned(pod, [node], [runs("a", gpu=1), runs("b", gpu=1)]) is None


def test_anti_affinity_forbids_a_node_and_whom_the_pod_wants_near_stays() -> None:
    node = gpunodes.nvidia("n", "l4", 2)
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "friend"}}}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    pods = [runs("friend", gpu=1), runs("other", priority=5, gpu=1)]
    pod = waits(gpu=1)
    pod["spec"]["affinity"] = {"podAffinity": required}
    assert victims(planned(pod, [node], pods)) == ["other"]
    pod["spec"]["affinity"] = {"podAntiAffinity": required}
    assert planned(pod, [node], pods) is None


def test_a_budget_that_allows_no_disruption_protects_its_pods() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 2), gpunodes.nvidia("m", "l4", 1)]
    pods = [runs("web-1", gpu=1), runs("web-2", gpu=1), runs("batch", "m", priority=50, gpu=1)]
    assert victims(planned(waits(gpu=1), nodes, pods, [budget(0, app="web")])) == ["batch"]
    assert victims(planned(waits(gpu=1), nodes, pods, [budget(1, app="web")])) == ["web-1"]
    assert planned(waits(gpu=2), nodes, pods, [budget(1, app="web")]) is None, "one may go, not both"
    assert victims(planned(waits(gpu=2), nodes, pods, [budget(2, app="web")])) == ["web-1", "web-2"]


def test_a_budgets_last_disruption_goes_to_the_pod_that_frees_most() -> None:
    pods = [runs("web-1", gpu=1), runs("web-2", gpu=3), runs("free", priority=1, gpu=1)]
    found = planned(waits(gpu=4), [gpunodes.nvidia("n", "l4", 5)], pods, [budget(1, app="web")])
    assert victims(found) == ["web-2", "free"], "whose eviction may be refused goes first"


def test_a_pod_under_two_budgets_stays_since_the_eviction_api_refuses_it() -> None:
    victim = runs("web", gpu=1)
    guards = [budget(5, app="web"), budget(5)]
    nodes = [gpunodes.nvidia("n", "l4", 1)]
    assert planned(waits(gpu=1), nodes, [victim], guards) is None
    assert victims(planned(waits(gpu=1), nodes, [victim], guards[1:])) == ["web"]


def test_an_empty_selector_guards_its_namespace_and_none_guards_nobody() -> None:
    pod = kube.to_pod(runs("a"))
    everyone, nobody = budget(0), budgets.Budget(metadata=kube.Metadata(name="b", namespace="default"))
    elsewhere = budgets.Budget(
        metadata=kube.Metadata(name="b", namespace="x"), spec=budgets.BudgetSpec(selector=kube.LabelSelector())
    )
    assert budgets.Budgets([everyone, nobody, elsewhere]).over(pod) == [everyone]


def entry(uid: str, kind: reservations.Kind, **devices: int) -> reservations.Entry:
    names = {_NAMES[key]: count for key, count in devices.items()}
    return reservations.Entry(kube.PodUid(uid), f"default/{uid}", names, NOW, kind)


def test_what_others_were_promised_stays_theirs() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 2)]
    promised = reservations.Record("n", {kube.PodUid("x"): entry("x", "late", gpu=1)}, "1")
    pods = [runs("a", gpu=1), runs("b", priority=1, gpu=1)]
    assert victims(planned(waits(gpu=1), nodes, pods[:1], records=[promised])) == ["a"], "the free one is promised"
    assert victims(planned(waits(gpu=1), nodes, pods, records=[promised])) == ["a", "b"]
    assert planned(waits(gpu=2), nodes, pods, records=[promised]) is None


def test_what_the_pod_itself_was_promised_counts_for_it() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 2)]
    own = reservations.Record("n", {kube.PodUid("uid-high"): entry("uid-high", "preempt", gpu=1)}, "1")
    assert planned(waits(gpu=1), nodes, [runs("a", gpu=1)], records=[own]) is None, "it fits"
    assert victims(planned(waits(gpu=1), nodes, [runs("a", gpu=2)], records=[own])) == ["a"]


def test_of_nodes_that_pods_are_leaving_the_one_is_kept_that_is_held_already() -> None:
    nodes = [gpunodes.nvidia("a", "l4", 1), gpunodes.nvidia("b", "l4", 1)]
    own = reservations.Record("b", {kube.PodUid("uid-high"): entry("uid-high", "preempt", gpu=1)}, "1")
    pods = [leaves(runs("x", "a", gpu=1)), leaves(runs("y", "b", gpu=1)), runs("low", cpu=1)]
    found = planned(waits(gpu=1), nodes, pods, records=[own])
    assert found is not None
    assert (found.node, victims(found)) == ("b", [])


def test_what_kube_scheduler_frees_for_another_important_pod_is_that_pods() -> None:
    nodes = [gpunodes.nvidia("n", "l4", 1)]
    early = placing.bound("early", None, {"nvidia.com/gpu": 1})
    early["spec"]["priority"] = 100
    early["status"] |= {"nominatedNodeName": "n", "conditions": UNSCHEDULABLE}
    pods = [leaves(runs("a", gpu=1)), runs("low", cpu=1), early]
    assert planned(waits(gpu=1), nodes, pods) is None
    early["spec"]["priority"] = 99
    found = planned(waits(gpu=1), nodes, pods)
    assert found is not None
    assert victims(found) == []


def test_a_late_pod_takes_the_one_name_that_the_node_lists() -> None:
    nodes = [gpunodes.amd("amd", "mi210", 1)]
    found = planned(late(), nodes, [runs("a", "amd", amd=1)])
    assert found is not None
    assert (found.devices, victims(found)) == ({"amd.com/gpu": 1}, ["a"])
    both = gpunodes.amd("amd", "mi210", 1)
    both["status"]["capacity"]["nvidia.com/gpu"] = "0"
    assert planned(late(), [both], [runs("a", "amd", amd=1)]) is None, "its kubelet would demand both"


def test_a_late_pod_gets_devices_that_meet_its_needs_and_run_its_images() -> None:
    nodes = [gpunodes.nvidia("l4", "l4", 1), gpunodes.nvidia("t4", "t4", 1), gpunodes.nvidia("h100", "h100", 1)]
    pods = [runs("a", "l4", priority=50, gpu=1), runs("b", "t4", gpu=1), runs("c", "h100", gpu=1)]
    found = planned(late(), nodes, pods)
    assert found is not None
    assert found.node == "l4", "no image runs on the others"
    assert planned(late(memory="40Gi"), nodes, pods) is None


def test_an_early_pod_on_the_second_scheduler_gets_devices_that_meet_its_needs() -> None:
    pod = waits(gpu=1)
    pod["metadata"]["annotations"] = {"anygpu.io/memory": "20Gi"}
    nodes = [gpunodes.nvidia("l4", "l4", 1), gpunodes.nvidia("t4", "t4", 1)]
    found = planned(pod, nodes, [runs("a", "l4", priority=50, gpu=1), runs("b", "t4", gpu=1)])
    assert found is not None
    assert found.node == "l4"
    pod["metadata"]["annotations"] = {"anygpu.io/memory": "nonsense"}
    assert planned(pod, nodes, [runs("a", "l4", gpu=1), runs("b", "t4", gpu=1)]) is None


def test_only_nodes_asked_for_are_looked_at() -> None:
    nodes = [gpunodes.nvidia("a", "l4", 1), gpunodes.nvidia("b", "l4", 1)]
    pod = waits(gpu=1)
    fleet = placing.fleet_of(nodes, [runs("x", "a", gpu=1), runs("y", "b", gpu=1), pod])
    found = preempt.plan(kube.to_pod(pod), preempt.scene(fleet, NOW), budgets.Budgets(), ["b", "gone"])
    assert found is not None
    assert found.node == "b"


def test_on_a_node_of_very_many_kinds_of_pod_victims_are_spared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preempt, "MAX_CHOICES", 1)
    pods = [runs(f"web-{at}", priority=at, gpu=1 + at % 2) for at in range(8)]
    nodes = [gpunodes.nvidia("n", "l4", 12)]
    assert victims(planned(waits(gpu=1), nodes, pods)) == ["web-0"]
    assert victims(planned(waits(gpu=3), nodes, pods)) == ["web-0", "web-1"]
    assert victims(planned(waits(gpu=3), nodes, pods, [budget(1, app="web")])) is None
    assert victims(planned(waits(gpu=12), nodes, pods)) == [f"web-{at}" for at in range(8)]


def test_those_that_wait_come_the_most_important_first_then_the_oldest() -> None:
    pods = [waits(name, priority=priority, gpu=1) for name, priority in {"a": 1, "b": 5, "c": 5, "d": 5}.items()]
    for pod, created in zip(pods, ("01", "03", "02", "03"), strict=True):
        pod["metadata"]["creationTimestamp"] = f"2026-01-{created}T00:00:00Z"
    elsewhere, tried, going = waits("e", gpu=1), waits("f", gpu=1), leaves(waits("g", gpu=1))
    elsewhere["spec"]["schedulerName"] = "default-scheduler"
    tried["status"]["conditions"] = []
    found = preempt.waiting(placing.fleet_of([], [*pods, elsewhere, tried, going]))
    assert [pod.metadata.name for pod in found] == ["c", "b", "d", "a"]
