"""Which of the devices that fit is best, from the strongest rule to the weakest."""

import math

import pytest

from capability_db import node_facts, resources
from capability_db.catalogue import Catalogue
from capability_db.node_facts import DeviceClass
from capability_db.sku import Sku
from scheduler import fit, needs, score

BUILTIN = Catalogue.builtin()


def whole(sku: str | Sku) -> DeviceClass:
    """Whole devices of a model."""
    found = BUILTIN.get(sku) if isinstance(sku, str) else sku
    assert found is not None
    return next(iter(fit.possible_classes(found)))


def part(sku: str, mode: str) -> DeviceClass:
    """A slice of a model."""
    found = BUILTIN.get(sku)
    assert found is not None
    return next(device for device in fit.possible_classes(found) if device.mode == mode)


def changed(sku: str, **fields: object) -> DeviceClass:
    """Whole devices of a model with other figures."""
    found = BUILTIN.get(sku)
    assert found is not None
    return whole(found.model_copy(update=fields))


def order(devices: list[DeviceClass], **stated: str) -> list[str]:
    """The devices from best to worst for annotations given without prefix; `_` stands for `-`."""
    asked = needs.parse({f"anygpu.io/{key.replace('_', '-')}": value for key, value in stated.items()}, BUILTIN)
    return [device.label for device in sorted(devices, key=lambda each: score.rank(asked, each))]


A100, H100, L4, T4, MI300X, MI210 = map(whole, ("a100-sxm4-80gb", "h100-sxm", "l4", "t4", "mi300x", "mi210"))
P100, MAX = whole("p100-pcie-16gb"), whole("max-1100")


def test_pack_takes_the_least_capable() -> None:
    assert order([H100, MI300X, T4, A100, L4]) == ["t4", "l4", "a100-sxm4-80gb", "h100-sxm", "mi300x"]


def test_capability_is_judged_at_the_first_precision() -> None:
    asked = needs.Needs(precision=("int8", "fp16"))
    (sku,) = T4.skus
    assert score.capability(asked, T4, sku) == pytest.approx((16 * 320 * 130) ** (1 / 3))
    assert score.capability(needs.Needs(), T4, sku) == pytest.approx((16 * 320 * 65) ** (1 / 3))


def test_an_unknown_figure_makes_the_capability_unknown_and_last() -> None:
    dark = changed("t4", bandwidth_gbs=None)
    assert score.capability(needs.Needs(), dark, dark.skus[0]) == math.inf
    assert order([H100, dark]) == ["h100-sxm", "t4"]


def test_the_order_of_vendors_comes_before_everything_else() -> None:
    assert order([H100, MI300X, T4], vendor="amd,nvidia") == ["mi300x", "t4", "h100-sxm"]
    assert order([H100, MI300X, T4, MAX], vendor="intel,amd,nvidia", objective="speed")[0] == "max-1100"


def test_matrix_cores_come_before_the_objective_where_preferred() -> None:
    assert order([P100, T4, A100], precision="fp16") == ["t4", "a100-sxm4-80gb", "p100-pcie-16gb"]
    assert order([P100, A100], precision="fp16", matrix_cores="none")[0] == "p100-pcie-16gb"
    # A Tensor Core that does not take the format is no help.
    assert order([changed("t4", matrix_formats=("int8",)), A100], precision="fp16")[0] == "a100-sxm4-80gb"


def test_an_island_is_preferred_only_to_several_devices() -> None:
    assert order([L4, A100], gpus="2", interconnect="preferred")[0] == "a100-sxm4-80gb"
    assert order([L4, A100], gpus="2")[0] == "l4"
    assert order([L4, A100], interconnect="preferred")[0] == "l4"


def test_cost_takes_the_cheapest_and_unknown_prices_last() -> None:
    cheap = changed("h100-sxm", price_usd_hour=1.0)
    dear = changed("l4", price_usd_hour=2.0)
    assert order([T4, dear, cheap], objective="cost") == ["h100-sxm", "l4", "t4"]


def test_speed_takes_bandwidth_and_tflops_at_the_precision() -> None:
    assert order([T4, MI300X, H100], objective="speed") == ["mi300x", "h100-sxm", "t4"]
    assert order([changed("mi300x", bandwidth_gbs=None), T4], objective="speed") == ["t4", "mi300x"]


def test_energy_takes_the_fewest_watts_and_unknown_last() -> None:
    assert order([H100, L4, T4], objective="energy") == ["t4", "l4", "h100-sxm"]
    assert order([changed("t4", watts=None), H100], objective="energy") == ["h100-sxm", "t4"]


def test_a_part_counts_as_what_it_is() -> None:
    slice_ = part("a100-sxm4-80gb", "1g.10gb")
    assert order([T4, slice_, A100], share="slice") == ["a100-sxm4-80gb 1g.10gb", "t4", "a100-sxm4-80gb"]
    assert order([A100, slice_], share="slice", objective="speed")[0] == "a100-sxm4-80gb"
    assert order([A100, slice_], share="slice", objective="energy")[0] == "a100-sxm4-80gb 1g.10gb"


def test_devices_of_several_models_are_as_bad_as_the_worst_of_them() -> None:
    labels = {"amd.com/gpu.device-id.74a1": "4", "amd.com/gpu.device-id.740f": "4"}
    mixed = node_facts.read(labels, {"amd.com/gpu": 8}, {}, BUILTIN).pools[0].device
    assert score.rank(needs.Needs(), mixed) == score.rank(needs.Needs(), MI300X)
    assert score.rank(needs.Needs(objective="speed"), mixed) == score.rank(needs.Needs(objective="speed"), MI210)


def test_what_a_driver_reports_does_not_tell_equal_models_apart() -> None:
    one, two = (
        node_facts.read(
            {"nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/gpu.memory": memory}, {"nvidia.com/gpu": 1}, {}, BUILTIN
        )
        for memory in ("15360", "15109")
    )
    assert score.rank(needs.Needs(), one.pools[0].device) == score.rank(needs.Needs(), two.pools[0].device)


# --- 0-10 -------------------------------------------------------------------------------------------------------------


def test_the_best_node_alone_has_ten_and_each_rank_is_two_behind() -> None:
    ranked = [((1.0,), 4.0, "b"), ((1.0,), 2.0, "c"), ((2.0,), 0.0, "d"), ((3.0,), 0.0, "e"), ((3.0,), 0.0, "a")]
    assert score.points(ranked) == {"c": 10, "b": 9, "d": 8, "a": 6, "e": 5}


def test_the_fullest_node_then_the_name_breaks_a_tie() -> None:
    assert score.points([((1.0,), 0.0, "b"), ((1.0,), 0.0, "a")]) == {"a": 10, "b": 9}
    assert score.points([((1.0,), 3.0, "a"), ((1.0,), 1.0, "b")]) == {"b": 10, "a": 9}


def test_scores_are_never_below_zero() -> None:
    scores = score.points([((float(rank),), 0.0, f"n{rank:02}") for rank in range(20)])
    assert [*scores.values()] == [10, 8, 6, 4, 2] + [0] * 15


def test_no_nodes_have_no_scores() -> None:
    assert score.points([]) == {}
    assert score.best([]) is None


# --- Weights ----------------------------------------------------------------------------------------------------------


def weighed(devices: list[DeviceClass], **weights: float) -> list[str]:
    """The devices from best to worst by weights."""
    asked = needs.Needs(weights=resources.Weights(**weights))
    return [device.label for device in sorted(devices, key=lambda each: score.rank(asked, each))]


@pytest.mark.parametrize(("weight", "objective"), [("pack", "pack"), ("speed", "speed"), ("energy", "energy")])
def test_one_weight_orders_as_its_objective_does(weight: str, objective: str) -> None:
    devices = [H100, MI300X, T4, A100, L4]
    assert weighed(devices, **{weight: 3}) == order(devices, objective=objective)


def test_weights_are_the_formula_of_the_docstring() -> None:
    asked = needs.Needs(weights=resources.Weights(pack=1, cost=2, speed=0.5, energy=0.25))
    device = changed("t4", price_usd_hour=0.4)
    (sku,) = device.skus
    product = score.capability(asked, device, sku) * 0.4**2 * (70**0.25) * (320 * 65) ** (-0.5 / 2)
    assert score.rank(asked, device)[-1] == pytest.approx(math.log(product))


def test_twice_the_speed_for_the_same_price_is_better_and_four_times_the_price_outweighs_it() -> None:
    slow, same, dear = (
        changed("t4", id=name, price_usd_hour=price, bandwidth_gbs=320 * speed, tflops={"fp16": 65.0 * speed})
        for name, price, speed in (("slow", 1, 1), ("same", 1, 2), ("dear", 4, 2))
    )
    assert weighed([dear, slow, same], cost=1, speed=1) == ["same", "slow", "dear"]


def test_an_unknown_figure_that_counts_is_last_and_one_that_does_not_is_nothing() -> None:
    priced = changed("h100-sxm", price_usd_hour=9)
    assert weighed([T4, priced], cost=1, speed=1) == ["h100-sxm", "t4"]
    assert weighed([T4, priced], cost=0, energy=1) == ["t4", "h100-sxm"]
