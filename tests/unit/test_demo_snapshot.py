"""The demo's bundled cluster and pods: current, and holding what the demo is there to show."""

import collections
import functools
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from capability_db import node_facts, quantities
from capability_db.catalogue import Catalogue
from scheduler import errors, fit, needs

DEMO = Path(__file__).parents[2] / "manifests" / "demo"
CATALOGUE = Catalogue.builtin()
Json = dict[str, Any]


@functools.cache
def items(name: str) -> list[Json]:
    """The items of a List file."""
    document = yaml.load(next(DEMO.parent.glob(f"*/{name}")).read_text(), yaml.CSafeLoader)
    assert (document["apiVersion"], document["kind"]) == ("v1", "List")
    found: list[Json] = document["items"]
    return found


def examples() -> list[Json]:
    return [each for each in items("pods.yaml") if each["kind"] == "Pod"]


def nodes() -> dict[str, Json]:
    return {each["metadata"]["name"]: each for each in items("cluster.yaml") if each["kind"] == "Node"}


def pods() -> list[Json]:
    return [each for each in items("cluster.yaml") if each["kind"] == "Pod"]


@functools.cache
def facts(name: str) -> node_facts.NodeFacts:
    node = nodes()[name]
    counts = [
        {resource: quantities.units(amount) for resource, amount in node["status"][each].items()}
        for each in ("allocatable", "capacity")
    ]
    return node_facts.read(node["metadata"]["labels"], counts[0], counts[1], CATALOGUE)


def pools(name: str) -> dict[str, tuple[str, int]]:
    """Resource -> what it stands for, and how many are healthy."""
    return {pool.device.resource: (pool.device.label, pool.allocatable) for pool in facts(name).pools}


def used(name: str) -> collections.Counter[str]:
    """Devices that running pods hold on a node."""
    total: collections.Counter[str] = collections.Counter()
    for pod in pods():
        if pod["spec"].get("nodeName") == name and pod["status"]["phase"] == "Running":
            for resource, amount in pod["spec"]["containers"][0]["resources"]["requests"].items():
                total[resource] += quantities.milli(amount)
    return total


def test_the_file_is_what_the_generator_writes() -> None:
    written = runpy.run_path(str(DEMO / "generate.py"))["render"]()
    current = (DEMO / "cluster.yaml").read_text() == written
    assert current, "run: python manifests/demo/generate.py"


def test_the_file_is_small_enough_to_ship() -> None:
    assert (DEMO / "cluster.yaml").stat().st_size < 400_000


def test_the_cluster_is_a_mixed_one() -> None:
    assert len(nodes()) >= 40
    models = collections.Counter(sku.id for name in nodes() for pool in facts(name).pools for sku in pool.device.skus)
    assert {*models} >= {"a100-sxm4-40gb", "a100-sxm4-80gb", "h100-sxm", "l4", "t4"}
    assert {*models} >= {"mi210", "mi300x", "mi325x", "max-1100"}
    assert len([name for name in nodes() if not facts(name).pools]) >= 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a100-40-01", {"nvidia.com/gpu": ("a100-sxm4-40gb", 8)}),
        ("h100-01", {"nvidia.com/gpu": ("h100-sxm", 8)}),
        (
            "a100-80-mig-mixed-01",
            {
                "nvidia.com/mig-1g.10gb": ("a100-sxm4-80gb 1g.10gb", 16),
                "nvidia.com/mig-2g.20gb": ("a100-sxm4-80gb 2g.20gb", 8),
                "nvidia.com/mig-3g.40gb": ("a100-sxm4-80gb 3g.40gb", 8),
            },
        ),
        ("a100-80-mig-single-01", {"nvidia.com/gpu": ("a100-sxm4-80gb 1g.10gb", 56)}),
        ("t4-shared-01", {"nvidia.com/gpu": ("t4 shared by 4", 16)}),
        ("l4-04", {"nvidia.com/gpu": ("l4", 3)}),
        ("lab-01", {"nvidia.com/gpu": ("unknown", 2)}),
        ("mi210-01", {"amd.com/gpu": ("mi210", 4)}),
        ("mi300x-01", {"amd.com/gpu": ("mi300x", 8)}),
        ("mi300x-05", {"amd.com/gpu": ("mi300x", 6)}),
        ("mi300x-cpx-01", {"amd.com/gpu": ("mi300x cpx_nps4", 64)}),
        ("mi325x-01", {"amd.com/gpu": ("mi325x", 8)}),
        ("max1100-01", {"gpu.intel.com/i915": ("max-1100", 4)}),
        ("cpu-01", {}),
    ],
)
def test_a_node_offers(name: str, expected: dict[str, tuple[str, int]]) -> None:
    assert pools(name) == expected


@pytest.mark.parametrize(
    ("name", "resource", "mib"),
    [
        ("a100-40-01", "nvidia.com/gpu", 40960),
        ("a100-80-01", "nvidia.com/gpu", 81920),
        ("h100-01", "nvidia.com/gpu", 81559),
        ("l4-01", "nvidia.com/gpu", 23034),
        ("t4-01", "nvidia.com/gpu", 15360),
        ("t4-shared-01", "nvidia.com/gpu", 15360 / 4),
        ("a100-80-mig-single-01", "nvidia.com/gpu", 9728),
        ("mi300x-01", "amd.com/gpu", 192 * 1024),
        ("mi300x-cpx-01", "amd.com/gpu", 24 * 1024),
    ],
)
def test_memory_is_what_the_node_reports(name: str, resource: str, mib: float) -> None:
    pool = next(each for each in facts(name).pools if each.device.resource == resource)
    assert (pool.device.memory_mib, pool.device.memory_reported) == (mib, True)


def test_mig_instances_fit_on_the_gpus_that_are_there() -> None:
    capacity = nodes()["a100-80-mig-mixed-01"]["status"]["capacity"]
    sizes = {"1g.10gb": 1, "2g.20gb": 2, "3g.40gb": 4}
    assert sum(int(capacity[f"nvidia.com/mig-{name}"]) * size for name, size in sizes.items()) == 8 * 8


def test_one_node_is_cordoned_one_is_lost_and_two_have_broken_devices() -> None:
    def taints(node: Json) -> set[tuple[str, str]]:
        return {(each["key"], each["effect"]) for each in node["spec"].get("taints", ())}

    cordoned = [name for name, node in nodes().items() if node["spec"].get("unschedulable")]
    assert cordoned == ["a100-40-05"]
    assert ("node.kubernetes.io/unschedulable", "NoSchedule") in taints(nodes()["a100-40-05"])
    ready = {
        name: next(each["status"] for each in node["status"]["conditions"] if each["type"] == "Ready")
        for name, node in nodes().items()
    }
    assert {name: status for name, status in ready.items() if status != "True"} == {"h100-05": "Unknown"}
    assert {effect for key, effect in taints(nodes()["h100-05"]) if key.endswith("unreachable")} == {
        "NoSchedule",
        "NoExecute",
    }
    broken = {name for name in nodes() for pool in facts(name).pools if pool.allocatable < pool.capacity}
    assert broken == {"l4-04", "mi300x-05"}
    tainted = collections.Counter(key for node in nodes().values() for key, _ in taints(node))
    assert tainted["nvidia.com/gpu"] >= 5
    assert tainted["amd.com/gpu"] >= 5


def test_no_label_is_illegal() -> None:
    value = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
    key = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
    for node in nodes().values():
        for name, text in node["metadata"]["labels"].items():
            assert key.fullmatch(name), name
            assert value.fullmatch(text), text
            assert not name.startswith("anygpu.io/")


def test_the_pods_fit_on_their_nodes() -> None:
    for name, node in nodes().items():
        for resource, amount in used(name).items():
            assert amount <= quantities.milli(node["status"]["allocatable"][resource]), (name, resource)


def test_some_nodes_are_full_and_some_pods_wait() -> None:
    full = {
        name
        for name in nodes()
        for pool in facts(name).pools
        if used(name)[pool.device.resource] == 1000 * pool.allocatable
    }
    assert full == {"a100-40-01", "a100-80-01", "h100-02", "l4-01", "mi300x-01", "mi325x-01"}
    assert collections.Counter(each["status"]["phase"] for each in pods()) == {
        "Running": 35,
        "Pending": 2,
        "Succeeded": 1,
    }
    assert {each["spec"]["nodeName"] for each in pods() if "nodeName" in each["spec"]} <= {*nodes()}


def test_what_waits_has_no_node_to_go_to() -> None:
    waiting = {each["metadata"]["name"]: each for each in pods() if each["status"]["phase"] == "Pending"}
    assert sorted(waiting) == ["pretrain-next-0", "serve-671b-0"]
    selector = waiting["pretrain-next-0"]["spec"]["nodeSelector"].items()
    assert not [name for name, node in nodes().items() if selector <= node["metadata"]["labels"].items()]
    wanted = needs.parse(waiting["serve-671b-0"]["metadata"]["annotations"], CATALOGUE)
    assert not [
        name
        for name in nodes()
        for pool in facts(name).pools
        if fit.refusal(wanted, pool.device) is None
        and pool.allocatable - used(name)[pool.device.resource] // 1000 >= wanted.gpus
    ]


def test_names_and_uids_are_unique() -> None:
    everything = items("cluster.yaml")
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in everything]
    assert len({*names}) == len({each["metadata"]["uid"] for each in everything}) == len(everything)


# --- The example pods -------------------------------------------------------------------------------------------------


def asked(name: str) -> needs.Needs:
    pod = next(each for each in examples() if each["metadata"]["name"] == name)
    return needs.parse(pod["metadata"]["annotations"], CATALOGUE)


def can(name: str) -> set[str]:
    """What meets a pod's needs in the bundled cluster, however busy."""
    wanted = asked(name)
    return {
        pool.device.label
        for node in nodes()
        for pool in facts(node).pools
        if fit.refusal(wanted, pool.device) is None and pool.allocatable >= wanted.gpus
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chat-fp8", {"h100-sxm", "mi300x", "mi325x"}),
        ("embed-24g", {"l4", "a100-sxm4-40gb", "a100-sxm4-80gb", "h100-sxm", "mi210", "mi300x", "mi325x", "max-1100"}),
        ("embed-24gi", {"a100-sxm4-40gb", "a100-sxm4-80gb", "h100-sxm", "mi210", "mi300x", "mi325x", "max-1100"}),
        ("prefer-amd", {"mi210", "mi300x", "mi325x", "a100-sxm4-80gb", "h100-sxm"}),
        ("notebook-mig", {"a100-sxm4-80gb 2g.20gb"}),
        ("slice-amd", {"mi300x cpx_nps4", "mi300x", "mi325x"}),
        ("finetune-4", {"a100-sxm4-80gb", "h100-sxm", "mi300x", "mi325x"}),
        ("serve-huge", {"mi325x"}),
    ],
)
def test_an_example_pod_can_run_on(name: str, expected: set[str]) -> None:
    assert can(name) == expected


def test_the_sharing_pod_may_get_a_time_shared_gpu() -> None:
    assert "t4 shared by 4" in can("homework-shared")


def test_the_huge_pod_waits_for_no_node_has_eight_free() -> None:
    free = {name: 8 - used(name)["amd.com/gpu"] // 1000 for name in nodes() if name.startswith("mi325x")}
    assert free == {"mi325x-01": 0, "mi325x-02": 6, "mi325x-03": 4}


def test_the_typing_error_is_refused_with_the_right_key() -> None:
    with pytest.raises(errors.InvalidNeeds, match=r"anygpu\.io/precison: unknown; did you mean precision\?"):
        asked("typing-error")


def test_every_example_pod_names_a_logical_image_and_no_gpu() -> None:
    for pod in examples():
        (container,) = pod["spec"]["containers"]
        assert container["image"].startswith("registry.demo/team/")
        assert not [name for kind in container["resources"].values() for name in kind if "/" in name]
