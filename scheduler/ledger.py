"""Devices spoken for by pods that no node holds yet: early pods admitted and not bound, and plain pods waiting.

A pod is first known by the id of the decision made at admission (a reservation, which expires unless the pod turns
up), then by its uid from the watch. The ledger is rebuilt from the API's pods; only reservations live here alone, and
losing them (kill -9) loses at most the foresight of the last seconds: kube-scheduler counts what it binds by itself.

A pod that kube-scheduler could not place does not take what is free now. Yet right after its admission that may be a
moment's matter (a node label not seen yet, another pod on its device until a swap): its hold lapses, and does not end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

RESERVATION_SECONDS = 30.0
"""How long an admitted pod may take to appear in the watch; later webhooks or quota may have refused it."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Devices that one pod will take."""

    resource: str
    count: int
    node: str | None
    """The node the decision expects; None: the pod waits, or nothing was decided for it."""
    skus: frozenset[str]
    """SKU ids the pod may land on; empty: any."""


class Ledger:
    """Holds by pod uid or decision id, with running sums; each change costs the same whatever is held."""

    def __init__(self) -> None:
        self._holds: dict[str, Hold] = {}
        self._on_node: dict[tuple[str, str], int] = {}
        self._waiting: dict[tuple[str, frozenset[str]], int] = {}
        self._deadlines: dict[str, float] = {}
        self._lapsing: set[str] = set()

    def __len__(self) -> int:
        return len(self._holds)

    def __contains__(self, key: str) -> bool:
        return key in self._holds

    def put(self, key: str, hold: Hold) -> None:
        """Hold for a key, in place of what it held before."""
        if self._holds.get(key) != hold:
            self.drop(key)
            self._holds[key] = hold
            self._count(hold, hold.count)

    def reserve(self, decision_id: str, hold: Hold, now: float) -> None:
        """Hold for a pod just admitted, until its deadline or until `drop`."""
        self.put(decision_id, hold)
        self._deadlines.pop(decision_id, None)  # keeps the order of deadlines
        self._deadlines[decision_id] = now + RESERVATION_SECONDS

    def lapse(self, key: str) -> None:
        """Let a hold end RESERVATION_SECONDS after the next `expire`, unless it is put anew before."""
        if key in self._holds and key not in self._deadlines:
            self._lapsing.add(key)

    def stay(self, key: str) -> None:
        """Let a hold that was to end stay."""
        self._lapsing.discard(key)
        self._deadlines.pop(key, None)

    def drop(self, key: str) -> None:
        """Hold nothing for a key any more."""
        self._deadlines.pop(key, None)
        self._lapsing.discard(key)
        hold = self._holds.pop(key, None)
        if hold is not None:
            self._count(hold, -hold.count)

    def expire(self, now: float) -> int:
        """Drop reservations and lapsing holds past their deadline; says how many."""
        for key in self._lapsing:
            self._deadlines[key] = now + RESERVATION_SECONDS
        self._lapsing.clear()
        # Insertion order is deadline order: every reservation lives equally long.
        late: list[str] = []
        for key, deadline in self._deadlines.items():
            if deadline > now:
                break
            late.append(key)
        for key in late:
            self.drop(key)
        return len(late)

    def on_node(self, node: str, resource: str) -> int:
        """Devices held on a node."""
        return self._on_node.get((node, resource), 0)

    def expected(self, node: str, resource: str, besides: str) -> int:
        """Devices held on a node by all but one."""
        own = self._holds.get(besides)
        mine = own.count if own is not None and (own.node, own.resource) == (node, resource) else 0
        return self.on_node(node, resource) - mine

    def waiting(self, resource: str, skus: frozenset[str]) -> int:
        """Devices that pods without a node want and that could be of one of these SKUs."""
        return sum(
            count
            for (name, wanted), count in self._waiting.items()
            if name == resource and (not wanted or not wanted.isdisjoint(skus))
        )

    def items(self) -> Iterator[tuple[str, Hold]]:
        """Every hold with its key."""
        yield from self._holds.items()

    def _count(self, hold: Hold, change: int) -> None:
        if hold.node is not None:
            _add(self._on_node, (hold.node, hold.resource), change)
        else:
            _add(self._waiting, (hold.resource, hold.skus), change)


def _add(sums: dict[Any, int], key: Any, change: int) -> None:
    total = sums.get(key, 0) + change
    if total:
        sums[key] = total
    else:
        sums.pop(key, None)
