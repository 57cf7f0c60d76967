"""Devices are counted exactly, however calls interleave, fail and are cut off, on two replicas and two schedulers.

The real binder, filter, webhook and node table run against an API server in memory. What is true is computed here from
that server's objects, by code of its own: no device is taken twice or promised twice, images are their node's vendor's,
and once everything has come to rest nothing is held for nobody and every free device can be had.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fakeapi
import gates
import gpunodes
import hypothesis.strategies as st
import msgspec
import placing
import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from capability_db.catalogue import Catalogue
from scheduler import asks, binder, binding, crossing, errors, extender, feeds, kube, kubeapi, watch
from scheduler import fleet as fleets
from webhooks import mutate

Json = dict[str, Any]

EXAMPLES = int(os.environ.get("ANYGPU_EXAMPLES", "40"))
"""Sequences; `make test` has 300 of them, `make counting` thousands, which takes minutes."""
STEPS = 50
pytestmark = pytest.mark.timeout(0 if EXAMPLES > 1000 else 300)

PODS = "/api/v1/namespaces/default/pods"
RECORDS = "/api/v1/namespaces/anygpu-system/configmaps"
UNRESOLVED = "anygpu.invalid/unresolved"
NODES: dict[str, Callable[[], Json]] = {
    "n0": lambda: gpunodes.nvidia("n0", "l4", 2),
    "n1": lambda: gpunodes.amd("n1", "mi210", 2),
    "n2": lambda: gpunodes.mig_mixed("n2", "a100-80", 1, **{"3g.40gb": 1}),
}
VENDOR = {"n0": "nvidia", "n1": "amd", "n2": "nvidia"}
SKU = {"n0": "l4", "n1": "mi210", "n2": "a100-sxm4-80gb"}
GPUS = ("nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-3g.40gb")


def _allocatable(node: Json) -> dict[str, int]:
    """Devices of each GPU resource that a node lists."""
    return {name: int(count) for name, count in node["status"]["allocatable"].items() if name in GPUS}


OFFERED = [(name, resource) for name, make in NODES.items() for resource in GPUS if resource in _allocatable(make())]
IMAGES = {vendor: options[0].image for vendor, options in placing.IMAGE.options.items()}

MODELS = Catalogue(sku for sku in placing.CATALOGUE if sku.id in {*SKU.values()})
"""A DB of what the nodes have: what admission tells of hundreds of models is tested elsewhere, and takes its time."""
WEBHOOK_SECONDS = 2
"""The apiserver waits this long for the webhook on bindings (manifests)."""
REQUEST_SECONDS = 60
"""The apiserver ends a request by then."""
LONG_SECONDS = 1000
"""Longer than any entry stands that no bind followed."""


def _asks(pod: Json) -> dict[str, int]:
    """Devices of each GPU resource that a pod carries; of one container, as all pods here."""
    (container,) = pod["spec"]["containers"]
    return {name: int(count) for name, count in container["resources"]["limits"].items() if name in GPUS}


def _decision(pod: Json) -> Json:
    """What a pod's annotation says was decided; empty: nothing was."""
    return json.loads((pod["metadata"].get("annotations") or {}).get("anygpu.io/decision", "{}"))


def _is_late(pod: Json) -> bool:
    return bool(_decision(pod).get("binding") == "late")


def _entries(record: Json) -> list[Json]:
    return json.loads(record["data"]["entries"])


def _is(what: str, call: gates.Call) -> bool:
    """Whether a call is a `put`, a `patch`, or the last one, the `binding`."""
    return call.name.startswith(what) or (what == "binding" and call.name.split("/")[-1] in (what, "land"))


@dataclasses.dataclass(eq=False)
class Run:
    """One operation under way on a replica, or (None) a Binding under way in the API server."""

    kind: str
    replica: int | None
    uid: str = ""
    node: str = ""
    until: float = float("inf")
    """When whoever waits for it gives up."""
    given_up: bool = False
    node_read: int = 0
    """The API's version when it last read its node."""
    operation: gates.Operation = dataclasses.field(init=False)


class Replica:
    """The service's memory: a node table fed by watches that lag as the test likes, and a binder."""

    def __init__(self, api: fakeapi.FakeApi, clock: Callable[[], float]) -> None:
        self._api: Any = api
        self.fleet = fleets.Fleet(MODELS)
        self.fleet.crossing = crossing.Crossing(clock)
        self.binder = binder.Binder(self._api, self.fleet, clock)
        self.clock = clock
        self.feeds = feeds.feeds(self.fleet, {"early", "late"})
        self._reached = [0] * len(self.feeds)
        self._listed = [0] * len(self.feeds)
        for number in range(len(self.feeds)):
            self.relist(number)

    def relist(self, number: int) -> None:
        """The watch was broken for too long: all is listed anew."""
        feed = self.feeds[number]
        feed.on_list([_decoded(each, feed.kind) for each in self._api.list(feed.path, feed.selector)])
        self._reached[number] = self._listed[number] = self._api.version

    def hear(self, number: int, most: int = sys.maxsize) -> None:
        """Some events of one watch arrive."""
        feed = self.feeds[number]
        for version, kind, document in self._api.watch(feed.path, self._reached[number], feed.selector)[:most]:
            feed.on_event(_decoded(document, feed.kind), kind == "DELETED")
            self._reached[number] = version

    def hear_all(self) -> None:
        """Every watch has caught up."""
        for number in range(len(self.feeds)):
            self.hear(number)

    def again(self, number: int, versions: int) -> None:
        """The watch broke in the middle of a batch: its events will come a second time."""
        self._reached[number] = max(self._listed[number], self._reached[number] - versions)

    def state(self) -> Json:
        """All that counting rests on."""
        return {
            "nodes": {
                name: (row.allocatable, row.usage.amounts, {*row.usage.pods}) for name, row in self.fleet.rows.items()
            },
            "pods": {pod.identity: pod for pod in self.fleet.pods()},
            "records": dict(self.fleet.reservations),
            # A pod that is gone is promised nothing, whatever a record still says; who starts now cannot know.
            "promises": {
                key: hold
                for key, hold in self.fleet.promises.items()
                if self.fleet.by_uid(key.partition("@")[0]) is not None
            },
        }


def _decoded(document: Json, kind: type[Any]) -> Any:
    return msgspec.json.decode(msgspec.json.encode(document), type=kind)


Wanted = tuple[int, str, dict[str, Any], bool]
"""Number, kind, details and whether anygpu-scheduler is to bind it."""
WANTED = st.one_of(
    st.tuples(
        st.integers(0, 5),
        st.just("late"),
        st.fixed_dictionaries(
            {"gpus": st.sampled_from(["1", "1", "2", "3"])},
            optional={"vendor": st.sampled_from(["nvidia", "amd", "nvidia,amd"]), "share": st.just("any")},
        ),
        st.just(True),
    ),
    st.tuples(
        st.integers(0, 2),
        st.just("early"),
        st.fixed_dictionaries({"gpus": st.sampled_from(["1", "2"]), "vendor": st.sampled_from(["nvidia", "amd"])}),
        st.booleans(),
    ),
    st.tuples(
        st.integers(0, 3),
        st.just("plain"),
        st.sampled_from([{resource: count} for resource in GPUS for count in (1, 2)]),
        st.booleans(),
    ),
)

TURNS = st.lists(st.integers(0, 17), min_size=4, max_size=24)
"""Whose call happens next: of which run, and which of its calls."""


class Take(NamedTuple):
    """How a scheduler takes a pod."""

    which: int
    """Of the pods that wait."""
    filtering: int
    """Which replica answers its filter."""
    replica: int
    """Which replica answers its bind."""
    node: int
    """Which of the nodes that it may choose."""
    listens: bool
    """Whether anygpu-scheduler filters now; else it has long ago."""
    uid: bool
    """Whether the default scheduler's Binding names the pod's uid."""


TAKES = st.builds(
    Take,
    st.integers(0, 7),
    st.integers(0, 1),
    st.integers(0, 1),
    st.integers(0, 2),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([True, True, False]),
)


class Counting(RuleBasedStateMachine):
    """Two replicas, anygpu-scheduler and the default scheduler on three nodes of two vendors."""

    def __init__(self) -> None:
        super().__init__()
        self.api = fakeapi.FakeApi()
        self.gates = gates.Gates()
        self.now = 1_800_000_000.0
        self.runs: list[Run] = []
        self.zombies: list[tuple[Run, gates.Call]] = []
        """Requests whose sender hears nothing any more, but which may still be done."""
        self.allocatable: dict[str, list[tuple[int, dict[str, int]]]] = collections.defaultdict(list)
        """Of each node, with the version that began it."""
        self.created: set[str] = set()
        self.removed: set[str] = set()
        """Uids of pods that were made, and those that somebody took away."""
        self.bound: set[tuple[str, str]] = set()
        """(uid, node) of every Binding."""
        self.ids = (f"decision-{number:04}" for number in itertools.count(1))
        for make in NODES.values():
            self.api.post("/api/v1/nodes", make())
        self.skews = (0.0, 0.0)
        self.replicas: list[Replica | None] = [None, None]
        self.prompt = (True, True)
        """Which of them hear at once of everything."""
        self._note(0, None)

    @initialize(
        skews=st.tuples(*[st.sampled_from([0.0, 0.0, 10.0, -10.0])] * 2),
        prompt=st.tuples(*[st.sampled_from([True, True, False])] * 2),
        pods=st.lists(WANTED, min_size=3, max_size=7),
    )
    def the_replicas_start(self, skews: tuple[float, float], prompt: tuple[bool, bool], pods: list[Wanted]) -> None:
        self.skews, self.prompt = skews, prompt
        for number in (0, 1):
            self._start(number)
        for wanted in pods:
            self._create(wanted, 0)

    def _start(self, number: int) -> None:
        self.replicas[number] = Replica(self.api, lambda: self.now + self.skews[number])

    # --- What is true ------------------------------------------------------------------------------------------------

    def _pods(self) -> list[Json]:
        return self.api.list("/api/v1/pods")

    def _pod(self, uid: str) -> Json | None:
        return next((pod for pod in self._pods() if pod["metadata"]["uid"] == uid), None)

    def _nodes(self) -> dict[str, Json]:
        return {node["metadata"]["name"]: node for node in self.api.list("/api/v1/nodes")}

    def _records(self) -> dict[str, list[Json]]:
        return {record["data"]["node"]: _entries(record) for record in self.api.list(RECORDS)}

    def _on(self, node: str) -> list[Json]:
        return [
            pod
            for pod in self._pods()
            if pod["spec"].get("nodeName") == node and pod["status"]["phase"] not in ("Succeeded", "Failed")
        ]

    def _taken(self, node: str, resource: str) -> int:
        return sum(_asks(pod).get(resource, 0) for pod in self._on(node))

    def _most(self, node: str, resource: str, since: int) -> int:
        """The most devices that a node has offered since a version."""
        history = self.allocatable[node]
        before = [offered for version, offered in history if version <= since][-1:]
        return max(each.get(resource, 0) for each in [*before, *(o for v, o in history if v > since), {}])

    def _waiting(self) -> list[Json]:
        return [
            pod
            for pod in self._pods()
            if not pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"]
        ]

    def _promised(self, node: str, resource: str, besides: str, *, gone: bool) -> int:
        """Devices promised to pods that are not bound; or are gone, too."""
        found = 0
        for entry in self._records().get(node, []):
            pod = self._pod(entry["uid"])
            is_gone = pod is None or pod["status"]["phase"] in ("Succeeded", "Failed")
            counts = gone if is_gone else not (pod and pod["spec"].get("nodeName"))
            if counts and entry["uid"] != besides:
                found += entry["devices"].get(resource, 0)
        return found

    def _room(self, pod: Json, *, gone: bool = False) -> set[str]:
        """The nodes that have what a pod asks, by what is bound and what is promised to others."""
        uid, asks_, made, found = pod["metadata"]["uid"], _asks(pod), _decision(pod), set()
        for name, node in self._nodes().items():
            offered = _allocatable(node)
            here = [resource for resource in asks_ if resource in offered]
            if made:
                ways = made["alternatives"] or [made]
                suits = len(here) == 1 and any(
                    each["resource"] == here[0] and SKU[name] in each["skus"] for each in ways
                )
            else:
                suits = len(here) == len(asks_)
            if suits and all(
                offered[each] - self._taken(name, each) - self._promised(name, each, uid, gone=gone) >= asks_[each]
                for each in here
            ):
                found.add(name)
        return found

    # --- What is checked at every write ------------------------------------------------------------------------------

    def _release(self, run: Run, call: gates.Call, fate: gates.Fate) -> None:
        before = self.api.version
        self.gates.release(call, fate)
        if fate in ("through", "unheard") and call.name == f"get_json /api/v1/nodes/{run.node}":
            run.node_read = self.api.version
        self._note(before, run)
        if run.operation.done:
            self._ended(run)

    def _note(self, before: int, run: Run | None) -> None:
        """Check what was written since a version, by a run or by anybody else."""
        for change in self.api.log[before:]:
            old, new = change.before, change.after
            if change.resource == "nodes":
                name = (new or old or {})["metadata"]["name"]
                self.allocatable[name].append((change.version, _allocatable(new) if new else {}))
            elif (
                change.resource == "pods" and new and old and new["spec"].get("nodeName") != old["spec"].get("nodeName")
            ):
                uid, node = new["metadata"]["uid"], new["spec"]["nodeName"]
                self.bound.add((uid, node))
                self._check_room(uid, node, run, 0)
            elif change.resource == "configmaps" and new and run and run.kind != "expire":
                self._check_promise(new, run)

    def _check_room(self, uid: str, node: str, run: Run | None, promised: int) -> None:
        """No node has ever given away more than it had since whoever gave it last looked."""
        since = run.node_read if run else self.api.version
        for resource in _asks(self._pod(uid) or {"spec": {"containers": [{"resources": {"limits": {}}}]}}):
            most, taken = self._most(node, resource, since), self._taken(node, resource)
            if most or resource in _allocatable(NODES[node]()):
                assert taken + promised <= most, (
                    f"{taken} {resource} of {most} on {node} are taken, {promised} promised"
                )

    def _check_promise(self, record: Json, run: Run) -> None:
        entries = _entries(record)
        own = next((entry for entry in entries if entry["uid"] == run.uid), None)
        for resource in own["devices"] if own else ():
            promised = 0
            for entry in entries:
                pod = self._pod(entry["uid"])
                if pod and not pod["spec"].get("nodeName"):
                    promised += entry["devices"].get(resource, 0)
            most, taken = self._most(run.node, resource, run.node_read), self._taken(run.node, resource)
            assert taken + promised <= most, f"{taken} {resource} of {most} on {run.node} taken, {promised} promised"

    def _ended(self, run: Run) -> None:
        """Check what an operation says of itself."""
        self.runs.remove(run)
        if run.operation.task.cancelled():
            return
        error = run.operation.task.exception()
        if run.kind == "bind" and error is None:
            assert (run.uid, run.node) in self.bound, f"/bind of {run.uid} to {run.node} succeeded"
        elif error is not None:
            assert run.kind == "bind" and isinstance(error, errors.AnygpuError), repr(error)

    @invariant()
    def images_are_as_they_must_be(self) -> None:
        promised = {entry["uid"] for entries in self._records().values() for entry in entries}
        for pod in self._pods():
            made, node = _decision(pod), pod["spec"].get("nodeName")
            image = pod["spec"]["containers"][0]["image"]
            if not made:
                assert image == "x"
            elif node:
                annotations = pod["metadata"]["annotations"]
                assert image == IMAGES[VENDOR[node]], f"{image} on {node}"
                assert made["vendor"] == VENDOR[node]
                if made["binding"] == "late":
                    assert (made["node"], made["sku"]) == (node, SKU[node])
                    assert annotations["anygpu.io/bound-vendor"] == VENDOR[node]
                    assert made["resource"] in _allocatable(NODES[node]())
            elif made["binding"] == "late":
                assert image == UNRESOLVED or pod["metadata"]["uid"] in promised, f"{image} while nothing is promised"

    @invariant()
    def no_pod_is_lost(self) -> None:
        there = {pod["metadata"]["uid"] for pod in self._pods()}
        assert there == self.created - self.removed

    # --- Pods --------------------------------------------------------------------------------------------------------

    def _alive(self, which: int) -> tuple[int, Replica] | None:
        """One of the replicas that live."""
        alive = list(self._living())
        return alive[which % len(alive)] if alive else None

    def _living(self) -> Iterator[tuple[int, Replica]]:
        yield from ((number, replica) for number, replica in enumerate(self.replicas) if replica)

    def _create(self, wanted: Wanted, which: int) -> None:
        """A pod is made; for one with annotations the webhook, on some replica, has to answer."""
        number, kind, details, ours = wanted
        name = f"{kind}-{number}"
        if ("pods", "default", name) in self.api.objects:
            return
        if kind == "plain":
            document = placing.bound(name, None, details)
            del document["metadata"]["uid"]
        else:
            document = gpunodes.pod(name, binding=kind, memory="16Gi", **details)
        if ours and kind != "late":
            document["spec"]["schedulerName"] = binding.SCHEDULER
        if kind != "plain":
            admitted = self._admit(which, document)
            if admitted is None:
                return
            document = admitted
        assert kind != "late" or document["spec"]["containers"][0]["image"] == UNRESOLVED
        self.created.add(self.api.post(PODS, document)["metadata"]["uid"])

    def _admit(self, which: int, document: Json) -> Json | None:
        """The pod as the webhook makes it; None: the webhook is down, or refuses it."""
        alive = self._alive(which)
        if alive is None:
            return None
        fleet = alive[1].fleet
        pod = kube.to_pod(document)
        try:
            question = asks.read(pod, fleet)
            made = mutate.admit(document, pod, question, placing.IMAGE, fleet, lambda: next(self.ids))
        except errors.AnygpuError:
            return None
        fleet.ledger.reserve(made.decision.id, made.hold, alive[1].clock())
        return made.pod

    @rule(wanted=WANTED, which=st.integers(0, 1))
    def a_pod_is_created(self, wanted: Wanted, which: int) -> None:
        self._create(wanted, which)

    @precondition(lambda self: self._pods())
    @rule(which=st.integers(0, 9), what=st.sampled_from(["deleted", "deleted", "written", "finished", "ended"]))
    def something_becomes_of_a_pod(self, which: int, what: str) -> None:
        """It is deleted or evicted, somebody writes to it, its containers end, its kubelet lets it go."""
        pod = self._pods()[which % len(self._pods())]
        path, is_deleted = f"{PODS}/{pod['metadata']['name']}", "deletionTimestamp" in pod["metadata"]
        if what == "written":
            self.api.patch(path, {"metadata": {"labels": {"somebody": str(self.api.version)}}})
        elif what == "finished" and pod["spec"].get("nodeName"):
            self.api.patch(f"{path}/status", {"status": {"phase": "Succeeded"}})
        elif what == "ended" and is_deleted:
            self._remove(path, self.api.remove)
        elif what == "deleted":
            self._remove(path, self.api.delete)

    def _remove(self, path: str, act: Callable[[str], None]) -> None:
        uid = self.api.get_json(path)["metadata"]["uid"]
        act(path)
        if self._pod(uid) is None:
            self.removed.add(uid)

    # --- Schedulers --------------------------------------------------------------------------------------------------

    def _begin(self, run: Run, work: Any) -> Run:
        before = self.api.version
        run.operation = self.gates.start(run.kind, work)
        self.runs.append(run)
        self._note(before, run)
        if run.operation.done:
            self._ended(run)
        return run

    def _refusals(self, pod: Json, names: list[str], replica: Replica) -> dict[str, str]:
        return extender.refusals(kube.to_pod(pod), names, replica.fleet)

    def _bind(self, pod: Json, node: str, number: int, replica: Replica) -> Run:
        metadata = pod["metadata"]
        asked = binder.Arguments(metadata["name"], "default", kube.PodUid(metadata["uid"]), node)
        return self._begin(Run("bind", number, metadata["uid"], node), replica.binder.bind(asked))

    def _scheduled(self, pod: Json, how: Take) -> None:
        """A scheduler takes a pod."""
        names = sorted(self._nodes()) if how.listens else sorted(NODES)
        by, to, node = self._alive(how.filtering), self._alive(how.replica), how.node
        if pod["spec"].get("schedulerName") != binding.SCHEDULER:
            self._by_default(pod, node, to, names_uid=how.uid)
            return
        if by is None or to is None:
            return
        refused = self._refusals(pod, names, by[1]) if how.listens else {}
        allowed = [name for name in names if name not in refused]
        if allowed:
            self._bind(pod, allowed[node % len(allowed)], *to)
            return
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        path = f"{PODS}/{pod['metadata']['name']}/status"
        self.api.patch(path, {"status": {"conditions": [condition]}}, "strategic")

    def _post_binding(self, pod: Json, node: str, number: int, replica: Replica, *, names_uid: bool = True) -> Run:
        """A Binding of another scheduler, which the API server shows to a replica before it does it."""
        metadata = pod["metadata"]
        uid = metadata["uid"] if names_uid else ""
        asked = binder.Arguments(metadata["name"], "default", kube.PodUid(uid), node)
        run = Run("admit", number, metadata["uid"], node, self.now + WEBHOOK_SECONDS)
        body = {"metadata": {"name": asked.name, "uid": uid}, "target": {"kind": "Node", "name": node}}

        def land() -> None:
            """A Binding that names no uid takes whoever has the name: that is not our mistake."""
            if self._pod(run.uid):
                with contextlib.suppress(kubeapi.ApiError):
                    self.api.post(f"{asked.path}/binding", body)

        async def work() -> None:
            try:
                await replica.binder.admit(asked, dry_run=False)
            except (errors.AnygpuError, *watch.BROKEN):
                return
            if not run.given_up:
                run.replica, run.until = None, run.until - WEBHOOK_SECONDS + REQUEST_SECONDS
                await gates.park(land)

        return self._begin(run, work())

    def _by_default(self, pod: Json, node: int, to: tuple[int, Replica] | None, *, names_uid: bool) -> None:
        """The default scheduler binds a pod to a node that lists what it asks, free or not.

        Where no replica lives the API server asks nobody, and kube-scheduler's own count is all there is.
        """
        asked, nodes = _asks(pod), self._nodes()
        names = [name for name, resource in OFFERED if resource in asked and name in nodes]
        if not names:
            return
        name = names[node % len(names)]
        if to is not None:
            self._post_binding(pod, name, *to, names_uid=names_uid)
            return
        under_way = [each for run in self.runs if run.node == name and (each := self._pod(run.uid))]
        offered = _allocatable(nodes[name])
        if all(
            offered.get(resource, 0)
            >= count + self._taken(name, resource) + sum(_asks(each).get(resource, 0) for each in under_way)
            for resource, count in asked.items()
        ):
            self.zombies.clear()
            before = self.api.version
            body = {"metadata": {"uid": pod["metadata"]["uid"]}, "target": {"name": name}}
            self.api.post(f"{PODS}/{pod['metadata']['name']}/binding", body)
            self._note(before, None)

    @rule(pods=st.lists(WANTED, max_size=2), takes=st.lists(TAKES, min_size=1, max_size=3), turns=TURNS)
    def schedulers_take_pods(self, pods: list[Wanted], takes: list[Take], turns: list[int]) -> None:
        """New ones maybe, several at the same time."""
        for wanted in pods:
            self._create(wanted, 0)
        for take in takes:
            if waiting := self._waiting():
                self._scheduled(waiting[take.which % len(waiting)], take)
        self._go_on(turns)

    @precondition(lambda self: any(_is_late(pod) for pod in self._waiting()))
    @rule(takes=st.lists(TAKES, min_size=1, max_size=3), turns=TURNS)
    def one_late_pod_is_taken(self, takes: list[Take], turns: list[int]) -> None:
        """Again and again, as by a scheduler that hears nothing of its binds."""
        late = [pod for pod in self._waiting() if _is_late(pod)]
        for take in takes:
            self._scheduled(late[takes[0].which % len(late)], take)
        self._go_on(turns)

    @precondition(lambda self: self._waiting() and self._nodes())
    @rule(takes=st.lists(TAKES, min_size=2, max_size=4), turns=TURNS)
    def pods_are_sent_to_one_node(self, takes: list[Take], turns: list[int]) -> None:
        for take in takes:
            if waiting := self._waiting():
                how = take._replace(node=takes[0].node, listens=False)
                self._scheduled(waiting[take.which % len(waiting)], how)
        self._go_on(turns)

    @precondition(lambda self: self._waiting())
    @rule(
        take=TAKES,
        before=st.sampled_from(["put", "patch", "binding", "binding"]),
        seconds=st.sampled_from([6.0, 31.0, 50.0, 95.0, LONG_SECONDS]),
        expiring=st.sampled_from([None, 0, 1]),
        others=st.lists(TAKES, max_size=2),
        turns=TURNS,
    )
    def a_run_pauses(
        self, take: Take, before: str, seconds: float, expiring: int | None, others: list[Take], turns: list[int]
    ) -> None:
        """For longer than its promise stands, it may be; a replica looks for those, and schedulers take other pods."""
        waiting, old = self._waiting(), [*self.runs]
        self._scheduled(waiting[take.which % len(waiting)], take)
        for run in [run for run in self.runs if run not in old]:
            while run.operation.calls and not _is(before, run.operation.calls[0]):
                self._release(run, run.operation.calls[0], "through")
        self._pass(seconds)
        if expiring is not None and (alive := self._alive(expiring)):
            alive[1].hear_all()
            self._finish(self._begin(Run("expire", alive[0]), alive[1].binder.expire()))
        for other in others:
            if waiting := self._waiting():
                self._scheduled(waiting[other.which % len(waiting)], other._replace(node=take.node))
        self._go_on(turns)

    # --- Calls -------------------------------------------------------------------------------------------------------

    def _ready(self) -> list[Run]:
        """The runs that wait for a call; the others wait for one of these."""
        return [run for run in self.runs if run.operation.calls]

    def _finish(self, run: Run) -> None:
        """Let a run come to its end, and those that it waits for go on."""
        while not run.operation.done:
            ready = [run] if run.operation.calls else self._ready()
            if ready:
                self._release(ready[0], ready[0].operation.calls[0], "through")
            else:
                self._rest()

    def _rest(self) -> None:
        """All that are under way wait for time to pass."""
        before = self.api.version
        self._pass(1.0)
        self.gates.settle()
        self._note(before, None)
        for run in [run for run in self.runs if run.operation.done]:
            self._ended(run)

    def _go_on(self, turns: list[int]) -> None:
        """Each turn lets one call of one run through."""
        for turn in turns:
            if ready := self._ready():
                run = ready[turn % 6 % len(ready)]
                self._release(run, run.operation.calls[turn // 6 % len(run.operation.calls)], "through")

    @precondition(lambda self: self.runs)
    @rule(turns=TURNS)
    def runs_go_on(self, turns: list[int]) -> None:
        self._go_on(turns)

    @precondition(lambda self: any(run.replica is not None for run in self._ready()))
    @rule(which=st.integers(0, 7), fate=st.sampled_from(["lost", "unheard", "refused", "delayed"]), turns=TURNS)
    def a_call_fails(self, which: int, fate: Any, turns: list[int]) -> None:
        runs = [run for run in self._ready() if run.replica is not None]
        run = runs[which % len(runs)]
        call = run.operation.calls[0]
        if fate == "delayed":
            self._outlives(run, call)
        self._release(run, call, "lost" if fate == "delayed" else fate)
        self._go_on(turns)

    def _outlives(self, run: Run, call: gates.Call) -> None:
        if call.name.split()[0] in ("post", "put", "patch", "delete"):
            self.zombies.append((run, call))

    @precondition(lambda self: self.zombies)
    @rule(which=st.integers(0, 7))
    def a_delayed_request_is_done(self, which: int) -> None:
        run, call = self.zombies.pop(which % len(self.zombies))
        before = self.api.version
        gates.attempt(call)
        self._note(before, run)

    # --- Replicas ----------------------------------------------------------------------------------------------------

    @rule(number=st.integers(0, 1), sent=st.booleans(), turns=TURNS)
    def a_replica_is_killed_or_starts(self, number: int, sent: bool, turns: list[int]) -> None:
        """What it had sent may still be done."""
        if self.replicas[number] is None:
            self._start(number)
            return
        self.replicas[number] = None
        runs = [run for run in self.runs if run.replica == number]
        for run in runs if sent else ():
            for call in run.operation.calls[:1]:
                self._outlives(run, call)
        self._stop(runs)
        self._go_on(turns)

    def _stop(self, runs: list[Run]) -> None:
        self.gates.stop(*(run.operation for run in runs))
        for run in runs:
            self._ended(run)

    @precondition(lambda self: any(self.replicas))
    @rule(which=st.integers(0, 1), feed=st.integers(0, 9), what=st.sampled_from([1, 4, "gap", "again"]))
    def a_watch_goes_on(self, which: int, feed: int, what: Any) -> None:
        """Some events arrive, or it breaks: for so long that all is listed anew, or amid a batch, which comes again."""
        _, replica = list(self._living())[which % len(list(self._living()))]
        number = feed % len(replica.feeds)
        if what == "gap":
            replica.relist(number)
        elif what == "again":
            replica.again(number, 5)
        else:
            replica.hear(number, what)

    @precondition(lambda self: any(self.replicas))
    @rule(which=st.integers(0, 1))
    def a_replica_has_caught_up(self, which: int) -> None:
        """And then it knows what one that starts now knows."""
        _, replica = list(self._living())[which % len(list(self._living()))]
        replica.hear_all()
        assert replica.state() == Replica(self.api, replica.clock).state()

    def check_invariants(self, *args: Any, **kwargs: Any) -> None:
        for number, replica in self._living():
            if self.prompt[number]:
                replica.hear_all()
        super().check_invariants(*args, **kwargs)

    # --- Nodes and time ----------------------------------------------------------------------------------------------

    @rule(which=st.sampled_from(OFFERED), count=st.sampled_from([None, 0, 1, 2, 3]))
    def a_node_changes(self, which: tuple[str, str], count: int | None) -> None:
        """It has more or fewer devices; or (None) it goes, leaving its pods to whoever collects them, or comes back."""
        (name, resource), before = which, self.api.version
        if name not in self._nodes():
            self.api.post("/api/v1/nodes", NODES[name]())
        elif count is None:
            self.api.remove(f"/api/v1/nodes/{name}")
        else:
            self.api.patch(f"/api/v1/nodes/{name}/status", {"status": {"allocatable": {resource: str(count)}}})
        self._note(before, None)

    @rule(
        seconds=st.sampled_from([0.001, 1.0, 5.0, 31.0, 61.0, 95.0, 130.0, LONG_SECONDS]),
        expiring=st.sampled_from([None, 0, 1]),
        turns=TURNS,
    )
    def time_passes(self, seconds: float, expiring: int | None, turns: list[int]) -> None:
        """And a replica may look then for promises to give up."""
        self._pass(seconds)
        if expiring is not None and (alive := self._alive(expiring)):
            self._begin(Run("expire", alive[0]), alive[1].binder.expire())
        self._go_on(turns)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for run in [run for run in self.runs if run.until < self.now]:
            if run.replica is None:
                self._stop([run])  # the API server has ended the request
            else:
                run.given_up = True  # and it has answered the scheduler that the webhook did not answer

    # --- The end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._end_all()
                self._fill()
                self._come_to_rest()
                self._fill()
                self.images_are_as_they_must_be()
                self.no_pod_is_lost()
        finally:
            self.gates.close()

    def _end_all(self) -> None:
        """Everything under way ends, and both replicas live."""
        while self.zombies:
            self.a_delayed_request_is_done(0)
        while self.runs:
            self._finish(self.runs[0])
        for number in (0, 1):
            if self.replicas[number] is None:
                self._start(number)
        for pod in self._pods():
            if "deletionTimestamp" in pod["metadata"]:
                self._remove(f"{PODS}/{pod['metadata']['name']}", self.api.remove)

    def _come_to_rest(self) -> None:
        """Time passes, everybody hears of everything, and nothing is held for nobody."""
        for _ in range(2):
            self.now += LONG_SECONDS
            for number, replica in self._living():
                replica.hear_all()
                replica.fleet.ledger.expire(replica.clock())
                run = self._begin(Run("expire", number), replica.binder.expire())
                self._finish(run)
        assert not [entry for entries in self._records().values() for entry in entries], "promises to nobody"
        assert self._records().keys() <= self._nodes().keys(), "records of nodes that are gone"
        for pod in self._waiting():
            assert not _is_late(pod) or pod["spec"]["containers"][0]["image"] == UNRESOLVED
        for _, replica in self._living():
            replica.hear_all()
            anew = Replica(self.api, replica.clock)
            for each in (replica, anew):
                for _ in range(2):
                    each.fleet.ledger.expire(self.now)
                    self.now += 100
            assert replica.state() == anew.state()
            assert dict(replica.fleet.ledger.items()) == dict(anew.fleet.ledger.items())
            assert not len(replica.fleet.promises)

    def _fill(self) -> None:
        """Every pod that fits can be bound, by either replica, until none is left that fits."""
        for turn in itertools.count():
            number, replica = list(self._living())[turn % 2]
            replica.hear_all()
            names, todo = sorted(self._nodes()), []
            for pod in self._waiting():
                rooms = self._room(pod)
                if pod["spec"].get("schedulerName") == binding.SCHEDULER:
                    allowed = {*names} - self._refusals(pod, names, replica).keys()
                    assert allowed <= rooms, f"{pod['metadata']['name']} is sent to {allowed}, fits on {rooms}"
                    assert allowed or not self._room(pod, gone=True), f"{pod['metadata']['name']} fits on {rooms}"
                    rooms = allowed
                if rooms:
                    todo.append((pod, min(rooms)))
            if not todo:
                return
            self.now += crossing.PASS_SECONDS + crossing.LINGER_SECONDS  # what else is at the nodes is over
            pod, node = todo[0]
            if pod["spec"].get("schedulerName") == binding.SCHEDULER:
                run = self._bind(pod, node, number, replica)
            else:
                run = self._post_binding(pod, node, number, replica)
            self._finish(run)
            assert (run.uid, run.node) in self.bound, f"{pod['metadata']['name']} fits on {node}: {run.operation.task}"


@pytest.fixture(autouse=True, scope="module")
def _interleaved() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with gates.installed(binder):
        yield
    structlog.reset_defaults()


TestCounting = Counting.TestCase
TestCounting.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
