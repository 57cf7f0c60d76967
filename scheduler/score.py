"""Which of the devices that fit is best: one tuple a device class, smaller is better, and its 0-10 form for the wire.

From the strongest to the weakest: the pod's vendor order; matrix cores where preferred; an island where several
devices prefer one; the objective; the fullest node; the node's name.

Weights (from a PlacementPolicy) stand in place of the objective: devices are ordered by the product

    capability^pack * price^cost * watts^energy * (bandwidth * TFLOPS)^(-speed / 2)

that is by the weighted sum of logarithms, each figure what a pod gets of one device; the least is best, and a device of
which a figure with a weight above 0 is unknown is last.
"""

import math
from collections.abc import Iterable, Sequence

from capability_db.node_facts import DeviceClass
from capability_db.sku import Sku
from scheduler import fit
from scheduler.needs import Needs

Rank = tuple[float, ...]

MAX_SCORE = 10
"""kube-scheduler's MaxExtenderPriority."""
TIER_STEP = 2
"""Points between ranks. At the shipped weight of 20 two points outweigh any one soft preference of the user's
(at most 3 x 100), one point does not."""


def rank(needs: Needs, device: DeviceClass) -> Rank:
    """How good a device that fits is for the needs; the smallest is best, unknown figures are last."""
    vendor = needs.vendors.index(device.vendor) if needs.vendors else 0
    matrix = int(needs.matrix_cores == "preferred" and not all(_has_matrix(needs, sku) for sku in device.skus))
    scattered = int(
        needs.interconnect == "preferred"
        and needs.gpus > 1
        and not (device.kind == "whole" and all(sku.link.reach == "node" for sku in device.skus))
    )
    objective = max(_objective(needs, device, sku) for sku in device.skus)
    return (vendor, matrix, scattered, *objective)


def _has_matrix(needs: Needs, sku: Sku) -> bool:
    return sku.matrix_unit is not None and all(each in sku.matrix_formats for each in needs.precision)


def _objective(needs: Needs, device: DeviceClass, sku: Sku) -> Rank:
    least_capable = capability(needs, device, sku)
    price = _of(device.price_usd_hour, device.memory_share)
    watts = _of(sku.watts, device.compute_share)
    figures = (fit.bandwidth(device, sku), fit.tflops(needs, device, sku))
    speed = math.sqrt(figures[0] * figures[1]) if figures[0] and figures[1] else None
    if needs.weights is not None:
        weights = needs.weights
        return (
            _weighted(
                (weights.pack, least_capable if math.isfinite(least_capable) else None),
                (weights.cost, price),
                (weights.energy, watts),
                (-weights.speed, speed),
            ),
        )
    match needs.objective:
        case "pack":
            return (least_capable,)
        case "cost":
            return (_unknown_last(price), least_capable)
        case "energy":
            return (_unknown_last(watts), least_capable)
        case "speed":
            return (-speed if speed is not None else math.inf,)


def _of(figure: float | None, share: float | None) -> float | None:
    """What a pod gets of a whole device's figure; None: unknown."""
    return figure * share if figure is not None and share is not None else None


def _unknown_last(figure: float | None) -> float:
    return math.inf if figure is None else figure


def _weighted(*terms: tuple[float, float | None]) -> float:
    """The sum of weights times logarithms of figures; infinite where a figure that counts is unknown."""
    counted = [(weight, figure) for weight, figure in terms if weight]
    return sum((weight * math.log(figure) if figure else math.inf for weight, figure in counted), 0.0)


def capability(needs: Needs, device: DeviceClass, sku: Sku) -> float:
    """Geometric mean of memory (GiB), bandwidth (GB/s) and dense TFLOPS that a pod gets; infinite where one is unknown.

    Memory is the model's nominal size, not what one node's driver reports, so that equal devices rank equally.
    """
    memory = sku.memory_gib / sku.devices_per_card * device.memory_share if device.memory_share else None
    figures = (memory, fit.bandwidth(device, sku), fit.tflops(needs, device, sku))
    known = [figure for figure in figures if figure]
    return math.prod(known) ** (1 / 3) if len(known) == len(figures) else math.inf


def points(ranked: Sequence[tuple[Rank, float, str]]) -> dict[str, int]:
    """Scores 0-10 of nodes given as (rank, devices left after, name); the best node alone has the most.

    Nodes of the best rank get 10 and 9, of the next 8 and 7, and so on down to 0: within a rank the node that the tie
    rules choose (fullest, then name) is one point ahead, so a user's soft preference may still move the pod there,
    while the next rank is two points behind it.
    """
    scores: dict[str, int] = {}
    tier, last = -1, None
    for each_rank, _, name in sorted(ranked):
        first = each_rank != last
        tier, last = tier + first, each_rank
        scores[name] = max(0, MAX_SCORE - TIER_STEP * tier - (not first))
    return scores


def best(ranks: Iterable[Rank]) -> Rank | None:
    """The best rank there is."""
    return min(ranks, default=None)
