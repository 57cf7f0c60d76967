"""What runs besides answering calls: on every replica what is safe on all at once, on the leader what is done once."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from scheduler import audit, kubeapi, needs, preemptor, rescue, templates, waker
from scheduler import binder as binder_
from scheduler import fleet as fleets

EXPIRY_SECONDS = 3.0
WAKING_SECONDS = 1.0
PREEMPTION_SECONDS = 1.5
TEMPLATES_SECONDS = 120.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Loop:
    """A step taken again and again."""

    name: str
    every_seconds: float
    step: Callable[[], Awaitable[object]]
    leads: bool = True
    """Whether only the leader takes it."""


def tasks(
    api: kubeapi.Api,
    fleet: fleets.Fleet,
    bindings: Collection[needs.Binding],
    binder: binder_.Binder | None,
    rescuer: rescue.Rescuer | None,
    synced: Callable[[], bool],
    acts: Callable[[], bool],
) -> list[Coroutine[Any, Any, None]]:
    """What runs for the bindings that are on, until cancelled.

    `synced` says whether the node table is complete, `acts` whether this replica leads besides.
    """
    loops: list[Loop] = []
    if binder is not None:
        loops.append(Loop("expiry", EXPIRY_SECONDS, binder.expire, leads=False))
    if "late" in bindings:
        loops.append(Loop("waking", WAKING_SECONDS, waker.Waker(api, fleet).step, leads=False))
        loops.append(Loop("preemption", PREEMPTION_SECONDS, preemptor.Preemptor(api, fleet, acts).step))
    if "claim" in bindings:
        loops.append(Loop("cleaning of templates", TEMPLATES_SECONDS, lambda: templates.clean(api, fleet, time.time())))
    found = [_forever(each, acts if each.leads else synced) for each in loops]
    found.append(audit.Audit(api, fleet, synced, records=binder is not None, dra="claim" in bindings).run())
    return [*found, rescuer.run()] if rescuer is not None else found


async def _forever(loop: Loop, may: Callable[[], bool]) -> None:
    """Take the step while it may be taken; whatever goes wrong, the next round tries again."""
    while True:
        await asyncio.sleep(loop.every_seconds * random.uniform(0.8, 1.2))  # noqa: S311
        if may():
            try:
                await loop.step()
            except Exception:
                log.exception(f"{loop.name} failed")
