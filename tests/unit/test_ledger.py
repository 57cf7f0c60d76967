"""The ledger: what it counts, and how reservations end."""

from scheduler.ledger import RESERVATION_SECONDS, Hold, Ledger

NVIDIA = "nvidia.com/gpu"


def on(node: str, count: int = 1) -> Hold:
    return Hold(NVIDIA, count, node, frozenset({"t4"}))


def waiting(count: int, *skus: str) -> Hold:
    return Hold(NVIDIA, count, None, frozenset(skus))


def test_a_hold_counts_on_its_node_until_it_is_dropped() -> None:
    ledger = Ledger()
    ledger.put("a", on("n", 2))
    assert (ledger.on_node("n", NVIDIA), ledger.on_node("n", "amd.com/gpu"), ledger.on_node("m", NVIDIA)) == (2, 0, 0)
    ledger.drop("a")
    assert (ledger.on_node("n", NVIDIA), len(ledger)) == (0, 0)


def test_a_key_holds_once_however_often_it_is_put() -> None:
    ledger = Ledger()
    for _ in range(3):
        ledger.put("a", on("n", 2))
    ledger.put("a", on("m", 1))
    assert (ledger.on_node("n", NVIDIA), ledger.on_node("m", NVIDIA), len(ledger)) == (0, 1, 1)


def test_dropping_what_is_not_held_changes_nothing() -> None:
    ledger = Ledger()
    ledger.drop("nobody")
    assert "nobody" not in ledger


def test_waiting_pods_count_for_the_skus_they_could_take() -> None:
    ledger = Ledger()
    ledger.put("a", waiting(2, "t4", "l4"))
    ledger.put("b", waiting(3, "h100-sxm"))
    ledger.put("c", waiting(5))
    assert ledger.waiting(NVIDIA, frozenset({"l4"})) == 7
    assert ledger.waiting(NVIDIA, frozenset({"h100-sxm", "t4"})) == 10
    assert ledger.waiting("amd.com/gpu", frozenset({"t4"})) == 0


def test_a_reservation_ends_at_its_deadline_and_not_before() -> None:
    ledger = Ledger()
    ledger.reserve("early", on("n"), now=100)
    ledger.reserve("late", on("n"), now=110)
    assert ledger.expire(100 + RESERVATION_SECONDS - 0.1) == 0
    assert ledger.expire(100 + RESERVATION_SECONDS) == 1
    assert ("early" in ledger, "late" in ledger, ledger.on_node("n", NVIDIA)) == (False, True, 1)


def test_a_pod_seen_in_the_watch_never_expires() -> None:
    ledger = Ledger()
    ledger.reserve("decision", on("n"), now=0)
    ledger.drop("decision")
    ledger.put("uid", on("n"))
    assert ledger.expire(1e9) == 0
    assert ledger.on_node("n", NVIDIA) == 1


def test_a_reservation_made_again_lives_from_then_and_keeps_no_other_alive() -> None:
    ledger = Ledger()
    ledger.reserve("again", on("n"), now=0)
    ledger.reserve("other", on("n"), now=1)
    ledger.reserve("again", on("n"), now=20)
    assert ledger.expire(1 + RESERVATION_SECONDS) == 1
    assert ("again" in ledger, "other" in ledger) == (True, False)


def test_a_pod_that_could_be_placed_after_all_keeps_its_hold() -> None:
    ledger = Ledger()
    ledger.put("p", Hold("nvidia.com/gpu", 1, "n", frozenset()))
    ledger.lapse("p")
    ledger.expire(0.0)
    ledger.put("p", Hold("nvidia.com/gpu", 1, "n", frozenset()))
    ledger.stay("p")
    assert ledger.expire(1000.0) == 0
    assert "p" in ledger
