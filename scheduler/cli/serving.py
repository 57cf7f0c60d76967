"""The running service: two servers, the watches and the writer on one event loop."""

import asyncio
import base64
import contextlib
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import structlog
import uvicorn
from fastapi import FastAPI

from images import registry, resolve
from scheduler import control, errors, kube, kubeapi, service, watch
from scheduler import fleet as fleets
from scheduler.cli import common
from webhooks import admission, tls
from webhooks import service as webhook_service

KEEP_ALIVE_SECONDS = 120
"""Longer than kube-scheduler's idle connections live (90 s): a POST on one that we closed would be lost."""
DRAIN_SECONDS = 10
TRUST_TRIES = 5
CONFLICT = 409

Batch = TypeVar("Batch")

log = structlog.get_logger()


class _Server(uvicorn.Server):
    """A server that leaves signals to its owner: two of them share the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def log_to_stderr() -> None:
    """Log JSON lines on stderr."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


async def serve(
    fleet: fleets.Fleet,
    api: kubeapi.Api | None,
    extender_at: tuple[str, int],
    webhook_at: tuple[str, int],
    cert_dir: Path,
    webhook_configuration: str | None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises InvalidInput where a port cannot be had, Unreachable where the webhook configuration cannot.
    """
    context = tls.context(cert_dir)
    with _listen(*extender_at) as extender_socket, _listen(*webhook_at) as webhook_socket:
        async with registry.Registry() as client, _state(fleet, api) as synced:
            admitted = admission.Admission(fleet, resolve.Resolver(client), common.new_id, synced)
            trusted = asyncio.Event()

            def ready() -> bool:
                return synced() and trusted.is_set()

            servers = {
                extender_socket: _server(service.extender_app(fleet, ready), None),
                webhook_socket: _server(webhook_service.webhook_app(admitted, ready), context),
            }
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            running = [asyncio.create_task(each.serve(sockets=[listening])) for listening, each in servers.items()]
            log.info(
                "serving",
                extender=_address(extender_socket),
                webhook=_address(webhook_socket),
                authority=str(cert_dir / tls.AUTHORITY),
                cluster=api.server if api else "snapshot",
            )
            try:
                if api is not None and webhook_configuration:
                    await asyncio.to_thread(_trust, api, webhook_configuration, tls.authority(cert_dir))
                trusted.set()
                await stop.wait()
            finally:
                for server in servers.values():
                    server.should_exit = True
                await asyncio.gather(*running)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise errors.InvalidInput(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port"
        ) from error


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"{host}:{port}"


def _server(app: FastAPI, context: ssl.SSLContext | None) -> _Server:
    def with_context(config: uvicorn.Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        assert context is not None  # noqa: S101 - only asked for where there is one
        return context

    return _Server(
        uvicorn.Config(
            app,
            http="httptools",
            loop="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            server_header=False,
            ssl_context_factory=with_context if context else None,
        )
    )


@contextlib.asynccontextmanager
async def _state(fleet: fleets.Fleet, api: kubeapi.Api | None) -> AsyncIterator[Callable[[], bool]]:
    """Keep the node table up to date for as long as the context lasts; yields what says whether it is complete."""
    if api is None:
        yield lambda: True
        return
    loop = asyncio.get_running_loop()
    writer = control.Writer(api, fleet)
    listed: set[str] = set()

    def on_nodes(nodes: list[kube.Node]) -> None:
        fleet.replace(nodes=nodes)
        listed.add("nodes")
        writer.nudge()

    def on_node_events(events: list[tuple[str, kube.Node]]) -> None:
        for kind, node in events:
            if kind == "DELETED":
                fleet.remove_node(node.metadata.name)
            else:
                fleet.apply_node(node)
        writer.nudge()

    def on_pods(pods: list[kube.Pod]) -> None:
        fleet.replace(pods=pods)
        for pod in pods:
            writer.saw_pod(pod)
        listed.add("pods")

    def on_pod_events(events: list[tuple[str, kube.Pod]]) -> None:
        for kind, pod in events:
            if kind == "DELETED":
                fleet.remove_pod(pod.identity)
                writer.forgot_pod(pod.identity)
            else:
                fleet.apply_pod(pod)
                writer.saw_pod(pod)

    def on_namespaces(namespaces: list[kube.Namespace]) -> None:
        fleet.opted_out = {each.metadata.name for each in namespaces}
        listed.add("namespaces")

    def on_namespace_events(events: list[tuple[str, kube.Namespace]]) -> None:
        for kind, namespace in events:
            change = fleet.opted_out.discard if kind == "DELETED" else fleet.opted_out.add
            change(namespace.metadata.name)

    def posted(apply: Callable[[Batch], None]) -> Callable[[Batch], None]:
        def post(batch: Batch) -> None:
            loop.call_soon_threadsafe(apply, batch)

        return post

    reflectors: list[watch.Reflector[Any]] = [
        watch.Reflector(api, "/api/v1/nodes", kube.Node, posted(on_nodes), posted(on_node_events)),
        watch.Reflector(api, "/api/v1/pods", kube.Pod, posted(on_pods), posted(on_pod_events), watch.RUNNING_PODS),
        watch.Reflector(
            api,
            "/api/v1/namespaces",
            kube.Namespace,
            posted(on_namespaces),
            posted(on_namespace_events),
            watch.OPTED_OUT_NAMESPACES,
        ),
    ]
    for reflector in reflectors:
        reflector.start()
    writing = asyncio.create_task(writer.run())
    try:
        yield lambda: len(listed) == len(reflectors)
    finally:
        for reflector in reflectors:
            reflector.stop()
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing


def _trust(api: kubeapi.Api, name: str, authority: bytes) -> None:
    """Have the apiserver trust the webhook's CA; merge patches replace lists, so each entry is sent whole."""
    bundle = base64.b64encode(authority).decode()
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        path = f"/apis/admissionregistration.k8s.io/v1/{kind}/{name}"
        try:
            _put_bundle(api, path, bundle)
        except watch.BROKEN as error:
            raise errors.Unreachable(f"webhook configuration {name}: the CA could not be put in: {error}") from error
    log.info("the apiserver trusts the webhook", configuration=name)


def _put_bundle(api: kubeapi.Api, path: str, bundle: str) -> None:
    for left in reversed(range(TRUST_TRIES)):
        found = api.get_json(path)
        hooks = found["webhooks"]
        for hook in hooks:
            hook["clientConfig"]["caBundle"] = bundle
        try:
            api.patch(path, {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "webhooks": hooks})
        except kubeapi.ApiError as error:
            if error.status != CONFLICT or not left:  # somebody else wrote between our read and our write
                raise
        else:
            return
