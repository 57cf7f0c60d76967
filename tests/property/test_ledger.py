"""The ledger against a plain dictionary of holds."""

import hypothesis.strategies as st
from hypothesis import given

from scheduler.ledger import RESERVATION_SECONDS, Hold, Ledger

RESOURCES = ("nvidia.com/gpu", "amd.com/gpu")
SKUS = ("t4", "l4", "mi300x")
HOLDS = st.builds(
    Hold,
    st.sampled_from(RESOURCES),
    st.integers(1, 8),
    st.sampled_from([None, "a", "b"]),
    st.frozensets(st.sampled_from(SKUS)),
)
KEYS = st.sampled_from("uvwxyz")
STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, HOLDS),
    st.tuples(st.just("reserve"), KEYS, HOLDS),
    st.tuples(st.just("drop"), KEYS, st.none()),
    st.tuples(st.just("wait"), st.floats(0, 2 * RESERVATION_SECONDS), st.none()),
)


@given(st.lists(STEPS, max_size=25))
def test_sums_are_those_of_the_holds_that_are_left(steps: list[tuple]) -> None:
    ledger, now = Ledger(), 0.0
    held: dict[str, Hold] = {}
    deadlines: dict[str, float] = {}
    for step, key, hold in steps:
        match step:
            case "put":
                if held.get(key) != hold:
                    deadlines.pop(key, None)
                held[key] = hold
                ledger.put(key, hold)
            case "reserve":
                held[key], deadlines[key] = hold, now + RESERVATION_SECONDS
                ledger.reserve(key, hold, now)
            case "drop":
                held.pop(key, None)
                deadlines.pop(key, None)
                ledger.drop(key)
            case _:
                now += key
                late = [each for each, deadline in deadlines.items() if deadline <= now]
                assert ledger.expire(now) == len(late)
                for each in late:
                    del held[each], deadlines[each]
    assert dict(ledger.items()) == held
    for resource in RESOURCES:
        for node in "ab":
            expected = sum(h.count for h in held.values() if (h.node, h.resource) == (node, resource))
            assert ledger.on_node(node, resource) == expected
        for sku in SKUS:
            expected = sum(
                h.count
                for h in held.values()
                if h.node is None and h.resource == resource and (not h.skus or sku in h.skus)
            )
            assert ledger.waiting(resource, frozenset({sku})) == expected
    assert {key for key, _ in ledger.items()} == held.keys()


@given(st.lists(st.tuples(KEYS, HOLDS)))
def test_nothing_is_left_once_all_is_dropped(holds: list[tuple[str, Hold]]) -> None:
    ledger = Ledger()
    for key, hold in holds:
        ledger.put(key, hold)
    for key, _ in holds:
        ledger.drop(key)
    assert ledger.__dict__ == Ledger().__dict__
