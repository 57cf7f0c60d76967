"""Both ports over HTTP: statuses, lengths, probes."""

import asyncio
import json
from typing import Any

import gpunodes
import httpx
import placing
import pytest

from images import resolve
from scheduler import fleet as fleets
from scheduler import kube, service
from webhooks import admission
from webhooks import service as webhook_service

Json = dict[str, Any]


class Port:
    """An application asked over HTTP, without a socket."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def ask(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://anygpu") as client:
                return await client.request(method, path, content=content)

        response = asyncio.run(once())
        # Go's client reuses a connection only after a body of known length.
        assert int(response.headers["content-length"]) == len(response.content)
        assert "transfer-encoding" not in response.headers
        return response

    def get(self, path: str) -> httpx.Response:
        return self.ask("GET", path)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())


def fleet() -> fleets.Fleet:
    document = placing.bound("runs", "t4", {"nvidia.com/gpu": 1})
    return placing.fleet_of([gpunodes.nvidia("t4", "t4", 4), gpunodes.amd("mi", "mi300x")], [document])


def extender_port(*, synced: bool = True, table: fleets.Fleet | None = None) -> Port:
    return Port(service.extender_app(table or fleet(), lambda: synced))


def webhook_port(*, synced: bool = True) -> Port:
    resolver = resolve.Resolver(placing.FakeLookup("v1-nvidia", "v1-amd"))
    admitting = admission.Admission(fleet(), resolver, placing.ids(), lambda: synced)
    return Port(webhook_service.webhook_app(admitting, lambda: synced))


CALL = {"Pod": gpunodes.pod(gpus="1"), "Nodes": None, "NodeNames": ["t4", "mi"]}


def test_filter_and_prioritize_answer_json() -> None:
    port = extender_port()
    filtered, scored = port.post("/filter", CALL), port.post("/prioritize", CALL)
    assert (filtered.status_code, scored.status_code) == (200, 200)
    assert {filtered.headers["content-type"], scored.headers["content-type"]} == {"application/json"}
    assert filtered.json()["NodeNames"] == ["t4", "mi"]
    assert scored.json() == [{"Host": "t4", "Score": 10}, {"Host": "mi", "Score": 8}]


def test_a_bad_filter_call_is_answered_with_an_error_that_kube_scheduler_shows() -> None:
    answer = extender_port().post("/filter", {"Pod": {}, "Nodes": {"items": []}, "NodeNames": None})
    assert answer.status_code == 200
    assert "nodeCacheCapable: true" in answer.json()["Error"]
    assert answer.json()["NodeNames"] == []


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"{", b'{"Pod": 1}'])
def test_hostile_bodies_get_an_answer_and_no_traceback(body: bytes) -> None:
    assert extender_port().post("/filter", body).json()["Error"]
    assert extender_port().post("/prioritize", body).status_code == 400
    assert webhook_port().post("/mutate", body).status_code == 400
    assert webhook_port().post("/validate", body).status_code == 400


def test_a_body_beyond_the_limit_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_BODY_BYTES", 10)
    assert "larger than 10 bytes" in extender_port().post("/filter", b"x" * 11).json()["Error"]
    answer = webhook_port().post("/mutate", b"x" * 11)
    assert (answer.status_code, "larger than 10 bytes" in answer.text) == (400, True)


def test_a_defect_is_a_500_without_details(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("secret")

    monkeypatch.setattr("scheduler.extender.filter_nodes", broken)
    answer = extender_port().post("/filter", CALL)
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_ready_is_red_until_the_cluster_was_read_and_healthy_is_green() -> None:
    for make in (extender_port, webhook_port):
        assert make(synced=False).get("/readyz").status_code == 503
        assert make(synced=True).get("/readyz").status_code == 200
        assert make(synced=False).get("/healthz").status_code == 200


def test_explain_answers_for_a_pod_and_404_for_none() -> None:
    port = extender_port()
    assert port.get("/explain/default/runs").json()["node"] == "t4"
    missing = port.get("/explain/default/nobody")
    assert (missing.status_code, missing.json()["error"]) == (404, "pod default/nobody: not found")


def test_explaining_changes_nothing() -> None:
    table = fleet()
    waiting = gpunodes.pod("waits", gpus="1")
    waiting["metadata"]["uid"] = "u"
    table.apply_pod(kube.to_pod(waiting))
    port, before = extender_port(table=table), list(table.pods())
    nodes = port.get("/nodes").json()
    for name in ("runs", "waits"):
        assert port.get(f"/explain/default/{name}").status_code == 200
    assert port.get("/nodes").json() == nodes
    assert sorted(map(str, table.pods())) == sorted(map(str, before))


def test_the_fleet_the_db_metrics_and_schemas_are_there() -> None:
    port = extender_port()
    assert {node["name"]: node["devices"][0]["free"] for node in port.get("/nodes").json()} == {"t4": 3, "mi": 8}
    assert any(sku["id"] == "t4" for sku in port.get("/skus").json())
    port.post("/filter", CALL)
    assert 'anygpu_verb_seconds_count{verb="filter"}' in port.get("/metrics").text
    assert "/filter" in port.get("/openapi.json").json()["paths"]
    assert port.get("/schemas/decision").json()["title"] == "Decision"


def test_the_webhook_answers_reviews_over_http() -> None:
    review = {
        "request": {"uid": "u", "object": gpunodes.pod(gpus="1"), "kind": {"kind": "Pod"}, "namespace": "default"}
    }
    answer = webhook_port().post("/mutate?timeout=10s", review)
    assert (answer.status_code, answer.json()["response"]["allowed"]) == (200, True)
    assert webhook_port().post("/validate", review).json()["response"] == {"uid": "u", "allowed": True}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/filter", 405), ("GET", "/nothing", 404)])
def test_other_paths_and_methods_are_refused(method: str, path: str, status: int) -> None:
    assert extender_port().ask(method, path).status_code == status
