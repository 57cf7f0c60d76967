"""The agent as a process of its own: what it costs, and that nothing ends it but who may."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubelets
import nodeapi
import pytest
import stubgpus
import stublibs

COMMAND = [sys.executable, "-c", "from scheduler.cli.entry import main; main()", "agent"]
MAX_MIB = 100


def until(check: Callable[[], Any], seconds: float = 30) -> Any:
    began = time.monotonic()
    while not (found := check()):
        assert time.monotonic() - began < seconds
        time.sleep(0.1)
    return found


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def resident_mib(pid: int) -> float:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Running:
    """An agent's process with its world."""

    def __init__(self, directory: Path, nvidia_libraries: Path) -> None:
        self.api = nodeapi.NodeApi()
        self.kubelet = kubelets.Kubelet(directory / "kubelet.sock")
        self.stub = stublibs.Stub(directory / "nvml.txt", stubgpus.nvidia(*["h100-sxm"] * 8, switches=18))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port = listening.getsockname()[1]
        environment = stublibs.environment(nvidia_libraries, nvidia=self.stub)
        self.process = subprocess.Popen(
            [*COMMAND, "--period", "1", "--metrics-port", str(self.port), "--pod-resources", str(self.kubelet.socket)],
            env=environment | {"KUBECONFIG": str(self.api.kubeconfig(directory)), "NODE_NAME": "n1"},
            stderr=subprocess.PIPE,
        )

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return answer.read().decode()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()  # type: ignore[union-attr]
        self.kubelet.stop()
        self.api.stop()


@pytest.fixture
def running(tmp_path: Path, nvidia_libraries: Path) -> Iterator[Running]:
    made = Running(tmp_path, nvidia_libraries)
    until(lambda: made.api.writes)
    yield made
    made.stop()


def test_parent_and_child_together_stay_small(running: Running) -> None:
    for number in range(20):  # every part has been used, and written too
        running.stub.set({"0.xid": f"79 {number + 1}", "0.memory": 81559 - number})
        seen = len(running.api.writes)
        until(lambda seen=seen: len(running.api.writes) > seen)
    running.metrics()
    pids = [running.process.pid, *children(running.process.pid)]
    assert len(pids) == 2
    each = [resident_mib(pid) for pid in pids]
    assert sum(each) < MAX_MIB, each


def test_its_metrics_tell_of_devices_readings_and_writes(running: Running) -> None:
    running.stub.set({"3.error": 15})
    until(lambda: 'anygpu_agent_writes_total{cause="change"} 2.0' in running.metrics())
    lines = dict(line.rsplit(" ", 1) for line in running.metrics().splitlines() if line.startswith("anygpu_agent"))
    assert lines[f'anygpu_agent_device_healthy{{device="{stubgpus.gpu_uuid(0)}",vendor="nvidia"}}'] == "1.0"
    assert lines[f'anygpu_agent_device_healthy{{device="{stubgpus.gpu_uuid(3)}",vendor="nvidia"}}'] == "0.0"
    assert float(lines[f'anygpu_agent_device_memory_bytes{{device="{stubgpus.gpu_uuid(0)}",vendor="nvidia"}}']) > 8e10
    assert float(lines['anygpu_agent_read_seconds_count{vendor="nvidia"}']) >= 1


def test_it_outlives_its_child_its_kubelet_and_the_api(running: Running) -> None:
    (child,) = children(running.process.pid)
    os.kill(child, signal.SIGKILL)
    until(lambda: children(running.process.pid) not in ([], [child]))
    running.kubelet.stop()
    until(lambda: any(each["status"] == "False" for each in running.api.writes[-1]["conditions"]))
    running.api.up.clear()
    running.stub.set({"0.error": 15})
    time.sleep(2.5)
    assert running.process.poll() is None
    running.api.up.set()
    until(lambda: running.api.writes[-1]["devices"][0]["healthy"] is False)
    running.kubelet.start()
    until(lambda: all(each["status"] == "True" for each in running.api.writes[-1]["conditions"]))


def test_it_ends_when_it_is_told_and_its_child_with_it(running: Running) -> None:
    (child,) = children(running.process.pid)
    running.process.terminate()
    assert running.process.wait(15) == 0
    assert not Path(f"/proc/{child}").exists()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("NODE_NAME", "KUBECONFIG")}
    return subprocess.run([*COMMAND, *arguments], env=clean | environment, capture_output=True, text=True, timeout=60)


def test_once_prints_the_inventory_without_a_cluster(tmp_path: Path, nvidia_libraries: Path) -> None:
    stub = stublibs.Stub(tmp_path / "nvml.txt", stubgpus.nvidia("a30", "t4") | stubgpus.cut(0, "a30", ("2g.12gb", 2)))
    environment = stublibs.environment(nvidia_libraries, nvidia=stub)
    kubelet = kubelets.Kubelet(
        tmp_path / "kubelet.sock", {("ml", "p"): {"main": {"nvidia.com/mig-2g.12gb": [stubgpus.mig_uuid(0, 0)]}}}
    )
    try:
        done = run("--once", "-o", "json", "--pod-resources", str(kubelet.socket), **environment)
        table = run("--once", "--pod-resources", str(kubelet.socket), **environment)
    finally:
        kubelet.stop()
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [device["sku"] for device in found["devices"]] == ["a30", "t4"]
    assert found["devices"][0]["mig"]["instances"][0]["holders"] == [
        {"namespace": "ml", "pod": "p", "container": "main"}
    ]
    rows = table.stdout.splitlines()
    assert rows[1].split()[:3] == ["0", "nvidia", "a30"]
    assert "2g.12gb" in rows[1]
    assert "ml/p" in rows[1]
    assert rows[-1] == "pairs of devices by link: 1 host"


def test_once_without_any_library_says_so(tmp_path: Path) -> None:
    done = run("--once", LD_LIBRARY_PATH=str(tmp_path), ROCM_PATH=str(tmp_path))
    assert done.returncode == 0
    assert "NoDriver: neither libnvidia-ml.so.1 nor libamd_smi.so is here" in done.stderr


def test_without_a_node_name_it_says_what_is_missing() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("error: --node-name is not given, and NODE_NAME is not set")
