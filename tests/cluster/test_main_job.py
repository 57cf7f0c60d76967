"""The main job: annotated Deployments on a mixed fleet become pods on the right GPUs, with the right image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import gpunodes
import install
import pytest
from playgrounds import Playground

pytestmark = pytest.mark.cluster

Json = dict[str, Any]

MIXED = [
    gpunodes.nvidia("t4-1", "t4", 4, taint="nvidia.com/gpu"),
    gpunodes.nvidia("t4-2", "t4", 4),
    gpunodes.nvidia("l4-1", "l4", 8),
    gpunodes.nvidia("a100-1", "a100-80", 8, taint="nvidia.com/gpu"),
    gpunodes.nvidia("h100-1", "h100", 8),
    gpunodes.amd("mi210-1", "mi210", 8),
    gpunodes.amd("mi300x-1", "mi300x", 8, taint="amd.com/gpu"),
    gpunodes.amd("mi300x-cpx", "mi300x", 64, mode="cpx_nps4"),
    gpunodes.mig_mixed("mig-mixed", "a100-80", 4, **{"3g.40gb": 8}),
    gpunodes.mig_single("mig-single", "a100-80", "1g.10gb", 28),
    gpunodes.shared("t4-shared", "t4", 4, 4),
    gpunodes.node("cpu-1"),
]


def _resource(pod: Json) -> dict[str, str]:
    limits: dict[str, str] = pod["spec"]["containers"][0].get("resources", {}).get("limits", {})
    return limits


def _decision(pod: Json) -> Json:
    found: Json = json.loads(pod["metadata"]["annotations"]["anygpu.io/decision"])
    return found


def _image(pod: Json) -> str:
    image: str = pod["spec"]["containers"][0]["image"]
    return image


def _nodes(pods: list[Json]) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in pods}


def test_twenty_replicas_fill_the_least_capable_gpus_that_fit(playground: Playground, oci_registry: Any) -> None:
    playground.add_nodes(MIXED)
    playground.deploy("small", 20, memory="10Gi", precision="fp16")
    pods = playground.wait_bound("small", 20)
    per_node = {name: sum(pod["spec"]["nodeName"] == name for pod in pods) for name in _nodes(pods)}
    # 8 T4s, then 8 L4s, then the next: the A100s in whole.
    assert {"t4-1": 4, "t4-2": 4, "l4-1": 8}.items() <= per_node.items(), per_node
    assert set(per_node) <= {"t4-1", "t4-2", "l4-1", "a100-1", "mig-mixed", "mi210-1"}
    for pod in pods:
        vendor = _decision(pod)["vendor"]
        assert _resource(pod) == {"nvidia.com/gpu" if vendor == "nvidia" else "amd.com/gpu": "1"}
        assert "@sha256:" in _image(pod)
    playground.assert_within_capacity()


def test_each_need_lands_on_its_sku_vendor_image_and_resource(playground: Playground, oci_registry: Any) -> None:
    playground.add_nodes(MIXED)
    repository = playground.image.partition("/")[2].removesuffix(":v1")
    digests = {vendor: oci_registry.push(repository, f"v1-{vendor}", {"V": vendor}) for vendor in ("nvidia", "amd")}
    cases = {
        "fp8": ({"precision": "fp8", "memory": "70Gi"}, {"h100-1"}, "nvidia", {"nvidia.com/gpu": "1"}),
        "large": ({"memory": "100Gi"}, {"mi300x-1"}, "amd", {"amd.com/gpu": "1"}),
        "amd-first": ({"vendor": "amd,nvidia", "memory": "40Gi"}, {"mi210-1"}, "amd", {"amd.com/gpu": "1"}),
        "mig": ({"mig": "3g.40gb"}, {"mig-mixed"}, "nvidia", {"nvidia.com/mig-3g.40gb": "1"}),
        "mig-single": ({"mig": "1g.10gb"}, {"mig-single"}, "nvidia", {"nvidia.com/gpu": "1"}),
        "amd-slice": (
            {"vendor": "amd", "share": "slice", "memory": "20Gi"},
            {"mi300x-cpx"},
            "amd",
            {"amd.com/gpu": "1"},
        ),
        "shared": ({"share": "any", "memory": "3Gi", "sku": "t4"}, {"t4-shared"}, "nvidia", {"nvidia.com/gpu": "1"}),
        "four": (
            {"gpus": "4", "interconnect": "required", "memory": "70Gi", "vendor": "nvidia"},
            {"a100-1", "mig-mixed"},
            "nvidia",
            {"nvidia.com/gpu": "4"},
        ),
    }
    for name, (asked, *_) in cases.items():
        playground.deploy(name, 1, **asked)
    for name, (_, nodes, vendor, resource) in cases.items():
        (pod,) = playground.wait_bound(name, 1)
        assert pod["spec"]["nodeName"] in nodes, (name, pod["spec"]["nodeName"])
        assert _decision(pod)["vendor"] == vendor, name
        assert _resource(pod) == resource, name
        assert _image(pod).endswith(f"@{digests[vendor]}"), name
    playground.assert_within_capacity()


def test_fifty_pods_at_once_spread_over_three_kinds_of_node_as_capacity_allows(playground: Playground) -> None:
    nodes = [gpunodes.nvidia("l4-1", "l4", 10), gpunodes.nvidia("a100-1", "a100-80", 20)]
    playground.add_nodes([*nodes, gpunodes.amd("mi300x-1", "mi300x", 20)])
    playground.deploy("burst", 50, memory="16Gi")
    pods = playground.wait_bound("burst", 50)
    counts = {name: sum(pod["spec"]["nodeName"] == name for pod in pods) for name in _nodes(pods)}
    assert counts == {"l4-1": 10, "a100-1": 20, "mi300x-1": 20}
    playground.wait("an event for each pod", lambda: len(playground.events("GPUChosen")) == 50)
    playground.assert_within_capacity()


def test_with_only_amd_free_the_pods_go_there_with_the_amd_image(playground: Playground) -> None:
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 2), gpunodes.amd("mi210-1", "mi210", 4)])
    plain = {"name": "plain", "image": "busybox", "resources": {"limits": {"nvidia.com/gpu": "2"}}}
    playground.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "plain", "namespace": playground.namespace},
            "spec": {"containers": [plain]},
        }
    )
    playground.wait("the plain pod to be bound", lambda: playground.pods()[0]["spec"].get("nodeName") == "l4-1")
    playground.deploy("late", 3, memory="16Gi")
    pods = playground.wait_bound("late", 3)
    assert _nodes(pods) == {"mi210-1"}
    assert {_decision(pod)["vendor"] for pod in pods} == {"amd"}


def test_what_nothing_fits_says_why_in_an_event_and_in_explain(playground: Playground) -> None:
    playground.add_nodes([gpunodes.nvidia("t4-1", "t4", 4), gpunodes.amd("mi210-1", "mi210", 4)])
    done = playground.apply(playground.deployment("big", 1, memory="150Gi", precision="bf16"))
    assert "no node meets the pods' needs now" in done.stderr
    (pod,) = playground.wait("the pod to be made", lambda: playground.pods("big"))
    assert pod["spec"].get("nodeName") is None
    (event,) = playground.wait("the event", lambda: playground.events("GPUUnavailable"))
    assert "no node of the cluster could serve it" in event["note"]
    assert "memory: 64Gi" in event["note"]
    name = f"{playground.namespace}/{pod['metadata']['name']}"
    command = [sys.executable, "-c", "from scheduler.cli.main import main; main()", "explain", name]
    environment = {**os.environ, "KUBECONFIG": str(playground.cluster.kubeconfig)}
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert told.returncode == 1, told.stderr
    assert "64 GiB of memory, 150Gi asked" in told.stdout
    assert "t4: 15 GiB of memory, 150Gi asked" in told.stdout


def test_with_the_service_down_other_pods_and_admitted_ones_still_schedule(playground: Playground) -> None:
    playground.deploy("early", 2, memory="16Gi", vendor="nvidia")  # waits: there are no nodes yet
    playground.wait("the pods to be made", lambda: len(playground.pods("early")) == 2)
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 2), gpunodes.mig_single("mig", "a100-80", "1g.10gb", 7)])
    labelled = lambda: "anygpu.io/partition" in playground.nodes()["mig"]["metadata"]["labels"]  # noqa: E731
    playground.wait("the node labels", labelled)
    playground.cluster.kill(install.SERVICE)
    plain = playground.deployment("plain", 3)
    plain["spec"]["template"]["metadata"].pop("annotations")
    playground.apply(plain)
    playground.wait_bound("plain", 3)
    assert _nodes(playground.wait_bound("early", 2)) == {"l4-1"}
    refused = playground.apply(playground.deployment("refused", 1, memory="1Gi"), check=False)
    assert refused.returncode == 0, "templates are only checked while the service is up"
    assert playground.pods("refused") == []


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"precison": "fp16"}, "anygpu.io/precison: unknown; did you mean precision?"),
        ({"memory": "40"}, "a unit is required"),
        ({"mig": "3g.40gb", "vendor": "amd"}, "is an NVIDIA profile"),
        ({"memory": "900Gi"}, "anygpu.io/memory: no GPU model in the capability DB meets this"),
        ({"fraction": "0.47"}, "anygpu.io/fraction: '0.47' is not available in this version"),
        ({"model": "llama-31-8b"}, "did you mean llama-3.1-8b?"),
    ],
)
def test_bad_annotations_are_refused_in_kubectls_own_output(
    playground: Playground, annotations: dict[str, str], message: str
) -> None:
    workload = playground.apply(playground.deployment("bad", 1, **annotations), check=False)
    assert workload.returncode != 0
    assert message in workload.stderr
    pod = gpunodes.pod("bad", playground.image, **annotations)
    pod["metadata"]["namespace"] = playground.namespace
    single = playground.apply(pod, check=False)
    assert single.returncode != 0
    assert message in single.stderr
    assert "Traceback" not in workload.stderr + single.stderr


def test_a_cron_job_with_bad_annotations_is_refused(playground: Playground) -> None:
    template = playground.deployment("bad", 1, gpus="0")["spec"]["template"]
    template["spec"]["restartPolicy"] = "Never"
    job = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "bad", "namespace": playground.namespace},
        "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": template}}},
    }
    done = playground.apply(job, check=False)
    assert "anygpu.io/gpus: '0' is not a number of devices" in done.stderr


def test_an_image_without_variants_is_refused(playground: Playground) -> None:
    pod = gpunodes.pod("p", playground.image.replace(":v1", ":v9"), memory="1Gi")
    pod["metadata"]["namespace"] = playground.namespace
    done = playground.apply(pod, check=False)
    assert done.returncode != 0
    assert ":v9" in done.stderr


def test_with_the_registry_down_admission_is_refused_with_the_reason(playground: Playground, oci_registry: Any) -> None:
    oci_registry.stop()
    try:
        fresh = playground.image.replace("/team/", "/other/")
        pod = gpunodes.pod("p", fresh, memory="1Gi")
        pod["metadata"]["namespace"] = playground.namespace
        done = playground.apply(pod, check=False)
    finally:
        oci_registry.start()
    assert done.returncode != 0
    assert oci_registry.host in done.stderr


def test_a_scheduler_restart_and_a_node_deleted_midway_lose_no_pod(playground: Playground) -> None:
    playground.add_nodes([gpunodes.nvidia(f"l4-{number}", "l4", 8) for number in range(4)])
    playground.deploy("many", 20, memory="16Gi")
    playground.wait("the first pods", lambda: sum(bool(p["spec"].get("nodeName")) for p in playground.pods("many")) > 3)
    playground.cluster.stop_scheduler()
    # Its controller must have seen them all: on a slow machine it may else take minutes to make new ones.
    playground.wait("20 pods", lambda: playground.replicas("many") == 20)
    playground.cluster.start_scheduler()
    playground.cluster.delete_nodes(["l4-0"])

    def all_elsewhere() -> bool:
        live = [pod for pod in playground.pods("many") if not pod["metadata"].get("deletionTimestamp")]
        nodes = [pod["spec"].get("nodeName") for pod in live]
        return len(nodes) == 20 and all(nodes) and "l4-0" not in nodes

    playground.wait("20 pods on the other nodes", all_elsewhere, timeout=120)
    playground.assert_within_capacity()


def test_a_service_killed_midway_answers_the_same_after_its_restart(playground: Playground) -> None:
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 4), gpunodes.nvidia("a100-1", "a100-80", 8)])
    playground.deploy("first", 3, memory="16Gi")
    assert _nodes(playground.wait_bound("first", 3)) == {"l4-1"}
    playground.cluster.kill(install.SERVICE)
    install.start_service(playground.cluster)
    playground.deploy("second", 4, memory="16Gi")
    pods = playground.wait_bound("second", 4)
    counts = {name: sum(pod["spec"]["nodeName"] == name for pod in pods) for name in _nodes(pods)}
    assert counts == {"l4-1": 1, "a100-1": 3}


def test_a_daemon_set_gets_each_nodes_own_vendor(playground: Playground) -> None:
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 1), gpunodes.amd("mi210-1", "mi210", 1)])
    daemons = playground.deployment("agent", 1, memory="1Gi")
    daemons["kind"] = "DaemonSet"
    del daemons["spec"]["replicas"]
    playground.apply(daemons)
    pods = playground.wait_bound("agent", 2)
    given = {pod["spec"]["nodeName"]: _resource(pod) for pod in pods}
    assert given == {"l4-1": {"nvidia.com/gpu": "1"}, "mi210-1": {"amd.com/gpu": "1"}}


def test_a_dry_run_shows_the_choice_and_holds_nothing(playground: Playground) -> None:
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 1), gpunodes.amd("mi210-1", "mi210", 1)])
    pod = gpunodes.pod("dry", playground.image, memory="16Gi")
    pod["metadata"]["namespace"] = playground.namespace
    for _ in range(3):
        done = playground.apply(pod, "--dry-run=server", "-o", "json")
        assert _resource(json.loads(done.stdout)) == {"nvidia.com/gpu": "1"}
    assert playground.pods() == []


def test_pods_that_ask_nothing_and_opted_out_pods_are_untouched(playground: Playground) -> None:
    playground.add_nodes([gpunodes.nvidia("l4-1", "l4", 2)])
    plain = gpunodes.pod("plain", "busybox")
    out = gpunodes.pod("out", "busybox", memory="nonsense")
    out["metadata"]["labels"] = {"anygpu.io/inject": "false"}
    for pod in (plain, out):
        pod["metadata"]["namespace"] = playground.namespace
        playground.apply(pod)
    bound = playground.wait_bound(None, 2)
    assert {_image(pod) for pod in bound} == {"busybox"}
    assert all(_resource(pod) == {} for pod in bound)


def test_a_namespace_can_opt_out_at_any_time(playground: Playground) -> None:
    playground.add_nodes([gpunodes.nvidia("t4-1", "t4", 2)])
    label = lambda *words: playground.cluster.kubectl("label", "namespace", playground.namespace, *words)  # noqa: E731
    label("anygpu.io/inject=false")
    pod = gpunodes.pod("out", "busybox", memory="40Gi")
    pod["metadata"]["namespace"] = playground.namespace
    pod["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}

    def untouched() -> bool:
        """The apiserver takes a moment to see the label."""
        probe = {**pod, "metadata": {**pod["metadata"], "name": "probe"}}
        done = playground.apply(probe, "--dry-run=server", "-o", "json", check=False)
        return done.returncode == 0 and "anygpu.io/decision" not in done.stdout

    playground.wait("the webhook to be skipped", untouched)
    playground.apply(pod)
    # A T4 is too small for 40Gi: the extender, too, leaves the pod alone.
    (bound,) = playground.wait_bound(None, 1)
    assert (_image(bound), bound["spec"]["nodeName"]) == ("busybox", "t4-1")
    label("anygpu.io/inject-")
    playground.wait("the webhook to be asked again", lambda: not untouched())


def test_the_sku_labels_follow_the_node(playground: Playground) -> None:
    playground.add_nodes([gpunodes.nvidia("changing", "l4", 4)])
    label = lambda key: playground.nodes()["changing"]["metadata"]["labels"].get(key)  # noqa: E731
    playground.wait("the label", lambda: label("anygpu.io/sku.l4") == "4")
    playground.cluster.kubectl("label", "node", "changing", "nvidia.com/gpu.product=Tesla-T4", "--overwrite")
    playground.wait("the other label", lambda: label("anygpu.io/sku.t4") == "4" and label("anygpu.io/sku.l4") is None)
    playground.cluster.kubectl("label", "node", "changing", "anygpu.io/sku.h100-sxm=8")
    playground.wait("the forged label to go", lambda: label("anygpu.io/sku.h100-sxm") is None)
