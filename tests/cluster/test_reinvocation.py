"""Another mutating webhook changes the pod after ours, so that the apiserver asks ours again."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gpunodes
import pytest
from playgrounds import Playground

from webhooks import tls

pytestmark = pytest.mark.cluster

SIDECAR = {"name": "proxy", "image": "proxy:1"}


class _Injector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pod = review["request"]["object"]
        response: dict[str, Any] = {"uid": review["request"]["uid"], "allowed": True}
        if all(container["name"] != SIDECAR["name"] for container in pod["spec"]["containers"]):
            patch = json.dumps([{"op": "add", "path": "/spec/containers/-", "value": SIDECAR}])
            response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch.encode()).decode()}
        answer = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def sidecar_injector(playground: Playground, tmp_path: Path) -> Iterator[None]:
    """A webhook whose name sorts after ours and that adds a container to every pod of the namespace."""
    tls.ensure(tmp_path, ["127.0.0.1"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Injector)
    server.socket = tls.context(tmp_path).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    name = f"zz-{playground.namespace}"
    client = {
        "url": f"https://127.0.0.1:{server.server_address[1]}/",
        "caBundle": base64.b64encode(tls.authority(tmp_path)).decode(),
    }
    webhook = {
        "name": "sidecar.example.com",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "clientConfig": client,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": playground.namespace}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
    }
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    playground.cluster.api("POST", path, {"metadata": {"name": name}, "webhooks": [webhook]})
    yield
    playground.cluster.api("DELETE", f"{path}/{name}")
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_asked_again_the_choice_stands_and_nothing_is_injected_twice(
    playground: Playground, sidecar_injector: None
) -> None:
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 1), gpunodes.amd("mi210-1", "mi210", 1)])

    def injected() -> bool:
        """The apiserver takes a moment to see a new webhook configuration."""
        probe = gpunodes.pod("probe", "busybox")
        probe["metadata"]["namespace"] = playground.namespace
        done = playground.apply(probe, "--dry-run=server", "-o", "json", check=False)
        return SIDECAR["name"] in done.stdout

    playground.wait("the injector to be called", injected)
    # Were the second call a second decision, it would find the one L4 held and choose the MI210.
    pod = gpunodes.pod("twice", playground.image, memory="16Gi")
    pod["metadata"]["namespace"] = playground.namespace
    playground.apply(pod)
    (bound,) = playground.wait_bound(None, 1)
    assert bound["spec"]["nodeName"] == "l4-1"
    main, proxy = bound["spec"]["containers"]
    assert main["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert (proxy["name"], proxy["image"], proxy["resources"]) == ("proxy", "proxy:1", {})
    required = bound["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert all(len(term["matchExpressions"]) == 2 for term in required["nodeSelectorTerms"])
    assert json.loads(bound["metadata"]["annotations"]["anygpu.io/requested-image"]) == {"main": playground.image}
