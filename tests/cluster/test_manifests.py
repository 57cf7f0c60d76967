"""What is shipped is what a cluster takes."""

from __future__ import annotations

import install
import pytest
from cluster import Cluster

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("file", ["crds.yaml", "anygpu.yaml", "anygpu-late.yaml", "anygpu-scheduler.yaml"])
def test_every_object_of_the_shipped_manifests_is_valid(service: Cluster, file: str) -> None:
    done = service.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", install.MANIFESTS / file)
    assert len(done.stdout.splitlines()) == len(install.documents(file))
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "pods"),
        ("watch", "nodes"),
        ("patch", "nodes"),
        ("patch", "nodes/status"),
        ("list", "nodegpus.anygpu.io"),
        ("watch", "nodegpus.anygpu.io"),
        ("list", "namespaces"),
        ("create", "events.events.k8s.io"),
        ("create", "pods/eviction"),
        ("get", "jobs.batch"),
        ("watch", "gpuskus.anygpu.io"),
        ("list", "placementpolicies.anygpu.io"),
        ("patch", "modelprofiles.anygpu.io/status"),
    ],
)
def test_the_shipped_role_gives_the_service_what_it_uses(service: Cluster, verb: str, resource: str) -> None:
    assert _can(service, verb, resource) == "yes"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("patch", "pods"),
        ("delete", "pods"),
        ("create", "pods/binding"),
        ("get", "secrets"),
        ("list", "configmaps"),
        ("patch", "nodegpus.anygpu.io"),
        ("patch", "nodegpus.anygpu.io/status"),
        ("patch", "gpuskus.anygpu.io"),
    ],
)
def test_the_shipped_role_gives_the_service_nothing_more(service: Cluster, verb: str, resource: str) -> None:
    assert _can(service, verb, resource) == "no"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("patch", "pods"),
        ("create", "pods/binding"),
        ("list", "poddisruptionbudgets.policy"),
        ("get", "resourceclaims.resource.k8s.io"),
        ("create", "resourceclaimtemplates.resource.k8s.io"),
        ("watch", "resourceslices.resource.k8s.io"),
    ],
)
def test_the_late_manifest_adds_what_late_and_claim_binding_use(
    late_service: Cluster, verb: str, resource: str
) -> None:
    assert _can(late_service, verb, resource) == "yes"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("create", "pods"),
        ("update", "pods"),
        ("delete", "jobs.batch"),
        ("delete", "resourceclaims.resource.k8s.io"),
        ("list", "configmaps"),
        ("create", "leases.coordination.k8s.io"),
    ],
)
def test_the_late_manifest_adds_nothing_more(late_service: Cluster, verb: str, resource: str) -> None:
    """Reservations and the lease are of our own namespace."""
    assert _can(late_service, verb, resource) == "no"
    if resource.startswith(("configmaps", "leases")):
        assert _can(late_service, verb, resource, install.NAMESPACE) == "yes"


def test_anygpu_scheduler_starts_as_shipped_and_takes_its_own_lease(late_service: Cluster) -> None:
    install.start_scheduler(late_service, leader_election=True)
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{install.NAMESPACE}/leases/{install.SCHEDULER}"

    def held() -> bool:
        return bool(late_service.api("GET", lease, ok=[404]).get("spec", {}).get("holderIdentity"))

    try:
        late_service.wait("the lease", held)
    finally:
        install.start_scheduler(late_service)


def _can(service: Cluster, verb: str, resource: str, namespace: str | None = None) -> str:
    account = f"system:serviceaccount:{install.NAMESPACE}:{install.SERVICE}"
    where = ["-n", namespace] if namespace else ["-A"]
    kind, _, subresource = resource.partition("/")  # to kubectl, what follows a slash is a name
    ask = ["auth", "can-i", verb, kind, *([f"--subresource={subresource}"] if subresource else []), "--as", account]
    return service.kubectl(*ask, *where, check=False).stdout.strip()
