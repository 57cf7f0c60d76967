"""What admins register: what of it counts, and what is said of the rest."""

from __future__ import annotations

import json
from typing import Any

import gpunodes
import placing
import pytest
import registering

from capability_db import registered
from capability_db.catalogue import Catalogue
from scheduler import fleet as fleets
from scheduler import kube

Json = dict[str, Any]
BUILTIN = Catalogue.builtin()
H100_LABEL = "NVIDIA-H100-80GB-HBM3"
NEXT_LABEL = "NVIDIA-Next-64GB"
MODEL = {"kind": "embedding", "precision": "fp16", "memoryGib": 3}


def test_a_registered_sku_joins_those_that_ship() -> None:
    known = registering.settled(registering.sku("next-64", NEXT_LABEL))
    found = known.catalogue.by_product("nvidia", NEXT_LABEL)
    assert found is not None
    assert (found.id, found.memory_gib, len(known.catalogue)) == ("next-64", 64, len(BUILTIN) + 1)
    assert registering.said(known, "next-64") == ("Accepted", "in force")
    assert known.origin("GPUSKU", "next-64") == "registered"
    assert known.origin("GPUSKU", "t4") == "shipped"


def test_one_of_a_shipped_id_stands_in_its_place_and_gives_it_back() -> None:
    mine = registering.sku("h100-sxm", H100_LABEL, priceUsdHour=2.5)
    known = registering.settled(mine)
    found = known.catalogue.get("h100-sxm")
    assert found is not None
    assert (found.memory_gib, found.price_usd_hour, len(known.catalogue)) == (64, 2.5, len(BUILTIN))
    assert known.origin("GPUSKU", "h100-sxm") == "override"
    known.remove("GPUSKU", mine)
    assert known.settle()
    assert [*known.catalogue] == [*BUILTIN]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"vendor": "nvdia"}, "spec.vendor: 'nvdia': should be 'nvidia', 'amd' or 'intel'"),
        ({"memoryGib": "lots"}, "spec.memoryGib: 'lots': should be a valid number, unable to parse string as a number"),
        ({"memoryGib": -4}, "spec.memoryGib: -4: should be greater than 0"),
        ({"memory_gib": 4}, "spec.memoryGib: is no field of this kind; drop it"),
        ({"link": {"name": "PCIe"}}, "spec.link.reach: is missing"),
        ({"tflops": {"fp8": 100}}, "spec: tflops.fp8: a rate of a format that formats does not list"),
        ({"mig": "h1000"}, "spec.mig: 'h1000' is no geometry; known are "),
        ({"match": {"product": ["no label!"]}}, "spec.match.product"),
        ({"match": {"cloud": ["no-pair"]}}, "spec.match.cloud"),
    ],
)
def test_what_is_wrong_with_a_sku_is_said_as_the_api_spells_it(spec: Json, text: str) -> None:
    known = registering.settled(registering.made("GPUSKU", "next-64", registering.sku_spec(NEXT_LABEL) | spec))
    reason, message = registering.said(known, "next-64")
    assert reason == "Invalid"
    assert message.startswith(text)
    assert message.endswith("it counts for nothing until then")
    assert known.catalogue.get("next-64") is None


def test_a_name_that_is_no_sku_id_is_refused() -> None:
    reason, message = registering.said(registering.settled(registering.sku("next.64")), "next.64")
    assert reason == "Invalid"
    assert message.startswith("metadata.name: 'next.64'")


@pytest.mark.parametrize(
    ("mine", "text"),
    [
        (
            {"match": {"product": [H100_LABEL]}},
            f"spec.match.product: {H100_LABEL!r} already means h100-sxm; drop it here",
        ),
        ({"match": {"pci": ["2330"]}}, "spec.match.pci: '2330' already means h100-sxm"),
    ],
)
def test_a_newcomer_that_claims_what_another_has_is_refused_alone(mine: Json, text: str) -> None:
    known = registering.settled(
        registering.sku("next-64", NEXT_LABEL), registering.made("GPUSKU", "thief", registering.sku_spec() | mine)
    )
    reason, message = registering.said(known, "thief")
    assert reason == "Clash"
    assert message.startswith(text)
    assert known.catalogue.get("next-64") is not None
    assert known.catalogue.get("thief") is None


def test_of_two_new_ones_that_clash_the_older_counts() -> None:
    known = registering.settled(registering.sku("a-young", NEXT_LABEL), registering.sku("z-old", NEXT_LABEL, age=9))
    assert registering.said(known, "a-young") == (
        "Clash",
        f"spec.match.product: {NEXT_LABEL!r} already means z-old; drop it here, or from GPUSKU z-old; it counts for "
        "nothing until then",
    )
    known.remove("GPUSKU", registering.sku("z-old"))
    known.settle()
    assert registering.said(known, "a-young")[0] == "Accepted"


def test_the_last_good_version_stays_in_force() -> None:
    known = registering.settled(registering.sku("next-64", NEXT_LABEL))
    known.put("GPUSKU", registering.sku("next-64", NEXT_LABEL, generation=2, memoryGib=-1))
    assert not known.settle()
    found = known.catalogue.by_product("nvidia", NEXT_LABEL)
    assert found is not None
    assert found.memory_gib == 64
    assert registering.said(known, "next-64")[1].endswith("the last good version stays in force")
    (verdict,) = known.verdicts.values()
    assert json.loads(verdict.in_force or "")["memoryGib"] == 64

    # A service that starts now knows it from the object's status.
    later = registering.settled(
        registering.made(
            "GPUSKU",
            "next-64",
            registering.sku_spec(NEXT_LABEL) | {"memoryGib": -1},
            generation=2,
            in_force=verdict.in_force,
        )
    )
    assert later.catalogue.by_product("nvidia", NEXT_LABEL) == found
    assert later.verdicts == known.verdicts


def test_who_is_in_force_keeps_its_label_against_an_older_one_that_changes() -> None:
    known = registering.settled(registering.sku("old", "Other", age=9), registering.sku("young", NEXT_LABEL))
    known.put("GPUSKU", registering.sku("old", NEXT_LABEL, age=9, generation=2))
    known.settle()
    assert registering.said(known, "old")[0] == "Clash"
    assert {
        sku.id for sku in (known.catalogue.by_product("nvidia", each) for each in ("Other", NEXT_LABEL)) if sku
    } == {
        "old",
        "young",
    }
    # The same after a restart, from what the statuses say.
    ready = registered.Condition(type="Ready", status="True", observed_generation=1)
    again = registering.settled(
        registering.made(
            "GPUSKU",
            "old",
            registering.sku_spec(NEXT_LABEL),
            age=9,
            generation=2,
            in_force=known.verdicts[_key("old")].in_force,
        ),
        registering.made("GPUSKU", "young", registering.sku_spec(NEXT_LABEL), conditions=[ready]),
    )
    assert again.verdicts == known.verdicts


def _key(name: str) -> registered.Key:
    return registered.Key("GPUSKU", "", name)


def test_a_label_that_comes_free_goes_to_who_waits_for_it() -> None:
    known = registering.settled(registering.sku("first", NEXT_LABEL, age=1), registering.sku("second", NEXT_LABEL))
    known.put("GPUSKU", registering.sku("first", "Other", age=1, generation=2))
    known.settle()
    assert registering.said(known, "first")[0] == registering.said(known, "second")[0] == "Accepted"


def test_a_shipped_sku_that_is_back_takes_its_label_back() -> None:
    mine = registering.sku("h100-sxm", "Other")
    known = registering.settled(mine, registering.sku("next-64", H100_LABEL))
    assert registering.said(known, "next-64")[0] == "Accepted"
    known.remove("GPUSKU", mine)
    known.settle()
    assert registering.said(known, "next-64")[0] == "Clash"
    owner = known.catalogue.by_product("nvidia", H100_LABEL)
    assert owner is not None
    assert owner.id == "h100-sxm"


def test_an_object_made_anew_under_a_name_inherits_nothing() -> None:
    known = registering.settled(registering.sku("next-64", NEXT_LABEL))
    known.put("GPUSKU", _other_uid(registering.sku("next-64", NEXT_LABEL, memoryGib=-1)))
    known.settle()
    assert known.catalogue.get("next-64") is None


def _other_uid(found: registered.Object) -> registered.Object:
    metadata = registered.Metadata(name=found.metadata.name, uid="another", generation=1)
    return registered.Object(kind=found.kind, metadata=metadata, spec=found.spec)


def test_a_write_to_a_status_changes_nothing() -> None:
    known = registering.settled(registering.sku("next-64", NEXT_LABEL))
    before = known.catalogue
    status = registered.Status(conditions=[registered.Condition(type="Ready", status="True", observed_generation=1)])
    mine = registering.sku("next-64", NEXT_LABEL)
    known.put("GPUSKU", registered.Object(kind="GPUSKU", metadata=mine.metadata, spec=mine.spec, status=status))
    assert not known.settle()
    assert known.catalogue is before


# --- Models -----------------------------------------------------------------------------------------------------------


def test_a_registered_model_is_one_that_pods_may_name() -> None:
    known = registering.settled(registering.made("ModelProfile", "our-embedder", MODEL))
    assert known.catalogue.models.find("our-embedder").memory_gib == 3
    assert known.catalogue.models.get("llama-3.1-8b") is not None


def test_a_model_that_cannot_be_sized_is_refused() -> None:
    known = registering.settled(registering.made("ModelProfile", "half", {"kind": "llm", "precision": "bf16"}))
    reason, message = registering.said(known, "half")
    assert reason == "Invalid"
    assert "is not stated" in message
    assert "_" not in message


# --- Policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "spec", "text"),
    [
        ("team-a", {"skus": ["h100-sxn"]}, "spec.skus[0]: 'h100-sxn' is no SKU; did you mean h100-sxm?"),
        (
            "team-a",
            {"prices": [{"sku": "t4", "usdHour": 1}]},
            "spec.prices: only the cluster's own policy states prices",
        ),
        ("team-a", {"vendors": ["amd"], "skus": ["t4"]}, "spec.skus: none of t4 is of amd, which spec.vendors allows"),
        ("team-a", {"maxPriceUsdHour": 0}, "spec.maxPriceUsdHour: 0: should be greater than 0"),
        (
            registering.SYSTEM,
            {"prices": [{"sku": "t4", "usdHour": 1}, {"sku": "t4", "usdHour": 2}]},
            "spec.prices[1]: holds beside spec.prices[0] for t4 on every node, and neither has more labels",
        ),
        (
            registering.SYSTEM,
            {
                "prices": [
                    {"sku": "t4", "usdHour": 1, "nodeLabels": {"pool": "a"}},
                    {"sku": "t4", "usdHour": 2, "nodeLabels": {"zone": "b"}},
                ]
            },
            "spec.prices[1]: holds beside spec.prices[0] for t4 on pool=a,zone=b",
        ),
    ],
)
def test_what_is_wrong_with_a_policy_is_said(namespace: str, spec: Json, text: str) -> None:
    known = registering.settled(registering.policy(namespace, **spec))
    reason, message = registering.said(known, f"{namespace}/default")
    assert reason == "Invalid"
    assert message.startswith(text)
    assert not known.policies


def test_a_policy_of_another_name_is_refused() -> None:
    known = registering.settled(registering.made("PlacementPolicy", "mine", {}, namespace="team-a"))
    assert registering.said(known, "team-a/mine")[1].startswith("metadata.name: 'mine': a namespace has one")


def test_a_policy_may_name_a_registered_sku_and_waits_for_it() -> None:
    known = registering.settled(registering.policy("team-a", skus=["next-64"]))
    assert registering.said(known, "team-a/default")[0] == "Invalid"
    known.put("GPUSKU", registering.sku("next-64", NEXT_LABEL))
    known.settle()
    assert registering.said(known, "team-a/default")[0] == "Accepted"


# --- Prices -----------------------------------------------------------------------------------------------------------


def test_of_several_prices_that_hold_the_one_with_most_labels_counts() -> None:
    known = registering.settled(
        registering.policy(
            prices=[
                {"sku": "t4", "usdHour": 1},
                {"sku": "t4", "usdHour": 2, "nodeLabels": {"pool": "a"}},
                {"sku": "t4", "usdHour": 3, "nodeLabels": {"zone": "b"}},
                {"sku": "t4", "usdHour": 4, "nodeLabels": {"pool": "a", "zone": "b"}},
            ]
        )
    )
    assert registering.said(known, "default")[0] == "Accepted"
    t4 = known.catalogue.get("t4")
    assert t4 is not None
    for labels, price in [({}, 1), ({"pool": "a"}, 2), ({"zone": "b"}, 3), ({"pool": "a", "zone": "b", "x": "y"}, 4)]:
        assert known.catalogue.price([t4], labels) == price
    assert known.catalogue.cheapest(t4) == 1


def test_a_price_of_the_policy_goes_before_the_sku_s_own_and_unknown_stays_unknown() -> None:
    own = registering.sku("next-64", NEXT_LABEL, priceUsdHour=9)
    prices = [{"sku": "next-64", "usdHour": 5, "nodeLabels": {"pool": "a"}}]
    catalogue = registering.settled(own, registering.policy(prices=prices)).catalogue
    mine, t4 = catalogue.get("next-64"), catalogue.get("t4")
    assert mine is not None
    assert t4 is not None
    assert catalogue.price([mine], {"pool": "a"}) == 5
    assert catalogue.price([mine], {}) == 9
    assert catalogue.price([mine, t4], {}) is None
    assert catalogue.price([], {}) is None


# --- In the node table ------------------------------------------------------------------------------------------------


def unknown(name: str = "n") -> Json:
    labels = {"nvidia.com/gpu.product": NEXT_LABEL, "nvidia.com/gpu.memory": "65000", "nvidia.com/gpu.count": "2"}
    return gpunodes.node(name, labels, {"nvidia.com/gpu": 2})


def pools(fleet: fleets.Fleet) -> list[str]:
    return [pool.device.label for row in fleet.rows.values() for pool in row.facts.pools]


def test_nodes_mean_something_else_once_a_sku_is_registered_and_again_when_it_is_gone() -> None:
    fleet = placing.fleet_of([unknown(), gpunodes.nvidia("t4", "t4", 1), gpunodes.node("plain")])
    assert pools(fleet) == ["unknown", "t4"]
    rows = dict(fleet.rows)
    mine = registering.sku("next-64", NEXT_LABEL)
    fleet.registered.put("GPUSKU", mine)
    assert fleet.use_registered()
    assert pools(fleet) == ["next-64", "t4"]
    assert fleet.rows["n"].labels["anygpu.io/sku.next-64"] == "2"
    assert fleet.rows["t4"] is rows["t4"]
    assert {each.label for each in fleet.classes()} == {"next-64", "t4"}
    fleet.registered.remove("GPUSKU", mine)
    assert fleet.use_registered()
    assert pools(fleet) == ["unknown", "t4"]
    assert fleet.rows["n"].labels == rows["n"].labels


def test_a_swap_comes_to_what_reading_anew_comes_to() -> None:
    nodes = [unknown(), gpunodes.mig_mixed("m", "a100-80", 2, **{"3g.40gb": 2}), gpunodes.amd("a", "mi300x", 8)]
    fleet = placing.fleet_of(nodes)
    for found in (
        registering.sku("next-64", NEXT_LABEL),
        registering.policy(prices=[{"sku": "mi300x", "usdHour": 3}, {"sku": "next-64", "usdHour": 1}]),
    ):
        fleet.registered.put(found.kind, found)
        assert fleet.use_registered()
    anew = fleets.Fleet(fleet.catalogue)
    anew.replace([kube.to_node(each) for each in nodes])
    assert {name: (row.facts, row.labels) for name, row in fleet.rows.items()} == {
        name: (row.facts, row.labels) for name, row in anew.rows.items()
    }
    assert {id(pool.device) for row in fleet.rows.values() for pool in row.facts.pools} == {
        id(device) for device in fleet.classes()
    }


def test_what_says_nothing_of_nodes_reads_none_anew() -> None:
    fleet = placing.fleet_of([unknown()])
    before = fleet.rows["n"]
    fleet.registered.put("ModelProfile", registering.made("ModelProfile", "our-embedder", MODEL))
    fleet.registered.put("PlacementPolicy", registering.policy("team-a", vendors=["amd"]))
    assert not fleet.use_registered()
    assert fleet.rows["n"] is before
    assert fleet.catalogue.models.get("our-embedder") is not None
    assert fleet.policy("team-a").rules[0].vendors == ("amd",)
