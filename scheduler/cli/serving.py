"""The running service: two servers, the watches and the writer on one event loop."""

import asyncio
import base64
import contextlib
import dataclasses
import functools
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent import futures
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from images import registry, resolve
from scheduler import binder as binder_
from scheduler import (
    control,
    controllers,
    errors,
    feeds,
    kubeapi,
    leader,
    needs,
    rescue,
    service,
    templates,
    verdicts,
    watch,
)
from scheduler import fleet as fleets
from scheduler.cli import common
from webhooks import admission, tls
from webhooks import service as webhook_service

KEEP_ALIVE_SECONDS = 120
"""Longer than kube-scheduler's idle connections live (90 s): a POST on one that we closed would be lost."""
DRAIN_SECONDS = 10
TRUST_TRIES = 5
CONFLICT = 409

API_CALLS = 32
"""Calls to the API server at once."""

log = structlog.get_logger()


class _Server(uvicorn.Server):
    """A server that leaves signals to its owner: two of them share the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """How to serve."""

    extender_at: tuple[str, int]
    """Address and port."""
    webhook_at: tuple[str, int]
    cert_dir: Path
    webhook_configuration: str | None
    bindings: Collection[needs.Binding]
    rescue_after_seconds: float
    """0: nobody is rescued."""

    @property
    def binds(self) -> bool:
        """Whether there are pods that anygpu binds."""
        return bool({"late", "claim"} & {*self.bindings})


async def serve(fleet: fleets.Fleet, api: kubeapi.Api | None, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises InvalidInput where a port cannot be had, Unreachable where the webhook configuration cannot.
    """
    context = tls.context(settings.cert_dir)
    asyncio.get_running_loop().set_default_executor(futures.ThreadPoolExecutor(API_CALLS, "api"))
    binder = binder_.Binder(api, fleet) if api is not None and settings.binds else None
    with _listen(*settings.extender_at) as extender_socket, _listen(*settings.webhook_at) as webhook_socket:
        async with registry.Registry() as client, contextlib.AsyncExitStack() as stack:
            resolver = resolve.Resolver(client)
            synced = await stack.enter_async_context(_state(fleet, api, settings, binder, resolver))
            admitted = admission.Admission(
                fleet,
                resolver,
                common.new_id,
                synced,
                bindings=settings.bindings,
                binder=binder,
                claim_templates=templates.Templates(api) if api is not None else None,
            )
            trusted = asyncio.Event()

            def ready() -> bool:
                return synced() and trusted.is_set()

            servers = {
                extender_socket: _server(service.extender_app(fleet, ready, binder), None),
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
                authority=str(settings.cert_dir / tls.AUTHORITY),
                cluster=api.server if api else "snapshot",
                bindings=[*settings.bindings],
            )
            try:
                if api is not None and settings.webhook_configuration:
                    await asyncio.to_thread(_trust, api, settings.webhook_configuration, settings)
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
async def _state(
    fleet: fleets.Fleet,
    api: kubeapi.Api | None,
    settings: Settings,
    binder: binder_.Binder | None,
    resolver: resolve.Resolver,
) -> AsyncIterator[Callable[[], bool]]:
    """Keep the node table up to date, and run the controllers, for as long as the context lasts.

    Yields what says whether the table is complete.
    """
    if api is None:
        yield lambda: True
        return
    loop = asyncio.get_running_loop()
    listed: set[int] = set()
    lead = leader.Leader(api)

    def synced() -> bool:
        return len(listed) == len(wanted)

    def acts() -> bool:
        return synced() and lead.is_leader

    writer = control.Writer(api, fleet)
    limits = rescue.Limits(after_seconds=settings.rescue_after_seconds)
    rescuer = rescue.Rescuer(api, fleet, resolver.variants, limits, acts) if limits.after_seconds else None
    reporter = verdicts.Reporter(api, fleet, acts)
    wanted = feeds.feeds(fleet, settings.bindings, writer, rescuer, reporter)
    reflectors = [
        feed.reflector(api, lambda call: loop.call_soon_threadsafe(call), functools.partial(listed.add, number))
        for number, feed in enumerate(wanted)
    ]
    for reflector in reflectors:
        reflector.start()
    tasks = controllers.tasks(api, fleet, settings.bindings, binder, rescuer, synced, acts)
    leading = asyncio.create_task(lead.run())
    started = [asyncio.create_task(task) for task in (writer.run(), reporter.run(), *tasks)]
    try:
        yield synced
    finally:
        for reflector in reflectors:
            reflector.stop()
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)
        leading.cancel()  # last: nobody else may lead while ours still write
        await asyncio.gather(leading, return_exceptions=True)


def _trust(api: kubeapi.Api, name: str, settings: Settings) -> None:
    """Have the apiserver trust the webhook's CA; merge patches replace lists, so each entry is sent whole."""
    bundle = base64.b64encode(tls.authority(settings.cert_dir)).decode()
    bindings = [("validating", f"{name}-bindings")] if settings.binds else []
    for kind, entry in [("mutating", name), ("validating", name), *bindings]:
        path = f"/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations/{entry}"
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
