"""A device fits exactly where nothing is unmet, and what is said of it depends on needs and device alone."""

from hypothesis import given
from hypothesis import strategies as st

from capability_db import node_facts, quantities
from capability_db.catalogue import Catalogue
from capability_db.node_facts import DeviceClass
from scheduler import fit, needs, score

BUILTIN = Catalogue.builtin()
CLASSES = [device for sku in BUILTIN for device in fit.possible_classes(sku)]
PRODUCTS = sorted(label for sku in BUILTIN for label in sku.match.product if sku.vendor == "nvidia")
IDS = [sku.id for sku in BUILTIN]


@st.composite
def seen(draw: st.DrawFn) -> DeviceClass:
    """A device as some node's labels tell of it, known or not, shared or cut."""
    product = draw(st.sampled_from([*PRODUCTS, "NVIDIA-X1"]))
    suffix = draw(st.sampled_from(["", "-SHARED", "-MIG-1g.10gb", "-MIG-INVALID", "-MIG-9g.9gb-SHARED"]))
    labels = {"nvidia.com/gpu.product": product + suffix}
    for key, values in {"memory": ["81559", "0", "x"], "replicas": ["1", "4"], "count": ["2"]}.items():
        if draw(st.booleans()):
            labels[f"nvidia.com/gpu.{key}"] = draw(st.sampled_from(values))
    amd = st.sampled_from(["74a1", "74a5", "740f", "740c", "ffff"])
    labels |= {f"amd.com/gpu.device-id.{each}": "2" for each in draw(st.sets(amd, max_size=2))}
    resource = draw(st.sampled_from(["nvidia.com/gpu", "nvidia.com/gpu.shared", "amd.com/gpu", "amd.com/cpx_nps4"]))
    return node_facts.read(labels, {resource: 8}, {}, BUILTIN).pools[0].device


devices = st.one_of(st.sampled_from(CLASSES), seen())
subsets = st.lists(st.sampled_from(IDS), max_size=3, unique=True).map(tuple)
formats = st.lists(st.sampled_from(["fp64", "tf32", "bf16", "fp8", "fp4"]), max_size=2, unique=True).map(tuple)
asked = st.builds(
    needs.Needs,
    gpus=st.integers(1, 4),
    memory_bytes=st.none(),
    precision=formats,
    matrix_cores=st.sampled_from(["required", "preferred", "none"]),
    tflops=st.none() | st.floats(1, 3000),
    bandwidth_gbs=st.none() | st.floats(1, 9000),
    interconnect=st.sampled_from(["required", "preferred", "none"]),
    mig=st.sampled_from([None, None, "1g.10gb", "3g.40gb"]),
    share=st.sampled_from(["whole", "slice", "any"]),
    vendors=st.lists(st.sampled_from(["nvidia", "amd", "intel"]), max_size=2, unique=True).map(tuple),
    skus=subsets,
    not_skus=subsets,
    objective=st.sampled_from(["pack", "cost", "speed", "energy"]),
    max_price_usd_hour=st.none() | st.just(2.5),
    resources=st.sampled_from([(), (), ("nvidia.com/gpu",), ("nvidia.com/gpu", "amd.com/gpu")]),
)
memories = st.none() | st.builds(
    "{}{}".format, st.integers(1, 400_000_000), st.sampled_from(["Ki", "Mi", "Gi", "Ti", "k", "G", "T"])
)


@given(asked, memories, devices)
def test_a_device_fits_exactly_where_nothing_is_unmet(
    wanted: needs.Needs, memory: str | None, device: DeviceClass
) -> None:
    if memory is not None:
        wanted = wanted.model_copy(update={"memory_text": memory, "memory_bytes": quantities.units(memory)})
    missing = fit.unmet(wanted, device)
    refusal = fit.refusal(wanted, device)
    assert (refusal is None) == (missing == [])
    for each in missing:
        assert each.text.isprintable()
        assert "%" not in each.text
        assert len(each.text) < 250
    if missing:
        return
    # What every fit promises, told again from the design's table.
    assert device.skus
    assert device.problem is None
    assert not wanted.resources or device.resource in wanted.resources
    assert wanted.vendors == () or device.vendor in wanted.vendors
    assert wanted.share == "any" or device.kind != "shared"
    assert wanted.share != "whole" or device.kind == "whole" or wanted.mig == device.mode
    assert wanted.mig in (None, device.mode)
    assert wanted.memory_bytes is None or wanted.memory_bytes <= (device.memory_mib or 0) * 2**20
    assert wanted.max_price_usd_hour is None
    for sku in device.skus:
        assert wanted.skus == () or sku.id in wanted.skus
        assert sku.id not in wanted.not_skus
        assert {*wanted.precision} <= {*sku.formats}
        if wanted.matrix_cores == "required":
            assert {*wanted.precision} <= {*sku.matrix_formats}
        if wanted.tflops is not None:
            assert (fit.tflops(wanted, device, sku) or 0) >= wanted.tflops
        if wanted.bandwidth_gbs is not None:
            assert (fit.bandwidth(device, sku) or 0) >= wanted.bandwidth_gbs
    rank = score.rank(wanted, device)
    assert all(figure == figure for figure in rank)


@given(asked, st.lists(devices, min_size=1, max_size=3))
def test_needs_are_impossible_exactly_where_nothing_fits(wanted: needs.Needs, live: list[DeviceClass]) -> None:
    found = fit.impossible(wanted, BUILTIN, live)
    assert (found is None) == any(not fit.unmet(wanted, device) for device in [*live, *CLASSES])
    if found is not None:
        assert found.isprintable()
        assert "%" not in found


@given(asked, devices)
def test_asking_less_never_fits_worse(wanted: needs.Needs, device: DeviceClass) -> None:
    less = wanted.model_copy(
        update={"tflops": None, "bandwidth_gbs": None, "precision": (), "not_skus": (), "skus": ()}
    )
    less = less.model_copy(update={"matrix_cores": "none", "max_price_usd_hour": None, "vendors": ()})
    assert len(fit.unmet(less, device)) <= len(fit.unmet(wanted, device))


@given(st.lists(st.tuples(st.tuples(st.floats(0, 3)), st.integers(-2, 8), st.text(max_size=3)), max_size=30))
def test_points_keep_the_order_of_ranks(ranked: list[tuple[tuple[float], int, str]]) -> None:
    unique = list({name: (rank, float(left), name) for rank, left, name in ranked}.values())
    scores = score.points(unique)
    assert {*scores} == {name for _, _, name in unique}
    assert all(0 <= points <= 10 for points in scores.values())
    for one in unique:
        for other in unique:
            if one[0] < other[0] and scores[other[2]] > 0:
                assert scores[one[2]] > scores[other[2]]
    if unique:
        assert scores[min(unique)[2]] == 10
