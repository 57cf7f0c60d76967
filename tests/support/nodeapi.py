"""An API server that knows one node and its NodeGPUs, over HTTP: enough for an agent's process."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import yaml


class NodeApi:
    """Serves until it is stopped; answers 503 while `up` is not set."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.writes: list[dict[str, Any]] = []
        self.up = threading.Event()
        self.up.set()
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _serve(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                path = self.path.partition("?")[0]
                if not api.up.is_set():
                    return self._answer(503, {"message": "down"})
                if "/nodes/" in path:
                    return self._answer(200, {"metadata": {"name": path.rpartition("/")[2], "uid": "u"}})
                if self.command == "POST":
                    api.objects[f"{path}/{body['metadata']['name']}"] = body
                    return self._answer(201, body)
                found = api.objects.get(path.removesuffix("/status"))
                if found is None:
                    return self._answer(404, {"message": "not found"})
                if self.command == "PATCH":
                    found["status"] = body["status"]
                    api.writes.append(body["status"])
                return self._answer(200, found)

            do_GET = do_POST = do_PATCH = _serve  # noqa: N815

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def kubeconfig(self, directory: Path) -> Path:
        """A kubeconfig for it."""
        path = directory / "kubeconfig"
        server = f"http://127.0.0.1:{self._server.server_address[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def stop(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
