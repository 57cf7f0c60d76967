"""What cluster tests do with anygpu on the real control plane."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import install
from cluster import Cluster

Json = dict[str, Any]


class Playground:
    """A control plane with anygpu, nodes and a namespace of one test."""

    def __init__(self, running: Cluster, namespace: str, image: str) -> None:
        self.cluster, self.namespace, self.image = running, namespace, image

    def add_nodes(self, nodes: list[Json]) -> None:
        """Add nodes and return when anygpu has labelled those with a GPU, so that kube-scheduler sees all."""
        self.cluster.add_nodes(nodes)
        with_gpu = {
            node["metadata"]["name"] for node in nodes if any("/" in key for key in node["status"]["allocatable"])
        }

        def labelled() -> bool:
            found = self.nodes()
            return all(
                any(key.startswith("anygpu.io/sku.") for key in found[name]["metadata"]["labels"]) for name in with_gpu
            )

        self.wait("the SKU labels", labelled)

    def deploy(self, name: str, replicas: int, *, image: str | None = None, **annotations: str) -> None:
        """Create a Deployment; keywords are `anygpu.io/` keys with `_` for `-`."""
        self.apply(self.deployment(name, replicas, image=image, **annotations))

    def deployment(self, name: str, replicas: int, *, image: str | None = None, **annotations: str) -> Json:
        keys = {f"anygpu.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
        container = {"name": "main", "image": image or self.image}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}, "annotations": keys},
                    "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
                },
            },
        }

    def replicas(self, name: str) -> int:
        """The pods of a Deployment that its controllers know of."""
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{name}"
        return int(self.cluster.api("GET", path)["status"].get("replicas", 0))

    def apply(self, document: Json, *arguments: str, check: bool = True) -> Any:
        """kubectl apply, with its output."""
        return self.cluster.kubectl("apply", *arguments, "-f", "-", input=json.dumps(document), check=check)

    def pods(self, app: str | None = None) -> list[Json]:
        """The pods of the namespace, or of one Deployment."""
        query = f"?labelSelector=app%3D{app}" if app else ""
        return self.cluster.api("GET", f"/api/v1/namespaces/{self.namespace}/pods{query}")["items"]

    def wait_bound(self, app: str | None, count: int, timeout: float = 90) -> list[Json]:
        """The pods of a Deployment once `count` of them have a node."""

        def bound() -> list[Json]:
            found = [pod for pod in self.pods(app) if pod["spec"].get("nodeName")]
            return found if len(found) >= count else []

        return self.cluster.wait(f"{count} pods of {app} to be bound", bound, timeout=timeout)

    def wait(self, what: str, check: Callable[[], Any], timeout: float = 60) -> Any:
        return self.cluster.wait(what, check, timeout=timeout)

    def events(self, reason: str) -> list[Json]:
        """The namespace's events of a reason."""
        path = f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events"
        return [event for event in self.cluster.api("GET", path)["items"] if event["reason"] == reason]

    def nodes(self) -> dict[str, Json]:
        return {node["metadata"]["name"]: node for node in self.cluster.api("GET", "/api/v1/nodes")["items"]}

    def wait_full(self, *names: str) -> None:
        """Return when anygpu has heard that no device of these nodes is free: its watch may lag behind the binds."""

        def full() -> bool:
            found = httpx.get(f"{install.extender_url(self.cluster)}/nodes", trust_env=False).json()
            devices = {node["name"]: node["devices"] for node in found}
            return not any(each["free"] for name in names for each in devices[name])

        self.wait(f"anygpu to see {', '.join(names)} full", full)

    def assert_within_capacity(self) -> None:
        """No node holds more of any GPU resource than it offers, counted from the API alone.

        Of a late pod's names kubelets ignore those that their node does not list.
        """
        nodes = self.nodes()
        used: dict[tuple[str, str], int] = {}
        for pod in self.cluster.api("GET", "/api/v1/pods")["items"]:
            if pod["spec"].get("nodeName") and pod["status"]["phase"] not in ("Succeeded", "Failed"):
                for container in pod["spec"]["containers"]:
                    for resource, count in container.get("resources", {}).get("limits", {}).items():
                        late = "anygpu.io/binding" in pod["metadata"].get("labels", {})
                        listed = nodes.get(pod["spec"]["nodeName"], {}).get("status", {}).get("allocatable", {})
                        if "/" in resource and (resource in listed or not late):
                            key = (pod["spec"]["nodeName"], resource)
                            used[key] = used.get(key, 0) + int(count)
        for (name, resource), count in used.items():
            offered = int(nodes[name]["status"]["allocatable"].get(resource, 0)) if name in nodes else count
            assert count <= offered, f"{name}: {count} of {offered} {resource} promised"
