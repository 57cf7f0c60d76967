"""Whether the node table, kept up to date by one event at a time, says what the API says; where not, it is mended.

Two questions whose answers together say that the counts are those that the API's objects make:

- Does the table hold the objects that the API holds? A watch lags, and so does a list: an object counts as wrong only
  if the table says the same of it in look after look, each against a fresh list that says something else, the last one
  when a watch that broke would be back.
- Are its sums those that its own objects make? A table made anew from them says so. Nothing lags here, so that any
  difference counts at once.

Only what differs is mended, never a whole list put in: a list is seconds old when it has come in, and would undo what
events brought since. The table belongs to the event loop; lists are read in a thread, all else happens on the loop in
slices of SLICE_SECONDS.
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import prometheus_client
import structlog

from capability_db import slices, vendors
from scheduler import claims, kube, kubeapi, reservations, watch
from scheduler import fleet as fleets
from scheduler.ledger import Hold, Ledger

FIRST_SECONDS = 5.0
INTERVAL_SECONDS = 30.0
PAUSES_SECONDS = (1.0, 1.0, watch.BACKOFF_SECONDS[1] + 1)
"""Between looks; a difference seen in all of them is none that a watch will still bring."""
SLICE_SECONDS = 0.001
MAX_TOLD = 50
"""Differences logged one by one."""

DRIFT = prometheus_client.Gauge(
    "anygpu_audit_drift", "Nodes, pods, promises and sums in the node table that the last audit found wrong (must be 0)"
)
AUDITS = prometheus_client.Counter("anygpu_audits_total", "Audits of the node table that came to their end")
LAST = prometheus_client.Gauge("anygpu_audit_timestamp_seconds", "When the last audit came to its end, in unix time")

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[object]]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the node table has wrong."""

    what: str
    name: str
    have: Any
    """What the table says; None: nothing."""
    want: Any
    """What is true; None: there is no such thing."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of object that the node table is made of."""

    what: str
    listed: Callable[[kubeapi.Api], dict[str, T]]
    """The API's objects; called in a thread."""
    all_known: Callable[[], Iterable[tuple[str, T]]]
    """What the table knows now, by key."""
    known: Callable[[str], T | None]
    same: Callable[[T, T], bool]
    """Whether two of them say the same, whichever is newer."""
    mend: Callable[[str, T | None], object]
    """Have the table know this of a key."""

    def differences(self, listed: dict[str, T]) -> Iterator[Difference | None]:
        """What the table and a list say differently; None for each thing that they agree on. Uses the list up."""
        seen: set[str] = set()
        while listed:  # given back one by one, since to free 100,000 objects at once is a stall
            key, want = listed.popitem()
            seen.add(key)
            have = self.known(key)
            differs = have is None or not self.same(have, want)
            yield Difference(self.what, key, have, want) if differs else None
        for key, found in self.all_known():
            yield Difference(self.what, key, found, None) if key not in seen and self.known(key) is found else None


def kinds(fleet: fleets.Fleet, records: bool, dra: bool) -> list[Kind[Any]]:
    """Nodes, pods and, where they are watched, records of promises, and what DRA publishes and allocates."""
    nodes: Kind[kube.Node] = Kind(
        "node",
        lambda api: {each.metadata.name: each for each in watch.list_all(api, "/api/v1/nodes", kube.Node)},
        lambda: ((name, row.node) for name, row in list(fleet.rows.items())),
        lambda name: fleet.rows[name].node if name in fleet.rows else None,
        _same_object,
        lambda name, node: fleet.apply_node(node) if node else fleet.remove_node(name),
    )
    pods: Kind[kube.Pod] = Kind(
        "pod",
        _running,
        lambda: ((pod.identity, pod) for pod in list(fleet.pods())),
        fleet.by_uid,
        _same_object,
        lambda uid, pod: fleet.apply_pod(pod) if pod else fleet.remove_pod(kube.PodUid(uid)),
    )
    promised: Kind[reservations.Record] = Kind(
        "record",
        _records,
        lambda: list(fleet.reservations.items()),
        lambda node: fleet.reservations.get(node),
        lambda one, other: one.entries == other.entries,
        lambda node, record: fleet.apply_reservations(record) if record else fleet.remove_reservations(node),
    )
    published: Kind[slices.ResourceSlice] = Kind(
        "slice",
        _slices,
        lambda: list(fleet.slices_by_name().items()),
        lambda name: fleet.slices_by_name().get(name),
        lambda one, other: one.spec == other.spec,
        lambda name, found: fleet.apply_slice(found) if found else fleet.remove_slice(fleet.slices_by_name()[name]),
    )
    claimed: Kind[tuple[slices.Taken, ...]] = Kind(
        "claim",
        _claims,
        lambda: list(fleet.held_by_claims.items()),
        lambda uid: fleet.held_by_claims.get(uid),
        lambda one, other: one == other,
        lambda uid, taken: fleet.apply_taken(uid, taken or ()),
    )
    found: list[Kind[Any]] = [nodes, pods]
    found += [promised] if records else []
    return found + ([published, claimed] if dra else [])


def _running(api: kubeapi.Api) -> dict[str, kube.Pod]:
    found = watch.list_all(api, "/api/v1/pods", kube.Pod, watch.RUNNING_PODS)
    return {pod.identity: pod for pod in found if not pod.finished}


def _records(api: kubeapi.Api) -> dict[str, reservations.Record]:
    found = watch.list_all(api, reservations.COLLECTION, kube.ConfigMap, reservations.SELECTOR)
    return {record.node: record for each in found if (record := reservations.of(each))}


def _slices(api: kubeapi.Api) -> dict[str, slices.ResourceSlice]:
    found = _optional(api, f"{claims.PATH}/resourceslices", slices.ResourceSlice)
    return {each.metadata.name: each for each in found if each.spec.node_name and vendors.of_driver(each.spec.driver)}


def _claims(api: kubeapi.Api) -> dict[str, tuple[slices.Taken, ...]]:
    found = _optional(api, f"{claims.PATH}/resourceclaims", claims.Claim)
    return {claims.identity(each): taken for each in found if (taken := tuple(claims.taken([each])))}


def _optional(api: kubeapi.Api, path: str, kind: type[T]) -> list[T]:
    """The objects of a kind that the API server need not serve."""
    try:
        return watch.list_all(api, path, kind)
    except kubeapi.ApiError as error:
        if error.status == watch.NOT_FOUND:
            return []
        raise


Object = TypeVar("Object", kube.Node, kube.Pod)


def _same_object(one: Object, other: Object) -> bool:
    version = one.metadata.resource_version
    if version is not None and version == other.metadata.resource_version:
        return True
    return one == _at(other, version)


def _at(found: Object, version: str | None) -> Object:
    metadata = msgspec.structs.replace(found.metadata, resource_version=version)
    return msgspec.structs.replace(found, metadata=metadata)


class Audit:
    """Looks, tells and mends; every replica audits its own table."""

    def __init__(
        self,
        api: kubeapi.Api,
        fleet: fleets.Fleet,
        synced: Callable[[], bool],
        *,
        records: bool,
        dra: bool = False,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._api, self._fleet, self._synced, self._sleep = api, fleet, synced, sleep
        self._kinds = kinds(fleet, records, dra)

    async def run(self, interval: float = INTERVAL_SECONDS) -> None:
        """Audit until cancelled, for the first time soon."""
        wait = min(FIRST_SECONDS, interval)
        while True:
            await self._sleep(wait)
            wait = interval
            try:
                await self.step()
            except watch.BROKEN as error:
                log.warning("the audit could not list the cluster", error=str(error))
            except Exception:
                log.exception("the audit failed")

    async def step(self) -> list[Difference]:
        """One audit: what was wrong, and is mended; raises what watch.BROKEN names."""
        if not self._synced():
            return []
        wrong = [*await self._wrong_objects(), *await self._wrong_sums()]
        DRIFT.set(len(wrong))
        AUDITS.inc()
        LAST.set_to_current_time()
        for each in wrong[:MAX_TOLD]:
            log.error(
                "the node table was wrong", what=each.what, name=each.name, have=_told(each.have), want=_told(each.want)
            )
        if wrong:
            log.error("the node table was wrong and is mended", differences=len(wrong))
        return wrong

    async def _wrong_objects(self) -> list[Difference]:
        found = await self._look()
        for pause in PAUSES_SECONDS:
            if not found:
                break
            await self._sleep(pause)
            again = await self._look()
            # The table has moved on where it says something new, be it wrong too: that is lag.
            found = {key: each for key, each in again.items() if key in found and each.have is found[key].have}
        return await self._in_slices(self._mend(found.values()))

    def _mend(self, found: Iterable[Difference]) -> Iterator[Difference | None]:
        for each in found:
            kind = self._kind(each)
            if kind.known(each.name) is each.have:
                kind.mend(each.name, each.want)
                yield each
            else:
                yield None  # an event has come since the last look: it is newer than the list

    async def _look(self) -> dict[tuple[str, str], Difference]:
        found: dict[tuple[str, str], Difference] = {}
        with _uncollected():
            for kind in self._kinds:
                listed = await asyncio.to_thread(kind.listed, self._api)
                for each in await self._in_slices(kind.differences(listed)):
                    found[each.what, each.name] = each
        return found

    def _kind(self, difference: Difference) -> Kind[Any]:
        return next(kind for kind in self._kinds if kind.what == difference.what)

    async def _wrong_sums(self) -> list[Difference]:
        objects, have = Objects.of(self._fleet), Sums.of(self._fleet)
        anew = fleets.Fleet(self._fleet.catalogue)
        with _uncollected():
            await self._in_slices(objects.put_into(anew))
            wrong = await self._in_slices(wrong_sums(have, Sums.of(anew), objects.pods))
        if wrong:
            self._fleet.make_anew()
        return wrong

    async def _in_slices(self, steps: Iterable[T | None]) -> list[T]:
        """Take steps, letting the loop do other things after each slice; what they yield besides None."""
        found: list[T] = []
        until = time.perf_counter() + SLICE_SECONDS
        for step in steps:
            if step is not None:
                found.append(step)
            if time.perf_counter() > until:
                await asyncio.sleep(SLICE_SECONDS)
                until = time.perf_counter() + SLICE_SECONDS
        return found


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the cycle collector from walking through all objects of the process, over and over as many are made.

    That took a second at 100,000 pods, and stops all threads; what an audit makes has no cycles, and goes when it ends.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Objects:
    """What a node table was made of, at one instant."""

    nodes: list[kube.Node]
    pods: list[kube.Pod]
    records: list[reservations.Record]
    claims: dict[str, tuple[slices.Taken, ...]]

    @classmethod
    def of(cls, fleet: fleets.Fleet) -> "Objects":
        """Those of a table as it is now."""
        nodes = [row.node for row in fleet.rows.values()]
        return cls(nodes, list(fleet.pods()), list(fleet.reservations.values()), dict(fleet.held_by_claims))

    def put_into(self, fleet: fleets.Fleet) -> Iterator[None]:
        """Have a table know them all, one a step."""
        for node in self.nodes:
            fleet.apply_node(node)
            yield
        for pod in self.pods:
            fleet.apply_pod(pod)
            yield
        for record in self.records:
            fleet.apply_reservations(record)
            yield
        for uid, taken in self.claims.items():
            fleet.apply_taken(uid, taken)
            yield


@dataclass(frozen=True, slots=True)
class Held:
    """What a ledger holds, and its sums: by node and resource, and by resource and SKUs of what has no node."""

    holds: dict[str, Hold]
    on_node: dict[tuple[str, str], int]
    waiting: dict[tuple[str, frozenset[str]], int]

    @classmethod
    def of(cls, ledger: Ledger, names: Iterable[tuple[str, str]]) -> "Held":
        """That of a ledger as it is now, for the nodes and resources given besides those held."""
        holds = dict(ledger.items())
        on_node = {name: held for name in names if (held := ledger.on_node(*name))}
        on_node |= {
            (hold.node, hold.resource): ledger.on_node(hold.node, hold.resource) for hold in holds.values() if hold.node
        }
        waits = {(hold.resource, hold.skus) for hold in holds.values() if not hold.node}
        return cls(holds, on_node, {(resource, skus): ledger.waiting(resource, skus) for resource, skus in waits})

    def anew(self) -> "Held":
        """What the sums should be."""
        ledger = Ledger()
        for key, hold in self.holds.items():
            ledger.put(key, hold)
        return Held.of(ledger, ())


@dataclass(frozen=True, slots=True)
class Sums:
    """What a node table counts, at one instant."""

    amounts: dict[str, dict[str, int]]
    """By node: thousandths of each resource that bound pods take."""
    pods: dict[str, dict[kube.PodUid, kube.Pod]]
    """By node."""
    ledger: Held
    promises: Held
    claimed: dict[slices.Key, dict[str, slices.Taken]]
    """By device and claim."""

    @classmethod
    def of(cls, fleet: fleets.Fleet) -> "Sums":
        """Those of a table as it is now."""
        rows = fleet.rows.items()
        names = [(name, pool.device.resource) for name, row in rows for pool in row.facts.pools]
        return cls(
            {name: dict(row.usage.amounts) for name, row in rows},
            {name: dict(row.usage.pods) for name, row in rows},
            Held.of(fleet.ledger, names),
            Held.of(fleet.promises, names),
            {key: dict(taken) for key, taken in fleet.claimed.items()},
        )


def wrong_sums(have: Sums, want: Sums, pods: Collection[kube.Pod]) -> Iterator[Difference | None]:
    """What a table counts otherwise than one that was made anew of its objects; None for each agreement."""
    yield from _unlike("amounts", have.amounts, want.amounts)
    yield from _unlike("pods on a node", have.pods, want.pods)
    yield from _unlike("claims on a device", have.claimed, want.claimed)
    known = set()
    for pod in pods:
        known.add(pod.identity)
        mine, due = have.ledger.holds.get(pod.identity), want.ledger.holds.get(pod.identity)
        # The hold of a pod that found no room ends after a while, without any event.
        fine = mine == due or (mine is None and pod.unschedulable)
        yield None if fine else Difference("hold", pod.identity, mine, due)
    for wrong in _unlike("promise", have.promises.holds, want.promises.holds):
        # A pod that is gone is promised nothing, whatever the record still says.
        gone = wrong and wrong.have is None and wrong.name.partition("@")[0] not in known
        yield None if gone else wrong
    for what, held in (("hold", have.ledger), ("promise", have.promises)):
        due_sums = held.anew()
        yield from _unlike(f"{what}s on a node", held.on_node, due_sums.on_node)
        yield from _unlike(f"{what}s without a node", held.waiting, due_sums.waiting)


def _unlike(what: str, have: dict[Any, Any], want: dict[Any, Any]) -> Iterator[Difference | None]:
    for key in have.keys() | want.keys():
        mine, due = have.get(key), want.get(key)
        yield None if mine == due else Difference(what, str(key), mine, due)


def _told(found: Any) -> str:
    """What a log line says of one side of a difference."""
    if isinstance(found, kube.Pod):
        return f"{found.key} on {found.spec.node_name or 'no node'}, resourceVersion {found.metadata.resource_version}"
    if isinstance(found, kube.Node):
        return f"resourceVersion {found.metadata.resource_version}"
    return "nothing" if found is None else str(found)[:1000]
