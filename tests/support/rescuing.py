"""A rescuer of its own beside the service, under an account with the rights that rescue takes and no more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

from cluster import Cluster
from kubernetes import config

from capability_db.catalogue import Catalogue
from images import registry, resolve
from scheduler import control, feeds, kube, kubeapi, needs, rescue, stranded
from scheduler import fleet as fleets

RULES = [
    {"apiGroups": [""], "resources": ["nodes", "namespaces"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["get", "create"]},
]
ACCOUNT = "rescuer"
FAST = {"after_seconds": 2.0, "settle_seconds": 2.0}


def api_of(running: Cluster) -> kubeapi.Api:
    """The API under the rescuer's account."""
    role = {"kind": "ClusterRole", "metadata": {"name": ACCOUNT}, "rules": RULES}
    binding = {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": ACCOUNT},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "anygpu-system"}],
    }
    kubeconfig = running.create_token("anygpu-system", ACCOUNT)
    items = [{"apiVersion": "rbac.authorization.k8s.io/v1", **each} for each in (role, binding)]
    running.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return kubeapi.Api(config.new_client_from_config(str(kubeconfig)))


@contextlib.contextmanager
def rescuing(running: Cluster, **limits: Any) -> Iterator[rescue.Rescuer]:
    """A rescuer at work on a thread of its own, with short waits unless told."""
    started: list[rescue.Rescuer] = []
    ready = threading.Event()
    ended: list[Callable[[], object]] = []
    api = api_of(running)

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        ended.append(lambda: loop.call_soon_threadsafe(stop.set))
        fleet = fleets.Fleet(Catalogue.builtin())
        async with registry.Registry() as client:
            rescuer = rescue.Rescuer(api, fleet, resolve.Resolver(client).variants, rescue.Limits(**{**FAST, **limits}))

            def failed(pod: kube.Pod, gone: bool) -> None:
                if gone:
                    rescuer.forgot(pod.identity)
                else:
                    rescuer.saw_failed(pod)

            watched = [
                *feeds.feeds(fleet, control.Writer(api, fleet), needs.EARLY),
                feeds.Feed(
                    "/api/v1/pods",
                    kube.Pod,
                    lambda pods: [rescuer.saw_failed(pod) for pod in pods] and None,
                    failed,
                    stranded.REJECTED_LATE_PODS,
                ),
            ]

            def post(call: Callable[[], None]) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended, the watches end later
                    loop.call_soon_threadsafe(call)

            listed: set[int] = set()
            reflectors = [
                each.reflector(api, post, lambda number=number: listed.add(number))
                for number, each in enumerate(watched)
            ]
            for reflector in reflectors:
                reflector.start()
            while len(listed) < len(reflectors):
                await asyncio.sleep(0.05)
            task = asyncio.create_task(rescuer.run())
            started.append(rescuer)
            ready.set()
            await stop.wait()
            task.cancel()
            for reflector in reflectors:
                reflector.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(30), "the rescuer did not start"
    try:
        yield started[0]
    finally:
        ended[0]()
        thread.join(10)
