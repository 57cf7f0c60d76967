"""Which partition satisfies which needs, under whatever name a node offers it."""

from __future__ import annotations

from typing import Any

import gpunodes
import gpureports
import placing
import pytest

from capability_db.node_facts import DeviceClass
from scheduler import fit, needs

Json = dict[str, Any]

EIGHT = "a100-sxm4-80gb 1g.10gb"
HALF = "a100-sxm4-80gb 3g.40gb"


def devices(node: Json, reported: list[Json] | None = None) -> dict[str, DeviceClass]:
    """What a node offers, by resource name."""
    fleet = placing.fleet_of([node])
    if reported is not None:
        fleet.apply_report(gpureports.to_report(gpureports.report("n", reported)))
    return {pool.device.resource: pool.device for pool in fleet.rows["n"].facts.pools}


def halves() -> list[Json]:
    return [gpureports.cut(each, ("3g.40gb", 0), ("3g.40gb", 4)) for each in gpureports.several("a100-80", 2)]


def why(device: DeviceClass, **stated: str) -> str | None:
    annotations = {f"anygpu.io/{key.replace('_', '-')}": value for key, value in stated.items()}
    return fit.refusal(needs.parse(annotations, placing.CATALOGUE), device)


HALVES = [
    devices(gpunodes.mig_single("n", "a100-80", "3g.40gb", 4))["nvidia.com/gpu"],
    devices(gpunodes.mig_mixed("n", "a100-80", 0, **{"3g.40gb": 4}))["nvidia.com/mig-3g.40gb"],
    devices(gpunodes.node("n", {}, {"nvidia.com/gpu": 4}), halves())["nvidia.com/gpu"],
    devices(gpunodes.node("n", {}, {"nvidia.com/mig-3g.40gb": 4}), halves())["nvidia.com/mig-3g.40gb"],
]


@pytest.mark.parametrize("device", HALVES, ids=["single", "mixed", "single by the agent", "mixed by the agent"])
@pytest.mark.parametrize(
    ("stated", "refusal"),
    [
        ({}, f"{HALF}: a slice, whole devices asked"),
        ({"share": "slice"}, None),
        ({"share": "any"}, None),
        ({"mig": "3g.40gb"}, None),
        ({"mig": "4g.40gb"}, f"{HALF}: MIG profile 4g.40gb asked"),
        ({"share": "slice", "memory": "39Gi"}, None),
        ({"share": "slice", "memory": "40Gi"}, f"{HALF}: 39.2 GiB of memory, 40Gi asked (40G would fit)"),
        ({"share": "slice", "precision": "bf16", "tflops": "133"}, None),  # 3/7 of 312
        ({"share": "slice", "precision": "bf16", "tflops": "134"}, "a100-sxm4-80gb: 133.71 TFLOPS at bf16, 134 asked"),
        ({"share": "slice", "bandwidth": "1019"}, None),  # half of 2039
        ({"share": "slice", "bandwidth": "1020"}, "a100-sxm4-80gb: 1019.5 GB/s, 1020 asked"),
        ({"share": "slice", "gpus": "2"}, f"{HALF}: a container can use one MIG instance only"),
    ],
)
def test_a_mig_instance_has_its_part_of_the_gpu(
    device: DeviceClass, stated: dict[str, str], refusal: str | None
) -> None:
    assert why(device, **stated) == refusal


def test_a_profile_is_asked_by_its_whole_name() -> None:
    """The one with media extensions is another profile, and twice the memory makes yet another."""
    offered = devices(gpunodes.mig_mixed("n", "a100-80", 0, **{"1g.10gb": 2, "1g.10gb.me": 1, "1g.20gb": 1}))
    fits = {
        profile: [name for name, device in offered.items() if why(device, mig=profile) is None]
        for profile in ("1g.10gb", "1g.10gb+me", "1g.20gb")
    }
    assert fits == {
        "1g.10gb": ["nvidia.com/mig-1g.10gb"],
        "1g.10gb+me": ["nvidia.com/mig-1g.10gb.me"],
        "1g.20gb": ["nvidia.com/mig-1g.20gb"],
    }


def test_an_instance_of_the_same_name_is_more_on_a_smaller_gpu() -> None:
    """1g.10gb is a quarter of an A100 40GB's memory and an eighth of an A100 80GB's."""
    small = devices(gpunodes.mig_mixed("n", "a100-40", 0, **{"1g.10gb": 4}))["nvidia.com/mig-1g.10gb"]
    large = devices(gpunodes.mig_mixed("n", "a100-80", 0, **{"1g.10gb": 7}))["nvidia.com/mig-1g.10gb"]
    assert (small.memory_share, large.memory_share) == (0.25, 0.125)
    assert why(small, share="slice", bandwidth="300") is None
    assert why(large, share="slice", bandwidth="300") is not None


@pytest.mark.parametrize(
    "device",
    [
        devices(gpunodes.amd("n", "mi300x", 64, mode="cpx_nps4"))["amd.com/gpu"],
        devices(gpunodes.node("n", {"amd.com/gpu.device-id": "74a1"}, {"amd.com/cpx_nps4": 64}))["amd.com/cpx_nps4"],
        devices(
            gpunodes.node("n", {}, {"amd.com/gpu": 64}),
            gpureports.several("mi300x", 8, partition={"compute": "CPX", "memory": "NPS4"}),
        )["amd.com/gpu"],
    ],
    ids=["single", "mixed", "single by the agent"],
)
@pytest.mark.parametrize(
    ("stated", "refusal"),
    [
        ({}, "mi300x cpx_nps4: a slice, whole devices asked"),
        ({"share": "slice", "memory": "23Gi"}, None),
        ({"share": "slice", "precision": "bf16", "tflops": "163"}, None),  # 1/8 of 1307.4
        ({"share": "slice", "precision": "bf16", "tflops": "164"}, "mi300x: 163.42 TFLOPS at bf16, 164 asked"),
        ({"share": "slice", "gpus": "2"}, None),  # one container uses several partitions
        ({"mig": "1g.10gb"}, "mi300x cpx_nps4: MIG profile 1g.10gb asked"),
    ],
)
def test_an_amd_partition_has_its_part_of_the_gpu(
    device: DeviceClass, stated: dict[str, str], refusal: str | None
) -> None:
    assert why(device, **stated) == refusal
    assert why(device, share="slice", memory="25Gi") is not None


def test_spx_is_the_whole_gpu_under_either_name() -> None:
    plain = devices(gpunodes.amd("n", "mi300x", 8, mode="spx_nps1"))["amd.com/gpu"]
    named = devices(gpunodes.node("n", {"amd.com/gpu.device-id": "74a1"}, {"amd.com/spx_nps1": 8}))["amd.com/spx_nps1"]
    assert why(plain) is None
    assert why(named) is None


def test_whole_gpus_and_instances_of_one_node_are_told_apart() -> None:
    node = gpunodes.mig_mixed("n", "a100-80", 4, **{"1g.10gb": 7})
    cut = gpureports.cut(gpureports.nvidia("x", "a100-80"), *[("1g.10gb", start) for start in range(7)])
    for reported in (None, [*gpureports.several("a100-80", 4), cut]):
        offered = devices(node, reported)
        assert why(offered["nvidia.com/gpu"], memory="70Gi") is None
        assert why(offered["nvidia.com/mig-1g.10gb"], mig="1g.10gb") is None
        assert why(offered["nvidia.com/mig-1g.10gb"], memory="5Gi") == f"{EIGHT}: a slice, whole devices asked"
