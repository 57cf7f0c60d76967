"""What admission writes into a pod, and what of it stays as it was."""

import copy
import json
from typing import Any

import gpunodes
import placing
import pytest

from images import resolve, tags
from scheduler import decision, errors, kube

Json = dict[str, Any]
NVIDIA, AMD = "nvidia.com/gpu", "amd.com/gpu"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def fleet(*more: Json) -> Any:
    return placing.fleet_of(
        [gpunodes.nvidia("t4", "t4"), gpunodes.nvidia("h100", "h100"), gpunodes.amd("mi", "mi300x"), *more]
    )


def pod(container: Json | None = None, spec: Json | None = None, **annotations: str) -> Json:
    document = gpunodes.pod(**(annotations or {"gpus": "1"}))
    document["spec"]["containers"][0] |= container or {}
    document["spec"] |= spec or {}
    return document


def admit(document: Json, nodes: Any = None, image: Any = placing.IMAGE) -> tuple[Json, decision.Decision]:
    before = copy.deepcopy(document)
    made = placing.admit(document, nodes or fleet(), image)
    assert document == before, "the document that came in is left alone"
    recorded = decision.read(made.pod["metadata"]["annotations"])
    assert recorded == made.decision
    return made.pod, made.decision


def main_of(mutated: Json) -> Json:
    return mutated["spec"]["containers"][0]


def image_of(vendor: str, resolved: Any = placing.IMAGE) -> str:
    return resolved.by_vendor[vendor].image


def test_the_container_gets_resource_and_image_and_the_pod_the_record() -> None:
    mutated, made = admit(pod(vendor="amd"))
    assert main_of(mutated)["resources"] == {"limits": {AMD: "1"}, "requests": {AMD: "1"}}
    assert main_of(mutated)["image"] == image_of("amd") == made.images["main"]
    assert "@sha256:" in main_of(mutated)["image"]
    requested = json.loads(mutated["metadata"]["annotations"]["anygpu.io/requested-image"])
    assert requested == {"main": "registry.test/team/app:v1"}
    assert (made.vendor, made.resource, made.count, made.node, made.sku) == ("amd", AMD, 1, "mi", "mi300x")


def test_other_annotations_labels_and_resources_stay() -> None:
    document = pod({"resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1", "memory": "1Gi"}}})
    document["metadata"]["annotations"]["team/owner"] = "ml"
    document["metadata"]["labels"] = {"app": "x"}
    mutated, _ = admit(document)
    assert mutated["metadata"]["labels"] == {"app": "x"}
    assert mutated["metadata"]["annotations"]["team/owner"] == "ml"
    assert main_of(mutated)["resources"] == {
        "limits": {"cpu": "2", NVIDIA: "1"},
        "requests": {"cpu": "1", "memory": "1Gi", NVIDIA: "1"},
    }


@pytest.mark.parametrize("resources", [None, {}, {"limits": None, "requests": None}])
def test_empty_and_null_resources_are_filled(resources: Json | None) -> None:
    mutated, _ = admit(pod({"resources": resources}))
    assert main_of(mutated)["resources"] == {"limits": {NVIDIA: "1"}, "requests": {NVIDIA: "1"}}


def test_a_decision_that_a_user_forged_is_replaced() -> None:
    document = pod()
    document["metadata"]["annotations"] |= {
        "anygpu.io/decision": '{"id": "forged-by-hand"}',
        "anygpu.io/requested-image": "forged",
        "anygpu.io/bound-vendor": "forged",
    }
    mutated, _ = admit(document)
    assert "forged" not in json.dumps(mutated)


def test_a_gpu_the_pod_asks_itself_fixes_the_vendor_and_stays() -> None:
    asked = {"limits": {AMD: "2"}, "requests": {AMD: "2"}}
    mutated, made = admit(pod({"resources": asked}, matrix_cores="preferred"))
    assert main_of(mutated)["resources"] == asked
    assert (made.vendor, made.count) == ("amd", 2)
    assert any(kept.startswith(f"resource {AMD}") for kept in made.kept)


def test_an_image_pinned_by_digest_stays() -> None:
    resolved = placing.image()
    pinned = resolved.__class__(placing.PINNED, resolved.by_vendor, pinned_by_user=True)
    mutated, made = admit(pod({"image": placing.PINNED}), image=pinned)
    assert main_of(mutated)["image"] == placing.PINNED
    assert made.images == {}
    assert any("pinned by digest" in kept for kept in made.kept)
    assert "anygpu.io/requested-image" not in mutated["metadata"]["annotations"]


def test_what_the_user_says_of_nodes_stays_and_is_listed() -> None:
    toleration = {"key": "team/owned", "operator": "Exists"}
    mutated, made = admit(
        pod(
            spec={
                "nodeSelector": {"kubernetes.io/arch": "amd64"},
                "schedulerName": "batch",
                "tolerations": [toleration],
                "affinity": {"nodeAffinity": {REQUIRED: zone_terms("a")}},
            }
        )
    )
    assert mutated["spec"]["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert mutated["spec"]["schedulerName"] == "batch"
    assert mutated["spec"]["tolerations"][0] == toleration
    for what in ("node affinity", "nodeSelector", "tolerations", "schedulerName batch"):
        assert any(kept.startswith(what) for kept in made.kept), what


def zone_terms(*zones: str) -> Json:
    return {
        "nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in zones
        ]
    }


def in_zone(node: Json, zone: str) -> Json:
    node["metadata"]["labels"]["zone"] = zone
    return node


def test_a_users_affinity_is_anded_term_by_term() -> None:
    nodes = placing.fleet_of(
        [
            in_zone(gpunodes.nvidia("a-l4", "l4"), "a"),
            in_zone(gpunodes.nvidia("b-l4", "l4"), "b"),
            in_zone(gpunodes.nvidia("c-l4", "l4"), "c"),
            in_zone(gpunodes.nvidia("a-t4", "t4"), "a"),
        ]
    )
    affinity = {"nodeAffinity": {REQUIRED: zone_terms("a", "b")}, "podAffinity": {"x": 1}}
    mutated, made = admit(pod(spec={"affinity": affinity}, sku="l4"), nodes)
    spec = kube.to_pod(mutated).spec
    admitted = [name for name, row in nodes.rows.items() if kube.node_affinity_holds(spec, name, row.labels)]
    assert admitted == ["a-l4", "b-l4"]
    assert made.node == "a-l4"
    assert mutated["spec"]["affinity"]["podAffinity"] == {"x": 1}


def test_an_affinity_that_admits_nothing_still_admits_nothing() -> None:
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{}]}}}
    nodes = fleet()
    mutated, made = admit(pod(spec={"affinity": affinity}), nodes)
    spec = kube.to_pod(mutated).spec
    assert not any(kube.node_affinity_holds(spec, name, row.labels) for name, row in nodes.rows.items())
    assert made.node is None


def test_the_taints_of_serving_nodes_are_tolerated_and_no_others() -> None:
    nodes = placing.fleet_of(
        [
            gpunodes.nvidia("a", "t4", taint=NVIDIA),
            gpunodes.nvidia("b", "t4", taint="team/owned"),
            gpunodes.amd("c", "mi300x", taint=AMD),
        ]
    )
    mutated, made = admit(pod(vendor="nvidia"), nodes)
    assert mutated["spec"]["tolerations"] == [{"key": NVIDIA, "operator": "Exists", "effect": "NoSchedule"}]
    assert made.node == "a"


def test_a_toleration_that_is_there_is_not_added_again() -> None:
    nodes = placing.fleet_of([gpunodes.nvidia("a", "t4", taint=NVIDIA)])
    mutated, _ = admit(pod(spec={"tolerations": [{"operator": "Exists"}]}), nodes)
    assert mutated["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_every_container_of_the_logical_image_runs_the_variant() -> None:
    image = "registry.test/team/app:v1"
    document = pod(
        spec={
            "containers": [
                {"name": "server", "image": image},
                {"name": "loader", "image": image},
                {"name": "proxy", "image": "envoy:v1"},
            ],
            "initContainers": [
                {"name": "warm", "image": image},
                {"name": "side", "image": image, "restartPolicy": "Always"},
            ],
        },
        vendor="nvidia",
    )
    mutated, made = admit(document)
    containers = {each["name"]: each for each in mutated["spec"]["containers"] + mutated["spec"]["initContainers"]}
    assert {name for name, each in containers.items() if each["image"] == image_of("nvidia")} == {
        "server",
        "loader",
        "warm",
        "side",
    }
    assert containers["proxy"] == {"name": "proxy", "image": "envoy:v1"}
    assert {name for name, each in containers.items() if each.get("resources")} == {"server"}
    void = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]
    assert {name for name, each in containers.items() if each.get("env") == void} == {"loader", "warm", "side"}
    assert set(made.images) == {"server", "loader", "warm", "side"}


def test_void_devices_only_where_it_must() -> None:
    image = "registry.test/team/app:v1"
    own = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "none"}]
    siblings = [
        {"name": "server", "image": image},
        {"name": "own", "image": image, "env": own},
        {"name": "other", "image": "envoy:v1", "env": [{"name": "A", "value": "1"}]},
    ]
    mutated, _ = admit(pod(spec={"containers": siblings}, vendor="nvidia"))
    server, said, other = mutated["spec"]["containers"]
    assert "env" not in server
    assert said["env"] == own
    assert other == siblings[2]
    mutated, _ = admit(pod(spec={"containers": [*siblings, {"name": "x", "image": image}]}, vendor="amd"))
    assert all("void" not in json.dumps(each) for each in mutated["spec"]["containers"])


def test_the_named_container_gets_the_gpu() -> None:
    containers = [{"name": "proxy", "image": "envoy:v1"}, {"name": "server", "image": "registry.test/team/app:v1"}]
    document = pod(spec={"containers": containers})
    document["metadata"]["annotations"]["anygpu.io/container"] = "server"
    mutated, made = admit(document)
    assert made.container == "server"
    assert mutated["spec"]["containers"][0] == containers[0]
    assert mutated["spec"]["containers"][1]["resources"]["limits"] == {NVIDIA: "1"}


def shm(mutated: Json) -> tuple[list[Json], list[Json]]:
    return main_of(mutated).get("volumeMounts", []), mutated["spec"].get("volumes", [])


def test_several_gpus_come_with_shared_memory() -> None:
    volume = {"name": "data", "emptyDir": {}}
    mount = {"name": "data", "mountPath": "/data"}
    mutated, _ = admit(pod({"volumeMounts": [mount]}, {"volumes": [volume]}, gpus="2"))
    mounts, volumes = shm(mutated)
    assert mounts == [mount, {"name": "anygpu-shm", "mountPath": "/dev/shm"}]
    assert volumes == [volume, {"name": "anygpu-shm", "emptyDir": {"medium": "Memory"}}]


@pytest.mark.parametrize(
    ("container", "spec", "gpus"),
    [
        ({}, {}, "1"),
        ({}, {"hostIPC": True}, "2"),
        ({"volumeMounts": [{"name": "mine", "mountPath": "/dev/shm/"}]}, {}, "2"),
    ],
    ids=["one GPU", "the host's IPC", "mounted already"],
)
def test_shared_memory_is_left_alone(container: Json, spec: Json, gpus: str) -> None:
    mutated, _ = admit(pod(container, spec, gpus=gpus))
    assert "anygpu-shm" not in json.dumps(mutated["spec"])


def test_a_named_node_fixes_the_vendor() -> None:
    mutated, made = admit(pod(spec={"nodeName": "mi"}))
    assert (made.vendor, made.node) == ("amd", "mi")
    assert "affinity" not in mutated["spec"]
    assert any(kept.startswith("node mi") for kept in made.kept)


def test_a_daemonset_pod_gets_its_nodes_vendor() -> None:
    field = {"key": "metadata.name", "operator": "In", "values": ["mi"]}
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchFields": [field]}]}}}
    mutated, made = admit(pod(spec={"affinity": affinity}))
    assert (made.vendor, made.node) == ("amd", "mi")
    assert mutated["spec"]["affinity"] == affinity


@pytest.mark.parametrize(
    ("node", "needs", "said"),
    [
        ("nowhere", {}, "'nowhere' is no node of the cluster"),
        ("t4", {"memory": "40Gi"}, "t4 cannot serve the pod"),
        ("plain", {"gpus": "1"}, "plain cannot serve the pod (no GPU)"),
    ],
)
def test_a_named_node_that_cannot_serve_is_refused(node: str, needs: Json, said: str) -> None:
    with pytest.raises(errors.NothingFits) as refused:
        admit(pod(spec={"nodeName": node}, **needs), fleet(gpunodes.node("plain")))
    assert said in str(refused.value)


def test_a_named_node_that_is_full_is_a_warning() -> None:
    nodes = placing.fleet_of([gpunodes.nvidia("n", "t4", 1)], [placing.bound("other", "n", {NVIDIA: 1})])
    made = placing.admit(pod(spec={"nodeName": "n"}), nodes)
    assert made.decision.node is None
    assert "n, which the pod names, is full" in made.warnings[0]


def test_an_image_without_a_variant_for_any_fitting_vendor_is_refused() -> None:
    with pytest.raises(errors.NothingFits, match="has variants for amd only"):
        admit(pod(sku="t4"), image=placing.image("amd"))


def test_a_vendor_without_a_variant_is_no_candidate() -> None:
    _, made = admit(pod(vendor="nvidia,amd"), image=placing.image("amd"))
    assert made.vendor == "amd"
    assert any(each.reason == "the image has no nvidia variant" for each in made.rejected)


def test_needs_that_no_model_meets_are_refused() -> None:
    with pytest.raises(errors.InvalidNeeds, match=r"anygpu\.io/memory"):
        admit(pod(memory="10Ti"))


def test_a_pod_that_nothing_serves_now_waits_and_says_what_would_help() -> None:
    _, made = admit(pod(memory="200Gi", vendor="amd"), fleet())
    assert made.node is None
    assert made.sku is not None
    assert "memory: " in made.reason


def test_a_mig_profile_is_asked_by_name_or_under_the_plain_name() -> None:
    mixed = placing.fleet_of([gpunodes.mig_mixed("n", "a100-80", 2, **{"3g.40gb": 2})])
    single = placing.fleet_of([gpunodes.mig_single("n", "a100-80", "3g.40gb", 2)])
    mutated, _ = admit(pod(mig="3g.40gb"), mixed)
    assert main_of(mutated)["resources"]["limits"] == {"nvidia.com/mig-3g.40gb": "1"}
    mutated, _ = admit(pod(mig="3g.40gb"), single)
    assert main_of(mutated)["resources"]["limits"] == {NVIDIA: "1"}


def test_whole_devices_are_never_slices() -> None:
    single = placing.fleet_of([gpunodes.mig_single("slices", "a100-80", "3g.40gb", 2), gpunodes.nvidia("w", "a100-80")])
    mutated, made = admit(pod(memory="20Gi"), single)
    assert made.node == "w"
    spec = kube.to_pod(mutated).spec
    assert not kube.node_affinity_holds(spec, "slices", single.rows["slices"].labels)


def test_of_several_variants_of_a_vendor_the_one_built_for_the_gpu_is_taken_and_its_gpus_alone_admitted() -> None:
    def pinned(target: str) -> resolve.Pinned:
        variant = tags.decode(f"v1-rocm6.2-{target}")
        return resolve.Pinned(f"registry.test/team/app@sha256:{target}", f"v1-rocm6.2-{target}", variant, "")

    both = (pinned("gfx942"), pinned("gfx90a"))
    several = resolve.Resolved("registry.test/team/app:v1", {"amd": both[0]}, False, {"amd": both})
    table = placing.fleet_of([gpunodes.amd("mi300x", "mi300x"), gpunodes.amd("mi210", "mi210")])
    for needs, image, skus in (
        ({"memory": "32Gi"}, both[1].image, ("mi210",)),
        ({"memory": "100Gi"}, both[0].image, ("mi300a", "mi300x", "mi308x", "mi325x")),
    ):
        made = placing.admit(gpunodes.pod("p", "registry.test/team/app:v1", **needs), table, several).decision
        assert made.images == {"main": image}
        assert set(made.skus) & {"mi210", "mi300a", "mi300x", "mi308x", "mi325x"} == set(skus)
