"""Nodes as tests and example files give them -> Nodes that an API server takes and kwok makes Ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What a node has besides what the test says; without pods and cpu nothing at all would fit on it.
DEFAULTS = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "1Ti", "pods": "110"}

#: What the API server or kwok writes on a node; a node copied from another cluster carries it.
SERVER_FIELDS = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink")


def creatable(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Node that can be created: without what a server wrote on it, with cpu, memory and pods."""
    metadata = {key: value for key, value in given["metadata"].items() if key not in SERVER_FIELDS}
    spec = dict(given.get("spec") or {})
    if spec.get("taints"):  # the control plane puts these on and takes them off by itself
        spec["taints"] = [taint for taint in spec["taints"] if not taint["key"].startswith("node.kubernetes.io/")]
    # kwok writes the conditions; a Ready one from elsewhere would make it think its work was done.
    status = {key: value for key, value in (given.get("status") or {}).items() if key != "conditions"}
    allocatable = DEFAULTS | dict(status.get("allocatable") or status.get("capacity") or {})
    status["allocatable"] = allocatable
    status["capacity"] = allocatable | dict(status.get("capacity") or {})
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec, "status": status}


def is_ready(node: Mapping[str, Any]) -> bool:
    """Return whether a pod can go to the node now: it is Ready, and its not-ready taint is off."""
    conditions = node.get("status", {}).get("conditions") or []
    taints = node.get("spec", {}).get("taints") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions) and not any(
        taint["key"] == "node.kubernetes.io/not-ready" for taint in taints
    )
