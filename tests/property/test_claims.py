"""Templates name exactly what `fit` lets through, within Kubernetes' limits; slices are counted device by device."""

import re

import dranodes
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from capability_db import slices, vendors
from capability_db.catalogue import Catalogue
from capability_db.sku import VendorName
from scheduler import claims, errors, fit, needs

BUILTIN = Catalogue.builtin()
VENDORS: tuple[VendorName, ...] = ("nvidia", "amd", "intel")
EVERY = {name: frozenset(sku.id for sku in BUILTIN if sku.vendor == name) for name in VENDORS}
IDS = [sku.id for sku in BUILTIN]

formats = st.lists(st.sampled_from(["fp64", "tf32", "bf16", "fp8", "fp4"]), max_size=2, unique=True).map(tuple)
subsets = st.lists(st.sampled_from(IDS), max_size=3, unique=True).map(tuple)
asked = st.builds(
    needs.Needs,
    binding=st.just("claim"),
    gpus=st.integers(1, 4),
    memory_bytes=st.none() | st.integers(1, 300 * 2**30),
    memory_text=st.just("some"),
    precision=formats,
    matrix_cores=st.sampled_from(["required", "preferred", "none"]),
    tflops=st.none() | st.floats(1, 3000),
    bandwidth_gbs=st.none() | st.floats(1, 9000),
    interconnect=st.sampled_from(["required", "preferred", "none"]),
    mig=st.sampled_from([None, None, "1g.10gb", "3g.40gb"]),
    share=st.sampled_from(["whole", "slice", "any"]),
    vendors=st.lists(st.sampled_from(VENDORS), max_size=3, unique=True).map(tuple),
    skus=subsets,
    not_skus=subsets,
    objective=st.sampled_from(["pack", "cost", "speed", "energy"]),
)
admitted = st.fixed_dictionaries(
    {}, optional={name: st.sets(st.sampled_from(sorted(EVERY[name])), min_size=1) for name in VENDORS}
)


@st.composite
def published(draw: st.DrawFn) -> tuple[str, dict[str, object]]:
    """A driver, and a device as it may publish it, sensible or not."""
    vendor = vendors.VENDORS[draw(st.sampled_from(VENDORS))]
    driver = vendor.driver
    products = [name for sku in BUILTIN if sku.vendor == vendor.name for name in sku.match.product]
    values = {
        driver.type: st.sampled_from([driver.whole or "gpu", driver.slice or "gpu", "vfio"]),
        driver.product: st.sampled_from([*products, "X-1"]).map(lambda name: name.replace(driver.space, " ")),
        driver.profile or "x": st.sampled_from(["1g.10gb", "3g.40gb", "cpx_nps4", "DPX_NPS1", "?"]),
        driver.pci or "x": st.sampled_from(["0x74a1", "0x740c", "994913940318892495", "0x56c0"]),
    }
    attributes = {key: draw(value) for key, value in values.items() if draw(st.integers(0, 9))}
    memory = draw(st.sampled_from([None, "0", "8Gi", "40Gi", "196592Mi", "?"]))
    effect = draw(st.sampled_from(["None", "NoSchedule", "NoExecute"]))
    device = dranodes.device("d", attributes, memory, allowMultipleAllocations=draw(st.booleans()))
    return driver.name, dranodes.tainted(device, effect) if draw(st.booleans()) else device


fleets = st.lists(published(), max_size=12)


def read(given_devices: list[tuple[str, dict[str, object]]]) -> list[slices.ResourceSlice]:
    """One slice a driver."""
    found = []
    for driver in sorted({driver for driver, _ in given_devices}):
        alike = [device for each, device in given_devices if each == driver]
        named = [device | {"name": f"d{number}"} for number, device in enumerate(alike)]
        found.append(dranodes.resource_slice("n", driver, named))
    return [msgspec.convert(each, slices.ResourceSlice) for each in found]


@given(asked, admitted, fleets)
def test_a_template_names_the_models_that_fit_and_stays_within_the_limits(
    wanted: needs.Needs, runs_on: dict[VendorName, set[str]], there: list[tuple[str, dict[str, object]]]
) -> None:
    seen = [pool.device for pool in slices.pools(read(there), BUILTIN)]
    possible = [*seen, *(device for sku in BUILTIN for device in fit.possible_classes(sku))]
    fitting = [
        device
        for device in possible
        if not fit.unmet(wanted, device) and {sku.id for sku in device.skus} <= runs_on.get(device.vendor, set())
    ]
    try:
        spec = claims.template_spec(wanted, runs_on, BUILTIN, seen)
    except errors.NothingFits:
        assert not fitting
        return
    devices = spec["spec"]["devices"]
    (request,) = devices["requests"]
    found = request["firstAvailable"]
    assert 1 <= len(found) <= claims.MAX_ALTERNATIVES
    assert len({each["name"] for each in found}) == len(found)
    texts = {}
    for each in found:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", each["name"])
        (only,) = each["selectors"]
        texts[each["name"]] = only["cel"]["expression"]
        assert len(texts[each["name"]].encode()) <= claims.MAX_EXPRESSION
        # Whatever is read of a device is read only where it is there.
        for attribute in re.findall(r"\b[ac]\.(\w+)", texts[each["name"]]):
            assert f'"{attribute}" in ' in texts[each["name"]]
    for device in fitting:
        text = texts[device.vendor if device.kind == "whole" else f"{device.vendor}-{device.kind}"]
        names = [*device.skus[0].match.product, *device.skus[0].match.pci]
        assert any(f'"{name}"' in text for name in names), device.label
    if wanted.vendors:
        order = [wanted.vendors.index(each["name"].partition("-")[0]) for each in found]
        assert order == sorted(order)
    assert claims.template_spec(wanted, runs_on, BUILTIN, seen[::-1]) == spec


@given(fleets, st.lists(st.integers(0, 11), max_size=6), st.none() | st.integers(0, 64 * 2**30))
def test_every_device_is_in_one_pool_and_free_at_most_once(
    there: list[tuple[str, dict[str, object]]], taken: list[int], memory: int | None
) -> None:
    parts = read(there)
    found, pools = slices.devices(parts, BUILTIN), slices.pools(parts, BUILTIN)
    assert sum(pool.capacity for pool in pools) == len(found)
    assert len({pool.device for pool in pools}) == len(pools)
    held = [slices.Taken((driver, "n", f"d{number}"), 2**30) for number in taken for driver, _ in there]
    before, after = slices.free(found, [], memory), slices.free(found, held, memory)
    for pool in pools:
        assert 0 <= pool.allocatable <= pool.capacity
        assert 0 <= after[pool.device] <= before[pool.device] <= pool.allocatable
        assert pool.device.dra
        assert (pool.device.kind == "shared") == (pool.device.replicas is None)
