"""The extender's HTTP face: routes of a few lines over the node table; raw bodies on the verbs."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import prometheus_client
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from scheduler import binder as binder_
from scheduler import decision, errors, explain, extender, inventory
from scheduler import fleet as fleets

JSON = "application/json"
GONE = 499
"""For a caller that hung up in the middle of its request: nobody reads it."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""kube-scheduler sends names: 5,000 of them are 200 KB."""

BIND_SECONDS = 8.0
"""Less than the extender entry's httpTimeout: kube-scheduler hears why, and its next try meets no surprise."""
NOT_SYNCED = "anygpu has not read the cluster yet"
NO_BINDER = "anygpu serves a snapshot, which nothing can be bound in"

log = structlog.get_logger()

VERB_SECONDS = prometheus_client.Histogram(
    "anygpu_verb_seconds",
    "Time to answer a call of kube-scheduler or the apiserver",
    ["verb"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5),
)
VERB_ERRORS = prometheus_client.Counter("anygpu_verb_errors_total", "Calls that could not be answered", ["verb"])


class TooLarge(errors.InvalidInput):
    """A body beyond the limit."""


async def body_of(request: Request) -> bytes:
    """The request's body; raises TooLarge beyond MAX_BODY_BYTES, before it is all in memory."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def extender_app(fleet: fleets.Fleet, synced: Callable[[], bool], binder: binder_.Binder | None = None) -> FastAPI:
    """The application of the extender port; plain HTTP, so on loopback only. Without a binder nothing is bound."""
    app = FastAPI(title="anygpu extender", docs_url=None, redoc_url=None)

    @app.post("/filter")
    async def filter_nodes(request: Request) -> Response:
        """Which nodes can serve the pod, and why the others cannot (ExtenderArgs -> ExtenderFilterResult)."""

        def answer(body: bytes) -> bytes:
            if not synced():  # every node would be refused, and the pod parked until something happens
                raise errors.Unreachable(NOT_SYNCED)
            return extender.filter_nodes(body, fleet)

        return await _verb("filter", request, answer, extender.error_reply)

    @app.post("/prioritize")
    async def prioritize_nodes(request: Request) -> Response:
        """Scores 0-10 of the nodes (ExtenderArgs -> HostPriorityList)."""
        return await _verb("prioritize", request, lambda body: extender.prioritize_nodes(body, fleet), None)

    @app.post("/preempt")
    async def preempt_pods(request: Request) -> Response:
        """Whom kube-scheduler may evict for the pod (ExtenderPreemptionArgs -> ExtenderPreemptionResult)."""
        return await _verb("preempt", request, extender.preempt_pods, None)

    @app.post("/bind")
    async def bind(request: Request) -> Response:
        """Bind the pod to the node with its image (ExtenderBindingArgs -> ExtenderBindingResult)."""

        async def answer(body: bytes) -> bytes:
            asked = binder_.decode(body)
            if binder is None or not synced():
                raise errors.Unreachable(NO_BINDER if binder is None else NOT_SYNCED)
            # A bind under way is not cut off: what it has promised it takes back itself.
            task = asyncio.create_task(binder.bind(asked))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                await asyncio.wait_for(asyncio.shield(task), BIND_SECONDS)
            except TimeoutError as error:
                raise errors.Unreachable(f"binding {asked.key} took longer than {BIND_SECONDS:g} s") from error
            return binder_.reply()

        return await _verb("bind", request, answer, binder_.reply)

    @app.get("/explain/{namespace}/{pod}")
    async def explain_pod(namespace: str, pod: str) -> Response:
        """Why a pod is where it is, or why it waits."""
        found = fleet.pod(namespace, pod)
        if found is None:
            return JSONResponse({"error": f"pod {namespace}/{pod}: not found"}, status_code=404)
        return JSONResponse(explain.explain(found, fleet).as_json())

    @app.get("/nodes")
    async def nodes() -> Response:
        """The fleet as anygpu sees it."""
        return JSONResponse(inventory.nodes(fleet, time.time()))

    @app.get("/skus")
    async def skus() -> Response:
        """The capability DB."""
        origin = fleet.registered.origin
        return JSONResponse([inventory.sku(each, origin("GPUSKU", each.id)) for each in fleet.catalogue])

    @app.get("/schemas/decision")
    async def decision_schema() -> Response:
        """The JSON Schema of the anygpu.io/decision annotation."""
        return JSONResponse(decision.schema())

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics."""
        text = await run_in_threadpool(prometheus_client.generate_latest)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    add_probes(app, synced)
    return app


def add_probes(app: FastAPI, synced: Callable[[], bool]) -> None:
    """Liveness and readiness."""

    @app.get("/healthz")
    async def healthz() -> Response:
        """The process answers."""
        return Response("ok", media_type="text/plain")

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether the cluster has been read; red until then."""
        if synced():
            return Response("ok", media_type="text/plain")
        return Response(NOT_SYNCED, status_code=503, media_type="text/plain")


async def _verb(
    verb: str,
    request: Request,
    answer: Callable[[bytes], bytes | Awaitable[bytes]],
    on_error: Callable[[str], bytes] | None,
) -> Response:
    started = time.perf_counter()
    try:
        made = answer(await body_of(request))
        reply = made if isinstance(made, bytes) else await made
    except ClientDisconnect:
        return Response(status_code=GONE)
    except errors.AnygpuError as error:
        VERB_ERRORS.labels(verb).inc()
        if on_error is None:
            return JSONResponse({"error": str(error)}, status_code=400)
        return Response(on_error(str(error)), media_type=JSON)
    except Exception:
        VERB_ERRORS.labels(verb).inc()
        log.exception("verb failed", verb=verb)
        return JSONResponse({"error": f"{verb} failed; the log has the details"}, status_code=500)
    VERB_SECONDS.labels(verb).observe(time.perf_counter() - started)
    return Response(reply, media_type=JSON)
