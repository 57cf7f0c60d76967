"""The failing network of the tests fails as it is told, and no more."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import faults
import httpx
import pytest


class Upstream(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.next_line = threading.Semaphore(0)
        super().__init__(("127.0.0.1", 0), Answers)


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(self.path)
        self.send_response(201)
        self.send_header("X-Kept", "yes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Two lines in chunks, the second when the test says so."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in (b"one\n", b"two\n"):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
            self.server.next_line.acquire(timeout=10)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[faults.Proxy]:
    with faults.Proxy(f"http://127.0.0.1:{upstream.server_address[1]}", seed=4) as made:
        yield made


@pytest.fixture
def client(proxy: faults.Proxy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxy.url, trust_env=False) as made:
        yield made


def test_what_no_rule_names_passes_as_it_is(proxy: faults.Proxy, client: httpx.Client, upstream: Upstream) -> None:
    proxy.fail("POST", "^/bind$", before=1, after=0)
    answer = client.post("/filter", content=b"body")
    assert (answer.status_code, answer.content, answer.headers["x-kept"]) == (201, b"body", "yes")
    assert (upstream.seen, proxy.counts) == (["/filter"], {"forwarded": 1})


def test_a_call_lost_before_it_is_forwarded_never_arrives(
    proxy: faults.Proxy, client: httpx.Client, upstream: Upstream
) -> None:
    proxy.fail("POST", "^/bind$", before=1, after=0)
    outcomes = {_outcome(client) for _ in range(20)}
    assert outcomes == {"500", "RemoteProtocolError"}
    assert (upstream.seen, proxy.failed) == ([], 20)


def test_a_lost_answer_belongs_to_a_call_that_arrived(
    proxy: faults.Proxy, client: httpx.Client, upstream: Upstream
) -> None:
    proxy.fail("POST", "^/bind$", before=0, after=1)
    assert _outcome(client) == "RemoteProtocolError"
    assert (upstream.seen, proxy.counts) == (["/bind"], {"answer lost": 1})


def test_a_share_is_lost_and_the_seed_says_which(upstream: Upstream) -> None:
    def run() -> list[str]:
        with (
            faults.Proxy(f"http://127.0.0.1:{upstream.server_address[1]}", seed=7) as proxy,
            httpx.Client(base_url=proxy.url, trust_env=False) as client,
        ):
            proxy.fail("POST", "^/bind$", before=0.2, after=0.2)
            return [_outcome(client) for _ in range(60)]

    first = run()
    assert 12 < sum(outcome != "201" for outcome in first) < 36
    assert run() == first


def test_a_held_call_arrives_when_it_is_released(proxy: faults.Proxy, client: httpx.Client, upstream: Upstream) -> None:
    held = proxy.hold("POST", "^/bind$")
    calling = threading.Thread(target=_outcome, args=(client,))
    calling.start()
    assert held.wait(5) == "/bind"
    assert upstream.seen == []
    held.release()
    calling.join(5)
    assert upstream.seen == ["/bind"]
    assert _outcome(client) == "201"


def test_a_held_answer_belongs_to_a_call_that_arrived(
    proxy: faults.Proxy, client: httpx.Client, upstream: Upstream
) -> None:
    held = proxy.hold("POST", "^/bind$", answers=True)
    calling = threading.Thread(target=_outcome, args=(client,))
    calling.start()
    held.wait(5)
    assert upstream.seen == ["/bind"]
    assert calling.is_alive()
    held.release()
    calling.join(5)


def test_a_watch_streams_through(proxy: faults.Proxy, client: httpx.Client, upstream: Upstream) -> None:
    with client.stream("GET", "/watch") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "one"
        upstream.next_line.release()
        assert next(lines) == "two"
        upstream.next_line.release()
        assert list(lines) == []


def test_an_absent_upstream_looks_like_a_lost_connection() -> None:
    with faults.Proxy("http://127.0.0.1:1") as proxy, httpx.Client(base_url=proxy.url, trust_env=False) as client:
        assert _outcome(client) == "RemoteProtocolError"
        assert proxy.counts == {"forwarded": 1, "upstream gone": 1}
        assert proxy.failed == 0


def _outcome(client: httpx.Client) -> str:
    try:
        return str(client.post("/bind", content=b"{}").status_code)
    except httpx.TransportError as error:
        return type(error).__name__
