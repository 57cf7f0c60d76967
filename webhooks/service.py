"""The webhook's HTTP face, served over TLS."""

import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from scheduler import errors, service
from webhooks.admission import Admission


def webhook_app(admission: Admission, synced: Callable[[], bool]) -> FastAPI:
    """The application of the webhook port."""
    app = FastAPI(title="anygpu webhook", docs_url=None, redoc_url=None)

    @app.post("/mutate")
    async def mutate(request: Request) -> Response:
        """AdmissionReview of a pod at CREATE: vendor, resource, image and the rest as a JSON patch."""
        return await _answer("mutate", request, admission.mutate)

    @app.post("/validate")
    async def validate(request: Request) -> Response:
        """AdmissionReview of a workload: refused where its template's annotations are wrong."""
        return await _answer("validate", request, admission.validate)

    service.add_probes(app, synced)
    return app


async def _answer(verb: str, request: Request, answer: Callable[[bytes], Awaitable[bytes]]) -> Response:
    started = time.perf_counter()
    try:
        reply = await answer(await service.body_of(request))
    except ClientDisconnect:
        return Response(status_code=service.GONE)
    except errors.InvalidInput as error:
        service.VERB_ERRORS.labels(verb).inc()
        return JSONResponse({"error": str(error)}, status_code=400)
    service.VERB_SECONDS.labels(verb).observe(time.perf_counter() - started)
    return Response(reply, media_type=service.JSON)
