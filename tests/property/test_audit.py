"""An audit finds exactly the objects whose events went astray, mends the table, and takes no lag for drift."""

import asyncio
from typing import Any

import gpunodes
import hypothesis.strategies as st
import placing
import structlog
import worlds
from hypothesis import given, settings

from scheduler import audit, decision, kube, reservations
from scheduler import fleet as fleets

Json = dict[str, Any]
GPU, AMD = "nvidia.com/gpu", "amd.com/gpu"
NODES = ("n0", "n1")
PODS = ("p0", "p1", "p2", "p3", "p4")


def decided(name: str, node: str | None) -> str:
    return decision.Decision(
        id=f"decision-{name}",
        vendor="nvidia",
        resource=GPU,
        count=1,
        container="main",
        sku="t4",
        skus=("t4",),
        node=node,
        images={},
        reason="x",
    ).model_dump_json()


@st.composite
def nodes(draw: st.DrawFn) -> tuple[str, str, Json | None]:
    name, count = draw(st.sampled_from(NODES)), draw(st.integers(0, 4))
    made = draw(st.sampled_from([gpunodes.nvidia(name, "t4", count), gpunodes.amd(name, "mi300x", count), None]))
    return "node", name, made


@st.composite
def pods(draw: st.DrawFn) -> tuple[str, str, Json | None]:
    name = draw(st.sampled_from(PODS))
    node = draw(st.sampled_from([None, *NODES]))
    made = placing.bound(name, node, {draw(st.sampled_from([GPU, AMD])): draw(st.integers(1, 3)), "cpu": 1})
    if draw(st.booleans()):
        made["metadata"]["annotations"] = {"anygpu.io/decision": decided(name, draw(st.sampled_from([None, *NODES])))}
    if draw(st.booleans()):
        made["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    return "pod", f"uid-{name}", draw(st.sampled_from([made, made, made, made, None]))


@st.composite
def records(draw: st.DrawFn) -> tuple[str, str, Json | None]:
    node = draw(st.sampled_from(NODES))
    uids = [kube.PodUid(f"uid-{name}") for name in draw(st.sets(st.sampled_from(PODS)))]
    entries = {uid: reservations.Entry(uid, f"default/{uid}", {GPU: draw(st.integers(1, 2))}, 0) for uid in uids}
    made = reservations.document(reservations.Record(node, entries))
    return "record", node, draw(st.sampled_from([made, made, None]))


CHANGES = st.one_of(nodes(), pods(), pods(), records())
FATES = st.sampled_from(["told", "told", "told", "told twice", "lost", "told late", "told late"])


class Following:
    """A world, a node table that is told of its changes more or less, and what it was last told of each object."""

    def __init__(self) -> None:
        self.world = worlds.World()
        self.fleet = fleets.Fleet(placing.CATALOGUE)
        self.late: list[worlds.Event] = []
        self.last: dict[tuple[str, str], Json | None] = {}
        self.gone: set[str] = set()

    def change(self, what: str, key: str, document: Json | None) -> worlds.Event:
        return self.world.delete(what, key) if document is None else self.world.put(what, key, document)

    def tell(self, event: worlds.Event) -> None:
        worlds.apply(self.fleet, event)
        self.last[event.what, event.key] = event.document

    def happens(self, change: tuple[str, str, Json | None], fate: str) -> None:
        what, key, document = change
        if what == "pod" and document is None:
            self.gone.add(key)
        elif key in self.gone:
            return  # no two pods share a uid
        event = self.change(*change)
        if fate == "told late":
            self.late.append(event)
        elif fate != "lost":
            self.tell(event)
            if fate == "told twice":
                self.tell(event)

    def tell_late(self, number: int) -> None:
        if self.late:
            self.tell(self.late.pop(number % len(self.late)))

    def astray(self) -> set[tuple[str, str]]:
        """The objects of which the table was told something else than what is there."""
        there = self.world.there

        def says(document: Json | None) -> Any:
            if document is None:
                return None
            return document | {"metadata": document["metadata"] | {"resourceVersion": None}}

        return {key for key in there.keys() | self.last.keys() if says(there.get(key)) != says(self.last.get(key))}

    def audit(self, sleep: Any = None) -> list[audit.Difference]:
        async def no_sleep(_: float) -> None:
            pass

        tested = audit.Audit(self.world, self.fleet, lambda: True, records=True, sleep=sleep or no_sleep)  # type: ignore[arg-type]
        with structlog.testing.capture_logs():
            return asyncio.run(tested.step())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(CHANGES, FATES, st.none() | st.integers(0, 9)), max_size=20))
def test_what_went_astray_is_found_and_mended(
    steps: list[tuple[tuple[str, str, Json | None], str, int | None]],
) -> None:
    following = Following()
    for change, fate, late in steps:
        following.happens(change, fate)
        if late is not None:
            following.tell_late(late)  # in any order: after newer ones too
    astray = following.astray()
    found = following.audit()
    objects = {(each.what, each.name) for each in found if each.what in ("node", "pod", "record")}
    assert objects == astray
    assert worlds.counts(following.fleet) == worlds.counts(following.world.true())
    assert following.audit() == []


@settings(max_examples=150, deadline=None)
@given(
    st.lists(CHANGES, max_size=8),
    st.lists(st.lists(CHANGES, max_size=4), min_size=len(audit.PAUSES_SECONDS), max_size=len(audit.PAUSES_SECONDS)),
)
def test_a_watch_that_lags_and_loses_nothing_never_drifts(
    before: list[tuple[str, str, Json | None]], meanwhile: list[list[tuple[str, str, Json | None]]]
) -> None:
    following = Following()
    for change in before:
        following.happens(change, "told")
    rounds = iter(meanwhile)

    def more() -> None:
        for change in next(rounds, ()):
            following.happens(change, "told late")

    async def sleep(_: float) -> None:
        while following.late:  # all of what happened before, in order
            following.tell_late(0)
        more()

    more()
    assert following.audit(sleep) == []
