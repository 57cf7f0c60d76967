"""The node table: what each node offers and what is left of it, kept up to date by one event at a time.

One writer (the event loop); nothing here blocks or fails for one bad object. State is a function of the objects
applied, so that a restart computes the same.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from capability_db import errors as capability_errors
from capability_db import node_facts, registered, reports, slices, vendors
from capability_db.catalogue import Catalogue
from scheduler import claims, crossing, kube, policies, quota, reservations
from scheduler import decision as decisions
from scheduler.ledger import Hold, Ledger

CORDON_TAINT = "node.kubernetes.io/unschedulable"


@dataclass(slots=True)
class Usage:
    """What bound pods take of one node."""

    amounts: dict[str, int] = field(default_factory=dict)
    """Thousandths of each resource."""
    pods: dict[kube.PodUid, kube.Pod] = field(default_factory=dict)
    avoiding: dict[kube.PodUid, kube.Pod] = field(default_factory=dict)
    """Those of the pods that keep others away by anti-affinity."""


@dataclass(frozen=True, slots=True)
class Row:
    """One node."""

    node: kube.Node
    facts: node_facts.NodeFacts
    allocatable: dict[str, int]
    """Thousandths of each resource."""
    capacity: dict[str, int]
    usage: Usage
    labels: dict[str, str]
    """The node's labels, with those that anygpu's controller keeps as they should be."""
    published: Mapping[slices.Key, slices.Published] = field(default_factory=dict)
    """The devices of DRA drivers."""
    claimed: Mapping[slices.Key, Mapping[str, slices.Taken]] = field(default_factory=dict)
    """What claims hold of each device of the cluster, by the claim's uid; shared by all rows."""
    heard: reports.Heard | None = None
    """What the node's agent says; None: it has said nothing."""

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.metadata.name

    @property
    def not_ready(self) -> str | None:
        """Why the node takes no pods, by its Ready condition; None: it does (or has no such condition)."""
        for condition in self.node.status.conditions or ():
            if condition.type == "Ready" and condition.status != "True":
                return f"not ready (Ready is {condition.status or 'empty'})"
        return None

    def offered(self, names: Collection[str]) -> list[str]:
        """Which of some resource names the node lists at all, be it at 0: its kubelet demands these of a pod."""
        return [name for name in names if name in self.allocatable or name in self.capacity]

    def free(self, resource: str) -> int:
        """Whole units of a resource that bound pods leave; below 0 where devices failed under running pods."""
        return (self.allocatable.get(resource, 0) - self.usage.amounts.get(resource, 0)) // 1000

    def left(self, pool: node_facts.Pool, memory_bytes: int | None = None) -> int:
        """Devices of a pool that bound pods or claims leave, for a pod that asks so much memory of each."""
        if not pool.device.dra:
            return self.free(pool.device.resource)
        taken = [each for key in self.published for each in self.claimed.get(key, {}).values()]
        return slices.free(self.published, taken, memory_bytes).get(pool.device, 0)


class UnknownDevice(Exception):
    """A device that no ResourceSlice seen so far publishes."""


class Fleet:
    """Nodes, the pods on them, and the ledger of pods that are on none yet."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.registered = registered.Registered(catalogue)
        """What admins registered; `use_registered` puts it in force."""
        self._policies: dict[str, policies.Effective] = {}
        """By namespace, as far as asked."""
        self.rows: dict[str, Row] = {}
        self.ledger = Ledger()
        """What unbound pods are expected to take: good to know, and no promise."""
        self.promises = Ledger()
        """What unbound pods were promised: the entries of `reservations` that no bound pod stands for."""
        self.reservations: dict[str, reservations.Record] = {}
        """By node: what its object in the API says."""
        self.device_classes: dict[str, str | None] | None = None
        """Name -> the resource name that the DeviceClass maps, if any (extendedResourceName); None: nobody looked."""
        self.quotas = quota.Quotas()
        self.crossing: crossing.Crossing | None = None
        """What this process and other schedulers are about to bind; None: this process binds nothing."""
        self.opted_out: set[str] = set()
        """Namespaces that keep anygpu away."""
        self.facts_version = 0
        """Grows when what nodes offer changes; pods do not change it."""
        self._classes: dict[node_facts.DeviceClass, node_facts.DeviceClass] = {}
        self._seen_classes: tuple[int, list[node_facts.DeviceClass]] = (0, [])
        self._usage: dict[str, Usage] = {}
        self._pods: dict[kube.PodUid, kube.Pod] = {}
        self._requests: dict[kube.PodUid, dict[str, int]] = {}
        self._nominated: dict[str, dict[kube.PodUid, kube.Pod]] = {}
        """Node -> the unbound pods that kube-scheduler makes room for there."""
        self._promised: dict[kube.PodUid, dict[str, reservations.Entry]] = {}
        """Node -> entry, for each pod that has any."""
        self._slices: dict[str, dict[str, slices.ResourceSlice]] = {}
        """By node, then by name."""
        self._devices: dict[slices.Key, node_facts.DeviceClass] = {}
        self._claimed: dict[slices.Key, dict[str, slices.Taken]] = {}
        self._claims: dict[str, list[slices.Key]] = {}
        """What each claim holds, by its uid."""
        self._heard: dict[str, reports.Heard] = {}
        """By node, whether or not the node is there."""

    def apply_node(self, node: kube.Node) -> None:
        """Take a node as it is now."""
        name = node.metadata.name
        old = self.rows.get(name)
        if (
            old is not None
            and old.node.metadata.labels == node.metadata.labels
            and old.node.status.allocatable == node.status.allocatable
            and old.node.status.capacity == node.status.capacity
            and old.node.spec.taints == node.spec.taints
        ):
            self.rows[name] = dataclasses.replace(old, node=node)
            return
        usage = self._usage.setdefault(name, Usage())
        self._put_row(node, old, usage)

    def _put_row(self, node: kube.Node, old: Row | None, usage: Usage) -> None:
        """Read a node anew, with what DRA drivers publish of it and its agent reports."""
        name = node.metadata.name
        heard = self._heard.get(name)
        report = heard.report if heard else None
        facts, allocatable, capacity = self.read(node)
        listed = slices.devices(self._slices.get(name, {}).values(), self.catalogue)
        published, conflicts = slices.checked(listed, report, self.catalogue)
        published = {
            key: dataclasses.replace(
                each,
                device=self._intern(node_facts.priced(each.device, node.metadata.labels or {}, self.catalogue)),
            )
            for key, each in published.items()
        }
        pools = [dataclasses.replace(pool, device=self._intern(pool.device)) for pool in facts.pools]
        facts = dataclasses.replace(
            facts, pools=(*pools, *slices.grouped(published)), conflicts=(*facts.conflicts, *conflicts)
        )
        labels = _labels(node, facts)
        self.rows[name] = Row(node, facts, allocatable, capacity, usage, labels, published, self._claimed, heard)
        for key in old.published if old else ():
            self._devices.pop(key, None)
        self._devices |= {key: each.device for key, each in published.items()}
        if old is None or old.facts != facts:
            self.facts_version += 1

    def read(self, node: kube.Node) -> tuple[node_facts.NodeFacts, dict[str, int], dict[str, int]]:
        """What a node's object, as given, and its agent say: its GPUs, and thousandths of allocatable and capacity."""
        heard = self._heard.get(node.metadata.name)
        return read_node(node, self.catalogue, heard.report if heard else None)

    def use_registered(self) -> bool:
        """Put in force what admins registered, and read every node anew where it means another thing by that.

        Returns whether that is so.
        """
        if not self.registered.settle():
            return False
        self._policies.clear()
        old, self.catalogue = self.catalogue, self.registered.catalogue
        if self.catalogue.reads_alike(old):
            return False
        self._classes.clear()
        for name, row in list(self.rows.items()):
            if name in self._slices:
                self._put_row(row.node, row, row.usage)
            elif row.facts.pools:
                self._identify_anew(row)
        return True

    def _identify_anew(self, row: Row) -> None:
        """Read by another catalogue what that bears on; most swaps change nothing for most nodes."""
        facts = node_facts.anew(
            row.facts,
            {*row.allocatable, *row.capacity},
            row.node.metadata.labels or {},
            self.catalogue,
            taints=_taints(row.node),
            report=row.heard.report if row.heard else None,
        )
        if facts == row.facts and all(self._intern(each.device) is each.device for each in row.facts.pools):
            return
        pools = tuple(dataclasses.replace(pool, device=self._intern(pool.device)) for pool in facts.pools)
        facts = dataclasses.replace(facts, pools=pools)
        left = {pool.device.resource: 1000 * pool.allocatable for pool in pools}
        allocatable = {name: left.get(name, amount) for name, amount in row.allocatable.items()}
        # As where only prices differ.
        same = node_facts.node_labels(facts) == node_facts.node_labels(row.facts)
        labels = row.labels if same else _labels(row.node, facts)
        self.rows[row.name] = dataclasses.replace(row, facts=facts, allocatable=allocatable, labels=labels)
        self.facts_version += 1

    def policy(self, namespace: str | None) -> policies.Effective:
        """What PlacementPolicies say for pods of a namespace."""
        name = namespace or "default"
        found = self._policies.get(name)
        if found is None:
            found = self._policies[name] = policies.effective(name, self.registered.policies)
        return found

    def apply_slice(self, found: slices.ResourceSlice) -> None:
        """Take a ResourceSlice as it is now; one of no single node, or of an unknown driver, says nothing to us."""
        node = found.spec.node_name
        if node and vendors.of_driver(found.spec.driver):
            self._slices.setdefault(node, {})[found.metadata.name] = found
            self._read_again(node)

    def remove_slice(self, found: slices.ResourceSlice) -> None:
        """Forget a ResourceSlice."""
        node = found.spec.node_name or ""
        if self._slices.get(node, {}).pop(found.metadata.name, None) is not None:
            if not self._slices[node]:
                del self._slices[node]
            self._read_again(node)

    def _read_again(self, node: str) -> None:
        row = self.rows.get(node)
        if row is not None:
            self._put_row(row.node, row, row.usage)

    def apply_report(self, found: reports.NodeGPUs) -> None:
        """Take what a node's agent says now; what is no report leaves the last good one in force."""
        node = found.metadata.name
        before = self._heard.get(node)
        heard = self._heard[node] = reports.hear(found, before)
        row = self.rows.get(node)
        if before is None or before.report != heard.report:
            self._read_again(node)
        elif row is not None and before != heard:
            self.rows[node] = dataclasses.replace(row, heard=heard)

    def remove_report(self, node: str) -> None:
        """Forget what a node's agent said."""
        if self._heard.pop(node, None) is not None:
            self._read_again(node)

    def replace_reports(self, found: Iterable[reports.NodeGPUs]) -> None:
        """Take a whole list of reports."""
        there = {each.metadata.name: each for each in found}
        for node in [node for node in self._heard if node not in there]:
            self.remove_report(node)
        for each in there.values():
            self.apply_report(each)

    def apply_claim(self, claim: claims.Claim) -> None:
        """Take a ResourceClaim as it is now: what it was allocated it holds."""
        uid = claim.metadata.uid or f"{claim.metadata.namespace}/{claim.metadata.name}"
        self.remove_claim(claim)
        found = list(claims.taken([claim]))
        for each in found:
            self._claimed.setdefault(each.key, {})[uid] = each
        if found:
            self._claims[uid] = [each.key for each in found]

    def remove_claim(self, claim: claims.Claim) -> None:
        """Forget a ResourceClaim and what it held."""
        uid = claim.metadata.uid or f"{claim.metadata.namespace}/{claim.metadata.name}"
        for key in self._claims.pop(uid, ()):
            self._claimed[key].pop(uid, None)
            if not self._claimed[key]:
                del self._claimed[key]

    def replace_dra(
        self, found: Iterable[slices.ResourceSlice] | None = None, held: Iterable[claims.Claim] | None = None
    ) -> None:
        """Take whole lists of ResourceSlices, of ResourceClaims, or of both."""
        if found is not None:
            there = {each.metadata.name: each for each in found}
            for known in [each for names in self._slices.values() for each in names.values()]:
                if known.metadata.name not in there:
                    self.remove_slice(known)
            for each in there.values():
                self.apply_slice(each)
        if held is not None:
            self._claims.clear()
            self._claimed.clear()
            for claim in held:
                self.apply_claim(claim)

    def remove_node(self, name: str) -> None:
        """Forget a node; its pods stay until their own deletion shows."""
        row = self.rows.pop(name, None)
        if row is not None:
            self.facts_version += 1
            for key in row.published:
                self._devices.pop(key, None)
        if name in self._usage and not self._usage[name].pods:
            del self._usage[name]

    def apply_pod(self, pod: kube.Pod) -> None:
        """Take a pod as it is now: on a node it takes resources, before that it may hold some."""
        uid = pod.identity
        old = self._pods.get(uid)
        if pod.finished:
            self.remove_pod(uid)
            return
        if old is not None and old.spec.node_name and old.spec == pod.spec:
            usage = self._usage[old.spec.node_name]  # a bound pod's amounts have not changed
            self._pods[uid] = usage.pods[uid] = pod
            if uid in usage.avoiding:
                usage.avoiding[uid] = pod
            return
        self._take_off(uid)
        self._pods[uid] = pod
        if pod.spec.node_name and self.crossing is not None:
            self.crossing.passed(uid)
        self._hold(uid)
        if not pod.spec.node_name and pod.status.nominated_node_name:
            self._nominated.setdefault(pod.status.nominated_node_name, {})[uid] = pod
        if pod.spec.node_name:
            requests = self._requests[uid] = _requests(pod)
            usage = self._usage.setdefault(pod.spec.node_name, Usage())
            usage.pods[uid] = pod
            if pod.spec.affinity is not None and pod.spec.affinity.pod_anti_affinity is not None:
                usage.avoiding[uid] = pod
            for resource, amount in requests.items():
                usage.amounts[resource] = usage.amounts.get(resource, 0) + amount

    def remove_pod(self, uid: kube.PodUid) -> None:
        """Forget a pod and what it took or held; what it was promised no Binding can follow any more."""
        self.ledger.drop(uid)
        if self.crossing is not None:
            self.crossing.passed(uid)
        for node, entry in self._promised.pop(uid, {}).items():
            self._promise(node, entry, drop=True)
        self._take_off(uid)

    @contextlib.contextmanager
    def without(self, pod: kube.Pod) -> Iterator[None]:
        """The node table as if a pod were not there, for as long as the context lasts."""
        known, promised = self._pods.get(pod.identity), self._promised.get(pod.identity, {})
        self.remove_pod(pod.identity)
        try:
            yield
        finally:
            if promised:
                self._promised[pod.identity] = promised
            if known is not None:
                self.apply_pod(known)

    def apply_reservations(self, record: reservations.Record) -> None:
        """Take a node's record as it is now."""
        old = self.reservations.get(record.node)
        before = old.entries if old else {}
        self.reservations[record.node] = record
        for uid in before.keys() | record.entries.keys():
            was, now = before.get(uid), record.entries.get(uid)
            if was == now:
                continue
            entries = self._promised.setdefault(uid, {})
            if was is not None and entries.pop(record.node, None) is not None:
                self._promise(record.node, was, drop=True)
            if now is not None:
                entries[record.node] = now
            if not entries:
                del self._promised[uid]
            self._hold(uid)

    def remove_reservations(self, node: str) -> None:
        """Forget a node's record."""
        self.apply_reservations(reservations.Record(node, {}))
        del self.reservations[node]

    def promised_to(self, uid: kube.PodUid) -> Mapping[str, reservations.Entry]:
        """Node -> what a pod was promised there."""
        return self._promised.get(uid, {})

    def _promise(self, node: str, entry: reservations.Entry, *, drop: bool) -> None:
        for resource, count in entry.devices.items():
            key = f"{entry.uid}@{node}/{resource}"
            if drop:
                self.promises.drop(key)
            else:
                self.promises.put(key, Hold(resource, count, node, frozenset()))

    def _hold(self, uid: kube.PodUid) -> None:
        """Count what an unbound pod was promised, else what its decision expects; a bound pod holds nothing besides."""
        pod = self._pods.get(uid)
        bound = pod is not None and bool(pod.spec.node_name)
        promised = self._promised.get(uid, {})
        for node, entry in promised.items():
            self._promise(node, entry, drop=bound)
        if pod is None:
            return
        decided = decisions.read(pod.annotations)
        if decided is not None:
            self.ledger.drop(decided.id)
        hold = None if bound or promised else _hold(pod, decided)
        if hold is None:
            self.ledger.drop(uid)
            return
        self.ledger.put(uid, hold)
        if pod.unschedulable:
            self.ledger.lapse(uid)
        else:
            self.ledger.stay(uid)

    def _take_off(self, uid: kube.PodUid) -> None:
        pod = self._pods.pop(uid, None)
        if pod is None:
            return
        if not pod.spec.node_name:
            there = self._nominated.get(pod.status.nominated_node_name or "", {})
            if there.pop(uid, None) is not None and not there:
                del self._nominated[pod.status.nominated_node_name or ""]
            return
        usage = self._usage[pod.spec.node_name]
        usage.pods.pop(uid, None)
        usage.avoiding.pop(uid, None)
        for resource, amount in self._requests.pop(uid).items():
            left = usage.amounts.get(resource, 0) - amount
            if left:
                usage.amounts[resource] = left
            else:
                usage.amounts.pop(resource, None)
        if not usage.pods and pod.spec.node_name not in self.rows:
            del self._usage[pod.spec.node_name]

    def replace(
        self,
        nodes: Iterable[kube.Node] | None = None,
        pods: Iterable[kube.Pod] | None = None,
        records: Iterable[reservations.Record] | None = None,
    ) -> None:
        """Take a whole list, as after a relist: what is not in it is gone."""
        if nodes is not None:
            listed = {node.metadata.name: node for node in nodes}
            for name in [name for name in self.rows if name not in listed]:
                self.remove_node(name)
            for node in listed.values():
                self.apply_node(node)
        if pods is not None:
            present = {pod.identity: pod for pod in pods}
            for uid in [uid for uid in self._pods if uid not in present]:
                self.remove_pod(uid)
            for pod in present.values():
                self.apply_pod(pod)
        if records is not None:
            there = {record.node: record for record in records}
            for name in [name for name in self.reservations if name not in there]:
                self.remove_reservations(name)
            for record in there.values():
                self.apply_reservations(record)

    @property
    def mapped(self) -> dict[str, str]:
        """Resource name -> the DeviceClass that maps it."""
        return {resource: name for name, resource in (self.device_classes or {}).items() if resource}

    def nominated(self, node: str, pod: kube.Pod) -> list[kube.Pod]:
        """The other pods, at least as important as the pod, that kube-scheduler makes room for on a node."""
        return [
            each
            for uid, each in self._nominated.get(node, {}).items()
            if uid != pod.identity and kube.priority(each) >= kube.priority(pod)
        ]

    def held(self, node: str, resource: str) -> int:
        """Devices on a node that unbound pods were promised or are expected to take."""
        return self.promises.on_node(node, resource) + self.ledger.on_node(node, resource)

    def room(self, node: str, resource: str, besides: kube.PodUid) -> int:
        """Devices that neither bound pods take, nor others were promised, nor a bind of ours is about to promise."""
        row = self.rows.get(node)
        if row is None:
            return 0
        room = row.free(resource) - self.promises.on_node(node, resource)
        own = self.promised_to(besides).get(node)
        room += own.devices.get(resource, 0) if own else 0
        for uid, devices in self.crossing.binds(node).items() if self.crossing is not None else ():
            pod = self._pods.get(uid)
            counted = node in self.promised_to(uid) or (pod is not None and bool(pod.spec.node_name))
            room -= 0 if counted or uid == besides else devices.get(resource, 0)
        return room

    def make_anew(self) -> None:
        """Make the table anew of its own objects, sums and all, in one step; what admissions just held is lost.

        That stalls the loop for seconds in a cluster of 100,000 pods, and is better than counting wrong.
        """
        nodes = [row.node for row in self.rows.values()]
        pods, records = list(self._pods.values()), list(self.reservations.values())
        # Not by removing each object: what is wrong within may not let itself be taken apart.
        tables = (self._usage, self._pods, self._requests, self._promised, self._nominated)
        for table in (self.rows, self.reservations, *tables):
            table.clear()
        self.ledger, self.promises = Ledger(), Ledger()
        self.replace(nodes, pods, records)

    def pod(self, namespace: str, name: str) -> kube.Pod | None:
        """A pod by name."""
        wanted = f"{namespace}/{name}"
        return next((pod for pod in self._pods.values() if pod.key == wanted), None)

    def device_of(self, device: slices.Key) -> node_facts.DeviceClass:
        """The class of a DRA device given as (driver, pool, name); raises UnknownDevice."""
        found = self._devices.get(device)
        if found is None:
            raise UnknownDevice(f"device {'/'.join(device)} is in no ResourceSlice that anygpu has seen")
        return found

    def by_uid(self, uid: str) -> kube.Pod | None:
        """A pod by its uid."""
        return self._pods.get(kube.PodUid(uid))

    def pods(self) -> Iterator[kube.Pod]:
        """Every pod that is not finished."""
        yield from self._pods.values()

    def classes(self) -> list[node_facts.DeviceClass]:
        """The device classes that nodes offer now."""
        version, classes = self._seen_classes
        if version != self.facts_version:
            seen = {id(pool.device): pool.device for row in self.rows.values() for pool in row.facts.pools}
            classes = list(seen.values())
            self._seen_classes = (self.facts_version, classes)
        return classes

    def _intern(self, device: node_facts.DeviceClass) -> node_facts.DeviceClass:
        return self._classes.setdefault(device, device)


def read_node(
    node: kube.Node, catalogue: Catalogue, report: reports.Report | None = None
) -> tuple[node_facts.NodeFacts, dict[str, int], dict[str, int]]:
    """What a node's object and its agent say: its GPUs, and thousandths of each allocatable resource and its capacity.

    Unhealthy devices that the device plugin offers nevertheless are not allocatable.
    """
    allocatable = kube.amounts(node.status.allocatable)
    capacity = kube.amounts(node.status.capacity) or allocatable
    facts = node_facts.read(
        node.metadata.labels or {},
        {key: amount // 1000 for key, amount in allocatable.items()},
        {key: amount // 1000 for key, amount in capacity.items()},
        catalogue,
        taints=_taints(node),
        report=report,
    )
    withheld = {pool.device.resource: 1000 * pool.allocatable for pool in facts.pools if pool.withheld}
    return facts, {**allocatable, **withheld}, capacity


def _taints(node: kube.Node) -> list[str]:
    return [taint.key for taint in node.spec.taints or ()]


def _labels(node: kube.Node, facts: node_facts.NodeFacts) -> dict[str, str]:
    """The node's labels, with those that anygpu's controller keeps as they should be."""
    own = node_facts.node_labels(facts)
    return {k: v for k, v in (node.metadata.labels or {}).items() if not node_facts.is_ours(k)} | own


def _requests(pod: kube.Pod) -> dict[str, int]:
    try:
        return {resource: amount for resource, amount in kube.pod_requests(pod).items() if amount}
    except capability_errors.QuantityError:
        return {}  # the apiserver admits no such pod; a snapshot edited by hand may hold one


def _hold(pod: kube.Pod, decided: "decisions.Decision | None") -> Hold | None:
    """What an unbound pod speaks for; one that waits without a node takes nothing of what is free now."""
    if pod.unschedulable and (decided is None or decided.node is None):
        return None
    if decided is not None and decided.binding == "claim":
        return Hold(decided.resource, decided.count, decided.node, frozenset(decided.skus))
    requests = _requests(pod)
    # What the pod asks is what it can take, all its containers together: a decision only tells where.
    if decided is not None and decided.resource in requests:
        return Hold(decided.resource, -(-requests[decided.resource] // 1000), decided.node, frozenset(decided.skus))
    for resource, amount in requests.items():
        if vendors.of_resource(resource):
            return Hold(resource, -(-amount // 1000), pod.status.nominated_node_name, frozenset())
    return None
