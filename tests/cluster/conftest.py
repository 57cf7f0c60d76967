"""anygpu on the real control plane, as the manifests ship it."""

from __future__ import annotations

from collections.abc import Iterator

import install
import pytest
from cluster import Cluster
from oci import OciRegistry
from playgrounds import Playground


@pytest.fixture(scope="session")
def service(control_plane: Cluster) -> Cluster:
    """The control plane with anygpu installed on it."""
    install.install(control_plane)
    return control_plane


@pytest.fixture
def playground(service: Cluster, namespace: str, oci_registry: OciRegistry) -> Iterator[Playground]:
    """No nodes yet; an image with an NVIDIA and an AMD variant."""
    repository = f"team/{namespace}"
    for vendor, env in (("nvidia", {"CUDA_VERSION": "12.4.1"}), ("amd", {"ROCM_VERSION": "6.2"})):
        oci_registry.push(repository, f"v1-{vendor}", env)
    if not service.alive(install.SERVICE):
        install.start_service(service)
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
