"""Whatever is registered, in whatever order: the same comes of it, and a policy never widens what a pod may have."""

from __future__ import annotations

import random
from typing import Any

import registering
from hypothesis import given, settings
from hypothesis import strategies as st

from capability_db import registered, resources
from capability_db.catalogue import Catalogue
from scheduler import errors, fit, needs, policies

BUILTIN = Catalogue.builtin()
IDS = [sku.id for sku in BUILTIN]
CLASSES = list(fit.possible(BUILTIN))
NAMESPACES = ["team-a", registering.SYSTEM]

ids = st.lists(st.sampled_from(IDS), max_size=6, unique=True).map(tuple)
specs = st.builds(
    resources.PlacementPolicySpec,
    vendors=st.lists(st.sampled_from(["nvidia", "amd", "intel"]), max_size=3, unique=True).map(tuple),
    skus=ids,
    max_price_usd_hour=st.none() | st.floats(0.1, 10),
    objective=st.sampled_from([None, "pack", "cost", "speed", "energy"]),
    binding=st.sampled_from([None, "early", "late", "claim"]),
)
effective = st.dictionaries(st.sampled_from(NAMESPACES), specs).map(lambda found: policies.effective("team-a", found))
stated = st.fixed_dictionaries(
    {"anygpu.io/binding": st.sampled_from(["early", "claim"])},
    optional={
        "anygpu.io/memory": st.sampled_from(["16Gi", "70Gi", "180Gi"]),
        "anygpu.io/vendor": st.sampled_from(["nvidia", "amd", "nvidia,amd"]),
        "anygpu.io/not-sku": st.sampled_from(IDS),
        "anygpu.io/precision": st.sampled_from(["fp8", "fp64"]),
        "anygpu.io/max-price": st.sampled_from(["1", "5"]),
        "anygpu.io/share": st.sampled_from(["slice", "any"]),
    },
)


@settings(deadline=None)
@given(stated, effective, st.sampled_from(CLASSES), st.none() | st.floats(0.1, 10))
def test_a_device_that_is_taken_under_policies_is_taken_without_them(
    annotations: dict[str, str], policy: policies.Effective, device: Any, price: float | None
) -> None:
    plain = needs.parse(annotations, BUILTIN)
    try:
        under = needs.parse(annotations, BUILTIN, policy=policy)
    except errors.InvalidNeeds:
        return
    if price is not None:
        device = next(each for each in fit.possible_classes(device.skus[0], price) if each.kind == device.kind)
    if not fit.unmet(under, device):
        assert not fit.unmet(plain, device)
        assert policy.allows(device.vendor, device.skus[0].id)
        caps = [rule.max_price_usd_hour for rule in policy.rules if rule.max_price_usd_hour is not None]
        assert all(device.price_usd_hour is not None and device.price_usd_hour <= cap for cap in caps)


@settings(deadline=None)
@given(stated, st.dictionaries(st.sampled_from(NAMESPACES), specs, min_size=2))
def test_what_both_policies_allow_is_what_each_alone_allows(annotations: dict[str, str], found: Any) -> None:
    def taken(those: Any) -> set[str]:
        under = needs.Needs.model_validate(
            {**dict(needs.parse(annotations, BUILTIN)), "policy": policies.effective("team-a", those)}
        )
        return {device.label for device in CLASSES if not fit.unmet(under, device)}

    assert taken(found) == taken({"team-a": found["team-a"]}) & taken({registering.SYSTEM: found[registering.SYSTEM]})


LABELS = ["One", "Two", "Three", "NVIDIA-H100-80GB-HBM3"]
objects = st.lists(
    st.one_of(
        st.builds(
            registering.sku,
            st.sampled_from(["next-64", "other-64", "third-64", "h100-sxm"]),
            st.sampled_from(LABELS),
            age=st.integers(0, 9),
            memoryGib=st.sampled_from([64, 80, -1]),
        ),
        st.builds(
            registering.policy,
            st.sampled_from(NAMESPACES),
            skus=st.lists(st.sampled_from(["next-64", "t4", "nothing"]), max_size=2, unique=True),
        ),
    ),
    max_size=6,
    unique_by=lambda found: (found.kind, found.metadata.namespace, found.metadata.name),
)


@settings(deadline=None)
@given(objects, st.randoms())
def test_the_order_of_documents_does_not_matter(found: list[registered.Object], order: random.Random) -> None:
    known = registering.settled(*found)
    shuffled = list(found)
    order.shuffle(shuffled)
    other = registering.settled(*shuffled)
    assert [*other.catalogue] == [*known.catalogue]
    assert (other.verdicts, other.policies) == (known.verdicts, known.policies)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), objects), max_size=5))
def test_whatever_comes_and_goes_the_catalogue_holds_together(steps: Any) -> None:
    known = registered.Registered(BUILTIN)
    for gone, found in steps:
        for each in found:
            (known.remove if gone else known.put)(each.kind, each)
        known.settle()
        assert {sku.id for sku in known.catalogue} >= {*IDS}
        accepted = {key.name for key, verdict in known.verdicts.items() if verdict.reason == "Accepted"}
        assert {key for key, _ in known.objects()} == {*known.verdicts}
        assert all(known.catalogue.get(name) for name in accepted if name != "default")
    for _, found in steps:
        for each in found:
            known.remove(each.kind, each)
    known.settle()
    assert [*known.catalogue] == [*BUILTIN]
    assert not known.verdicts
