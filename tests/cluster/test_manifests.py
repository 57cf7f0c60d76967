"""What is shipped is what a cluster takes."""

from __future__ import annotations

import install
import pytest
import yaml
from cluster import Cluster

pytestmark = pytest.mark.cluster


def test_every_object_of_the_shipped_manifest_is_valid(service: Cluster) -> None:
    documents = list(yaml.safe_load_all((install.MANIFESTS / "anygpu.yaml").read_text()))
    done = service.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", install.MANIFESTS / "anygpu.yaml")
    assert len(done.stdout.splitlines()) == len(documents)
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "pods"),
        ("watch", "nodes"),
        ("patch", "nodes"),
        ("list", "namespaces"),
        ("create", "events.events.k8s.io"),
    ],
)
def test_the_shipped_role_gives_the_service_what_it_uses(service: Cluster, verb: str, resource: str) -> None:
    assert _can(service, verb, resource) == "yes"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [("patch", "pods"), ("delete", "pods"), ("create", "pods/binding"), ("get", "secrets"), ("list", "configmaps")],
)
def test_the_shipped_role_gives_the_service_nothing_more(service: Cluster, verb: str, resource: str) -> None:
    assert _can(service, verb, resource) == "no"


def _can(service: Cluster, verb: str, resource: str) -> str:
    account = f"system:serviceaccount:{install.NAMESPACE}:{install.SERVICE}"
    return service.kubectl("auth", "can-i", verb, resource, "--as", account, "-A", check=False).stdout.strip()
