"""Two schedulers, one node: pods that another scheduler is about to bind, and binds of ours that are under way.

The node's record counts every Binding, those of other schedulers by our webhook, which fails open: while this process
is down, all that were let through before can still take devices that were given away a moment ago. So a bind of ours
lets those pass that were let through before it, and while it is under way, and a moment longer, others are let through
only to what it and those before them leave. All of this is of the last seconds of one process; what is promised stands
in the API.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from scheduler import kube

PASS_SECONDS = 3.0
"""How long a pod that was let through may take to show up on its node: its scheduler binds it at once."""
LINGER_SECONDS = 2.0
"""How long after a bind other schedulers may not know of it."""


@dataclass(frozen=True, slots=True)
class Passing:
    """A pod that another scheduler was told the nodes for."""

    devices: Mapping[str, int]
    nodes: frozenset[str]
    until: float


@dataclass(frozen=True, slots=True)
class Bind:
    """A bind of ours, under way or just done."""

    devices: Mapping[str, int]
    until: float


class Crossing:
    """What the schedulers of one cluster are about to do, as far as one process knows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._passing: dict[kube.PodUid, Passing] = {}
        self._binds: dict[str, dict[kube.PodUid, Bind]] = {}
        """By node."""
        self._held_back: set[str] = set()

    def let_through(self, uid: kube.PodUid, devices: Mapping[str, int], nodes: Collection[str]) -> None:
        """Note that another scheduler may bind a pod to one of some nodes now."""
        now = self._clock()
        for old in [key for key, each in self._passing.items() if each.until < now]:
            del self._passing[old]
        self._passing.pop(uid, None)
        if nodes:
            self._passing[uid] = Passing(devices, frozenset(nodes), now + PASS_SECONDS)

    @contextlib.contextmanager
    def arriving(self, uid: kube.PodUid, node: str, devices: Mapping[str, int]) -> Iterator[None]:
        """Note that another scheduler binds a pod to a node, which is not done before a moment after the context."""
        self._passing.pop(uid, None)
        self._passing[uid] = Passing(devices, frozenset([node]), math.inf)
        try:
            yield
        except BaseException:
            self._passing.pop(uid, None)
            raise
        if uid in self._passing:
            self._passing[uid] = Passing(devices, frozenset([node]), self._clock() + PASS_SECONDS)

    def passing(self, node: str, devices: Collection[str]) -> list[kube.PodUid]:
        """The pods that other schedulers may be binding to a node, and that take one of some resources."""
        now = self._clock()
        return [
            uid
            for uid, each in self._passing.items()
            if each.until >= now and node in each.nodes and not each.devices.keys().isdisjoint(devices)
        ]

    def demand(self, uids: Iterable[kube.PodUid]) -> dict[str, int]:
        """What pods that were let through take in all."""
        found: dict[str, int] = {}
        for uid in uids:
            for name, count in self._passing[uid].devices.items() if uid in self._passing else ():
                found[name] = found.get(name, 0) + count
        return found

    def ahead(self, node: str, resource: str, besides: kube.PodUid) -> int:
        """Devices of a resource that other pods, let through before, may be taking on a node just now."""
        return self.demand(uid for uid in self.passing(node, (resource,)) if uid != besides).get(resource, 0)

    def passed(self, uid: kube.PodUid) -> None:
        """Note that a pod is bound, or gone."""
        self._passing.pop(uid, None)

    @contextlib.contextmanager
    def binding(self, uid: kube.PodUid, node: str, devices: Mapping[str, int]) -> Iterator[None]:
        """Keep others away from the devices of a bind, for as long as the context lasts and a moment longer."""
        binds = self._binds.setdefault(node, {})
        binds[uid] = Bind(devices, math.inf)
        try:
            yield
        finally:
            binds[uid] = Bind(devices, self._clock() + LINGER_SECONDS)

    def hold_back(self, node: str) -> None:
        """Note that another scheduler's pod was kept from a node; nothing else may tell it when that is over."""
        self._held_back.add(node)

    def freed(self) -> str | None:
        """A node that pods were kept from, and that no bind of ours is under way to any more; noted no longer."""
        for node in sorted(self._held_back):
            if not self.binds(node):
                self._held_back.discard(node)
                return node
        return None

    def binds(self, node: str) -> Mapping[kube.PodUid, Mapping[str, int]]:
        """The devices of the binds of ours to a node, by pod."""
        found = self._binds.get(node)
        if not found:
            return {}
        now = self._clock()
        for uid in [uid for uid, each in found.items() if each.until < now]:
            del found[uid]
        if not found:
            del self._binds[node]
        return {uid: each.devices for uid, each in found.items()}
