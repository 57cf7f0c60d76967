"""A network that fails: an HTTP proxy on loopback that loses calls, loses their answers, or holds them back."""

from __future__ import annotations

import collections
import http.client
import http.server
import random
import re
import socket
import ssl
import threading
import urllib.parse
from pathlib import Path
from typing import Any, Literal, Self

Fate = Literal["forwarded", "refused", "cut", "answer lost"]
"""`refused`: answered 500 and not forwarded. `cut`: the connection closed, not forwarded. `answer lost`: forwarded, and
the connection closed in place of the answer. The upstream's own absence counts as `upstream gone`."""

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Hold:
    """Requests held back, or their answers, until released."""

    def __init__(self, method: str, path: str, *, answers: bool) -> None:
        self.method, self.path, self.answers = method, re.compile(path), answers
        self.caught: list[str] = []
        """The paths of what was held, the first one first."""
        self._arrived = threading.Event()
        self._released = threading.Event()

    def matches(self, method: str, path: str) -> bool:
        """Whether such a request is held."""
        return method == self.method and self.path.search(path) is not None

    def keep(self, path: str) -> None:
        """Return when the request may go on."""
        self.caught.append(path)
        self._arrived.set()
        self._released.wait()

    def wait(self, timeout: float = 60) -> str:
        """The path of the first request held; raises TimeoutError if none comes."""
        if not self._arrived.wait(timeout):
            raise TimeoutError(f"no {self.method} {self.path.pattern} within {timeout:g} s")
        return self.caught[0]

    def release(self) -> None:
        """Let everything held go on, and hold nothing more."""
        self._released.set()


class Proxy:
    """Forwards each request to `upstream`, except where a rule says otherwise; watches stream through.

    `tls` are the certificate and the key that it serves with, `authority` what it trusts upstream. The same seed and
    the same order of requests give the same faults.
    """

    def __init__(
        self, upstream: str, *, seed: int = 0, tls: tuple[Path, Path] | None = None, authority: Path | None = None
    ) -> None:
        self._upstream = urllib.parse.urlsplit(upstream)
        self._trusts = ssl.create_default_context(cafile=str(authority)) if authority else None
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._faults: list[tuple[str, re.Pattern[str], float, float]] = []
        self.holds: list[Hold] = []
        self._counts: collections.Counter[str] = collections.Counter()
        self._inside: collections.Counter[str] = collections.Counter()
        self._server = _Server(self, tls)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name=f"proxy {self.url}", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for hold in self.holds:
            hold.release()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, path: str, *, before: float, after: float) -> None:
        """Lose this share of the requests whose path matches before they are forwarded, and that share's answers."""
        with self._lock:
            self._faults.append((method, re.compile(path), before, after))

    def hold(self, method: str, path: str, *, answers: bool = False) -> Hold:
        """Hold requests whose path matches before they are forwarded, or with `answers` what is answered to them."""
        made = Hold(method, path, answers=answers)
        with self._lock:
            self.holds.append(made)
        return made

    @property
    def counts(self) -> dict[str, int]:
        """How many requests met which fate."""
        with self._lock:
            return dict(self._counts)

    @property
    def failed(self) -> int:
        """Requests that were made to fail."""
        counts = self.counts
        return sum(counts.get(fate, 0) for fate in ("refused", "cut", "answer lost"))

    def judge(self, method: str, path: str) -> Fate:
        """What becomes of a request."""
        with self._lock:
            fate: Fate = "forwarded"
            for verb, pattern, before, after in self._faults:
                if verb == method and pattern.search(path):
                    thrown = self._dice.random()
                    if thrown < before:
                        fate = "refused" if self._dice.random() < 0.5 else "cut"
                    elif thrown < before + after:
                        fate = "answer lost"
                    break
            self._counts[fate] += 1
            return fate

    def under_way(self, path: str) -> int:
        """Requests of exactly this path that the upstream is answering just now."""
        with self._lock:
            return self._inside[path]

    def inside(self, path: str, sign: int) -> None:
        """Note that a request went to the upstream (1) or that its answer is here (-1)."""
        with self._lock:
            self._inside[path] += sign
            if not self._inside[path]:
                del self._inside[path]

    def note(self, what: str) -> None:
        """Count something."""
        with self._lock:
            self._counts[what] += 1

    def holding(self, method: str, path: str, *, answers: bool) -> Hold | None:
        """The hold that a request, or its answer, meets."""
        with self._lock:
            return next((each for each in self.holds if each.answers == answers and each.matches(method, path)), None)

    def connect(self) -> http.client.HTTPConnection:
        """A new connection to the upstream: one that was kept could be dead, which would count as a fault."""
        host, port = self._upstream.hostname or "", self._upstream.port
        if self._trusts:
            return http.client.HTTPSConnection(host, port, context=self._trusts)
        return http.client.HTTPConnection(host, port)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: Proxy, tls: tuple[Path, Path] | None) -> None:
        self.proxy = proxy
        self._tls: ssl.SSLContext | None = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*tls)
        super().__init__(("127.0.0.1", 0), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection, in its own thread: a slow handshake delays nobody."""
        try:
            if self._tls:
                with self._tls.wrap_socket(request, server_side=True) as wrapped:
                    _Handler(wrapped, client_address, self)
            else:
                _Handler(request, client_address, self)
        except OSError:  # the caller hung up: it was killed, or it had enough
            self.proxy.note("caller gone")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def forward(self) -> None:
        """Deal with one request."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server.proxy
        fate = proxy.judge(self.command, self.path)
        if fate == "cut":
            self.close_connection = True
            return
        if fate == "refused":
            self._answer(500, [("Content-Type", "text/plain")], b"lost by the test's proxy\n")
            return
        hold = proxy.holding(self.command, self.path, answers=False)
        if hold:
            hold.keep(self.path)
        upstream = proxy.connect()
        proxy.inside(self.path, 1)
        try:
            headers = {key: value for key, value in self.headers.items() if key.lower() not in HOP_BY_HOP}
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            self._pass_on(answer, lost=fate == "answer lost")
        except (OSError, http.client.HTTPException):
            proxy.note("upstream gone")
            self.close_connection = True
        finally:
            proxy.inside(self.path, -1)
            upstream.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

    def _pass_on(self, answer: http.client.HTTPResponse, *, lost: bool) -> None:
        headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in HOP_BY_HOP]
        streams = answer.getheader("Transfer-Encoding") == "chunked" and not lost
        whole = b"" if streams else answer.read()
        hold = self.server.proxy.holding(self.command, self.path, answers=True)
        if hold:
            hold.keep(self.path)
        if lost:
            self.close_connection = True
        elif streams:
            self._answer(answer.status, [*headers, ("Transfer-Encoding", "chunked")], None)
            while part := answer.read1(65536):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._answer(answer.status, headers, whole)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes | None) -> None:
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        lines += [f"{key}: {value}" for key, value in headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the counts tell."""
