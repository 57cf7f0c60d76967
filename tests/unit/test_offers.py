"""Choices that depend on what other pods speak for."""

import gpunodes
import placing

from scheduler import kube, ledger


def test_a_swap_of_expected_nodes_does_not_make_a_device_look_free() -> None:
    """kube-scheduler bound a pod to another node than expected, and the pod that expected that node waits for its turn.

    The L4 then looks free, but the A100 is spoken for twice: NVIDIA has nothing left.
    """
    table = placing.fleet_of(
        [gpunodes.nvidia("a100", "a100-80", 1), gpunodes.nvidia("l4", "l4", 1), gpunodes.amd("mi300x", "mi300x", 1)]
    )
    table.apply_pod(kube.to_pod(placing.bound("moved", "a100", {"nvidia.com/gpu": 1})))
    table.ledger.put("waits", ledger.Hold("nvidia.com/gpu", 1, "a100", frozenset({"l4", "a100-sxm4-80gb"})))
    image = "registry.test/app@sha256:" + "a" * 64
    made = placing.admit(gpunodes.pod("p", image, memory="16Gi"), table).decision
    assert (made.vendor, made.node) == ("amd", "mi300x")
