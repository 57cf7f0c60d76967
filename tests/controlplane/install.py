"""anygpu on the control plane as the manifests ship it: its RBAC, its webhook configurations, its extender stanza.

The service runs beside the control plane, not in a pod, so the webhooks are called by URL; the rest is applied as is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml
from cluster import Cluster, free_port

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
SERVICE = "anygpu"
NAMESPACE = "anygpu-system"
IN_CLUSTER_ONLY = ("Deployment", "Service")


def install(running: Cluster, *, scheduler: bool = True) -> str:
    """Apply the manifests, start the service under its own service account and point kube-scheduler at it.

    Returns the URL of the extender port.
    """
    ports = {name: running.ports.setdefault(f"anygpu-{name}", free_port(running.ports.values())) for name in _PORTS}
    for document in yaml.safe_load_all((MANIFESTS / "anygpu.yaml").read_text()):
        if document["kind"] not in IN_CLUSTER_ONLY:
            _call_by_url(document, ports["webhook"])
            running.kubectl("apply", "-f", "-", input=json.dumps(document))
    start_service(running)
    url = f"http://127.0.0.1:{ports['extender']}"
    if scheduler:
        running.start_scheduler(extenders(url))
    return url


_PORTS = ("extender", "webhook")


def start_service(running: Cluster) -> None:
    """Start `anygpu serve`, or start it anew, and return when it is ready."""
    kubeconfig = running.create_token(NAMESPACE, SERVICE)
    extender, webhook = (running.ports[f"anygpu-{name}"] for name in _PORTS)
    arguments = ["serve", "--port", extender, "--webhook-host", "127.0.0.1", "--webhook-port", webhook]
    arguments += ["--cert-dir", running.directory / "anygpu-certs", "--webhook-configuration", "anygpu"]

    def ready() -> bool:
        try:
            answer = httpx.get(f"http://127.0.0.1:{extender}/readyz", timeout=2, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

    command = [sys.executable, "-c", "from scheduler.cli.main import main; main()", *map(str, arguments)]
    running.spawn(SERVICE, command, env={"KUBECONFIG": str(kubeconfig)}, ready=ready)


def extenders(url: str) -> list[dict[str, Any]]:
    """The shipped extender stanza, at another URL."""
    shipped = yaml.safe_load((MANIFESTS / "kube-scheduler.yaml").read_text())["extenders"]
    return [{**extender, "urlPrefix": url} for extender in shipped]


def _call_by_url(document: dict[str, Any], port: int) -> None:
    for webhook in document.get("webhooks", []):
        path = webhook["clientConfig"]["service"]["path"]
        webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}"}
