"""Pods that would run if they were made anew: who they are, what their owners do, and what is done about it."""

import asyncio
import datetime
import json
from collections.abc import Callable
from typing import Any

import gpunodes
import placing
import pytest

from images import errors as image_errors
from images import resolve
from scheduler import asks, events, kube, kubeapi, owners, rescue, stranded
from scheduler import decision as decisions
from scheduler import fleet as fleets

Json = dict[str, Any]
NVIDIA, AMD = "nvidia.com/gpu", "amd.com/gpu"
NOW = 1_800_000_000.0
REPLICAS = ("apps/v1", "ReplicaSet")


def ago(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(NOW - seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def owned(document: Json, kind: tuple[str, str] | None, name: str = "web", uid: str = "owner-uid") -> Json:
    if kind is not None:
        document["metadata"]["ownerReferences"] = [
            {"apiVersion": kind[0], "kind": kind[1], "name": name, "uid": uid, "controller": True}
        ]
    return document


def full() -> list[Json]:
    """What takes the only NVIDIA and the only AMD node."""
    return [placing.bound("x", "l4-1", {NVIDIA: 1}), placing.bound("y", "mi210-1", {AMD: 1})]


NODES = [gpunodes.nvidia("l4-1", "l4", 1), gpunodes.amd("mi210-1", "mi210", 1)]


def waiting(
    name: str = "p",
    kind: tuple[str, str] | None = REPLICAS,
    seconds: float = 75,
    owner: str = "owner-uid",
    fleet: fleets.Fleet | None = None,
    **needs: str,
) -> Json:
    """A pod that was admitted when both nodes were full, asking NVIDIA's, and has waited since."""
    fleet = fleet or placing.fleet_of(NODES, full())
    document = placing.admit(gpunodes.pod(name, **(needs or {"memory": "16Gi"})), fleet).pod
    document["metadata"] |= {"uid": f"uid-{name}", "resourceVersion": "7", "creationTimestamp": ago(seconds + 1)}
    document["status"] = {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
                "lastTransitionTime": ago(seconds),
            }
        ],
    }
    return owned(document, kind, uid=owner)


def late(reason: str = "OutOfnvidia.com/gpu", kind: tuple[str, str] | None = REPLICAS, name: str = "l") -> Json:
    document = gpunodes.pod(name, memory="16Gi", binding="late")
    document["metadata"] |= {"uid": f"uid-{name}", "resourceVersion": "7", "labels": {"anygpu.io/binding": "late"}}
    document["spec"]["nodeName"] = "l4-1"
    document["status"] = {"phase": "Failed", "reason": reason, "message": "Pod was rejected: no nvidia.com/gpu left"}
    return owned(document, kind)


def one(document: Json) -> tuple[kube.Pod, decisions.Decision]:
    pod = kube.to_pod(document)
    made = decisions.read(pod.annotations)
    assert made is not None
    return pod, made


# Who is in need


def test_a_pod_waits_since_kube_scheduler_found_no_node() -> None:
    assert stranded.waits_since(kube.to_pod(waiting())) == NOW - 75


def test_without_a_time_on_the_condition_a_pod_waits_since_it_was_made() -> None:
    document = waiting()
    del document["status"]["conditions"][0]["lastTransitionTime"]
    assert stranded.waits_since(kube.to_pod(document)) == NOW - 76
    del document["metadata"]["creationTimestamp"]
    assert stranded.waits_since(kube.to_pod(document)) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod["spec"].update(nodeName="l4-1"),
        lambda pod: pod["status"].update(phase="Running"),
        lambda pod: pod["status"].update(conditions=[]),
        lambda pod: pod["status"]["conditions"][0].update(reason="SchedulingGated"),
        lambda pod: pod["status"].update(nominatedNodeName="l4-1"),
        lambda pod: pod["metadata"].update(deletionTimestamp=ago(1)),
        lambda pod: pod["metadata"].update(labels={"anygpu.io/inject": "false"}),
        lambda pod: pod["metadata"].update(labels={"anygpu.io/binding": "late"}),
        lambda pod: pod["metadata"].update(annotations={}),
        lambda pod: pod["status"]["conditions"][0].update(lastTransitionTime="yesterday"),
    ],
    ids=["bound", "runs", "untried", "gated", "nominated", "going", "opted out", "late", "plain", "no time"],
)
def test_other_pods_do_not_wait_for_rescue(change: Callable[[Json], None]) -> None:
    document = waiting()
    change(document)
    assert stranded.waits_since(kube.to_pod(document)) is None


def test_a_namespace_that_opted_out_is_left_alone() -> None:
    assert stranded.waits_since(kube.to_pod(waiting()), {"default"}) is None
    assert stranded.rejection(kube.to_pod(late()), {"default"}) is None


def test_with_the_other_vendor_free_the_pod_could_run_there() -> None:
    found = stranded.chance(*one(waiting()), placing.IMAGE, placing.fleet_of(NODES, full()[:1]))
    assert found is not None
    assert (found.resource, found.count, found.node, found.skus) == (AMD, 1, "mi210-1", {"mi210"})


@pytest.mark.parametrize("taken", [full(), full()[1:], []], ids=["nothing free", "its own free", "both free"])
def test_there_is_no_chance_where_nothing_else_is_free_or_its_own_is(taken: list[Json]) -> None:
    assert stranded.chance(*one(waiting()), placing.IMAGE, placing.fleet_of(NODES, taken)) is None


def test_a_better_gpu_of_another_vendor_is_no_reason_where_the_pods_own_would_do() -> None:
    nodes = [gpunodes.nvidia("h100-1", "h100", 1), gpunodes.amd("mi210-1", "mi210", 1)]
    taken = [placing.bound("x", "h100-1", {NVIDIA: 1}), placing.bound("y", "mi210-1", {AMD: 1})]
    document = waiting(fleet=placing.fleet_of(nodes, taken), memory="16Gi", vendor="nvidia,amd")
    document["metadata"]["annotations"].pop("anygpu.io/vendor")  # now the least capable that fits is AMD's
    pod, made = one(document)
    assert made.resource == NVIDIA
    assert placing.admit(gpunodes.pod(memory="16Gi"), placing.fleet_of(nodes)).decision.resource == AMD
    assert stranded.chance(pod, made, placing.IMAGE, placing.fleet_of(nodes)) is None
    assert stranded.chance(pod, made, placing.IMAGE, placing.fleet_of(nodes, taken[:1])) is not None


def test_a_vendor_that_the_image_has_no_variant_for_is_no_chance() -> None:
    free = placing.fleet_of(NODES, full()[:1])
    assert stranded.chance(*one(waiting()), placing.image("nvidia"), free) is None


@pytest.mark.parametrize("needs", [{"vendor": "nvidia"}, {"sku": "l4"}], ids=str)
def test_what_the_pod_itself_says_is_kept(needs: dict[str, str]) -> None:
    document = waiting(memory="16Gi", **needs)
    assert stranded.chance(*one(document), placing.IMAGE, placing.fleet_of(NODES, full()[:1])) is None


def test_a_resource_that_the_pod_asks_itself_is_kept() -> None:
    written = gpunodes.pod("p", memory="16Gi")
    written["spec"]["containers"][0]["resources"] = {"limits": {NVIDIA: "1"}}
    document = placing.admit(written, placing.fleet_of(NODES, full())).pod
    assert stranded.chance(*one(document), placing.IMAGE, placing.fleet_of(NODES, full()[:1])) is None


def test_annotations_that_state_no_need_any_more_are_no_chance() -> None:
    document = waiting()
    document["metadata"]["annotations"]["anygpu.io/sku"] = "x9000"
    assert stranded.chance(*one(document), placing.IMAGE, placing.fleet_of(NODES, full()[:1])) is None


def test_the_logical_image_is_the_one_that_the_user_wrote() -> None:
    pod, made = one(waiting())
    assert made.images["main"].startswith("registry.test/team/app@sha256:")
    assert stranded.logical_image(pod, made) == "registry.test/team/app:v1"
    for spoilt in ("", "[]", "{", '{"main": 7}'):
        document = waiting()
        document["metadata"]["annotations"]["anygpu.io/requested-image"] = spoilt
        assert stranded.logical_image(kube.to_pod(document), made) == made.images["main"]


def test_a_fleet_is_seen_without_a_pods_own_hold_and_with_what_is_expected() -> None:
    fleet = placing.fleet_of(NODES)
    document = placing.admit(gpunodes.pod(memory="16Gi"), fleet).pod
    document["metadata"]["uid"] = "uid-p"
    fleet.apply_pod(kube.to_pod(document))
    before = list(fleet.ledger.items())
    assert fleet.held("l4-1", NVIDIA) == 1
    expected = stranded.chance(*one(waiting()), placing.IMAGE, placing.fleet_of(NODES, full()[:1]))
    assert expected is not None
    seen = stranded.as_if(fleet, kube.PodUid("uid-p"), [expected])
    assert (seen.held("l4-1", NVIDIA), seen.held("mi210-1", AMD)) == (0, 1)
    assert (list(fleet.ledger.items()), fleet.held("mi210-1", AMD)) == (before, 0)
    assert stranded.as_if(fleet, kube.PodUid("other"), []) is fleet


@pytest.mark.parametrize("reason", ["OutOfnvidia.com/gpu", "OutOfcpu", "UnexpectedAdmissionError"])
def test_a_late_pod_that_its_kubelet_rejected_is_in_need(reason: str) -> None:
    why = stranded.rejection(kube.to_pod(late(reason)))
    assert why == f"the kubelet of l4-1 rejected it ({reason}): Pod was rejected: no nvidia.com/gpu left"


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod["status"].update(reason="Evicted"),
        lambda pod: pod["status"].pop("reason"),
        lambda pod: pod["status"].update(phase="Running"),
        lambda pod: pod["metadata"].update(labels={}),
        lambda pod: pod["metadata"].update(labels={"anygpu.io/binding": "claim"}),
        lambda pod: pod["metadata"].update(deletionTimestamp=ago(1)),
    ],
    ids=["evicted", "its own failure", "runs", "early", "claim", "going"],
)
def test_other_failed_pods_are_not(change: Callable[[Json], None]) -> None:
    document = late()
    change(document)
    assert stranded.rejection(kube.to_pod(document)) is None


@pytest.mark.parametrize(
    ("status", "ran"),
    [
        ({}, False),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": {}}]}, False),
        ({"containerStatuses": [{"state": {"running": {}}}]}, True),
        ({"containerStatuses": [{"state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 1}}}]}, True),
        ({"initContainerStatuses": [{"state": {"terminated": {"exitCode": 0}}}], "containerStatuses": None}, True),
    ],
)
def test_a_pod_that_ran_before_its_rejection_is_told_from_one_that_never_did(status: Json, ran: bool) -> None:
    assert stranded.ever_ran({"status": status}) is ran


# What owners do

JOB = ("batch/v1", "Job")


def job(failed: int = 0, uncounted: int = 0, conditions: list[Json] | None = None, **spec: Any) -> owners.Job:
    return owners.to_job(
        {
            "metadata": {"name": "train", "uid": "owner-uid"},
            "spec": {"backoffLimit": 6, "parallelism": 1, **spec},
            "status": {
                "failed": failed,
                "uncountedTerminatedPods": {"failed": [f"uid-u{number}" for number in range(uncounted)]},
                "conditions": conditions or [],
            },
        }
    )


def policy(*rules: tuple[str, str | None]) -> Json:
    """Rules of an action and the condition they look for; None: exit codes."""
    return {
        "rules": [
            {"action": action, "onPodConditions": [{"type": condition}]}
            if condition
            else {"action": action, "onExitCodes": {"operator": "NotIn", "values": [0]}}
            for action, condition in rules
        ]
    }


def fate(of: owners.Job, pods: list[Json] | None = None, **annotations: str) -> owners.Fate | owners.Gone:
    document = waiting(kind=JOB)
    document["metadata"]["annotations"] |= {
        f"batch.kubernetes.io/{k.replace('_', '-')}": v for k, v in annotations.items()
    }
    tracked = owners.pods_of({"items": pods or []}, "owner-uid")
    return owners.job_fate(of, tracked, kube.to_pod(document))


@pytest.mark.parametrize(
    ("kind", "replaced", "says"),
    [
        (REPLICAS, True, ""),
        (("v1", "ReplicationController"), True, ""),
        (("apps/v1", "StatefulSet"), True, ""),
        (None, False, "no controller owns the pod: delete it and create it again"),
        (("apps/v1", "DaemonSet"), False, "a DaemonSet's pods are left alone"),
        (("ray.io/v1", "RayCluster"), False, "whether RayCluster web (ray.io/v1) makes a new pod"),
        (("example.io/v1", "ReplicaSet"), False, "whether ReplicaSet web (example.io/v1) makes a new pod"),
    ],
    ids=lambda value: "" if isinstance(value, bool) else str(value)[:30],
)
def test_owners_make_new_pods_or_not(kind: tuple[str, str] | None, replaced: bool, says: str) -> None:
    found = owners.fate(owners.controller(kube.to_pod(owned(waiting(kind=None), kind))))
    assert found.replaced is replaced
    assert says in found.says


def test_an_owner_that_does_not_control_is_none() -> None:
    document = waiting()
    document["metadata"]["ownerReferences"][0]["controller"] = False
    assert owners.controller(kube.to_pod(document)) is None


@pytest.mark.parametrize(
    ("limit", "failed", "uncounted", "replaced"),
    [
        (6, 0, 0, True),
        (6, 4, 0, True),
        (6, 5, 0, False),
        (6, 3, 2, False),
        (2, 0, 0, True),
        (1, 0, 0, False),
        (0, 0, 0, False),
    ],
)
def test_a_jobs_last_retry_is_not_used_up(limit: int, failed: int, uncounted: int, replaced: bool) -> None:
    found = fate(job(failed, uncounted, backoffLimit=limit))
    assert isinstance(found, owners.Fate)
    assert found.replaced is replaced
    spent = failed + uncounted
    if replaced:
        assert found.says == f"Job train counts it as failure {spent + 1} of backoffLimit {limit}"
    else:
        assert f"{spent} of backoffLimit {limit} failures are spent" in found.says
        assert f"raise backoffLimit to {spent + 2}" in found.says


def test_pods_that_the_job_has_not_counted_yet_are_counted_for_it() -> None:
    def pod(name: str, finalizers: list[str], phase: str, going: bool = False, owner: str = "owner-uid") -> Json:
        metadata = {"name": name, "uid": f"uid-{name}", "finalizers": finalizers}
        metadata |= {"deletionTimestamp": ago(1)} if going else {}
        return owned({"metadata": metadata, "status": {"phase": phase}}, JOB, uid=owner)

    tracking = ["batch.kubernetes.io/job-tracking"]
    pods = [
        pod("going", tracking, "Pending", going=True),
        pod("failed", tracking, "Failed"),
        pod("u0", tracking, "Failed"),  # in status.uncountedTerminatedPods already
        pod("counted", [], "Failed"),
        pod("done", tracking, "Succeeded", going=True),
        pod("runs", tracking, "Running"),
        pod("other", tracking, "Failed", owner="another-uid"),
    ]
    found = fate(job(1, 1), pods)
    assert found == owners.Fate(True, "Job train counts it as failure 5 of backoffLimit 6")


@pytest.mark.parametrize(
    ("spec", "conditions"),
    [({"suspend": True}, []), *(({}, [{"type": kind, "status": "True"}]) for kind in owners.ENDED)],
    ids=str,
)
def test_a_job_that_ends_or_pauses_takes_its_pods_along(spec: Json, conditions: list[Json]) -> None:
    assert isinstance(fate(job(conditions=conditions, **spec)), owners.Gone)


def test_a_job_that_resumed_or_is_being_watched_by_its_own_controller_is_not_ended() -> None:
    resumed = [{"type": "Suspended", "status": "False"}, {"type": "Failed", "status": "False"}]
    found = fate(job(conditions=resumed, managedBy="kubernetes.io/job-controller", suspend=False))
    assert isinstance(found, owners.Fate)
    assert found.replaced


def test_another_controllers_job_is_left_alone() -> None:
    found = fate(job(managedBy="kueue.x-k8s.io/multikueue"))
    assert isinstance(found, owners.Fate)
    assert (found.replaced, "managed by kueue.x-k8s.io/multikueue" in found.says) == (False, True)


@pytest.mark.parametrize(
    ("rules", "replaced", "says"),
    [
        ([("Ignore", "DisruptionTarget")], True, "counts no failure"),
        ([("FailJob", "DisruptionTarget")], False, "answers a disrupted pod with FailJob"),
        ([("FailIndex", "PodScheduled")], True, "failure 1 of backoffLimit 6"),  # its status is True by default
        ([("Count", "DisruptionTarget"), ("Ignore", "DisruptionTarget")], True, "failure 1 of backoffLimit 6"),
        ([("FailJob", None), ("Ignore", "DisruptionTarget")], True, "counts no failure"),
        ([], True, "failure 1 of backoffLimit 6"),
    ],
)
def test_a_pod_failure_policy_says_what_the_eviction_means(
    rules: list[tuple[str, str | None]], replaced: bool, says: str
) -> None:
    found = fate(job(podFailurePolicy=policy(*rules), podReplacementPolicy="Failed"))
    assert isinstance(found, owners.Fate)
    assert found.replaced is replaced
    assert says in found.says


def test_a_policy_that_looks_for_a_condition_that_the_waiting_pod_has_is_obeyed() -> None:
    rules = {"rules": [{"action": "FailJob", "onPodConditions": [{"type": "PodScheduled", "status": "False"}]}]}
    found = fate(job(podFailurePolicy=rules))
    assert isinstance(found, owners.Fate)
    assert not found.replaced


def test_with_ignored_disruptions_a_job_without_retries_is_rescued() -> None:
    found = fate(job(backoffLimit=0, podFailurePolicy=policy(("Ignore", "DisruptionTarget"))))
    assert isinstance(found, owners.Fate)
    assert found.replaced


@pytest.mark.parametrize(
    ("limit", "annotation", "replaced"),
    [(2, "0", True), (2, "1", False), (1, "0", False), (0, "0", False), (2, "x", True)],
)
def test_an_indexs_last_retry_is_not_used_up(limit: int, annotation: str, replaced: bool) -> None:
    indexed = job(backoffLimit=2**31 - 1, backoffLimitPerIndex=limit, completionMode="Indexed")
    found = fate(indexed, job_index_failure_count=annotation)
    assert isinstance(found, owners.Fate)
    assert found.replaced is replaced
    if not replaced:
        assert f"{annotation} of backoffLimitPerIndex {limit} failures are spent" in found.says


# What is done


class FakeApi:
    """Pods, Jobs and Events, with the preconditions and conflicts of the real ones."""

    def __init__(self, *pods: Json, jobs: dict[str, Json] | None = None) -> None:
        self.pods = {_path(pod): pod for pod in pods}
        self.jobs = jobs or {}
        self.events: dict[str, Json] = {}
        self.evicted: list[str] = []
        self.fails: dict[str, Exception] = {}
        """What a POST to a path that contains the key raises."""
        self.before_evict: Callable[[Json], None] | None = None

    def get_json(self, path: str, query: dict[str, str] | None = None) -> Any:
        if path.endswith("/pods"):
            return {"items": list(self.pods.values())}
        found = {**self.pods, **self.jobs, **self.events}.get(path)
        if found is None:
            raise kubeapi.ApiError(404, path)
        return json.loads(json.dumps(found))

    def post(self, path: str, body: Json) -> Any:
        for key, error in self.fails.items():
            if key in path:
                raise error
        if path.endswith("/eviction"):
            return self._evict(path.removesuffix("/eviction"), body)
        name = f"{path}/{body['metadata']['name']}"
        if name in self.events:
            raise kubeapi.ApiError(409, "AlreadyExists")
        self.events[name] = body
        return body

    def _evict(self, path: str, body: Json) -> None:
        pod = self.pods.get(path)
        if pod is not None and self.before_evict is not None:
            change, self.before_evict = self.before_evict, None
            change(pod)
        pod = self.pods.get(path)
        if pod is None:
            raise kubeapi.ApiError(404, "NotFound")
        wanted = body["deleteOptions"]["preconditions"]
        have = {"uid": pod["metadata"]["uid"], "resourceVersion": pod["metadata"]["resourceVersion"]}
        if wanted != have:
            raise kubeapi.ApiError(409, "Conflict")
        del self.pods[path]
        self.evicted.append(pod["metadata"]["name"])

    def notes(self, reason: str = "GPUReplaced") -> list[str]:
        return [event["note"] for event in self.events.values() if event["reason"] == reason]


def _path(pod: Json) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


class World:
    """A rescuer over a fleet and a fake API, at a time of its own."""

    def __init__(self, *pods: Json, nodes: list[Json] | None = None, **limits: Any) -> None:
        self.now, self.leads = NOW, True
        self.api = FakeApi(*pods)
        self.fleet = placing.fleet_of(nodes or NODES, [*full()[:1], *pods])
        self.image: resolve.Resolved | Exception = placing.IMAGE
        self.asked: list[str] = []
        self.rescuer = rescue.Rescuer(
            self.api,  # type: ignore[arg-type]
            self.fleet,
            self.variants,
            rescue.Limits(**{"settle_seconds": 0.0, **limits}),
            lambda: self.leads,
            lambda: self.now,
        )

    async def variants(self, image: str) -> resolve.Resolved:
        self.asked.append(image)
        if isinstance(self.image, Exception):
            raise self.image
        return self.image

    def step(self, after: float = 0.0) -> list[str]:
        """What is evicted in a step, some seconds later."""
        self.now += after
        before = len(self.api.evicted)
        asyncio.run(self.rescuer.step())
        gone = self.api.evicted[before:]
        for name in gone:
            self.fleet.remove_pod(kube.PodUid(f"uid-{name}"))
        return gone


def test_a_pod_that_waits_for_the_wrong_vendor_is_replaced_and_its_owner_hears_why() -> None:
    world = World(waiting())
    assert world.step() == ["p"]
    assert world.asked == ["registry.test/team/app:v1"]
    ((path, event),) = world.api.events.items()
    assert path.endswith("/events/web.owner-ui.rescue-1")
    assert (
        event["note"]
        == "waited 75 s for nvidia.com/gpu, amd.com/gpu is free on mi210-1; replacing it (1 of 3 this hour)"
    )
    assert (event["reason"], event["type"]) == ("GPUReplaced", "Normal")
    assert (event["regarding"]["name"], event["regarding"]["uid"]) == ("p", "uid-p")
    assert event["related"] == {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "web",
        "namespace": "default",
        "uid": "owner-uid",
    }
    assert event["eventTime"] == "2027-01-15T08:00:00.000000Z"


def test_nothing_is_done_before_the_threshold() -> None:
    world = World(waiting(seconds=50))
    assert (world.step(), world.asked) == ([], [])
    assert world.step(after=11) == ["p"]


def test_the_other_device_must_stay_free_for_a_while() -> None:
    world = World(waiting(), settle_seconds=15.0)
    assert world.step() == []
    assert world.step(after=10) == []
    world.fleet.apply_pod(kube.to_pod(placing.bound("brief", "mi210-1", {AMD: 1})))
    assert world.step(after=3) == []
    world.fleet.remove_pod(kube.PodUid("uid-brief"))
    assert world.step(after=3) == []
    assert world.step(after=14) == []
    assert world.step(after=1) == ["p"]


def test_a_chance_that_went_begins_anew() -> None:
    world = World(waiting(), settle_seconds=15.0)
    assert world.step() == []
    world.image = placing.image("nvidia")
    assert world.step(after=14) == []
    world.image = placing.IMAGE
    assert world.step(after=3) == []
    assert world.step(after=14) == []
    assert world.step(after=1) == ["p"]


def test_a_pod_with_a_hold_of_its_own_is_judged_without_it_and_keeps_it() -> None:
    document = waiting(fleet=placing.fleet_of(NODES))  # decided when its own vendor was free
    world = World(document)
    assert world.fleet.held("l4-1", NVIDIA) == 1
    assert world.step() == ["p"]


def test_what_new_pods_will_take_is_not_promised_twice() -> None:
    world = World(*(waiting(f"p{n}", owner=f"owner-{n}", seconds=100 - n) for n in range(3)))
    assert world.step() == ["p0"]
    assert world.step(after=3) == []
    # 30 s later the new pod is known, or is none: here it is none.
    assert world.step(after=30) == ["p1"]


def test_a_new_pod_that_is_known_is_counted_as_itself() -> None:
    nodes = [NODES[0], gpunodes.amd("mi210-1", "mi210", 2)]
    world = World(waiting("p0", owner="a"), waiting("p1", owner="b", seconds=70), nodes=nodes, looks=1)
    assert world.step() == ["p0"]
    assert len(world.rescuer._expected) == 1
    successor = owned(placing.bound("p0-again", "mi210-1", {AMD: 1}), REPLICAS, uid="a")
    other = owned(placing.bound("stranger", None, {AMD: 1}), REPLICAS, uid="c")
    for each in (successor, other):
        world.fleet.apply_pod(kube.to_pod(each))
    world.fleet.remove_pod(kube.PodUid("uid-stranger"))
    assert world.step(after=3) == ["p1"]
    assert [each.owner for each in world.rescuer._expected] == ["b"]


def test_each_new_pod_of_an_owner_is_one_of_those_expected() -> None:
    nodes = [NODES[0], gpunodes.amd("mi210-1", "mi210", 3)]
    world = World(*(waiting(f"p{n}", seconds=100 + n) for n in range(2)), waiting("q", owner="b"), nodes=nodes, looks=2)
    assert world.step() == ["p1", "p0"]
    assert len(world.rescuer._expected) == 2
    world.fleet.apply_pod(kube.to_pod(owned(placing.bound("new", "mi210-1", {AMD: 1}), REPLICAS)))
    assert world.step(after=3) == ["q"]
    assert [each.owner for each in world.rescuer._expected] == ["owner-uid", "b"]


def test_as_many_are_replaced_at_once_as_there_are_devices_the_oldest_first() -> None:
    nodes = [NODES[0], gpunodes.amd("mi210-1", "mi210", 2)]
    world = World(*(waiting(f"p{n}", owner=f"owner-{n}", seconds=100 + n) for n in range(4)), nodes=nodes)
    assert world.step() == ["p3", "p2"]


def test_an_owner_has_three_replacements_an_hour_and_hears_of_the_limit_once() -> None:
    nodes = [NODES[0], gpunodes.amd("mi210-1", "mi210", 8)]
    world = World(*(waiting(f"p{n}", seconds=100 + n) for n in range(6)), nodes=nodes)
    assert world.step() == ["p5", "p4", "p3"]
    assert [note.partition("; ")[2] for note in world.api.notes()] == [
        f"replacing it ({n} of 3 this hour)" for n in (1, 2, 3)
    ]
    (note,) = world.api.notes("GPUNotReplaced")
    assert "ReplicaSet web had 3 pods replaced within the hour, which is the limit" in note
    assert world.step(after=400) == []
    assert len(world.api.events) == 4
    world.api.events.clear()  # an hour later
    assert world.step(after=3600) == ["p2", "p1", "p0"]


def test_an_owner_that_was_refused_rests_with_all_its_pods() -> None:
    nodes = [NODES[0], gpunodes.amd("mi210-1", "mi210", 8)]
    world = World(*(waiting(f"p{n}", kind=("ray.io/v1", "RayCluster")) for n in range(3)), nodes=nodes)
    for after in (0, 3, 290):
        assert world.step(after) == []
    assert (len(world.asked), len(world.api.events)) == (1, 1)
    assert world.step(after=10) == []
    assert (len(world.asked), len(world.api.events)) == (2, 2)


def test_a_pod_that_the_watch_still_shows_is_not_tried_again() -> None:
    world = World(waiting(), nodes=[NODES[0], gpunodes.amd("mi210-1", "mi210", 8)])
    asyncio.run(world.rescuer.step())
    assert world.step(after=3) == []
    assert (len(world.asked), len(world.api.events)) == (1, 1)
    assert world.step(after=30) == []  # it is looked up, and gone
    assert len(world.api.events) == 1


def test_at_most_ten_are_replaced_a_minute() -> None:
    nodes = [NODES[0], gpunodes.amd("mi210-1", "mi210", 64)]
    world = World(*(waiting(f"p{n:02}", owner=f"owner-{n}") for n in range(25)), nodes=nodes, looks=100)
    assert len(world.step()) == 10
    assert world.step(after=59) == []
    assert len(world.step(after=1)) == 10


def test_looks_are_bounded_and_everybody_gets_one() -> None:
    world = World(*(waiting(f"p{n}", owner=f"owner-{n}", seconds=200 - n) for n in range(10)), looks=4)
    world.image = placing.image("nvidia")
    for after in (0, 3, 3):
        world.step(after)
    assert len(world.asked) == 12
    assert set(world.rescuer._looked.values()) == {NOW, NOW + 3, NOW + 6}
    assert sum(at == NOW + 6 for at in world.rescuer._looked.values()) == 4


def test_where_nothing_is_free_nobody_is_looked_at() -> None:
    world = World(waiting())
    world.fleet.apply_pod(kube.to_pod(full()[1]))
    assert (world.step(), world.asked, world.rescuer._looked) == ([], [], {})


def test_where_only_its_own_resource_is_free_nothing_is_surveyed() -> None:
    world = World(waiting())
    world.fleet.remove_pod(kube.PodUid("uid-x"))
    world.fleet.apply_pod(kube.to_pod(full()[1]))
    assert (world.step(), world.asked, len(world.rescuer._looked)) == ([], [], 1)


def test_where_too_few_of_another_resource_are_free_nothing_is_surveyed() -> None:
    nodes = [gpunodes.nvidia("l4-1", "l4", 2), gpunodes.amd("mi210-1", "mi210", 2)]
    taken = [placing.bound("x", "l4-1", {NVIDIA: 2}), placing.bound("y", "mi210-1", {AMD: 2})]
    world = World(waiting(fleet=placing.fleet_of(nodes, taken), memory="16Gi", gpus="2"), nodes=nodes)
    world.fleet.apply_pod(kube.to_pod(taken[0]))
    world.fleet.apply_pod(kube.to_pod(placing.bound("y", "mi210-1", {AMD: 1})))
    assert (world.step(), world.asked, len(world.rescuer._looked)) == ([], [], 1)
    world.fleet.remove_pod(kube.PodUid("uid-y"))
    assert world.step(after=3) == ["p"]


def test_one_look_stands_for_all_pods_of_an_owner() -> None:
    world = World(*(waiting(f"p{n}") for n in range(50)))
    world.image = placing.image("nvidia")
    assert world.step() == []
    assert len(world.asked) == 1


@pytest.mark.parametrize(
    "error", [image_errors.RegistryUnreachable("down"), image_errors.NoVariant("gone")], ids=["down", "no image"]
)
def test_without_the_images_variants_nothing_is_done(error: Exception) -> None:
    world = World(waiting())
    world.image = error
    assert (world.step(), world.api.events) == ([], {})


@pytest.mark.parametrize("kind", [None, ("apps/v1", "DaemonSet"), ("ray.io/v1", "RayCluster")], ids=str)
def test_pods_that_nobody_would_make_anew_stay_and_are_told_what_to_do_once(kind: tuple[str, str] | None) -> None:
    world = World(waiting(kind=kind))
    assert world.step() == []
    ((path, event),) = world.api.events.items()
    assert path.endswith("/events/p.uid-p.rescue-left")
    assert (event["reason"], event["type"], "related" in event) == ("GPUNotReplaced", "Warning", kind is not None)
    assert event["note"].startswith("waited 75 s for nvidia.com/gpu, amd.com/gpu is free on mi210-1, but ")
    assert "delete" in event["note"]
    before = len(world.asked)
    assert world.step(after=301) == []
    assert (len(world.api.events), len(world.asked)) == (1, before)
    assert world.step(after=3600) == []  # looked at again, written once
    assert (len(world.api.events), len(world.asked)) == (1, before + 1)


def test_a_daemon_sets_pod_is_judged_for_its_own_node_alone() -> None:
    fleet = placing.fleet_of(NODES, full())
    written = gpunodes.pod("d", memory="16Gi")
    field = {"key": "metadata.name", "operator": "In", "values": ["l4-1"]}
    required = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    written["spec"]["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    document = placing.admit(written, fleet).pod
    assert stranded.chance(*one(document), placing.IMAGE, placing.fleet_of(NODES, full()[:1])) is None


def test_a_pod_that_was_bound_before_the_event_is_left_alone() -> None:
    world = World(waiting())
    world.api.pods[_path(waiting())]["spec"]["nodeName"] = "l4-1"
    assert (world.step(), world.api.events) == ([], {})


def test_a_pod_that_is_bound_between_the_event_and_the_eviction_is_left_alone() -> None:
    world = World(waiting())
    world.api.before_evict = lambda pod: (
        pod["spec"].update(nodeName="l4-1"),  # type: ignore[func-returns-value]
        pod["metadata"].update(resourceVersion="8"),
    )[0]
    assert world.step() == []
    assert len(world.api.pods) == 1


def test_a_pod_that_changed_and_still_waits_is_replaced_under_one_number() -> None:
    world = World(waiting())
    world.api.before_evict = lambda pod: pod["metadata"].update(resourceVersion="8")
    assert world.step() == ["p"]
    assert len(world.api.events) == 1


def test_a_pod_of_the_same_name_is_another_one() -> None:
    world = World(waiting(kind=("apps/v1", "StatefulSet")))
    world.api.pods[_path(waiting())]["metadata"]["uid"] = "uid-successor"
    assert (world.step(), world.api.events) == ([], {})


def test_a_pod_that_is_gone_is_not_missed() -> None:
    world = World(waiting())
    world.api.pods.clear()
    assert (world.step(), world.api.events) == ([], {})


@pytest.mark.parametrize("error", [kubeapi.ApiError(500, "x"), kubeapi.ApiError(429, "x"), OSError("cut")], ids=str)
def test_an_eviction_that_fails_is_tried_again_under_the_number_it_has(error: Exception) -> None:
    world = World(waiting())
    world.api.fails["/eviction"] = error
    for after in (0.0, 31.0, 31.0, 31.0):
        assert world.step(after) == []
    assert len(world.api.events) == 1
    world.api.fails.clear()
    assert world.step(after=31) == ["p"]
    assert len(world.api.events) == 1


def test_without_the_event_nothing_is_evicted() -> None:
    world = World(waiting())
    world.api.fails["/events"] = kubeapi.ApiError(403, "forbidden")
    assert world.step() == []
    world.api.fails.clear()
    assert world.step(after=3) == []
    assert world.step(after=31) == ["p"]


def test_one_pod_that_fails_does_not_hold_up_the_others() -> None:
    nodes = [NODES[0], gpunodes.amd("mi210-1", "mi210", 8)]
    world = World(waiting("bad", owner="bad", seconds=200), waiting("good", owner="good"), nodes=nodes)
    world.api.fails["/bad/eviction"] = kubeapi.ApiError(500, "x")
    assert world.step() == ["good"]


def test_a_leader_that_died_after_its_event_is_followed_by_one_that_evicts_under_the_same_number() -> None:
    world = World(waiting())
    world.api.fails["/eviction"] = OSError("killed")
    world.step()
    world.api.fails.clear()
    successor = World(waiting())
    successor.api = successor.rescuer._api = world.api  # type: ignore[assignment]
    assert successor.step() == ["p"]
    assert len(world.api.events) == 1


def test_who_lost_the_lead_in_the_middle_of_a_step_does_nothing_more() -> None:
    world = World(waiting())
    world.leads = False
    assert (world.step(), world.api.events) == ([], {})
    world.leads = True
    assert world.step(after=3) == ["p"]


def test_a_job_is_read_with_its_pods_before_its_pod_is_replaced() -> None:
    world = World(waiting(kind=JOB))
    document = {
        "metadata": {"name": "web", "uid": "owner-uid"},
        "spec": {"backoffLimit": 6},
        "status": {"ready": 0, "terminating": 0},
    }
    world.api.jobs["/apis/batch/v1/namespaces/default/jobs/web"] = document
    assert world.step() == ["p"]
    assert world.api.notes()[0].endswith(
        "replacing it (1 of 3 this hour); Job web counts it as failure 1 of backoffLimit 6"
    )


def test_a_job_without_retries_keeps_its_pod_and_hears_why() -> None:
    world = World(waiting(kind=JOB))
    document = {"metadata": {"name": "web", "uid": "owner-uid"}, "spec": {"backoffLimit": 0}, "status": {}}
    world.api.jobs["/apis/batch/v1/namespaces/default/jobs/web"] = document
    assert world.step() == []
    (note,) = world.api.notes("GPUNotReplaced")
    assert "raise backoffLimit to 2" in note


@pytest.mark.parametrize("uid", [None, "another"], ids=["deleted", "another of its name"])
def test_the_pod_of_a_job_that_is_gone_goes_by_itself(uid: str | None) -> None:
    world = World(waiting(kind=JOB))
    if uid:
        world.api.jobs["/apis/batch/v1/namespaces/default/jobs/web"] = {"metadata": {"name": "web", "uid": uid}}
    assert (world.step(), world.api.events) == ([], {})


def rejected(document: Json, **limits: Any) -> World:
    world = World(**limits)
    world.api.pods[_path(document)] = document
    world.rescuer.saw_failed(kube.to_pod(document))
    return world


def test_a_rejected_late_pod_of_a_replica_set_is_removed_with_an_event() -> None:
    world = rejected(late())
    assert world.step() == ["l"]
    (note,) = world.api.notes()
    assert note == (
        "the kubelet of l4-1 rejected it (OutOfnvidia.com/gpu): Pod was rejected: no nvidia.com/gpu left; "
        "replacing it (1 of 3 this hour); ReplicaSet web makes a new pod by itself"
    )
    assert world.rescuer._rejected == {}


@pytest.mark.parametrize("kind", [JOB, ("apps/v1", "StatefulSet"), ("apps/v1", "DaemonSet")], ids=str)
def test_owners_that_deal_with_failed_pods_themselves_are_left_to_it(kind: tuple[str, str]) -> None:
    world = rejected(late(kind=kind))
    assert (world.step(), world.api.events, world.rescuer._rejected) == ([], {}, {})


@pytest.mark.parametrize("kind", [None, ("ray.io/v1", "RayCluster")], ids=str)
def test_a_rejected_pod_that_nobody_would_make_anew_stays_and_is_told_what_to_do(kind: tuple[str, str] | None) -> None:
    world = rejected(late(kind=kind))
    assert world.step() == []
    (note,) = world.api.notes("GPUNotReplaced")
    assert note.startswith("the kubelet of l4-1 rejected it")
    assert "delete" in note
    assert world.rescuer._rejected == {}


def test_a_rejected_pod_that_had_run_is_left_alone() -> None:
    document = late()
    document["status"]["containerStatuses"] = [{"state": {"terminated": {"exitCode": 137}}}]
    world = rejected(document)
    assert (world.step(), world.api.events, world.rescuer._rejected) == ([], {}, {})


def test_rejected_pods_count_against_the_same_limits() -> None:
    documents = [late(name=f"l{number}") for number in range(5)]
    world = rejected(documents[0])
    for document in documents:
        world.api.pods[_path(document)] = document
        world.rescuer.saw_failed(kube.to_pod(document))
    assert world.step() == ["l0", "l1", "l2"]
    assert len(world.api.notes("GPUNotReplaced")) == 1
    assert set(world.rescuer._rejected) == {"uid-l3", "uid-l4"}
    world.rescuer.forgot(kube.PodUid("uid-l3"))
    assert set(world.rescuer._rejected) == {"uid-l4"}
    world.api.events.clear()
    assert world.step(after=301) == ["l4"]


def test_failed_pods_of_any_other_kind_are_not_kept_in_mind() -> None:
    world = World()
    world.rescuer.saw_failed(kube.to_pod(late("Evicted")))
    assert world.rescuer._rejected == {}


def test_what_is_remembered_does_not_grow_with_history() -> None:
    world = World(waiting(), waiting("q", owner="q"))
    world.step()
    for uid in ("uid-p", "uid-q"):
        world.fleet.remove_pod(kube.PodUid(uid))
    world.step(after=100_000)
    kept = world.rescuer
    assert (kept._looked, kept._free_since, kept._rests, kept._expected) == ({}, {}, {}, [])


def test_the_loop_goes_on_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(waiting())
    world.image = RuntimeError("a defect")
    sleep = asyncio.sleep
    slept: list[float] = []

    async def no_sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds and len(slept) > 3:
            world.image = placing.IMAGE
        await sleep(0.001)

    async def main() -> None:
        task = asyncio.create_task(world.rescuer.run())
        for _ in range(200):
            await sleep(0.005)
            if world.api.evicted:
                break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(rescue.asyncio, "sleep", no_sleep)
    asyncio.run(main())
    assert world.api.evicted == ["p"]


def test_replacements_are_counted() -> None:
    def value(reason: str) -> float:
        return float(rescue.REPLACED.labels(reason)._value.get())

    before = value("waiting"), value("rejected")
    World(waiting()).step()
    rejected(late()).step()
    assert (value("waiting"), value("rejected")) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("name", ["web", "w" * 253, "a" * 230 + "-" + "b" * 20])
def test_events_have_valid_names_that_keep_the_number(name: str) -> None:
    found = events.name(name, "01234567", "rescue-2")
    assert len(found) <= 253
    assert found.endswith(".01234567.rescue-2")
    assert "-." not in found


def test_the_question_is_the_one_that_the_webhook_put() -> None:
    """What a new pod of the same owner would be asked is what the pod is judged by."""
    pod, made = one(waiting())
    fleet = placing.fleet_of(NODES, full()[:1])
    assert asks.read(pod, fleet).asks_resource  # the injected resource would fix the vendor
    anew = placing.admit(gpunodes.pod("p", memory="16Gi"), fleet).decision
    found = stranded.chance(pod, made, placing.IMAGE, fleet)
    assert found is not None
    assert (found.resource, found.node) == (anew.resource, anew.node)
