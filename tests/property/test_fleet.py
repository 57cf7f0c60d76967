"""The node table after any events is the one that the final objects make."""

from typing import Any

import gpunodes
import gpureports
import hypothesis.strategies as st
import placing
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scheduler import decision, kube
from scheduler import fleet as fleets

Json = dict[str, Any]
NODES = st.sampled_from(["n0", "n1", "n2"])
PODS = st.sampled_from(["p0", "p1", "p2", "p3"])
RESOURCES = st.dictionaries(
    st.sampled_from(["nvidia.com/gpu", "amd.com/gpu", "cpu", "nvidia.com/mig-1g.10gb"]), st.integers(0, 3), max_size=3
)
NODE_KINDS = st.sampled_from(
    [
        lambda name: gpunodes.nvidia(name, "t4", 4),
        lambda name: gpunodes.nvidia(name, "t4", 2),
        lambda name: gpunodes.amd(name, "mi300x", 8),
        lambda name: gpunodes.mig_single(name, "a100-80", "1g.10gb", 7),
        lambda name: gpunodes.node(name),
    ]
)
DEVICES = st.lists(
    st.sampled_from(
        [
            *gpureports.several("t4", 2),
            gpureports.sick(gpureports.nvidia("lost", "t4"), "lost"),
            gpureports.nvidia("a", "a100-80"),
            gpureports.cut(gpureports.nvidia("b", "a100-80"), ("1g.10gb", 0), ("3g.40gb", 4)),
            gpureports.nvidia("c", "unknown"),
            gpureports.amd("d", "mi300x"),
            gpureports.amd("e", "mi300x", partition={"compute": "CPX", "memory": "NPS4"}),
        ]
    ),
    max_size=5,
)


@st.composite
def pods(draw: st.DrawFn) -> Json:
    """A pod at any point of its way, with or without a decision."""
    resources = draw(RESOURCES)
    made = placing.bound(draw(PODS), draw(st.none() | NODES), resources)
    phase = draw(st.sampled_from([None, None, None, "Succeeded", "Failed", "Running"]))
    if phase:
        made["status"]["phase"] = phase
    if draw(st.booleans()):
        made["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    if draw(st.booleans()):
        count = draw(st.integers(1, 3))
        expected = draw(st.none() | NODES)
        made["metadata"]["annotations"] = {
            "anygpu.io/decision": decision.Decision(
                id=f"decision-{made['metadata']['name']}",
                vendor="nvidia",
                resource="nvidia.com/gpu",
                count=count,
                container="main",
                sku="t4",
                skus=("t4",),
                node=expected,
                images={},
                reason="x",
            ).model_dump_json()
        }
    return made


def state(fleet: fleets.Fleet) -> Json:
    """All that decisions can see of a node table, and what it keeps."""
    return {
        "rows": {
            name: (row.node, row.facts, row.heard, row.labels, row.allocatable, row.usage.amounts, row.usage.pods)
            for name, row in fleet.rows.items()
        },
        "pods": {pod.identity: pod for pod in fleet.pods()},
        "holds": dict(fleet.ledger.items()),
        "on": fleet.ledger._on_node,
        "waiting": fleet.ledger._waiting,
        "usage": {name: usage.amounts for name, usage in fleet._usage.items() if usage.pods or name in fleet.rows},
        "requests": fleet._requests,
        "stray": [name for name, usage in fleet._usage.items() if not usage.pods and name not in fleet.rows],
    }


class Events(RuleBasedStateMachine):
    """Watch events in any order, duplicates and relists among them."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = fleets.Fleet(placing.CATALOGUE)
        self.nodes: dict[str, Json] = {}
        self.live: dict[str, Json] = {}
        self.reports: dict[str, Json] = {}

    @rule(name=NODES, devices=DEVICES, times=st.integers(1, 2))
    def an_agent_reports(self, name: str, devices: list[Json], times: int) -> None:
        self.reports[name] = gpureports.report(name, devices)
        for _ in range(times):
            self.fleet.apply_report(gpureports.to_report(self.reports[name]))

    @rule(name=NODES)
    def a_report_is_deleted(self, name: str) -> None:
        self.reports.pop(name, None)
        self.fleet.remove_report(name)

    @rule(name=NODES, devices=DEVICES)
    def reports_are_listed_anew(self, name: str, devices: list[Json]) -> None:
        self.reports = {name: gpureports.report(name, devices)}
        self.fleet.replace_reports([gpureports.to_report(each) for each in self.reports.values()])

    @rule()
    def the_table_is_made_anew(self) -> None:
        self.fleet.make_anew()

    @rule(name=NODES, kind=NODE_KINDS, cordoned=st.booleans(), sick=st.booleans())
    def a_node_is_as_it_is(self, name: str, kind: Any, cordoned: bool, sick: bool) -> None:
        self.nodes[name] = kind(name)
        if cordoned:
            self.nodes[name]["spec"]["unschedulable"] = True
        if sick:
            self.nodes[name]["spec"]["taints"] = [{"key": "amd-gpu-unhealthy", "effect": "NoSchedule"}]
        self.fleet.apply_node(kube.to_node(self.nodes[name]))

    @rule(name=NODES)
    def a_node_is_deleted(self, name: str) -> None:
        self.nodes.pop(name, None)
        self.fleet.remove_node(name)

    @rule(pod=pods(), times=st.integers(1, 2))
    def a_pod_is_as_it_is(self, pod: Json, times: int) -> None:
        self.live[pod["metadata"]["uid"]] = pod
        for _ in range(times):
            self.fleet.apply_pod(kube.to_pod(pod))

    @rule(name=PODS)
    def a_pod_is_deleted(self, name: str) -> None:
        self.live.pop(f"uid-{name}", None)
        self.fleet.remove_pod(kube.PodUid(f"uid-{name}"))

    @rule(name=PODS)
    def a_pod_is_explained(self, name: str) -> None:
        if pod := self.fleet.pod("default", name):
            self.fleet.remove_pod(pod.identity)
            self.fleet.apply_pod(pod)

    @rule(found=st.lists(pods(), max_size=3, unique_by=lambda pod: pod["metadata"]["uid"]))
    def pods_are_listed_anew(self, found: list[Json]) -> None:
        self.live = {pod["metadata"]["uid"]: pod for pod in found}
        self.fleet.replace(pods=[kube.to_pod(pod) for pod in found])

    @rule(name=NODES, kind=NODE_KINDS)
    def nodes_are_listed_anew(self, name: str, kind: Any) -> None:
        self.nodes = {name: kind(name)}
        self.fleet.replace(nodes=[kube.to_node(node) for node in self.nodes.values()])

    @invariant()
    def it_is_the_table_of_the_final_objects(self) -> None:
        anew = fleets.Fleet(placing.CATALOGUE)
        anew.replace_reports([gpureports.to_report(each) for each in self.reports.values()])
        anew.replace([kube.to_node(node) for node in self.nodes.values()])
        for pod in self.live.values():
            anew.apply_pod(kube.to_pod(pod))
        assert state(self.fleet) == state(anew)
        assert state(self.fleet)["stray"] == []


TestEvents = Events.TestCase
TestEvents.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
