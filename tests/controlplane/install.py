"""anygpu on the control plane as the manifests ship it: its RBAC, its webhook configurations, its schedulers' stanzas.

The service runs beside the control plane, not in a pod, so the webhooks are called by URL; the rest is applied as is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml
from cluster import Cluster, free_port

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
SERVICE = "anygpu"
SCHEDULER = "anygpu-scheduler"
NAMESPACE = "anygpu-system"
CRDS = "crds.yaml"
IN_CLUSTER_ONLY = ("Deployment", "Service")
EARLY = ("early",)
ALL_BINDINGS = ("early", "late", "claim")


def install(running: Cluster, *, scheduler: bool = True, bindings: Sequence[str] = EARLY, replicas: int = 1) -> str:
    """Apply the manifests, start the service under its own service account and point the schedulers at it.

    With more than early binding, anygpu-scheduler runs as well. Of several replicas, webhooks and schedulers speak to
    the first. Returns the URL of the extender port.
    """
    apply_crds(running)
    _, webhook = _ports(running, 1)
    found = [each for file in _files(bindings) for each in documents(file) if each["kind"] not in IN_CLUSTER_ONLY]
    for document in found:
        _call_by_url(document, webhook)
    running.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": found}))
    for replica in range(1, replicas + 1):
        start_service(running, bindings=bindings, replica=replica)
    url = extender_url(running)
    if scheduler:
        running.start_scheduler(extenders(url))
        if "late" in bindings:
            start_scheduler(running)
    return url


def apply_crds(running: Cluster) -> None:
    """Apply the shipped CRDs, and return when the API server serves their kinds."""
    running.kubectl("apply", "-f", MANIFESTS / CRDS)
    names = [each["metadata"]["name"] for each in documents(CRDS)]
    running.kubectl("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in names))


def _files(bindings: Sequence[str]) -> Iterator[str]:
    yield "anygpu.yaml"
    if set(bindings) != set(EARLY):
        yield "anygpu-late.yaml"
        yield "anygpu-scheduler.yaml"
    if "claim" in bindings:
        yield "device-classes.yaml"


def documents(file: str) -> list[dict[str, Any]]:
    """The objects of a shipped manifest."""
    return list(yaml.safe_load_all((MANIFESTS / file).read_text()))


def _ports(running: Cluster, replica: int) -> tuple[int, int]:
    """The extender port and the webhook port of a replica; kept for as long as the cluster lives."""
    names = (f"{service_name(replica)}-{kind}" for kind in ("extender", "webhook"))
    extender, webhook = (running.ports.setdefault(name, free_port(running.ports.values())) for name in names)
    return extender, webhook


def service_name(replica: int) -> str:
    """The process of a replica, the first being 1."""
    return SERVICE if replica == 1 else f"{SERVICE}-{replica}"


def extender_url(running: Cluster, replica: int = 1) -> str:
    """Where a replica serves the extender's verbs and its metrics."""
    return f"http://127.0.0.1:{_ports(running, replica)[0]}"


def start_service(
    running: Cluster,
    *,
    bindings: Sequence[str] = EARLY,
    replica: int = 1,
    apiserver: str | None = None,
    options: Sequence[str] = (),
) -> None:
    """Start `anygpu serve`, or start it anew, and return when it is ready.

    `apiserver` is another URL for the API server, a proxy's; `options` go to `anygpu serve` as they are. All replicas
    have one certificate: the webhook configurations hold one CA.
    """
    kubeconfig = running.create_token(NAMESPACE, SERVICE)
    if apiserver:
        config = yaml.safe_load(kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = apiserver
        kubeconfig = kubeconfig.with_name(f"{service_name(replica)}.kubeconfig")
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(yaml.safe_dump(config, sort_keys=False))
    extender, webhook = _ports(running, replica)
    arguments = ["serve", "--port", extender, "--webhook-host", "127.0.0.1", "--webhook-port", webhook]
    arguments += ["--cert-dir", running.directory / "anygpu-certs", "--webhook-configuration", "anygpu"]
    if set(bindings) != set(EARLY):
        arguments += ["--bindings", ",".join(bindings)]

    def ready() -> bool:
        try:
            answer = httpx.get(f"http://127.0.0.1:{extender}/readyz", timeout=2, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

    command = [sys.executable, "-c", "from scheduler.cli.main import main; main()", *map(str, arguments), *options]
    running.spawn(service_name(replica), command, env={"KUBECONFIG": str(kubeconfig)}, ready=ready)


def extenders(url: str) -> list[dict[str, Any]]:
    """The default kube-scheduler's shipped extender stanzas, at another URL."""
    shipped = yaml.safe_load((MANIFESTS / "kube-scheduler.yaml").read_text())["extenders"]
    return [{**extender, "urlPrefix": url} for extender in shipped]


def start_scheduler(running: Cluster, url: str | None = None, *, leader_election: bool = False) -> None:
    """Start anygpu-scheduler, or start it anew, as shipped and under its own service account.

    `url` is another URL of the extender, a proxy's. Without leader election a killed one's successor need not wait.
    """
    (shipped,) = (each for each in documents("anygpu-scheduler.yaml") if each["kind"] == "ConfigMap")
    config = yaml.safe_load(shipped["data"]["config.yaml"])
    kubeconfig = running.create_token(NAMESPACE, SCHEDULER)
    running.start_scheduler(
        [{**extender, "urlPrefix": url or extender_url(running)} for extender in config["extenders"]],
        name=SCHEDULER,
        config={
            "profiles": config["profiles"],
            "percentageOfNodesToScore": config["percentageOfNodesToScore"],
            "leaderElection": config["leaderElection"] | {"leaderElect": leader_election},
            "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 5000, "burst": 5000},
        },
    )


def _call_by_url(document: dict[str, Any], port: int) -> None:
    for webhook in document.get("webhooks", []):
        path = webhook["clientConfig"]["service"]["path"]
        webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}"}
