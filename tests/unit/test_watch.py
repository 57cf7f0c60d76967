"""List and watch: no event lost, none applied twice, whatever the server does."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import hypothesis.strategies as st
import pytest
import urllib3
from hypothesis import given, settings
from kubernetes import client

from scheduler import kube, kubeapi, watch

Json = dict[str, Any]


def node(name: str, version: int, **labels: str) -> Json:
    return {"kind": "Node", "metadata": {"name": name, "resourceVersion": str(version), "labels": labels}}


def page(version: int, *items: Json, more: str = "") -> bytes:
    return json.dumps({"metadata": {"resourceVersion": str(version), "continue": more}, "items": items}).encode()


def event(kind: str, subject: Json) -> bytes:
    return json.dumps({"type": kind, "object": subject}).encode() + b"\n"


def bookmark(version: int) -> bytes:
    return event("BOOKMARK", {"kind": "Node", "metadata": {"resourceVersion": str(version)}})


def gone() -> bytes:
    return event("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})


class Stream:
    """An open watch: chunks as they come; an exception in their place breaks it."""

    def __init__(self, *chunks: bytes | Exception) -> None:
        self._chunks, self.closed = chunks, False

    def stream(self, amt: int | None = None) -> Iterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.closed = True


class Page:
    def __init__(self, data: bytes) -> None:
        self.data = data


class FakeApi:
    """Answers calls one after the other from a script; stops the reflector at its end."""

    def __init__(self, *script: bytes | Stream | Exception) -> None:
        self.script, self.queries = list(script), []
        self.at_end: Callable[[], None] = lambda: None

    def get(self, path: str, query: Json, timeout: Any = None) -> Any:
        self.queries.append(dict(query))
        if not self.script:
            self.at_end()
            raise OSError("the script is over")
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return Page(step) if isinstance(step, bytes) else step


class Run:
    """A reflector run against a script, with what it told."""

    def __init__(self, *script: bytes | Stream | Exception) -> None:
        self.api = FakeApi(*script)
        self.told: list[Any] = []
        self.waits: list[float] = []
        reflector = watch.Reflector(
            self.api,  # type: ignore[arg-type]
            "/api/v1/nodes",
            kube.Node,
            lambda nodes: self.told.append(("LIST", [each.metadata.name for each in nodes])),
            lambda events: self.told.extend((kind, each.metadata.name) for kind, each in events),
        )
        self.api.at_end = reflector.stop
        reflector._stopping.wait = lambda seconds: self.waits.append(seconds) or False  # type: ignore[method-assign,assignment,func-returns-value]
        reflector.run()
        self.relists = reflector.relists

    @property
    def watched_from(self) -> list[str]:
        return [query["resourceVersion"] for query in self.api.queries if "watch" in query]


def test_a_list_comes_in_pages_and_is_told_at_once() -> None:
    run = Run(page(5, node("a", 1), more="next"), page(5, node("b", 2)))
    assert run.told == [("LIST", ["a", "b"])]
    assert run.api.queries[0] == {"limit": "500"}
    assert run.api.queries[1] == {"limit": "500", "continue": "next"}
    assert run.watched_from[0] == "5"


def test_an_empty_list_may_leave_its_items_out() -> None:
    assert Run(b'{"metadata": {"resourceVersion": "5"}, "items": null}').told == [("LIST", [])]


def test_events_follow_the_list_and_move_the_version_on() -> None:
    stream = Stream(event("ADDED", node("a", 6)) + event("MODIFIED", node("a", 7)), event("DELETED", node("a", 8)))
    run = Run(page(5), stream)
    assert run.told == [("LIST", []), ("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    assert run.watched_from == ["5", "8"]
    assert stream.closed
    assert run.api.queries[1]["allowWatchBookmarks"] == "true"


def test_bookmarks_move_the_version_and_are_no_events() -> None:
    run = Run(page(5), Stream(bookmark(90)))
    assert run.told == [("LIST", [])]
    assert run.watched_from == ["5", "90"]


@pytest.mark.parametrize(
    "end",
    [
        kubeapi.ApiError(410, "Expired"),
        Stream(gone()),
    ],
    ids=["status", "event"],
)
def test_a_version_that_is_gone_means_a_new_list(end: Any) -> None:
    run = Run(page(5, node("a", 1)), end, page(9, node("b", 8)))
    assert run.told == [("LIST", ["a"]), ("LIST", ["b"])]
    assert run.relists == 2


def test_events_before_the_end_of_a_version_are_told() -> None:
    run = Run(page(5), Stream(event("ADDED", node("a", 6)) + gone()), page(9))
    assert run.told == [("LIST", []), ("ADDED", "a"), ("LIST", [])]


def test_a_list_whose_pages_expire_begins_again() -> None:
    run = Run(page(5, node("a", 1), more="next"), kubeapi.ApiError(410, ""), page(9, node("b", 8)))
    assert run.told == [("LIST", ["b"])]


@pytest.mark.parametrize(
    "error",
    [
        urllib3.exceptions.ProtocolError("cut"),
        urllib3.exceptions.ReadTimeoutError(None, "", "silent"),  # type: ignore[arg-type]
        ConnectionResetError(),
    ],
    ids=["cut", "silent", "reset"],
)
def test_a_broken_stream_goes_on_from_the_last_version_seen(error: Exception) -> None:
    run = Run(
        page(5),
        Stream(event("ADDED", node("a", 6)), event("ADDED", node("b", 7))[:20], error),
        Stream(event("ADDED", node("b", 7))),
    )
    assert run.told == [("LIST", []), ("ADDED", "a"), ("ADDED", "b")]
    assert run.watched_from == ["5", "6", "7"]
    assert run.relists == 1


def test_a_line_that_is_no_event_loses_nothing() -> None:
    run = Run(page(5), Stream(event("ADDED", node("a", 6)) + b"nonsense\n"), Stream(event("ADDED", node("a", 6))))
    assert run.told == [("LIST", []), ("ADDED", "a")]


def test_failures_wait_longer_each_time_and_success_begins_anew() -> None:
    down = [OSError("refused")] * 9
    run = Run(*down, page(5), Stream(event("ADDED", node("a", 6))), OSError("again"))
    shortest, longest = watch.BACKOFF_SECONDS
    for earlier, later in zip(run.waits, run.waits[3:9], strict=False):
        assert later > earlier or later >= longest / 2
    assert max(run.waits[:9]) <= longest
    assert run.waits[9] <= 2 * shortest


def test_a_server_that_ends_every_watch_at_once_is_not_asked_in_a_tight_loop() -> None:
    run = Run(page(5), *(Stream() for _ in range(4)))
    assert len([wait for wait in run.waits if wait > 0]) >= 4


def test_a_server_whose_versions_are_always_gone_is_not_listed_in_a_tight_loop() -> None:
    script: list[Any] = []
    for _ in range(5):
        script += [page(5), kubeapi.ApiError(410, "")]
    run = Run(*script)
    assert len([wait for wait in run.waits if wait > 0]) >= 4


def test_a_version_that_the_server_never_reaches_ends_in_a_new_list() -> None:
    run = Run(page(900), *[kubeapi.ApiError(504, "Too large resource version")] * 5, page(7, node("a", 6)))
    assert run.told == [("LIST", []), ("LIST", ["a"])]


def test_list_all_raises_what_the_api_says() -> None:
    with pytest.raises(kubeapi.ApiError):
        watch.list_all(FakeApi(kubeapi.ApiError(403, "no")), "/x", kube.Node)  # type: ignore[arg-type]
    with pytest.raises(watch.BROKEN):
        watch.list_all(FakeApi(b"<html>"), "/x", kube.Node)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_event_is_lost_or_told_twice_however_the_bytes_are_cut(data: st.DataObject) -> None:
    total = data.draw(st.integers(0, 8))
    log = [event(data.draw(st.sampled_from(["ADDED", "MODIFIED"])), node(f"n{n}", n)) for n in range(1, total + 1)]
    script: list[Any] = [page(0)]
    reached, stuck = 0, False
    while reached < total:
        upto = data.draw(st.integers(reached + stuck, total))
        stuck = upto == reached
        left = b"".join(log[reached:upto])
        half = log[upto][: data.draw(st.integers(0, len(log[upto]) - 1))] if upto < total else b""
        left += half
        cuts = sorted(data.draw(st.lists(st.integers(0, len(left)), max_size=4)))
        chunks: list[Any] = [left[a:b] for a, b in zip([0, *cuts], [*cuts, len(left)], strict=True)]
        if data.draw(st.booleans()):
            chunks.append(urllib3.exceptions.ProtocolError("cut"))
        script.append(Stream(*chunks))
        reached = upto
    run = Run(*script)
    assert [name for _, name in run.told[1:]] == [f"n{n}" for n in range(1, total + 1)]


class Handler(BaseHTTPRequestHandler):
    """A small apiserver: one page, then a chunked watch with an event cut in two."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if "watch=true" not in self.path:
            body = page(5, node("a", 1))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        line = event("ADDED", node("b", 6))
        for part in (line[:10], line[10:]):
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.flush()
        self.server.released.wait(10)  # type: ignore[attr-defined]
        self.wfile.write(b"0\r\n\r\n")


def test_over_a_real_connection_events_come_as_they_are_written() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.released = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{server.server_address[1]}"
    told: list[Any] = []
    seen = threading.Event()

    def on_events(events: list[tuple[str, kube.Node]]) -> None:
        told.extend((kind, each.metadata.name) for kind, each in events)
        seen.set()

    reflector = watch.Reflector(
        kubeapi.Api(client.ApiClient(configuration)),
        "/api/v1/nodes",
        kube.Node,
        lambda nodes: told.append([each.metadata.name for each in nodes]),
        on_events,
    )
    reflector.start()
    try:
        assert seen.wait(10), "the event did not come while the stream was open"
        assert told == [["a"], ("ADDED", "b")]
    finally:
        reflector.stop()
        server.released.set()  # type: ignore[attr-defined]
        reflector.join(10)
        server.shutdown()
        server.server_close()
    assert not reflector.is_alive()
