"""MIG as the driver shows it: names of profiles, and where an instance may still begin."""

import re
from collections.abc import Iterable
from typing import Final

from capability_db.agent import reading

_IN_NAME: Final = re.compile(r"\bMIG ((?:[1-9]c\.)?[1-9]g\.[0-9]+gb(?:[+-][a-z.]+)?)$")

MEDIA: Final = "+me"
"""In the names of profiles with media extensions, of which a GPU has one instance."""


def profile_name(slices: int, memory_mib: int, whole_mib: int) -> str:
    """The name of a profile that the driver does not name, `1g.10gb`, as NVIDIA's go-nvlib makes it.

    The memory is the nearest eighth of the GPU's, whose GiB are rounded up.
    """
    eighths = round(8 * memory_mib / whole_mib) / 8 if whole_mib else 0
    whole_gib = -(-whole_mib // 1024)
    return f"{slices}g.{round(eighths * whole_gib)}gb"


def profile_in_name(name: str | None) -> str | None:
    """The profile in a MIG device's name, `NVIDIA A100-SXM4-40GB MIG 1g.5gb`; None: none is there."""
    found = _IN_NAME.search(name or "")
    return found[1] if found else None


def free_starts(profile: reading.Profile, instances: Iterable[reading.Instance]) -> tuple[int, ...]:
    """Where one more instance of a profile may begin beside the others; nowhere if the place of one is unknown."""
    there = list(instances)
    if any(each.start is None or each.size is None for each in there):
        return ()
    same = {each.start for each in there if each.profile.endswith(profile.name)}  # `1c.3g.40gb` is a part of one
    if len(same) >= profile.most or (MEDIA in profile.name and any(MEDIA in each.profile for each in there)):
        return ()
    taken = {unit for each in there for unit in range(each.start or 0, (each.start or 0) + (each.size or 0))}
    return tuple(start for start in profile.starts if taken.isdisjoint(range(start, start + profile.size)))
