"""/bind: the devices are promised under compare-and-swap, the image is set, then the Binding is posted.

The order makes it safe with any number of replicas, each of which may die or pause between any two lines:

1. the node's record is known, from the watch or from the last write, and then the node, its pods and the pod itself
   are read live;
2. where the devices are free, the record is replaced with the pod's own entry, under the version read in 1. Who else
   counted on the same devices, or from an older record, meets a conflict and begins again;
3. the pod's images are patched, then the Binding is posted, both under versions of the pod no older than 1.

An entry that no Binding followed is given up by writing to the pod first, so that a Binding still under way meets a
conflict, and only then leaving the record. Bound pods are counted as pods, whoever bound them.
"""

import asyncio
import datetime
import random
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec
import prometheus_client
import structlog
import urllib3

from capability_db.node_facts import DeviceClass
from scheduler import asks, binding, claims, crossing, decision, errors, fit, kube, kubeapi, needs, reservations, watch
from scheduler import fleet as fleets

Json = dict[str, Any]

TRIES = 6
"""Conflicts that one call meets before it gives up: kube-scheduler tries again later."""
PAUSE_SECONDS = 0.02
PARALLEL = 12
"""Binds at once; each has up to three calls under way."""
SPENT_SECONDS = 600.0
"""How long the entry of a bound pod may stand: it counts for nothing, and writing costs."""
NOT_FOUND, CONFLICT = 404, 409
OUTCOMES = prometheus_client.Counter("anygpu_binds_total", "Binds by binding and result", ["binding", "result"])
CONFLICTS = prometheus_client.Counter("anygpu_bind_conflicts_total", "Binds begun again since somebody else wrote")
EXPIRED = prometheus_client.Counter("anygpu_reservations_expired_total", "Promises that no Binding followed", ["kind"])

log = structlog.get_logger()


class CannotBind(errors.AnygpuError):
    """The pod cannot be bound to the node as things are; nothing was promised."""


class _Conflict(Exception):
    """Somebody else wrote between our read and our write."""


class Arguments(msgspec.Struct, frozen=True):
    """ExtenderBindingArgs."""

    name: str = msgspec.field(name="PodName")
    namespace: str = msgspec.field(name="PodNamespace")
    uid: kube.PodUid = msgspec.field(name="PodUID")
    node: str = msgspec.field(name="Node")

    @property
    def key(self) -> str:
        """`namespace/name`"""
        return f"{self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """The pod's API path."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"


_decoder = msgspec.json.Decoder(Arguments)


def decode(body: bytes) -> Arguments:
    """The call's arguments; raises InvalidInput saying what of the body is not as kube-scheduler sends it."""
    try:
        asked = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidInput(f"the body is no ExtenderBindingArgs: {error}") from error
    for field in ("name", "namespace", "node"):
        if not getattr(asked, field) or "/" in getattr(asked, field):
            raise errors.InvalidInput(f"the body is no ExtenderBindingArgs: {field} {getattr(asked, field)!r}")
    return asked


def reply(error: str = "") -> bytes:
    """ExtenderBindingResult."""
    return msgspec.json.encode({"Error": error})


class _Pods(msgspec.Struct):
    items: list[kube.Pod] | None = None


_pods = msgspec.json.Decoder(_Pods)


class Binder:
    """Binds pods, and lets the Bindings of other schedulers through, from what the API says at that moment."""

    def __init__(
        self, api: kubeapi.Api, fleet: fleets.Fleet, clock: Callable[[], float] = time.time, lives: float | None = None
    ) -> None:
        self._api, self._fleet, self._clock = api, fleet, clock
        self._crossing = fleet.crossing = fleet.crossing or crossing.Crossing()
        self._latest: dict[str, reservations.Record] = {}
        """By node: the record that this process wrote or read last."""
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._slots, self._doors = asyncio.Semaphore(PARALLEL), asyncio.Semaphore(2 * PARALLEL)
        self._lives = {**reservations.LIVES_SECONDS} | ({"late": lives} if lives else {})

    async def bind(self, asked: Arguments) -> None:
        """Bind the pod to the node, or find it bound there; raises AnygpuError saying why it cannot be."""
        written: list[reservations.Entry] = []
        pod = self._fleet.by_uid(asked.uid)
        devices = binding.takes(pod) if pod is not None else {}
        try:
            with self._crossing.binding(asked.uid, asked.node, devices):
                await self._let_pass(asked, devices)
                made = await self._insist(asked, lambda live: self._bind(asked, written, live=live))
        except CannotBind as error:
            if written:
                await self._release(asked.node, written[-1])
            OUTCOMES.labels("", "refused").inc()
            log.info("bind refused", pod=asked.key, uid=asked.uid, node=asked.node, reason=str(error))
            raise
        except watch.BROKEN as error:
            OUTCOMES.labels("", "failed").inc()
            log.warning("bind failed", pod=asked.key, uid=asked.uid, node=asked.node, error=str(error))
            raise errors.Unreachable(f"binding {asked.key} to {asked.node}: {error}") from error
        OUTCOMES.labels(made.binding if made else "", "bound").inc()
        log.info(
            "bound",
            pod=asked.key,
            uid=asked.uid,
            node=asked.node,
            binding=made.binding if made else None,
            vendor=made.vendor if made else None,
            resource=made.resource if made else None,
        )

    async def admit(self, asked: Arguments, *, dry_run: bool) -> None:
        """Count the Binding that another scheduler posts; raises CannotBind where it would take a promised device.

        A Binding of a pod that takes no GPU, or that this API server is about to refuse anyway, is none of ours.
        """
        pod = self._fleet.by_uid(asked.uid)
        devices = binding.takes(pod) if pod is not None else {}
        if pod is not None and not devices:
            return
        with self._crossing.arriving(asked.uid, asked.node, devices):
            others = self._crossing.binds(asked.node).keys() - {asked.uid}
            for name, count in devices.items() if others else ():
                if self._fleet.room(asked.node, name, asked.uid) < count:
                    raise CannotBind(f"{asked.node}: its last {name} is being given to another pod; try again")
            await self._insist(asked, lambda live: self._admit(asked, pod, dry_run=dry_run, live=live), self._doors)

    async def expire(self) -> int:
        """Give up every promise that no Binding followed in time; says how many. Safe on several replicas at once."""
        now = self._clock()
        given_up = 0
        for record in list(self._fleet.reservations.values()):
            due = [entry for entry in record.entries.values() if now - entry.since > self._life(entry)]
            if not due and (record.entries or record.node in self._fleet.rows):
                continue
            try:
                given_up += await self._clean(record.node, due)
            except _Conflict:
                continue  # the next round sees what was written
            except watch.BROKEN as error:
                log.warning("expiry failed", node=record.node, error=str(error))
        return given_up

    def _life(self, entry: reservations.Entry) -> float:
        """Seconds until an entry is looked after; one that a bound pod stands for is left to the node's next bind."""
        pod = self._fleet.by_uid(entry.uid)
        return SPENT_SECONDS if pod is not None and pod.spec.node_name else self._lives[entry.kind]

    # --- The steps ---------------------------------------------------------------------------------------------------

    async def _insist(
        self, asked: Arguments, step: Callable[[bool], Any], slots: asyncio.Semaphore | None = None
    ) -> Any:
        """Take a step until nobody else writes at the same time; raises CannotBind after TRIES.

        The first time the node's record is taken as it is known; from then on it is read.
        """
        turn = self._turns.setdefault(asked.node, asyncio.Lock())
        for left in reversed(range(TRIES)):
            try:
                # Two binds to one node would only meet each other's writes; it costs nobody else anything.
                async with turn, slots or self._slots:
                    return await step(left < TRIES - 1)
            except _Conflict as error:
                CONFLICTS.inc()
                if not left:
                    raise CannotBind(
                        f"{asked.key}: somebody else kept writing at the same time ({error}); try again"
                    ) from error
                await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 2) * (TRIES - left))  # noqa: S311
        raise AssertionError("unreachable")

    async def _let_pass(self, asked: Arguments, devices: Mapping[str, int]) -> None:
        """Wait for pods that other schedulers are binding to the node, where there is not room for all."""
        before = set(self._crossing.passing(asked.node, devices))
        while before:
            others = self._crossing.demand(before)
            if all(
                self._fleet.room(asked.node, name, asked.uid) >= count + others.get(name, 0)
                for name, count in devices.items()
                if name in others
            ):
                return
            await asyncio.sleep(PAUSE_SECONDS)
            before &= set(self._crossing.passing(asked.node, devices))

    async def _bind(
        self, asked: Arguments, written: list[reservations.Entry], *, live: bool
    ) -> decision.Decision | None:
        """Bind once; notes the entry that it writes, for whoever has to take it back."""
        record, document, node, there = await self._read(asked, live=live)
        pod = _check(document, asked)
        asked = msgspec.structs.replace(asked, uid=pod.identity)
        if pod.spec.node_name:
            return decision.read(pod.annotations)
        made = decision.read(pod.annotations) if asks.concerns(pod, self._fleet.opted_out) else None
        if made is not None and made.binding == "claim":
            claimed = await self._claimed(document, made, asked.node)
            await self._write(asked, document, claimed)
            return claimed.decision
        given, devices = self._choose(pod, made, node)
        if devices:
            written.append(await self._promise(asked, record, node, there, devices, "late", live=live))
        await self._write(asked, document, given)
        return given.decision if given else made

    async def _admit(self, asked: Arguments, pod: kube.Pod | None, *, dry_run: bool, live: bool) -> None:
        row = self._fleet.rows.get(asked.node)
        if pod is None or row is None:
            record, document, node, there = await self._read(asked, live=live)
            pod = _check(document, asked)
        else:
            # Many Bindings may come at once, and whoever waits for us too long binds without us.
            record = (None if live else self._known(asked.node)) or await self._record(asked.node)
            node, there = row.node, await asyncio.to_thread(self._pods_on, asked.node)
        asked = msgspec.structs.replace(asked, uid=pod.identity)  # a Binding need not name it
        devices = {name: count for name, count in binding.takes(pod).items() if name in (node.status.allocatable or {})}
        own = record.entries.get(asked.uid)
        if pod.spec.node_name or not devices or (own is not None and own.kind == "late"):
            return  # our own Binding, or none that takes a device
        if dry_run:
            return
        await self._promise(asked, record, node, there, devices, "admitted", live=live)

    async def _read(
        self, asked: Arguments, *, live: bool
    ) -> tuple[reservations.Record, Json, kube.Node, list[kube.Pod]]:
        """The node's record, and after it the pod, the node and its pods, live: never the other way round."""
        record = None if live else self._known(asked.node)
        record = record or await self._record(asked.node)
        document, node, there = await asyncio.gather(
            self._get(asked.path, f"pod {asked.key} is gone"),
            self._get(f"/api/v1/nodes/{asked.node}", f"node {asked.node} does not exist"),
            asyncio.to_thread(self._pods_on, asked.node),
        )
        return record, document, kube.to_node(node), there

    def _known(self, node: str) -> reservations.Record | None:
        """The newest record of a node that we know; whether it is the newest there is the write will tell."""
        known = [each for each in (self._latest.get(node), self._fleet.reservations.get(node)) if each and each.version]
        # Versions grow, as numbers (kubernetes KEP-5504); should they not, the write meets a conflict and we read.
        return max(known, key=lambda each: (len(each.version or ""), each.version or ""), default=None)

    async def _record(self, node: str) -> reservations.Record:
        """A node's record as it is now."""
        try:
            found = reservations.read(await asyncio.to_thread(self._api.get_json, reservations.path_of(node)))
        except kubeapi.ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return reservations.Record(node, {})
        if found is None or found.node != node:
            raise CannotBind(f"ConfigMap {reservations.name_of(node)} is no record of node {node}; delete it")
        self._latest[node] = found
        return found

    async def _get(self, path: str, gone: str) -> Json:
        try:
            found: Json = await asyncio.to_thread(self._api.get_json, path)
        except kubeapi.ApiError as error:
            if error.status == NOT_FOUND:
                raise CannotBind(gone) from error
            raise
        return found

    def _pods_on(self, node: str) -> list[kube.Pod]:
        query = {"fieldSelector": f"spec.nodeName={node},{watch.RUNNING_PODS['fieldSelector']}"}
        return _pods.decode(self._api.get("/api/v1/pods", query).data).items or []

    def _choose(
        self, pod: kube.Pod, made: decision.Decision | None, node: kube.Node
    ) -> tuple[binding.Outcome | None, dict[str, int]]:
        """What the pod is given on the node, and the devices it takes there; raises CannotBind."""
        name = node.metadata.name
        listed = {**(node.status.allocatable or {}), **(node.status.capacity or {})}
        takes = binding.takes(pod)
        if made is None or made.binding == "early":
            lacking = [resource for resource in takes if resource not in listed]
            if lacking:
                raise CannotBind(f"{name} offers no {lacking[0]}, which the pod asks")
            if made is None:
                return None, takes
        here = [resource for resource in takes if resource in listed]
        if len(here) != 1:
            which = f"lists {' and '.join(here)}, and its kubelet would demand both" if here else "offers none of them"
            raise CannotBind(f"the pod can be given {' or '.join(takes)}; {name} {which}")
        device = self._device(pod, node, here[0])
        if made.binding == "early":
            return binding.early(made, name), takes
        chosen = binding.alternative(made, device)
        if chosen is None:
            raise CannotBind(f"{device.label} on {name}: no image variant of the pod's decision runs on it")
        return binding.outcome(made, chosen, device, name), {here[0]: takes[here[0]]}

    def _device(self, pod: kube.Pod, node: kube.Node, resource: str) -> DeviceClass:
        """The node's devices under a resource name, judged anew; raises CannotBind where they do not meet the needs."""
        facts = self._fleet.read(node)[0]
        question = asks.read(pod, self._fleet)
        reason = f"{node.metadata.name} has no {resource} now"
        for pool in facts.pools:
            if pool.device.resource == resource:
                reason = fit.refusal(question.needs, pool.device) or ""
                if not reason:
                    return pool.device
        raise CannotBind(f"{node.metadata.name}: {reason}")

    async def _promise(
        self,
        asked: Arguments,
        record: reservations.Record,
        node: kube.Node,
        there: Collection[kube.Pod],
        devices: Mapping[str, int],
        kind: reservations.Kind,
        *,
        live: bool,
    ) -> reservations.Entry:
        """Write the pod's entry into the node's record; raises CannotBind where the devices are not free."""
        bound = {pod.identity for pod in there}
        record = record.without(bound - {asked.uid})
        short = _short(asked.uid, record, self._fleet.read(node)[1], there, devices)
        if short is not None and not live:
            raise _Conflict(f"the record of node {asked.node}")  # refused on hearsay? look first
        if short is not None:
            record = record.without(await self._spent(record, asked.uid))
            short = _short(asked.uid, record, self._fleet.read(node)[1], there, devices)
        if short is not None:
            raise CannotBind(f"{asked.node}: {short}")
        if record.version is None:
            # A record is removed with its node, so that "none yet" may be true twice, and much may happen in between.
            await self._put(record)
            raise _Conflict(f"the record of node {asked.node} is new")
        entry = reservations.Entry(asked.uid, asked.key, dict(devices), self._clock(), kind)
        await self._put(record.put(entry))
        return entry

    async def _spent(self, record: reservations.Record, besides: kube.PodUid) -> set[kube.PodUid]:
        """Pods of the record that take none of this node's devices: they are gone, finished, or bound to another.

        One that was bound here since the node's pods were listed still takes its devices.
        """
        others = [entry for uid, entry in record.entries.items() if uid != besides]
        found = await asyncio.gather(*(asyncio.to_thread(self._pod_of, entry) for entry in others))
        return {
            entry.uid
            for entry, pod in zip(others, found, strict=True)
            if pod is None or kube.to_pod(pod).finished or pod["spec"].get("nodeName") not in (None, "", record.node)
        }

    def _pod_of(self, entry: reservations.Entry) -> Json | None:
        """An entry's pod, live; None: it is gone, though another may have its name."""
        namespace, _, name = entry.pod.partition("/")
        try:
            found: Json = self._api.get_json(f"/api/v1/namespaces/{namespace}/pods/{name}")
        except kubeapi.ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return found if found["metadata"]["uid"] == entry.uid else None

    async def _put(self, record: reservations.Record) -> None:
        document = reservations.document(record)
        try:
            if record.version is None:
                written = await asyncio.to_thread(self._api.post, reservations.COLLECTION, document)
            else:
                written = await asyncio.to_thread(self._api.put, reservations.path_of(record.node), document)
            self._latest[record.node] = reservations.read(written) or record
        except kubeapi.ApiError as error:
            if error.status == CONFLICT or (error.status == NOT_FOUND and record.version is not None):
                raise _Conflict(f"the record of node {record.node}") from error
            raise

    async def _write(self, asked: Arguments, document: Json, given: binding.Outcome | None) -> None:
        """Set the images, then post the Binding; raises CannotBind, or _Conflict where the pod was written since."""
        metadata = document["metadata"]
        version = metadata["resourceVersion"]
        change = _images(document, given.images) if given else {}
        try:
            if change:
                body = {"metadata": {"uid": asked.uid, "resourceVersion": version}, "spec": change}
                patched = await asyncio.to_thread(self._api.patch, asked.path, body, "strategic")
                version = patched["metadata"]["resourceVersion"]
            posted = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {
                    "name": asked.name,
                    "namespace": asked.namespace,
                    "uid": asked.uid,
                    "resourceVersion": version,
                    "annotations": dict(given.annotations) if given else {},
                },
                "target": {"apiVersion": "v1", "kind": "Node", "name": asked.node},
            }
            await asyncio.to_thread(self._api.post, f"{asked.path}/binding", posted)
        except kubeapi.ApiError as error:
            if error.status == CONFLICT:
                raise _Conflict(f"pod {asked.key}") from error
            if error.status == NOT_FOUND:
                raise CannotBind(f"pod {asked.key} is gone") from error
            if 400 <= error.status < 500 and error.status != 429:
                raise CannotBind(f"binding {asked.key} to {asked.node}: {error}") from error
            await self._doubt(asked, error)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            await self._doubt(asked, error)

    async def _doubt(self, asked: Arguments, error: Exception) -> None:
        """Nobody said whether the write was done: look; the entry stays until it is clear."""
        document = await self._get(asked.path, f"pod {asked.key} is gone")
        if _check(document, asked).spec.node_name:
            return
        raise error

    async def _claimed(self, document: Json, made: decision.Decision, node: str) -> binding.Outcome:
        """What DRA has given the pod; raises CannotBind where that is nothing, or nothing that we know."""
        namespace = document["metadata"]["namespace"]
        name = claims.claim_name(document)
        if name is None:
            raise CannotBind(f"pod {namespace}/{document['metadata']['name']} has no ResourceClaim of anygpu's yet")
        path = f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}"
        claim = await self._get(path, f"ResourceClaim {namespace}/{name} does not exist")
        try:
            devices = [self._fleet.device_of(each) for each in claims.allocated(claims.to_claim(claim))]
        except (claims.ClaimError, fleets.UnknownDevice) as error:
            raise CannotBind(str(error)) from error
        given = [(binding.alternative(made, device), device) for device in devices]
        for chosen, device in given:
            if chosen is None:
                raise CannotBind(f"{device.label} on {node}: no image variant of the pod's decision runs on it")
        chosen, device = given[0]
        assert chosen is not None  # noqa: S101 - looked at above
        if any(other is not chosen for other, _ in given):
            raise CannotBind(f"ResourceClaim {namespace}/{name}: its devices need different images")
        return binding.outcome(made, chosen, device, node)

    # --- Giving up ---------------------------------------------------------------------------------------------------

    async def _release(self, node: str, entry: reservations.Entry) -> None:
        """Give up one promise of ours at once, if that is possible; else it expires."""
        try:
            await self._clean(node, [entry])
        except (_Conflict, CannotBind, *watch.BROKEN) as error:
            log.info("a promise is left to its expiry", node=node, pod=entry.pod, error=str(error))

    async def _clean(self, node: str, due: Collection[reservations.Entry]) -> int:
        """Take entries off a node's record, each once no Binding can follow; says how many."""
        record = await self._record(node)
        leaving = [each for each in due if record.entries.get(each.uid) == each and await self._settled(each)]
        left = record.without({entry.uid for entry in leaving})
        if not left.entries and node not in self._fleet.rows and record.version is not None:
            await self._remove(record)
        elif leaving:
            await self._put(left)
        for entry in leaving:
            EXPIRED.labels(entry.kind).inc()
        return len(leaving)

    async def _remove(self, record: reservations.Record) -> None:
        """Delete the empty record of a node that is gone."""
        try:
            document = await asyncio.to_thread(self._api.get_json, reservations.path_of(record.node))
            if document["metadata"]["resourceVersion"] == record.version:
                uid = document["metadata"]["uid"]
                await asyncio.to_thread(self._api.delete, reservations.path_of(record.node), uid, record.version)
        except kubeapi.ApiError as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise

    async def _settled(self, entry: reservations.Entry) -> bool:
        """Whether no Binding can follow an entry any more, after writing to its pod where that takes it."""
        seen = self._fleet.by_uid(entry.uid)
        if seen is not None and seen.spec.node_name:
            return True  # a bound pod stays bound
        document = await asyncio.to_thread(self._pod_of, entry)
        if document is None or document["spec"].get("nodeName"):
            return True
        if entry.kind != "late":
            return True  # whoever admitted a Binding or hoped for devices has no write under way any more
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).isoformat(timespec="milliseconds")
        metadata = document["metadata"]
        body: Json = {
            "metadata": {
                "uid": entry.uid,
                "resourceVersion": metadata["resourceVersion"],
                "annotations": {needs.RELEASED: now},
            }
        }
        namespace, _, name = entry.pod.partition("/")
        made = decision.read(metadata.get("annotations") or {})
        if made is not None and made.binding != "early":
            change = _images(document, dict.fromkeys(made.images, binding.UNRESOLVED))
            body |= {"spec": change} if change else {}
        try:
            await asyncio.to_thread(self._api.patch, f"/api/v1/namespaces/{namespace}/pods/{name}", body, "strategic")
        except kubeapi.ApiError as error:
            if error.status == NOT_FOUND:
                return True
            if error.status == CONFLICT:
                return False
            raise
        log.info("a bind was given up", pod=entry.pod, uid=entry.uid)
        return True


def _check(document: Json, asked: Arguments) -> kube.Pod:
    """The pod, if it is the one asked for and can be bound to the node; raises CannotBind."""
    pod = kube.to_pod(document)
    if asked.uid and pod.metadata.uid != asked.uid:
        raise CannotBind(
            f"pod {asked.key} has uid {pod.metadata.uid}, the bind is for {asked.uid}: the pod was replaced by another"
        )
    if pod.spec.node_name and pod.spec.node_name != asked.node:
        raise CannotBind(f"pod {asked.key} is already bound to {pod.spec.node_name}, not to {asked.node}")
    if not pod.spec.node_name and pod.metadata.deletion_timestamp:
        raise CannotBind(f"pod {asked.key} is being deleted")
    return pod


def _short(
    uid: kube.PodUid,
    record: reservations.Record,
    allocatable: Mapping[str, int],
    there: Collection[kube.Pod],
    devices: Mapping[str, int],
) -> str | None:
    """Which devices are not free on a node of so many thousandths of each resource; None: all are."""
    taken: dict[str, int] = {}
    for pod in there:
        if pod.identity != uid:
            for name, count in binding.takes(pod).items():
                taken[name] = taken.get(name, 0) + count
    for name, count in devices.items():
        total = allocatable.get(name, 0) // 1000
        promised = record.promised(name, {uid})
        if total - taken.get(name, 0) - promised < count:
            return (
                f"{count} {name} asked, and of {total} there {taken.get(name, 0)} are taken by pods and {promised} "
                "promised to others"
            )
    return None


def _images(document: Json, images: Mapping[str, str]) -> Json:
    """The change of a pod's spec that sets images; empty: they are set already."""
    change: Json = {}
    for field in ("containers", "initContainers"):
        wanted = [
            {"name": each["name"], "image": images[each["name"]]}
            for each in document["spec"].get(field) or []
            if each["name"] in images and each.get("image") != images[each["name"]]
        ]
        if wanted:
            change[field] = wanted
    return change
