#!/usr/bin/env python3
"""A cluster to try things on: ``up`` brings it up to stay, ``status`` tells how it is, ``down`` takes it away.

    python tests/controlplane/up.py up [--dir .cluster] [--nodes FILE]

``up`` may be run again at any time: it starts what has died and leaves the rest alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import build
import cluster
import httpx
import install
import oci
import registry
import yaml


def after_up(running: cluster.Cluster) -> str:
    """Put anygpu on the control plane, and a registry with the demo's images beside it; return the registry's host.

    Every `up` calls it, on a cluster that may have had all of this before.
    """
    port = running.ports.setdefault("registry", cluster.free_port(running.ports.values()))
    images = oci.OciRegistry(running.directory / "registry", registry.fetch(), port)
    if not running.alive("registry"):
        running.spawn("registry", images.command(), ready=images.answers)
    for repository, tags in json.loads((install.MANIFESTS / "examples/registry.json").read_text()).items():
        for tag in tags:
            images.push(repository, tag)
    images.http.close()
    if not running.alive(install.SERVICE):
        build.say("starting anygpu")
        install.install(running, bindings=install.ALL_BINDINGS)
    return images.host


def read_nodes(file: Path) -> list[dict[str, Any]]:
    """Return the Nodes of a YAML or JSON file: one, several documents, or a List; other kinds are passed over."""
    found: list[dict[str, Any]] = []
    for document in yaml.load_all(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        items = (document or {}).get("items", [document] if document else [])
        found += [item for item in items if item.get("kind", "Node") == "Node"]
    if not found:
        raise ValueError(f"{file} holds no Node")
    return found


def up(directory: Path, nodes: list[dict[str, Any]]) -> int:
    """Bring the cluster up and print what to do with it; return the exit status."""
    running = cluster.Cluster(directory, detached=True)
    missing = [name for name in running.names() if not running.alive(name)]
    if not running.names():
        build.build()
        build.say(f"starting a control plane in {shown(directory)}")
    elif missing:
        build.say(f"starting again: {', '.join(missing)}")
    running.start()
    if nodes:
        running.add_nodes(nodes)
    host = after_up(running)
    count = len(running.api("GET", "/api/v1/nodes")["items"])
    print(f"Kubernetes {build.kubernetes_version()} is up at {running.server} with {count} nodes.")
    print("Next:")
    print(f"  export KUBECONFIG={shlex.quote(str(running.kubeconfig))}")
    print(f"  export PATH=$PWD/.venv/bin:{shlex.quote(str(running.binaries))}:$PATH")
    print("  anygpu nodes")
    print(f"  sed s/registry.demo/{host}/ manifests/examples/pods.yaml | kubectl apply -f -")
    print("  kubectl get pods -A -o wide; kubectl get events -A")
    print(f"kube-scheduler's configuration: {shown(running.scheduler_yaml)}; logs: {shown(directory / 'logs')}")
    print("make cluster-down takes it away.")
    return 0


def down(directory: Path) -> int:
    """Kill the cluster's processes and remove its folder; return the exit status."""
    if not directory.exists():
        print(f"no cluster in {shown(directory)}")
        return 0
    cluster.Cluster(directory, detached=True).stop()
    cluster.remove(directory)
    print(f"the cluster in {shown(directory)} is gone")
    return 0


def status(directory: Path) -> int:
    """Print the processes and whether they run; return 0 if all do, else 1."""
    known = cluster.Cluster(directory, detached=True)
    if not known.names():
        print(f"no cluster in {shown(directory)}; make cluster starts one")
        return 1
    for name in reversed(known.names()):
        print(f"{name:<32}{'running' if known.alive(name) else f'dead; see {shown(known.log(name))}'}")
    return 0 if all(known.alive(name) for name in known.names()) else 1


def shown(path: Path) -> str:
    """Return the path as a person would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status: 0 done, 1 not, 2 bad usage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--dir", type=Path, default=Path(".cluster"), help="the cluster's folder (default: .cluster)")
    parser.add_argument("--nodes", type=Path, metavar="FILE", help="up: Nodes to create, YAML documents or a List")
    arguments = parser.parse_args(argv)
    directory: Path = arguments.dir.absolute()
    try:
        nodes = read_nodes(arguments.nodes) if arguments.nodes else []
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        print(f"--nodes: {error}", file=sys.stderr)
        return 2
    if arguments.action == "status":
        return status(directory)
    key = hashlib.sha256(str(directory).encode()).hexdigest()[:12]  # beside the folder it would be litter in the tree
    try:
        with build.locked(build.cache_root() / f"cluster-{key}.lock", "another up or down is at work; waiting for it"):
            return up(directory, nodes) if arguments.action == "up" else down(directory)
    except (build.UnavailableError, cluster.ClusterError, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
