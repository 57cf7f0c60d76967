"""Late binding: what a pod carries that leaves its vendor open, where it may go, and what it is given there."""

import copy
from typing import Any

import gpunodes
import placing
import pytest

from scheduler import asks, binding, decision, errors, extender, kube, quota, reservations
from scheduler import fleet as fleets

Json = dict[str, Any]
NVIDIA, AMD = "nvidia.com/gpu", "amd.com/gpu"
MIG = "nvidia.com/mig-3g.40gb"


def late(document: Json | None = None, **annotations: str) -> Json:
    made = gpunodes.pod(**{"memory": "16Gi", "binding": "late", **annotations})
    return made if document is None else {**made, "spec": document}


def both() -> fleets.Fleet:
    return placing.fleet_of([gpunodes.nvidia("l4", "l4", 2), gpunodes.amd("mi210", "mi210", 2)])


def limits(pod: Json) -> dict[str, str]:
    found: dict[str, str] = pod["spec"]["containers"][0]["resources"]["limits"]
    return found


def admitted(fleet: fleets.Fleet, document: Json | None = None, uid: str = "u1") -> tuple[Json, kube.Pod]:
    """A late pod as it is once it has been admitted."""
    found = placing.admit(document or late(), fleet).pod
    found = copy.deepcopy(found)
    found["metadata"]["uid"] = uid
    return found, kube.to_pod(found)


def test_a_late_pod_carries_every_vendors_name_and_an_image_that_nothing_can_pull() -> None:
    made = placing.admit(late(), both())
    assert limits(made.pod) == {NVIDIA: "1", AMD: "1"} == made.pod["spec"]["containers"][0]["resources"]["requests"]
    assert made.pod["spec"]["containers"][0]["image"] == binding.UNRESOLVED
    assert made.pod["spec"]["schedulerName"] == "anygpu-scheduler"
    assert made.pod["metadata"]["labels"] == {"anygpu.io/binding": "late"}
    assert made.pod["metadata"]["annotations"]["anygpu.io/requested-image"] == '{"main": "registry.test/team/app:v1"}'
    assert made.decision.injected == {NVIDIA: 1, AMD: 1}
    assert [(each.resource, each.vendor) for each in made.decision.alternatives] == [(NVIDIA, "nvidia"), (AMD, "amd")]
    assert (made.decision.binding, made.decision.node, made.decision.resource) == ("late", "l4", NVIDIA)


def test_the_vendors_order_is_the_order_of_the_alternatives() -> None:
    made = placing.admit(late(vendor="amd,nvidia"), both())
    assert [each.vendor for each in made.decision.alternatives] == ["amd", "nvidia"]


@pytest.mark.parametrize(
    ("annotations", "image", "names"),
    [
        ({"vendor": "nvidia"}, ("nvidia", "amd"), {NVIDIA}),
        ({}, ("amd",), {AMD}),
        ({"memory": "50Gi"}, ("nvidia", "amd"), {NVIDIA, AMD}),  # an NVIDIA node of that size may come
        ({"sku": "mi210"}, ("nvidia", "amd"), {AMD}),
    ],
)
def test_only_vendors_that_could_serve_it_are_asked(
    annotations: dict[str, str], image: tuple[str, ...], names: set[str]
) -> None:
    assert limits(placing.admit(late(**annotations), both(), placing.image(*image)).pod).keys() == names


def test_two_names_that_one_node_lists_even_at_none_are_never_asked_together() -> None:
    mixed = gpunodes.nvidia("mixed", "l4", 2)
    mixed["status"]["allocatable"][AMD] = "0"
    fleet = placing.fleet_of([mixed, gpunodes.amd("mi210", "mi210", 2)])
    assert limits(placing.admit(late(), fleet).pod) == {NVIDIA: "1"}
    mig, amd = gpunodes.mig_mixed("mig", "a100-80", 1, **{"3g.40gb": 2}), gpunodes.amd("mi", "mi210", 2)
    fleet = placing.fleet_of([mig, amd])
    assert limits(placing.admit(late(), fleet).pod) == {NVIDIA: "1", AMD: "1"}
    assert limits(placing.admit(late(share="slice"), fleet).pod) == {MIG: "1", AMD: "1"}, "more slices than whole GPUs"
    fleet = placing.fleet_of([mig, amd, gpunodes.nvidia("a100", "a100-80", 8)])
    assert limits(placing.admit(late(share="slice"), fleet).pod) == {NVIDIA: "1", AMD: "1"}, "more whole GPUs"


def test_a_name_that_a_device_class_maps_is_refused_with_what_would_do() -> None:
    fleet = both()
    fleet.device_classes = {"gpu.nvidia.com": NVIDIA, "plain": None}
    with pytest.raises(
        errors.NothingFits, match=r"DeviceClass gpu\.nvidia\.com maps nvidia\.com/gpu .* binding: claim"
    ):
        placing.admit(late(), fleet)
    assert limits(placing.admit(late(vendor="amd"), fleet).pod) == {AMD: "1"}


def test_a_pod_that_contradicts_late_binding_is_refused() -> None:
    asks_itself = late({"containers": [{"name": "main", "image": "x", "resources": {"limits": {NVIDIA: "1"}}}]})
    with pytest.raises(errors.InvalidNeeds, match="late leaves the vendor open, but container main asks nvidia"):
        placing.admit(asks_itself, both())
    other = late({"containers": [{"name": "main", "image": "x"}], "schedulerName": "mine"})
    with pytest.raises(errors.InvalidNeeds, match=r"spec\.schedulerName: mine contradicts anygpu\.io/binding: late"):
        placing.admit(other, both())


def test_a_pod_that_names_its_node_is_decided_at_once() -> None:
    document = late({"containers": [{"name": "main", "image": "x"}], "nodeName": "mi210"})
    made = placing.admit(document, both())
    assert (limits(made.pod), made.decision.binding) == ({AMD: "1"}, "early")
    assert made.pod["spec"]["containers"][0]["image"].startswith("registry.test/team/app@sha256:")
    assert any("the pod names its node" in kept for kept in made.decision.kept)
    pod = kube.to_pod(made.pod)
    assert asks.read(pod, fleets.Fleet(placing.CATALOGUE)).needs.resources == (AMD,)


def test_env_that_differs_by_vendor_comes_from_annotations_written_at_bind() -> None:
    containers = [{"name": name, "image": "registry.test/team/app:v1"} for name in ("main", "side")]
    document, _ = admitted(both(), late({"containers": containers}))
    env = {each["name"]: each["env"] for each in document["spec"]["containers"]}
    path = {"valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['anygpu.io/env.NVIDIA_VISIBLE_DEVICES']"}}}
    assert env["side"] == [{"name": "NVIDIA_VISIBLE_DEVICES", **path}]
    assert [each["name"] for each in env["main"]] == ["ANYGPU_VENDOR"]


@pytest.mark.parametrize(("node", "vendor", "resource"), [("l4", "nvidia", NVIDIA), ("mi210", "amd", AMD)])
def test_the_node_decides_vendor_image_and_environment(node: str, vendor: str, resource: str) -> None:
    fleet = both()
    _, pod = admitted(fleet)
    made = decision.read(pod.annotations)
    assert made is not None
    device = fleet.rows[node].facts.pools[0].device
    chosen = binding.alternative(made, device)
    assert chosen is not None
    given = binding.outcome(made, chosen, device, node)
    assert (given.decision.vendor, given.decision.resource, given.decision.node) == (vendor, resource, node)
    assert given.annotations["anygpu.io/bound-vendor"] == vendor
    assert ("anygpu.io/env.NVIDIA_VISIBLE_DEVICES" in given.annotations) == (vendor == "nvidia")
    assert given.images["main"].endswith(f"{f'v1-{vendor}'.encode().hex().ljust(64, '0')[:64]}")


# --- The extender counts for the scheduler that does not ------------------------------------------------------------


def refused(pod: kube.Pod, fleet: fleets.Fleet) -> dict[str, str]:
    return extender.refusals(pod, list(fleet.rows), fleet)


def promise(fleet: fleets.Fleet, node: str, uid: str, **devices: int) -> None:
    old = fleet.reservations.get(node, reservations.Record(node, {}))
    named = {key.replace("_", ".com/"): count for key, count in devices.items()}
    fleet.apply_reservations(old.put(reservations.Entry(kube.PodUid(uid), f"default/{uid}", named, 0.0)))


def test_bound_pods_and_promises_take_devices_and_a_pods_own_promise_does_not() -> None:
    fleet = both()
    _, pod = admitted(fleet)
    assert refused(pod, fleet) == {}
    fleet.apply_pod(kube.to_pod(placing.bound("a", "l4", {NVIDIA: 1})))
    promise(fleet, "l4", "u2", nvidia_gpu=1)
    assert refused(pod, fleet) == {"l4": extender.NOT_FREE}
    promise(fleet, "mi210", "u1", amd_gpu=2)
    assert refused(pod, fleet) == {"l4": extender.NOT_FREE}, "its own"
    promise(fleet, "mi210", "u3", amd_gpu=2)
    assert refused(pod, fleet) == {"l4": extender.NOT_FREE, "mi210": extender.NOT_FREE}


def test_a_promise_ends_when_its_pod_is_bound_or_gone() -> None:
    fleet = both()
    document, pod = admitted(fleet)
    promise(fleet, "l4", "u1", nvidia_gpu=1)
    promise(fleet, "mi210", "u1", amd_gpu=1)
    fleet.apply_pod(pod)
    assert (fleet.promises.on_node("l4", NVIDIA), fleet.promises.on_node("mi210", AMD)) == (1, 1)
    assert fleet.ledger.on_node("l4", NVIDIA) == 0, "what it was promised stands for what it is expected to take"
    with fleet.without(pod):
        assert len(fleet.promises) == 0
    assert len(fleet.promises) == 2
    document["spec"]["nodeName"] = "mi210"
    fleet.apply_pod(kube.to_pod(document))
    assert len(fleet.promises) == 0
    assert (fleet.rows["mi210"].free(AMD), fleet.rows["l4"].free(NVIDIA)) == (1, 2)


def test_nodes_whose_devices_others_are_expected_to_take_are_left_to_them_while_there_are_others() -> None:
    fleet = both()
    for uid in ("e1", "e2"):
        found = placing.admit(gpunodes.pod(memory="16Gi", vendor="nvidia"), fleet)
        found.pod["metadata"] |= {"uid": uid, "name": uid}
        fleet.apply_pod(kube.to_pod(found.pod))
    assert fleet.ledger.on_node("l4", NVIDIA) == 2
    _, pod = admitted(fleet)
    assert refused(pod, fleet) == {"l4": extender.EXPECTED}
    fleet.apply_pod(kube.to_pod(placing.bound("a", "mi210", {AMD: 2})))
    assert refused(pod, fleet) == {"mi210": extender.NOT_FREE}, "what is only expected keeps nobody waiting"


def test_a_node_that_came_to_list_two_of_the_names_is_refused() -> None:
    fleet = both()
    _, pod = admitted(fleet)
    mixed = gpunodes.nvidia("l4", "l4", 2)
    mixed["status"]["allocatable"][AMD] = "0"
    fleet.apply_node(kube.to_node(mixed))
    assert refused(pod, fleet) == {"l4": extender.SEVERAL_NAMES}


@pytest.mark.parametrize(("count", "fits"), [(1, True), (2, False)])
def test_plain_pods_on_that_scheduler_are_counted_too(count: int, fits: bool) -> None:
    fleet = both()
    promise(fleet, "l4", "u2", nvidia_gpu=1)
    plain = placing.bound("plain", None, {NVIDIA: count})
    plain["spec"]["schedulerName"] = "anygpu-scheduler"
    found = refused(kube.to_pod(plain), fleet)
    assert found == {"mi210": extender.NO_GPU} | ({} if fits else {"l4": extender.NOT_FREE})
    plain["spec"]["schedulerName"] = "default-scheduler"
    assert refused(kube.to_pod(plain), fleet) == {}


def test_a_quota_that_has_no_room_for_one_of_the_names_is_told_at_admission() -> None:
    fleet = both()
    hard = {f"requests.{NVIDIA}": "4", f"requests.{AMD}": "4"}
    used = {f"requests.{NVIDIA}": "1", f"requests.{AMD}": "4"}
    fleet.quotas.apply(
        quota.ResourceQuota(
            metadata=kube.Metadata(name="gpus", namespace="default"), status=quota.Status(hard=hard, used=used)
        )
    )
    with pytest.raises(errors.NothingFits, match=r"amd\.com/gpu would be 5 of 4 .* anygpu\.io/vendor: nvidia leaves"):
        placing.admit(late(), fleet)
    assert limits(placing.admit(late(vendor="nvidia"), fleet).pod) == {NVIDIA: "1"}


def test_names_of_nodes_that_the_pods_own_selector_keeps_away_are_not_in_the_way() -> None:
    mig = gpunodes.mig_mixed("mig", "a100-80", 0, **{"3g.40gb": 2})
    mig["metadata"]["labels"]["pool"] = "mig"
    fleet = placing.fleet_of([mig, gpunodes.nvidia("a100", "a100-80", 8)])
    chosen = late(share="slice", vendor="nvidia")
    assert limits(placing.admit(chosen, fleet).pod) == {NVIDIA: "1"}
    chosen["spec"]["nodeSelector"] = {"pool": "mig"}
    assert limits(placing.admit(chosen, fleet).pod) == {MIG: "1"}


def test_a_claim_pod_that_asks_the_neutral_resource_itself_would_get_two() -> None:
    container = {"name": "main", "image": "x", "resources": {"limits": {"anygpu.io/gpu": "1"}}}
    document = gpunodes.pod(binding="claim") | {"spec": {"containers": [container]}}
    with pytest.raises(errors.InvalidNeeds, match=r"container main asks anygpu\.io/gpu itself"):
        placing.admit(document, both())
