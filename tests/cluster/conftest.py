"""anygpu on the real control plane, as the manifests ship it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import install
import pytest
from cluster import Cluster
from oci import OciRegistry
from playgrounds import Playground


@pytest.fixture(scope="session")
def service(control_plane: Cluster) -> Cluster:
    """The control plane with anygpu installed on it, early binding only."""
    install.install(control_plane)
    return control_plane


@pytest.fixture(scope="session")
def late_service(late_control_plane: Cluster) -> Cluster:
    """A control plane of its own with anygpu, all bindings and anygpu-scheduler."""
    install.install(late_control_plane, bindings=install.ALL_BINDINGS)
    return late_control_plane


@pytest.fixture
def playground(service: Cluster, namespace: str, oci_registry: OciRegistry) -> Iterator[Playground]:
    """No nodes yet; an image with an NVIDIA and an AMD variant."""
    yield from _playground(service, namespace, oci_registry, install.EARLY)


@pytest.fixture
def late_playground(late_service: Cluster, late_namespace: str, oci_registry: OciRegistry) -> Iterator[Playground]:
    """The same with all bindings on."""
    yield from _playground(late_service, late_namespace, oci_registry, install.ALL_BINDINGS)


def _playground(
    service: Cluster, namespace: str, oci_registry: OciRegistry, bindings: Sequence[str]
) -> Iterator[Playground]:
    repository = f"team/{namespace}"
    for vendor, env in (("nvidia", {"CUDA_VERSION": "12.4.1"}), ("amd", {"ROCM_VERSION": "6.2"})):
        oci_registry.push(repository, f"v1-{vendor}", env)
    # Pods of an earlier test that still wait would speak for this one's devices.
    service.wait("the pods of earlier tests to go", lambda: not service.api("GET", "/api/v1/pods")["items"])
    if not service.alive(install.SERVICE):
        install.start_service(service, bindings=bindings)
    yield Playground(service, namespace, f"{oci_registry.host}/{repository}:v1")
    service.kubectl(
        "delete",
        "deployments,daemonsets,jobs,pods",
        "--all",
        "-n",
        namespace,
        "--wait=false",
        "--force",
        "--grace-period=0",
    )
    service.delete_nodes()
