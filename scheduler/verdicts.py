"""What is said of registered objects, written to their status, and as an event where one is not valid.

Only the leader writes, only what differs, and under the version that was judged: who changed the object in between is
judged anew when the watch brings that.
"""

import asyncio
import contextlib
import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog
import urllib3

from capability_db import registered, resources
from scheduler import control, events, kubeapi
from scheduler import fleet as fleets

Json = dict[str, Any]

LOOK_SECONDS = 2.0
"""How often a replica looks whether it leads now, and has what others left unsaid to say."""
RETRY_SECONDS = 5.0

log = structlog.get_logger()


def status(found: registered.Object, verdict: registered.Verdict, now: float) -> Json | None:
    """The status that says the verdict, as a merge patch; None: it stands there already. `now` in unix seconds.

    The transition's time changes only where the condition's status does.
    """
    have = found.status or registered.Status()
    old = _ready(found)
    generation = found.metadata.generation
    ready = registered.Condition(
        type=registered.READY,
        status="True" if verdict.reason == "Accepted" else "False",
        reason=verdict.reason,
        message=verdict.message,
        observed_generation=generation,
    )
    since = old.last_transition_time if old is not None and old.status == ready.status else _time(now)
    ready = msgspec.structs.replace(ready, last_transition_time=since)
    if old == ready and have.observed_generation == generation and have.in_force == verdict.in_force:
        return None
    others = [each for each in have.conditions or () if each.type != registered.READY]
    return {
        "observedGeneration": generation,
        "conditions": [msgspec.to_builtins(each) for each in (*others, ready)],
        "inForce": verdict.in_force,
    }


def invalid_event(key: registered.Key, found: registered.Object, verdict: registered.Verdict, now: float) -> Json:
    """The event that tells who wrote an object that it is not valid; one for each generation of it."""
    about: Json = {
        "apiVersion": f"{resources.GROUP}/{resources.VERSION}",
        "kind": key.kind,
        "name": key.name,
        "uid": found.metadata.uid,
        **({"namespace": key.namespace} if key.namespace else {}),
    }
    name = events.name(key.name, key.kind.lower(), (found.metadata.uid or "")[:8], str(found.metadata.generation))
    note = f"{verdict.reason}: {verdict.message}"
    return events.on(
        about, name, by="registered", action="Judge", reason="InvalidObject", note=note, now=now, warning=True
    )


def path(key: registered.Key) -> str:
    """Where the API keeps the object."""
    where = f"namespaces/{key.namespace}/" if key.namespace else ""
    return f"{resources.API}/{where}{resources.KINDS[key.kind].plural}/{key.name}"


def _ready(found: registered.Object) -> registered.Condition | None:
    conditions = (found.status or registered.Status()).conditions or ()
    return next((each for each in conditions if each.type == registered.READY), None)


def _time(now: float) -> str:
    return datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Reporter:
    """Writes what the table's registered objects should say of themselves; `nudge` after each change of them."""

    def __init__(
        self, api: kubeapi.Api, fleet: fleets.Fleet, acts: Callable[[], bool], clock: Callable[[], float] = time.time
    ) -> None:
        """Write by an API; `acts` says whether this replica may."""
        self._api, self._fleet, self._acts, self._clock = api, fleet, acts, clock
        self._dirty = asyncio.Event()

    def nudge(self) -> None:
        """Say that something may have to be written."""
        self._dirty.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), LOOK_SECONDS)
            self._dirty.clear()
            if self._acts() and not await self.step():
                await asyncio.sleep(RETRY_SECONDS)

    async def step(self) -> bool:
        """Write what differs; returns whether all of it went through."""
        done = True
        said = self._fleet.registered.verdicts
        for key, found in list(self._fleet.registered.objects()):
            verdict = said.get(key)
            wanted = status(found, verdict, self._clock()) if verdict else None
            if verdict is None or wanted is None:
                continue
            if verdict.reason != "Accepted" and not self._was_told(found):
                event = invalid_event(key, found, verdict, self._clock())
                collection = events.collection(key.namespace or None)
                done &= await self._try("writing an event", key, self._api.post, collection, event)
            patch = {"metadata": {"resourceVersion": found.metadata.resource_version}, "status": wanted}
            done &= await self._try("writing a status", key, self._api.patch, f"{path(key)}/status", patch)
        return done

    def _was_told(self, found: registered.Object) -> bool:
        ready = _ready(found)
        return ready is not None and ready.status == "False" and ready.observed_generation == found.metadata.generation

    async def _try(self, what: str, key: registered.Key, call: Any, where: str, body: Mapping[str, Any]) -> bool:
        try:
            await asyncio.to_thread(call, where, body)
        except kubeapi.ApiError as error:
            if error.status in control.CONFLICTS:
                return True
            log.warning(f"{what} failed", object=str(key), error=str(error))
            return False
        except (urllib3.exceptions.HTTPError, OSError) as error:
            log.warning(f"{what} failed", object=str(key), error=str(error))
            return False
        return True
