"""Placing pods one after the other: what waits, what is counted, what is kept out."""

from typing import Any

import gpunodes
import placing
import pytest

from images import errors as image_errors
from scheduler import errors
from scheduler import fleet as fleets
from scheduler.cli import place

Json = dict[str, Any]
LOGICAL = "registry.test/team/app:v1"
NVIDIA, AMD = "nvidia.com/gpu", "amd.com/gpu"


def place_all(fleet: fleets.Fleet, *documents: Json) -> list[place.Placed]:
    found: list[place.Placed] = []
    for number, document in enumerate(documents):
        found.append(place.place_one(document, fleet, {LOGICAL: placing.IMAGE}, "test"))
        place.remember(found[-1], fleet, number)
    return found


def test_a_burst_fills_the_cheapest_fit_then_the_next_then_waits() -> None:
    fleet = placing.fleet_of(
        [gpunodes.nvidia("t4", "t4", 2), gpunodes.nvidia("l4", "l4", 2), gpunodes.amd("mi", "mi210", 1)]
    )
    placed = place_all(fleet, *(gpunodes.pod(f"p{n}", gpus="1") for n in range(6)))
    assert [each.node for each in placed] == ["t4", "t4", "l4", "l4", "mi", None]


def test_the_fullest_of_equal_nodes_comes_first() -> None:
    nodes = [gpunodes.nvidia("a", "t4", 4), gpunodes.nvidia("b", "t4", 4)]
    fleet = placing.fleet_of(nodes, [placing.bound("x", "b", {NVIDIA: 1})])
    placed = place_all(fleet, *(gpunodes.pod(f"p{n}", gpus="1") for n in range(4)))
    assert [each.node for each in placed] == ["b", "b", "b", "a"]


def test_a_pod_that_waits_leaves_what_it_waits_for_to_no_other_vendors_taker() -> None:
    """A small pod must not take the last devices under a big one that was there first, while others are free."""
    nodes = [gpunodes.nvidia("t4", "t4", 2), gpunodes.amd("mi", "mi300x", 8)]
    fleet = placing.fleet_of(nodes, [placing.bound("x", "t4", {NVIDIA: 1})])
    big, small = place_all(fleet, gpunodes.pod("big", gpus="2", vendor="nvidia"), gpunodes.pod("small", gpus="1"))
    assert big.node is None
    assert small.node == "mi"


def test_with_nothing_else_free_a_pod_takes_what_another_waits_for_in_vain() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 2)], [placing.bound("x", "t4", {NVIDIA: 1})])
    _, small = place_all(fleet, gpunodes.pod("big", gpus="2"), gpunodes.pod("small", gpus="1"))
    assert small.node == "t4"


def test_waiting_pods_prefer_their_first_vendor() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("t4", "t4", 1), gpunodes.amd("mi", "mi300x", 1)])
    full = [gpunodes.pod("a", vendor="nvidia"), gpunodes.pod("b", vendor="amd")]
    *_, waits = place_all(fleet, *full, gpunodes.pod("c", vendor="amd,nvidia"))
    assert waits.node is None
    assert waits.decision
    assert waits.decision.vendor == "amd"


def test_unhealthy_devices_are_not_given() -> None:
    fleet = placing.fleet_of(
        [gpunodes.node("n", {"nvidia.com/gpu.product": "Tesla-T4"}, {NVIDIA: 1}, capacity={NVIDIA: 4})]
    )
    (placed,) = place_all(fleet, gpunodes.pod(gpus="2"))
    assert placed.node is None
    assert placed.verdicts[0].reason == "t4: 1 nvidia.com/gpu, 2 asked, 3 of 4 unhealthy"


def test_cpu_and_memory_count_for_gpu_pods_too() -> None:
    fleet = placing.fleet_of(
        [gpunodes.nvidia("t4", "t4"), gpunodes.nvidia("h100", "h100")], [placing.bound("x", "t4", {"cpu": 60})]
    )
    document = gpunodes.pod(gpus="1")
    document["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "8"}}
    (placed,) = place_all(fleet, document)
    assert placed.node == "h100"
    assert [each.reason for each in placed.verdicts] == [None, "insufficient cpu"]


def test_a_time_shared_gpu_is_given_only_to_who_takes_any_share() -> None:
    fleet = placing.fleet_of([gpunodes.shared("s", "t4", 1, 4)])
    whole, anything = place_all(fleet, gpunodes.pod("a", memory="3Gi"), gpunodes.pod("b", memory="3Gi", share="any"))
    assert (whole.node, anything.node) == (None, "s")
    (too_big,) = place_all(fleet, gpunodes.pod("c", memory="4Gi", share="any"))
    assert too_big.node is None


def test_a_similar_name_is_not_the_same_gpu() -> None:
    nodes = [
        gpunodes.node("h20", {"nvidia.com/gpu.product": "NVIDIA-H20"}, {NVIDIA: 8}),
        gpunodes.nvidia("h200", "h200"),
    ]
    fleet = placing.fleet_of(nodes)
    assert [
        each.node for each in place_all(fleet, gpunodes.pod("a", sku="h20"), gpunodes.pod("b", sku="h200-sxm"))
    ] == ["h20", "h200"]


def test_an_unknown_gpu_is_never_guessed() -> None:
    fleet = placing.fleet_of([gpunodes.node("n", {"nvidia.com/gpu.product": "NVIDIA-Z9000"}, {NVIDIA: 8})])
    (placed,) = place_all(fleet, gpunodes.pod(gpus="1"))
    assert placed.node is None
    assert placed.verdicts[0].reason == "unknown GPU model: nvidia.com/gpu.product=NVIDIA-Z9000"


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (image_errors.BadReference("x"), errors.InvalidInput, 2),
        (image_errors.NoVariant("x"), errors.NothingFits, 1),
        (image_errors.RegistryUnreachable("x"), errors.Unreachable, 3),
        (image_errors.RegistryDenied("x"), errors.Unreachable, 3),
    ],
)
def test_an_images_error_ends_with_its_status(
    error: image_errors.ImageError, raised: type[errors.AnygpuError], status: int
) -> None:
    with pytest.raises(raised) as refused:
        place.place_one(gpunodes.pod(gpus="1"), placing.fleet_of([]), {LOGICAL: error}, "test")
    assert refused.value.exit_status == status


def test_only_pods_that_ask_something_ask_for_images() -> None:
    documents = [gpunodes.pod(gpus="1"), gpunodes.pod(gpus="x"), placing.bound("plain", None, {}), {"spec": 1}]
    assert place.logical_images(documents, placing.fleet_of([]), "test") == [LOGICAL]
