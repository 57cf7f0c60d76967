"""The agent as its manifest ships it, on the real API server: its own process, its own rights, stub GPUs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import install
import kubelets
import pytest
import stubgpus
import stublibs
from cluster import Cluster

from capability_db import resources

pytestmark = pytest.mark.cluster

ACCOUNT = "anygpu-agent"
NODE = "gpu-node-1"
PATH = f"{resources.KINDS['NodeGPUs'].path}/{NODE}"
LOST = 15


@pytest.fixture(scope="module")
def installed(control_plane: Cluster) -> Cluster:
    """The control plane with the CRDs and what agents need, but for their DaemonSets."""
    install.apply_crds(control_plane)
    wanted = [each for each in install.documents("anygpu-agent.yaml") if each["kind"] != "DaemonSet"]
    control_plane.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted}))
    return control_plane


@dataclasses.dataclass
class Node:
    """A node with stub GPUs and a kubelet, and its agent."""

    running: Cluster
    stub: stublibs.Stub
    kubelet: kubelets.Kubelet
    environment: dict[str, str]

    def start(self, *options: str) -> None:
        """Start the agent, or start it anew."""
        arguments = ["agent", "--node-name", NODE, "--period", "0.5", "--pod-resources", str(self.kubelet.socket)]
        command = [sys.executable, "-c", "from scheduler.cli.entry import main; main()", *arguments, *options]
        self.running.spawn(ACCOUNT, command, env=self.environment)

    def status(self) -> dict[str, Any]:
        """What the API server has of it now."""
        found: dict[str, Any] = self.running.api("GET", PATH, ok=[404]).get("status", {})
        return found if isinstance(found, dict) else {}

    def device(self, place: int) -> dict[str, Any]:
        """One device of it; empty while there is none."""
        devices = self.status().get("devices", [])
        return dict(devices[place]) if place < len(devices) else {}

    def wait(self, what: str, check: Any) -> None:
        """Until it is so."""
        self.running.wait(what, check, timeout=30, blame=ACCOUNT)


@pytest.fixture
def node(installed: Cluster, tmp_path: Path) -> Iterator[Node]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the stub libraries cannot be compiled")
    stublibs.nvidia_library(tmp_path)
    lines = stubgpus.nvidia("h100-sxm", "h100-sxm", "l40s") | stubgpus.cut(
        1, "h100-80gb", ("3g.40gb", 0), ("1g.10gb", 4)
    )
    stub = stublibs.Stub(tmp_path / "nvml.txt", lines)
    kubelet = kubelets.Kubelet(tmp_path / "kubelet.sock")
    kubeconfig = installed.create_token(install.NAMESPACE, ACCOUNT)
    environment = stublibs.environment(tmp_path, nvidia=stub) | {"KUBECONFIG": str(kubeconfig)}
    installed.add_nodes([{"metadata": {"name": NODE}}])
    yield Node(installed, stub, kubelet, environment)
    installed.kill(ACCOUNT)
    kubelet.stop()
    installed.delete_nodes([NODE])
    installed.api("DELETE", PATH, ok=[404])


def test_a_nodes_gpus_are_reported_by_their_agent_as_they_change(node: Node) -> None:
    node.start()
    node.wait("the first report", lambda: len(node.status().get("devices", [])) == 3)
    status = node.status()
    assert [device["sku"] for device in status["devices"]] == ["h100-sxm", "h100-sxm", "l40s"]
    assert [each["profile"] for each in status["devices"][1]["mig"]["instances"]] == ["3g.40gb", "1g.10gb"]
    assert {each["type"]: each["status"] for each in status["conditions"]} == {
        "Ready": "True",
        "HoldersKnown": "True",
        "GeometryMatches": "True",
    }
    resources.NodeGPUsStatus.model_validate(status)
    (owner,) = node.running.api("GET", PATH)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Node", NODE)
    before = node.running.api("GET", PATH)["metadata"]["resourceVersion"]

    node.kubelet.pods[("ml", "train")] = {"main": {"nvidia.com/gpu": [stubgpus.gpu_uuid(0)]}}
    held = [{"namespace": "ml", "pod": "train", "container": "main"}]
    node.wait("its holder", lambda: node.device(0).get("holders") == held)
    node.stub.set({"0.error": LOST})
    node.wait("the lost GPU", lambda: node.device(0).get("healthy") is False)
    lost = node.device(0)
    assert (lost["sku"], lost["memoryMiB"], lost["problems"]) == ("h100-sxm", 81559, ["lost: NVML: GPU is lost"])
    node.stub.set({"0.error": None})
    node.wait("the GPU to be back", lambda: node.device(0).get("healthy") is True)
    node.stub.set({"1.mig": 0, "1.instance.0": None, "1.instance.1": None})
    node.wait("MIG to be off", lambda: node.device(1)["mig"]["enabled"] is False)
    assert "instances" not in node.device(1)["mig"] or not node.device(1)["mig"]["instances"]
    assert node.running.api("GET", PATH)["metadata"]["resourceVersion"] != before


def test_an_agent_that_is_killed_goes_on_and_figures_that_flutter_cause_no_writes(node: Node) -> None:
    node.start()
    node.wait("the first report", lambda: len(node.status().get("devices", [])) == 3)
    node.running.kill(ACCOUNT)  # kill -9
    node.stub.set({"error": 9})  # and the driver is gone when it comes back
    node.start()
    node.wait("the driver's error", lambda: node.status()["drivers"][0].get("error") == "NVML: Driver Not Loaded")
    assert [device["sku"] for device in node.status()["devices"]] == ["h100-sxm", "h100-sxm", "l40s"]
    node.running.kill(ACCOUNT)
    node.stub.set({"error": None})
    node.start()
    node.wait("the driver to be back", lambda: "error" not in node.status()["drivers"][0])
    before = node.running.api("GET", PATH)["metadata"]["resourceVersion"]
    for temperature in range(50, 60):
        node.stub.set({"0.temperature": temperature, "0.used": 100 * temperature})
        node.kubelet._go.wait(0.2)
    assert node.running.api("GET", PATH)["metadata"]["resourceVersion"] == before


def test_an_object_that_is_deleted_is_made_anew(node: Node) -> None:
    node.start("--beat", "1")
    node.wait("the first report", lambda: len(node.status().get("devices", [])) == 3)
    uid = node.running.api("GET", PATH)["metadata"]["uid"]
    node.running.api("DELETE", PATH)
    node.wait("another object", lambda: len(node.status().get("devices", [])) == 3)
    assert node.running.api("GET", PATH)["metadata"]["uid"] != uid


def test_the_shipped_objects_are_valid_and_give_an_agent_what_it_uses_and_no_more(installed: Cluster) -> None:
    done = installed.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "-f", install.MANIFESTS / "anygpu-agent.yaml"
    )
    assert len(done.stdout.splitlines()) == len(install.documents("anygpu-agent.yaml"))
    assert "Warning" not in done.stderr
    account = f"system:serviceaccount:{install.NAMESPACE}:{ACCOUNT}"

    def can(verb: str, resource: str, subresource: str = "") -> bool:
        ask = ["auth", "can-i", verb, resource, *([f"--subresource={subresource}"] if subresource else [])]
        return installed.kubectl(*ask, "--as", account, check=False).stdout.strip() == "yes"

    kind = "nodegpus.anygpu.io"
    assert all((can("get", kind), can("create", kind), can("patch", kind, "status"), can("get", "nodes")))
    assert not any((can("patch", kind), can("delete", kind), can("list", kind), can("patch", "nodes")))
    assert not any((can("get", "secrets"), can("list", "pods"), can("create", "pods")))


def test_an_agents_pod_reports_no_other_node(installed: Cluster) -> None:
    claims = {
        "Impersonate-User": f"system:serviceaccount:{install.NAMESPACE}:{ACCOUNT}",
        "Impersonate-Group": "system:authenticated",
        "Impersonate-Extra-authentication.kubernetes.io%2Fnode-name": "another-node",
    }
    made = resources.document("NodeGPUs", NODE)

    def create() -> tuple[int, str]:
        answer = installed.http.post(f"{resources.KINDS['NodeGPUs'].path}?dryRun=All", json=made, headers=claims)
        return answer.status_code, answer.text

    installed.wait("the policy to be in force", lambda: create()[0] == 422, timeout=30)
    assert "an agent reports its own node only" in create()[1]
    claims["Impersonate-Extra-authentication.kubernetes.io%2Fnode-name"] = NODE
    assert create()[0] == 201
