"""What the kubelet says of who holds what, over real gRPC."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import kubelets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capability_db import resources
from capability_db.agent import podresources

PODS = {
    ("ml", "train-0"): {
        "main": {"nvidia.com/gpu": ["GPU-a", "GPU-b"], "cpu-things": ["x"]},
        "side": {"nvidia.com/gpu": ["GPU-a"]},
    },
    ("ml", "shared-1"): {"main": {"nvidia.com/gpu.shared": ["GPU-c::0"]}},
    ("ml", "shared-2"): {"main": {"nvidia.com/gpu.shared": ["GPU-c::1", "GPU-c::2"]}},
    ("web", "nothing"): {"main": {}},
    ("hpc", "part"): {"main": {"amd.com/gpu": ["0000:05:00.0", "amdgpu_xcp_3"], "nvidia.com/mig-1g.5gb": ["MIG-1"]}},
}


def holder(namespace: str, pod: str, container: str = "main") -> resources.Holder:
    return resources.Holder(namespace=namespace, pod=pod, container=container)


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[kubelets.Kubelet]:
    running = kubelets.Kubelet(tmp_path / "kubelet.sock", PODS)
    yield running
    running.stop()


@pytest.fixture
def asking(kubelet: kubelets.Kubelet) -> Iterator[podresources.Kubelet]:
    client = podresources.Kubelet(kubelet.socket, deadline_seconds=1)
    yield client
    client.close()


def test_each_device_is_held_by_the_containers_that_were_given_it(asking: podresources.Kubelet) -> None:
    assert asking.holders() == {
        "GPU-a": (holder("ml", "train-0"), holder("ml", "train-0", "side")),
        "GPU-b": (holder("ml", "train-0"),),
        "x": (holder("ml", "train-0"),),
        "GPU-c": (holder("ml", "shared-1"), holder("ml", "shared-2")),
        "0000:05:00.0": (holder("hpc", "part"),),
        "amdgpu_xcp_3": (holder("hpc", "part"),),
        "MIG-1": (holder("hpc", "part"),),
    }


def test_a_kubelet_that_hangs_is_left_after_the_deadline_and_heard_again_later(
    kubelet: kubelets.Kubelet, asking: podresources.Kubelet
) -> None:
    kubelet.hung.set()
    began = time.monotonic()
    with pytest.raises(podresources.PodResourcesError, match="DEADLINE_EXCEEDED"):
        asking.holders()
    assert time.monotonic() - began < 3
    kubelet.hung.clear()
    assert "GPU-a" in asking.holders()


def test_a_kubelet_that_restarts_is_heard_again(kubelet: kubelets.Kubelet, asking: podresources.Kubelet) -> None:
    asking.holders()
    kubelet.stop()
    with pytest.raises(podresources.PodResourcesError, match="is not there"):
        asking.holders()
    kubelet.pods = {("ml", "new"): {"main": {"nvidia.com/gpu": ["GPU-z"]}}}
    kubelet.start()
    assert asking.holders() == {"GPU-z": (holder("ml", "new"),)}


def test_a_socket_that_nobody_serves_is_an_error_in_time(tmp_path: Path) -> None:
    (tmp_path / "kubelet.sock").touch()
    with pytest.raises(podresources.PodResourcesError, match=r"kubelet\.sock: "):
        podresources.Kubelet(tmp_path / "kubelet.sock", deadline_seconds=0.5).holders()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(podresources.PodResourcesError):
        podresources.decode(data)


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
containers = st.dictionaries(names, st.dictionaries(names, st.lists(names, max_size=3), max_size=2), max_size=2)


@settings(max_examples=50)
@given(st.dictionaries(st.tuples(names, names), containers, max_size=3))
def test_what_is_written_is_read(pods: dict[tuple[str, str], dict[str, dict[str, list[str]]]]) -> None:
    found = {
        (device, holder(namespace, pod, container))
        for (namespace, pod), containers in pods.items()
        for container, named in containers.items()
        for ids in named.values()
        for device in (each.partition("::")[0] for each in ids)
    }
    read = podresources.decode(kubelets.response(pods))
    assert {(device, each) for device, holders in read.items() for each in holders} == found
