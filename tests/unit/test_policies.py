"""What PlacementPolicies let pods of a namespace have, what they give, and who says so."""

from __future__ import annotations

from typing import Any

import gpunodes
import placing
import pytest
import registering

from capability_db.catalogue import Catalogue
from scheduler import asks, decision, errors, explain, extender, fit, kube, needs, offers, policies, stranded
from scheduler import fleet as fleets

Json = dict[str, Any]
BUILTIN = Catalogue.builtin()
T4, H100, MI300X = "t4", "h100", "mi300x"


def cluster(*found: Any, nodes: list[Json] | None = None) -> fleets.Fleet:
    """A fleet of a T4, an H100 and an MI300X node, with some registered objects."""
    fleet = placing.fleet_of(
        nodes or [gpunodes.nvidia(T4, "t4", 2), gpunodes.nvidia(H100, "h100", 2), gpunodes.amd(MI300X, "mi300x", 2)]
    )
    for each in found:
        fleet.registered.put(each.kind, each)
    fleet.use_registered()
    assert all(verdict.reason == "Accepted" for verdict in fleet.registered.verdicts.values())
    return fleet


def pod(namespace: str = "team-a", name: str = "p", resources: Json | None = None, **stated: str) -> Json:
    annotations = {f"anygpu.io/{key.replace('_', '-')}": value for key, value in (stated or {"gpus": "1"}).items()}
    container = {"name": "main", "image": placing.PINNED, "resources": {"limits": resources or {}}}
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "annotations": annotations}
    return {"kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def refused(fleet: fleets.Fleet, document: Json) -> str:
    with pytest.raises(errors.AnygpuError) as caught:
        placing.admit(document, fleet)
    return str(caught.value)


def reasons(fleet: fleets.Fleet, document: Json) -> dict[str, str | None]:
    question = asks.read(kube.to_pod(document), fleet)
    return {each.name: each.reason for each in offers.survey(question.ask(kube.to_pod(document), None), fleet).verdicts}


# --- What pods may have -----------------------------------------------------------------------------------------------


def test_what_a_policy_forbids_is_refused_in_its_name() -> None:
    fleet = cluster(
        registering.policy("team-a", vendors=["nvidia"]), registering.policy(notSkus=["t4"], maxPriceUsdHour=9)
    )
    assert reasons(fleet, pod()) == {
        T4: "t4: forbidden by PlacementPolicy anygpu-system/default",
        H100: "h100-sxm: no price stated, at most 9 USD an hour allowed by PlacementPolicy anygpu-system/default",
        MI300X: "amd: not allowed by PlacementPolicy team-a/default, which allows nvidia",
    }
    assert "team-a" not in str(reasons(fleet, pod("team-b")))


def test_both_policies_hold_together_and_a_pod_narrows_them() -> None:
    fleet = cluster(registering.policy("team-a", vendors=["nvidia"]), registering.policy(skus=["t4", "mi300x"]))
    assert placing.admit(pod(), fleet).decision.sku == "t4"
    assert reasons(fleet, pod())[H100] == (
        "h100-sxm: not allowed by PlacementPolicy anygpu-system/default, which allows t4, mi300x"
    )
    assert placing.admit(pod("team-b", memory="40Gi"), fleet).decision.sku == "mi300x"
    assert "no GPU model that meets the pod's needs is allowed" in refused(fleet, pod(memory="40Gi"))


@pytest.mark.parametrize(
    ("stated", "text"),
    [
        (
            {"vendor": "amd"},
            "anygpu.io/vendor: 'amd': amd: not allowed by PlacementPolicy team-a/default, which allows nvidia; whoever "
            "may edit PlacementPolicy team-a/default can change that",
        ),
        (
            {"sku": "mi300x"},
            "anygpu.io/sku: 'mi300x': amd: not allowed by PlacementPolicy team-a/default, which allows nv",
        ),
    ],
)
def test_a_pod_that_asks_only_what_is_forbidden_is_refused_at_admission(stated: Json, text: str) -> None:
    assert refused(cluster(registering.policy("team-a", vendors=["nvidia"])), pod(**stated)).startswith(text)


def test_of_several_vendors_that_a_pod_names_the_allowed_ones_are_left() -> None:
    fleet = cluster(registering.policy("team-a", vendors=["nvidia"]))
    assert placing.admit(pod(vendor="amd,nvidia"), fleet).decision.vendor == "nvidia"


def test_a_pod_of_no_device_that_could_ever_be_is_told_so_before_any_policy() -> None:
    text = refused(cluster(registering.policy("team-a", vendors=["nvidia"])), pod(memory="9Ti"))
    assert text.startswith("anygpu.io/memory: no GPU model in the capability DB meets this")


def test_a_model_is_sized_for_the_gpus_that_are_allowed() -> None:
    fleet = cluster(registering.policy("team-a", skus=["h100-sxm"]))
    asked = {"model": "llama-3.1-70b", "context": "8192"}
    assert asks.read(kube.to_pod(pod("team-b", **asked)), fleet).needs.gpus == 1
    assert asks.read(kube.to_pod(pod(**asked)), fleet).needs.gpus > 1


# --- Prices -----------------------------------------------------------------------------------------------------------


def labelled(node: Json, **labels: str) -> Json:
    node["metadata"]["labels"] |= labels
    return node


def test_the_same_model_costs_what_its_pool_says() -> None:
    nodes = [labelled(gpunodes.nvidia(f"h100-{pool}", "h100", 1), pool=pool) for pool in ("spot", "owned")]
    prices = [
        {"sku": "h100-sxm", "usdHour": 4},
        {"sku": "h100-sxm", "usdHour": 1.5, "nodeLabels": {"pool": "spot"}},
    ]
    fleet = cluster(registering.policy(prices=prices, maxPriceUsdHour=5), nodes=nodes)
    assert reasons(fleet, pod(max_price="2")) == {
        "h100-spot": None,
        "h100-owned": "h100-sxm: 4 USD an hour, at most 2 asked",
    }
    assert placing.admit(pod(objective="cost"), fleet).decision.node == "h100-spot"
    # A pod that was admitted under the cap stays under it: /filter judges by what its decision records.
    capped = cluster(registering.policy(prices=prices), registering.policy("team-a", maxPriceUsdHour=2), nodes=nodes)
    admitted = kube.to_pod(placing.admit(pod(), capped).pod)
    capped.registered.remove("PlacementPolicy", registering.policy("team-a"))
    capped.use_registered()
    assert extender.refusals(admitted, ["h100-spot", "h100-owned"], capped) == {
        "h100-owned": "h100-sxm: 4 USD an hour, at most 2 allowed by PlacementPolicy team-a/default"
    }


def test_a_price_that_only_some_nodes_could_have_makes_a_need_possible() -> None:
    prices = [{"sku": "h200-sxm", "usdHour": 1.5, "nodeLabels": {"pool": "spot"}}]
    made = placing.admit(pod(max_price="2"), cluster(registering.policy(prices=prices))).decision
    assert (made.sku, made.node) == ("h200-sxm", None)


# --- Defaults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "own", "whole", "objective"),
    [
        ({"objective": "speed"}, {"objective": "energy"}, {"objective": "cost"}, "speed"),
        ({}, {"objective": "energy"}, {"objective": "cost"}, "energy"),
        ({}, {"vendors": ["nvidia"]}, {"objective": "cost"}, "cost"),
        ({}, {}, {}, "pack"),
    ],
)
def test_the_pod_goes_before_its_namespace_and_that_before_the_cluster(
    stated: Json, own: Json, whole: Json, objective: str
) -> None:
    fleet = cluster(registering.policy("team-a", **own), registering.policy(**whole))
    assert asks.read(kube.to_pod(pod(gpus="1", **stated)), fleet).needs.objective == objective


def test_weights_and_an_objective_are_one_choice() -> None:
    weights = registering.policy("team-a", weights={"speed": 1})
    fleet = cluster(weights, registering.policy(objective="cost"))
    needed = asks.read(kube.to_pod(pod()), fleet).needs
    assert (needed.weights and needed.weights.speed, needed.objective) == (1, "pack")
    assert asks.read(kube.to_pod(pod(objective="pack")), fleet).needs.weights is None
    made = placing.admit(pod(), fleet).decision
    assert made.sku in ("h100-sxm", "mi300x")
    assert "the best by weights (weights speed 1)" in made.reason


def test_a_default_binding_is_not_for_pods_that_cannot_have_it() -> None:
    fleet = cluster(registering.policy("team-a", binding="late"))

    def binding(document: Json) -> needs.Binding:
        return placing.admit(document, fleet).decision.binding

    assert binding(pod()) == "late"
    assert binding(pod(binding="early")) == "early"
    assert binding(pod(resources={"nvidia.com/gpu": "1"})) == "early"
    named, other = pod(), pod()
    named["spec"]["nodeName"], other["spec"]["schedulerName"] = T4, "volcano"
    assert (binding(named), binding(other)) == ("early", "early")
    assert binding(pod("team-b")) == "early"


def test_the_cluster_s_own_policy_counts_once_in_its_own_namespace() -> None:
    fleet = cluster(registering.policy(vendors=["nvidia"]))
    assert len(fleet.policy(registering.SYSTEM).rules) == 1


# --- Decided pods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["early", "late"])
def test_a_later_policy_parks_nobody_who_was_admitted(binding: str) -> None:
    fleet = cluster()
    admitted = kube.to_pod(placing.admit(pod(binding=binding, vendor="amd"), fleet).pod)
    fleet.registered.put("PlacementPolicy", registering.policy("team-a", vendors=["nvidia"], binding="claim"))
    fleet.use_registered()
    assert MI300X not in extender.refusals(admitted, [T4, H100, MI300X], fleet)
    assert asks.read(admitted, fleet).needs.binding == binding


def test_nobody_is_rescued_to_what_a_policy_forbids_now() -> None:
    fleet = cluster(nodes=[gpunodes.nvidia(T4, "t4", 1), gpunodes.amd(MI300X, "mi300x", 2)])
    document = pod()
    document["spec"]["containers"][0]["image"] = placing.IMAGE.requested
    admitted = kube.to_pod(placing.admit(document, fleet).pod)
    made = decision.read(admitted.annotations)
    assert made is not None
    assert made.vendor == "nvidia"
    fleet.apply_pod(kube.to_pod(placing.bound("other", T4, {"nvidia.com/gpu": 1})))
    assert stranded.chance(admitted, made, placing.IMAGE, fleet) is not None
    fleet.registered.put("PlacementPolicy", registering.policy("team-a", vendors=["nvidia"]))
    fleet.use_registered()
    assert stranded.chance(admitted, made, placing.IMAGE, fleet) is None


def test_the_decision_records_what_the_policies_said_and_nothing_where_there_are_none() -> None:
    fleet = cluster(registering.policy("team-a", vendors=["nvidia"], objective="cost"))
    made = placing.admit(pod(), fleet).decision
    assert made.policy == fleet.policy("team-a")
    assert placing.admit(pod("team-b"), fleet).decision.policy is None
    annotated = placing.admit(pod(), fleet).pod["metadata"]["annotations"]
    assert decision.read(annotated) == placing.admit(pod(), fleet).decision


# --- Explained --------------------------------------------------------------------------------------------------------


def explained(fleet: fleets.Fleet, document: Json) -> explain.Explanation:
    return explain.explain(kube.to_pod(document), fleet)


def test_explain_says_which_policy_gave_what() -> None:
    fleet = cluster(
        registering.policy("team-a", objective="cost", skus=["t4", "h100-sxm"], weights=None),
        registering.policy(maxPriceUsdHour=2.5, binding="early", vendors=["nvidia", "amd"]),
    )
    lines = (
        "SKUs t4, h100-sxm: from PlacementPolicy team-a/default",
        "vendors nvidia, amd: from PlacementPolicy anygpu-system/default",
        "at most 2.5 USD an hour: from PlacementPolicy anygpu-system/default",
        "objective cost: from PlacementPolicy team-a/default",
        "binding early: from PlacementPolicy anygpu-system/default",
    )
    answer = explained(fleet, pod())
    assert answer.policy == lines
    assert answer.as_json()["policy"] == [*lines]
    assert answer.advice == (
        "whoever may edit PlacementPolicy team-a/default or PlacementPolicy anygpu-system/default can change that"
    )
    own = explained(fleet, pod(objective="pack")).policy
    assert "objective cost: from PlacementPolicy team-a/default (the pod states its own)" in own


def test_explain_tells_that_the_policies_changed_since() -> None:
    fleet = cluster(registering.policy("team-a", objective="cost"))
    admitted = placing.admit(pod(), fleet).pod
    fleet.registered.put("PlacementPolicy", registering.policy("team-a", vendors=["amd"]))
    fleet.use_registered()
    assert explained(fleet, admitted).policy == (
        "objective cost: from PlacementPolicy team-a/default",
        "as it was admitted; for a pod made now: vendors amd: from PlacementPolicy team-a/default",
    )


def test_no_policy_says_nothing() -> None:
    assert explained(cluster(), pod()).policy == ()
    assert policies.effective("team-a", {}) == policies.NONE


def test_a_long_list_of_skus_is_cut_where_it_is_told() -> None:
    ids = [sku.id for sku in BUILTIN][:10]
    rule = policies.effective("x", registering.settled(registering.policy("x", skus=ids)).policies).rules[0]
    assert (rule.forbids_sku("nothing") or "").endswith(f"which allows {', '.join(ids[:6])} and 4 more")


def test_texts_that_events_carry_hold_no_percent_sign() -> None:
    rule = policies.Rule(policy="a/default", vendors=("amd",), skus=("mi300x",), not_skus=("t4",), max_price_usd_hour=1)
    given = needs.Needs(policy=policies.Effective(rules=(rule,)))
    device = next(fit.possible(BUILTIN))
    assert fit.unmet(given, device)
    assert not any("%" in each.text for each in fit.unmet(given, device))
    assert {each.change for each in fit.unmet(given, device)} == {None}
