"""The control plane that other tests rely on is real, and behaves as they assume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import build
import cluster
import launch
import nodes
import pytest

pytestmark = pytest.mark.cluster

UP = Path(build.__file__).with_name("up.py")


@pytest.fixture
def node(control_plane: cluster.Cluster) -> Iterator[str]:
    name = f"node-{uuid.uuid4().hex[:8]}"
    control_plane.add_nodes([{"metadata": {"name": name}, "status": {"allocatable": {"example.io/gpu": "2"}}}])
    yield name
    control_plane.delete_nodes([name])


def pod_on(node: str, name: str, **spec: Any) -> str:
    """Return a Pod that can run on that node only, as JSON."""
    affinity = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]},
                ]
            }
        }
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "app"}], "affinity": affinity, **spec},
    }
    return json.dumps(pod)


def phase(control_plane: cluster.Cluster, namespace: str, name: str) -> str:
    pod = control_plane.api("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
    return str(pod["status"]["phase"])


def test_every_part_reports_the_pinned_version(control_plane: cluster.Cluster) -> None:
    versions = json.loads(control_plane.kubectl("version", "-o", "json").stdout)
    assert build.kubernetes_version() == "v1.37.2"
    assert versions["clientVersion"]["gitVersion"] == "v1.37.2"
    assert (versions["serverVersion"]["gitVersion"], versions["serverVersion"]["minor"]) == ("v1.37.2", "37")


def test_a_pod_is_scheduled_and_runs(control_plane: cluster.Cluster, namespace: str, node: str) -> None:
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=pod_on(node, "plain"))
    control_plane.wait("the pod to run", lambda: phase(control_plane, namespace, "plain") == "Running")


def test_a_node_keeps_the_status_it_was_given(control_plane: cluster.Cluster, node: str) -> None:
    status = control_plane.api("GET", f"/api/v1/nodes/{node}")["status"]
    assert status["allocatable"] == {**nodes.DEFAULTS, "example.io/gpu": "2"}
    assert status["capacity"]["example.io/gpu"] == "2"


def test_adding_a_node_again_changes_it(control_plane: cluster.Cluster, node: str) -> None:
    again = {"metadata": {"name": node, "labels": {"a": "b"}}, "status": {"allocatable": {"example.io/gpu": "7"}}}
    control_plane.add_nodes([again])
    found = control_plane.api("GET", f"/api/v1/nodes/{node}")
    assert found["metadata"]["labels"]["a"] == "b"
    assert found["status"]["allocatable"]["example.io/gpu"] == "7"


def test_the_scheduler_counts_extended_resources(control_plane: cluster.Cluster, namespace: str, node: str) -> None:
    """The third of three pods that ask one of two devices each waits, and says so."""
    ask = [{"name": "main", "image": "app", "resources": {"limits": {"example.io/gpu": "1"}}}]
    for number in range(3):
        control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=pod_on(node, f"p{number}", containers=ask))

    def one_waits() -> bool:
        pods = control_plane.api("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
        reasons = [condition.get("reason") for pod in pods for condition in pod["status"].get("conditions", [])]
        running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
        return len(running) == 2 and "Unschedulable" in reasons

    control_plane.wait("two pods to run and one to wait", one_waits)


def test_rbac_denies_what_was_not_granted(control_plane: cluster.Cluster, namespace: str) -> None:
    kubeconfig = control_plane.create_token(namespace, "nobody")
    denied = control_plane.kubectl("get", "nodes", "--kubeconfig", kubeconfig, check=False)
    assert denied.returncode != 0
    assert f'User "system:serviceaccount:{namespace}:nobody" cannot list resource "nodes"' in denied.stderr


def test_rbac_grants_a_service_account_its_role(control_plane: cluster.Cluster, namespace: str) -> None:
    kubeconfig = control_plane.create_token(namespace, "viewer")
    binding = ["create", "rolebinding", "view", "-n", namespace, "--clusterrole=view"]
    control_plane.kubectl(*binding, f"--serviceaccount={namespace}:viewer")
    ask = ["get", "pods", "--kubeconfig", kubeconfig]  # in its own namespace, which the kubeconfig names
    control_plane.wait("RBAC to see the binding", lambda: control_plane.kubectl(*ask, check=False).returncode == 0)


def test_a_pod_created_while_the_scheduler_is_dead_is_scheduled_by_the_next(
    control_plane: cluster.Cluster, namespace: str, node: str
) -> None:
    control_plane.stop_scheduler()
    assert not control_plane.alive("kube-scheduler")
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=pod_on(node, "meanwhile"))
    control_plane.start_scheduler()
    control_plane.wait("the pod to run", lambda: phase(control_plane, namespace, "meanwhile") == "Running")


def test_a_second_scheduler_takes_the_pods_that_name_it(
    control_plane: cluster.Cluster, namespace: str, node: str
) -> None:
    control_plane.start_scheduler(name="second", config={"percentageOfNodesToScore": 100})
    try:
        pod = pod_on(node, "other", schedulerName="second")
        control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=pod)
        control_plane.wait("the pod to run", lambda: phase(control_plane, namespace, "other") == "Running")
    finally:
        control_plane.stop_scheduler("second")


def test_the_api_server_comes_back_with_what_it_held(control_plane: cluster.Cluster, node: str) -> None:
    control_plane.restart("kube-apiserver")
    assert control_plane.api("GET", f"/api/v1/nodes/{node}")["metadata"]["name"] == node


def test_a_deleted_node_is_gone_with_its_pods(control_plane: cluster.Cluster, namespace: str) -> None:
    name = f"node-{uuid.uuid4().hex[:8]}"
    control_plane.add_nodes([{"metadata": {"name": name}}])
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=pod_on(name, "doomed"))
    control_plane.wait("the pod to run", lambda: phase(control_plane, namespace, "doomed") == "Running")
    control_plane.delete_nodes([name])
    assert control_plane.kubectl("get", "node", name, check=False).returncode != 0
    assert control_plane.api("GET", f"/api/v1/namespaces/{namespace}/pods")["items"] == []


def test_a_component_that_ends_is_named_with_the_end_of_its_log(control_plane: cluster.Cluster) -> None:
    argv = [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"]
    with pytest.raises(cluster.ClusterError, match=r"(?s)short-lived has ended \(status 3\).*the reason"):
        control_plane.spawn("short-lived", argv, ready=lambda: False)
    control_plane.kill("short-lived")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_what_a_killed_test_started_dies_with_it(tmp_path: Path) -> None:
    program = (
        "import sys, launch, pathlib, signal\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "launch.start(['sleep', '300'], folder / 'log', tether=True, pid_file=folder / 'child.pid')\n"
        "print('started', flush=True)\n"
        "signal.pause()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(UP.parent)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        pid_file = tmp_path / "child.pid"
        until(pid_file.exists)
        child = launch.running(pid_file)
        assert child is not None
        parent.send_signal(signal.SIGKILL)
    until(lambda: launch.running(pid_file) is None)


def test_a_pid_file_of_another_process_is_stale(tmp_path: Path) -> None:
    """A pid is used anew after a reboot: the file names the birth of the process too."""
    stale = tmp_path / "x.pid"
    stale.write_text(f"{os.getpid()} 1\n")
    assert launch.running(stale) is None
    stale.write_text(f"{os.getpid()} {launch.birth(os.getpid())}\n")
    assert launch.running(stale) == os.getpid()


def test_a_detached_cluster_stays_heals_and_goes(control_plane: cluster.Cluster, tmp_path: Path) -> None:
    """`up` leaves a cluster behind, a second `up` revives what was killed on the same data, `down` leaves nothing."""
    folder = tmp_path / "kept"
    file = tmp_path / "nodes.yaml"
    file.write_text(
        "kind: Node\nmetadata: {name: one}\n---\nkind: List\nitems: [{kind: Node, metadata: {name: two}}]\n"
    )

    def run(*action: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(UP), *action, "--dir", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    try:
        assert run("status").returncode == 1
        first = run("up", "--nodes", str(file))
        assert first.returncode == 0, first.stderr
        assert "2 nodes" in first.stdout
        assert f"export KUBECONFIG={folder}/kubeconfig" in first.stdout
        assert run("status").returncode == 0
        kept = cluster.Cluster(folder, detached=True)
        kept.kill("kube-scheduler")
        pid = launch.running(folder / "pids/kube-apiserver.pid")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: not kept.alive("kube-apiserver"))
        assert "dead; see" in run("status").stdout
        second = run("up")
        assert second.returncode == 0, second.stderr
        assert "2 nodes" in second.stdout
        assert run("status").returncode == 0
    finally:
        gone = run("down")
    assert gone.returncode == 0, gone.stderr
    assert not folder.exists()


def test_down_leaves_a_folder_alone_that_is_no_cluster(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    command = [sys.executable, str(UP), "down", "--dir", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "holds no cluster" in refused.stderr
    assert (tmp_path / "precious").exists()


def until(check: Callable[[], object], timeout: float = 30) -> None:
    """Return once the check is true; fail when it stays false."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
