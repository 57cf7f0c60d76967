"""Wakes kube-scheduler when devices came free, once the node table knows that they are.

kube-scheduler tries a pod that an extender refused again when something happens in the cluster, and then asks us at
once: often before our own watch has brought what happened, so that it parks the pod until something else happens,
which on a quiet cluster may take minutes. A change of any node's annotations makes it try all such pods again
(kubernetes pkg/scheduler/framework/runtime/framework.go registers every event for extenders). Safe on all replicas.
"""

import asyncio
import datetime
import time
from collections.abc import Callable

import structlog

from scheduler import binding, kubeapi, watch
from scheduler import fleet as fleets

ANNOTATION = "anygpu.io/freed"
"""On nodes: when devices of it were last seen to be free that had not been."""

Free = dict[tuple[str, str], tuple[int, int]]

log = structlog.get_logger()


class Waker:
    """Touches a node where devices came free while pods wait for some; run `step` every second."""

    def __init__(self, api: kubeapi.Api, fleet: fleets.Fleet, clock: Callable[[], float] = time.time) -> None:
        self._api, self._fleet, self._clock = api, fleet, clock
        self._seen: Free = {}

    async def step(self) -> str | None:
        """The node that was touched; None: nobody waits, or for nothing new."""
        freed = self._fleet.crossing.freed() if self._fleet.crossing is not None else None
        if freed is not None and await self._touch(freed):
            return freed
        if not any(
            pod.unschedulable and not pod.spec.node_name and binding.counted_here(pod) for pod in self._fleet.pods()
        ):
            self._seen = {}
            return None
        seen = {
            (row.name, pool.device.resource): (
                max(0, row.free(pool.device.resource)),
                self._fleet.promises.on_node(row.name, pool.device.resource),
            )
            for row in self._fleet.rows.values()
            for pool in row.facts.pools
        }
        node = next((key[0] for key, now in seen.items() if _is_more(now, self._seen.get(key, (0, 0)))), None)
        if node is None or await self._touch(node):
            self._seen = seen
        return node

    async def _touch(self, node: str) -> bool:
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).isoformat(timespec="milliseconds")
        body = {"metadata": {"annotations": {ANNOTATION: now}}}
        try:
            await asyncio.to_thread(self._api.patch, f"/api/v1/nodes/{node}", body)
        except watch.BROKEN as error:
            log.warning("waking kube-scheduler failed", node=node, error=str(error))
            return False
        return True


def _is_more(now: tuple[int, int], before: tuple[int, int]) -> bool:
    """Whether somebody may find a device free who did not before; each is (devices no pod takes, devices promised)."""
    return now[0] > 0 and (now[0] > before[0] or now[1] < before[1])
