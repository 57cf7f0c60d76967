"""What a node's agent reports, on the real control plane: labels, refusals and the condition follow within moments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gpunodes
import gpureports
import httpx
import install
import pytest
from playgrounds import Playground

from scheduler import control

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
GPU = "nvidia.com/gpu"
REPORTS = "/apis/anygpu.io/v1alpha1/nodegpus"


class Agents:
    """Node agents, as far as their objects go."""

    def __init__(self, playground: Playground) -> None:
        self.cluster, self.there = playground.cluster, set[str]()

    def report(self, node: str, devices: list[Json]) -> None:
        """Write a node's report as its agent does: the object once, then its status by server-side apply."""
        document = gpureports.report(node, devices)
        status = document.pop("status")
        if node not in self.there:
            self.there.add(node)
            self.cluster.api("POST", REPORTS, document)
        path = f"{REPORTS}/{node}/status?fieldManager=agent&force=true"
        self.cluster.api("PATCH", path, document | {"status": status}, content_type="application/apply-patch+yaml")

    def leave(self, node: str) -> None:
        self.there.discard(node)
        self.cluster.api("DELETE", f"{REPORTS}/{node}", ok=[404])


@pytest.fixture
def agents(playground: Playground) -> Iterator[Agents]:
    made = Agents(playground)
    yield made
    for node in sorted(made.there):
        made.leave(node)


def ours(playground: Playground, node: str) -> dict[str, str]:
    labels = playground.nodes()[node]["metadata"]["labels"]
    return {key: value for key, value in labels.items() if key.startswith("anygpu.io/")}


def condition(playground: Playground, node: str) -> Json | None:
    found = playground.nodes()[node]["status"]["conditions"]
    return next((each for each in found if each["type"] == control.CONFLICT), None)


def filtered(playground: Playground, node: str, **needs: str) -> Json:
    body = {"Pod": gpunodes.pod(**needs), "Nodes": None, "NodeNames": [node]}
    url = f"{install.extender_url(playground.cluster)}/filter"
    answer = httpx.post(url, content=json.dumps(body), headers={"Content-Type": "application/json"}, trust_env=False)
    found: Json = answer.json()
    return found


def test_two_models_in_one_node_come_right_by_the_agent_alone(playground: Playground, agents: Agents) -> None:
    playground.cluster.add_nodes([gpunodes.node("mixed", {}, {GPU: 8})])
    assert ours(playground, "mixed") == {}
    agents.report("mixed", gpureports.several("a100-80", 4) + gpureports.several("t4", 4))
    expected = {
        "anygpu.io/sku.a100-sxm4-80gb": "4",
        "anygpu.io/sku.t4": "4",
        "anygpu.io/partition": "a100-sxm4-80gb.t4",
    }
    playground.wait("the labels of both models", lambda: ours(playground, "mixed") == expected)
    # The kubelet gives either: what holds is what the smaller has.
    assert filtered(playground, "mixed", memory="14Gi")["NodeNames"] == ["mixed"]
    refused = filtered(playground, "mixed", memory="40Gi")["FailedAndUnresolvableNodes"]
    assert refused == {"mixed": "a100-sxm4-80gb/t4: 15 GiB of memory, 40Gi asked"}
    first, *rest = gpureports.several("a100-80", 4)
    agents.report("mixed", [gpureports.sick(first, "lost"), *rest, *gpureports.several("t4", 4)])

    def short() -> bool:
        reason = filtered(playground, "mixed", gpus="8")["FailedAndUnresolvableNodes"].get("mixed", "")
        return bool(reason.endswith("1 of 8 unhealthy (GPU-a100-80-0: lost)"))

    playground.wait("the lost device to be counted off", short)
    agents.leave("mixed")
    playground.wait("the labels to go with the report", lambda: ours(playground, "mixed") == {})


def test_a_conflict_is_a_condition_of_the_node_until_it_is_solved(playground: Playground, agents: Agents) -> None:
    playground.add_nodes([gpunodes.nvidia("node", "a100-80", 4)])
    agents.report("node", gpureports.several("h100", 4))

    def raised() -> bool:
        found = condition(playground, "node")
        return found is not None and found["status"] == "True"

    playground.wait("the condition", raised)
    found = condition(playground, "node") or {}
    assert "h100-sxm by the agent, a100-sxm4-80gb by labels" in found["message"]
    ready = [each for each in playground.nodes()["node"]["status"]["conditions"] if each["type"] == "Ready"]
    assert [each["status"] for each in ready] == ["True"]  # the kubelet's own are left as they are
    playground.wait("the agent's model", lambda: ours(playground, "node") == {"anygpu.io/sku.h100-sxm": "4"})
    agents.report("node", gpureports.several("a100-80", 4))

    def solved() -> bool:
        found = condition(playground, "node") or {}
        return (found["status"], found["reason"]) == ("False", "SourcesAgree")

    playground.wait("the condition to be False", solved)
    playground.wait("the model", lambda: ours(playground, "node") == {"anygpu.io/sku.a100-sxm4-80gb": "4"})
