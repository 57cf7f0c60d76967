"""Where the agent says that a MIG instance may still begin is where the DB says it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capability_db import partitions
from capability_db.agent import mig, reading


@given(st.sampled_from(partitions.mig_keys()), st.data())
def test_the_places_that_are_free_are_those_that_the_db_counts(key: str, data: st.DataObject) -> None:
    geometry = partitions.mig_geometry(key)
    offered = {each: reading.Profile(each.name, each.size, tuple(each.starts), each.max) for each in geometry.profiles}
    there: list[reading.Instance] = []
    placed: list[partitions.Placed] = []
    for _ in range(data.draw(st.integers(1, 8))):
        free = {profile.name: mig.free_starts(each, there) for profile, each in offered.items()}
        assert free == partitions.free_starts(geometry, placed)
        choices = [(profile, start) for profile in offered for start in free[profile.name]]
        if not choices:
            return
        profile, start = data.draw(st.sampled_from(choices))
        there.append(reading.Instance(profile.name, None, start, profile.size))
        placed.append((profile, start))


def test_nothing_is_free_beside_an_instance_of_which_nobody_knows_where_it_lies() -> None:
    profile = reading.Profile("1g.5gb", 1, (0, 1, 2, 3, 4, 5, 6), 7)
    assert mig.free_starts(profile, [reading.Instance("3g.20gb", "MIG-1")]) == ()
