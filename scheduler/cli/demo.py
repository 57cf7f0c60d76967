"""`anygpu demo`: the main job on a bundled cluster, through the real service, with no cluster and no GPU."""

import base64
import collections
import contextlib
import ctypes
import hashlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import jsonpatch

from capability_db.catalogue import Catalogue
from scheduler import decision, documents, errors, kube, needs, plain
from scheduler import fleet as fleets
from scheduler.cli import common

Json = dict[str, Any]

REGISTRY_HOST = "registry.demo"
START_SECONDS = 30.0


def command() -> None:
    """The main job on a bundled cluster: real Kubernetes JSON through /mutate, /filter and /prioritize.

    Example:

      anygpu demo
    """
    manifests = resources.files("manifests")
    snapshot = Path(str(manifests / "demo" / "cluster.yaml"))
    with tempfile.TemporaryDirectory(prefix="anygpu-demo-") as scratch:
        fleet = fleets.Fleet(Catalogue.builtin())
        documents.load(fleet, documents.read(snapshot), str(snapshot))
        _introduce(fleet)
        images = json.loads((manifests / "examples" / "registry.json").read_text())
        with _service(snapshot, Path(scratch)) as client, _registry(images) as host:
            text = (manifests / "examples" / "pods.yaml").read_text().replace(REGISTRY_HOST, host)
            objects = documents.opened(documents.parse(text, "pods.yaml"), "pods.yaml")
            pods = [each for each in objects if each["kind"] == "Pod"]
            rows = [_show(number, pod, fleet, client) for number, pod in enumerate(pods, 1)]
    common.say("Summary\n")
    common.table(("POD", "GIVEN", "NODE", "IMAGE"), rows)
    common.say("\nTry your own: anygpu place --cluster manifests/demo/cluster.yaml -f pod.yaml")


def _introduce(fleet: fleets.Fleet) -> None:
    common.say(f"A bundled cluster of {len(fleet.rows)} nodes, as `kubectl get nodes,pods -A -o yaml` printed it:\n")
    nodes: collections.Counter[str] = collections.Counter()
    devices: dict[str, list[int]] = {}
    for row in fleet.rows.values():
        for pool in row.facts.pools:
            nodes[pool.device.label] += 1
            total = devices.setdefault(pool.device.label, [0, 0])
            total[0] += max(0, row.left(pool))
            total[1] += pool.allocatable
        if not row.facts.pools:
            nodes["no GPU"] += 1
    common.table(
        ("GPU", "NODES", "FREE"),
        (
            (label, count, "{}/{}".format(*devices[label]) if label in devices else None)
            for label, count in sorted(nodes.items())
        ),
        right=("NODES", "FREE"),
    )
    common.say("")


def _show(number: int, document: Json, fleet: fleets.Fleet, client: "_Client") -> tuple[str, str, str, str]:
    name = document["metadata"]["name"]
    asked = {
        key.removeprefix(needs.PREFIX): value
        for key, value in document["metadata"].get("annotations", {}).items()
        if key.startswith(needs.PREFIX)
    }
    image = document["spec"]["containers"][0]["image"]
    common.say(f"── {number}. {name}")
    common.say(f"   asks      {', '.join(f'{key}: {value}' for key, value in asked.items())}")
    common.say(f"   image     {image}")
    response = client.mutate(document)
    if not response["allowed"]:
        common.say(f"   refused   {response['status']['message']}\n")
        return (name, "refused at admission", "", "")
    pod = jsonpatch.apply_patch(document, json.loads(base64.b64decode(response["patch"])))
    made = decision.read(pod["metadata"]["annotations"])
    assert made is not None  # noqa: S101 - the service admitted it
    given = f"{made.resource}: {made.count}"
    common.say(f"   given     {given}, {made.vendor}")
    for container, chosen in made.images.items():
        common.say(f"   runs      {chosen} (container {container})")
    common.say(f"   because   {made.reason}")
    for rejected in made.rejected[:5]:
        common.say(f"   not       {rejected.what} ({rejected.nodes} nodes): {rejected.reason}")
    node = _schedule(pod, fleet, client)
    common.say("")
    return (name, given, node or "waits", ", ".join(made.images.values()).rpartition("/")[2][:32])


def _schedule(pod: Json, fleet: fleets.Fleet, client: "_Client") -> str | None:
    """Do what kube-scheduler does with an extender: its own filters, /filter, /prioritize."""
    verdicts = plain.survey(kube.to_pod(pod), fleet)
    names = [verdict.name for verdict in verdicts if verdict.fits]
    common.say(f"   scheduler its own filters leave {len(names)} of {len(verdicts)} nodes")
    if not names:
        return None
    filtered = client.extender("filter", pod, names)
    for reason, count in collections.Counter(filtered["FailedAndUnresolvableNodes"].values()).most_common(3):
        common.say(f"   /filter   refuses {count}: {reason}")
    scores = client.extender("prioritize", pod, filtered["NodeNames"])
    shown = ", ".join(f"{each['Host']} {each['Score']}" for each in scores[:4])
    common.say(f"   /filter   leaves {len(filtered['NodeNames'])}; /prioritize: {shown}")
    best: str | None = max(scores, key=lambda each: each["Score"])["Host"] if scores else None
    common.say(f"   lands on  {best}")
    if best is not None:
        bound = {**pod, "metadata": {**pod["metadata"], "uid": pod["metadata"]["name"]}}
        bound["spec"] = {**pod["spec"], "nodeName": best}
        fleet.apply_pod(kube.to_pod(bound))
    return best


class _Client:
    """Speaks to the service as the apiserver and kube-scheduler do."""

    def __init__(self, extender: httpx.Client, webhook: httpx.Client) -> None:
        self._extender, self._webhook = extender, webhook

    def mutate(self, pod: Json) -> Json:
        review = {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": common.new_id(),
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "namespace": pod["metadata"].get("namespace", "default"),
                "operation": "CREATE",
                "object": pod,
            },
        }
        answer: Json = self._webhook.post("/mutate", json=review).raise_for_status().json()["response"]
        return answer

    def extender(self, verb: str, pod: Json, names: list[str]) -> Any:
        arguments = {"Pod": pod, "Nodes": None, "NodeNames": names}
        return self._extender.post(f"/{verb}", json=arguments).raise_for_status().json()


@contextlib.contextmanager
def _service(snapshot: Path, scratch: Path) -> Iterator[_Client]:
    extender_port, webhook_port = _free_port(), _free_port()
    arguments = ["--cluster", str(snapshot), "--port", str(extender_port), "--webhook-host", "127.0.0.1"]
    arguments += ["--webhook-port", str(webhook_port), "--cert-dir", str(scratch)]
    log = scratch / "serve.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-c", "from scheduler.cli.main import main; main()", "serve", *arguments],
            stderr=stderr,
            preexec_fn=_end_with_parent,  # there is no other thread yet whose lock it could need
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{extender_port}", trust_env=False) as extender:
            deadline = time.monotonic() + START_SECONDS
            while not _is_ready(extender):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise errors.Unreachable(f"the service did not start: {log.read_text()[-500:]}")
                time.sleep(0.05)
            trusted = ssl.create_default_context(cafile=str(scratch / "ca.crt"))
            at = f"https://127.0.0.1:{webhook_port}"
            with httpx.Client(base_url=at, verify=trusted, trust_env=False) as webhook:
                yield _Client(extender, webhook)
    finally:
        process.terminate()
        process.wait(timeout=15)


def _end_with_parent() -> None:
    """Have the kernel end the service should the demo be killed (prctl PR_SET_PDEATHSIG; Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _registry(images: dict[str, list[str]]) -> Iterator[str]:
    """Serve tags and digests of made-up images on loopback, in the form of an OCI registry; yields its host."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            repository, _, rest = self.path.partition("?")[0].removeprefix("/v2/").rpartition("/")
            if rest == "list" and repository.removesuffix("/tags") in images:
                name = repository.removesuffix("/tags")
                self._send(json.dumps({"name": name, "tags": images[name]}).encode(), "application/json")
            elif rest in images.get(repository.removesuffix("/manifests"), []):
                manifest = {"schemaVersion": 2, "annotations": {"demo": f"{repository}:{rest}"}}
                self._send(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
            else:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def _send(self, body: bytes, media_type: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(body).hexdigest()}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
