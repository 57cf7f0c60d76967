"""A pod's question: its needs, the container that gets the devices, and how many the whole pod takes."""

from typing import Any

import pytest

from capability_db.catalogue import Catalogue
from scheduler import asks, errors, kube
from scheduler import fleet as fleets

FLEET = fleets.Fleet(Catalogue.builtin())


def container(name: str = "main", resource: str | None = None, count: Any = 1, **more: Any) -> dict[str, Any]:
    """A container that may ask a resource, as a limit."""
    return {"name": name} | ({"resources": {"limits": {resource: count}}} if resource else {}) | more


def pod(*containers: dict[str, Any], init: list[dict[str, Any]] | None = None, **stated: str) -> kube.Pod:
    """A pod with annotations given without prefix; `_` stands for `-`."""
    annotations = {f"anygpu.io/{key.replace('_', '-')}": value for key, value in stated.items()}
    spec = {"containers": list(containers), "initContainers": init}
    return kube.to_pod({"metadata": {"name": "p", "annotations": annotations}, "spec": spec})


def refused(asked: kube.Pod) -> str:
    """Why a pod puts no question."""
    with pytest.raises(errors.InvalidNeeds) as caught:
        asks.read(asked, FLEET)
    return str(caught.value)


@pytest.mark.parametrize(("stated", "count"), [({}, 1), ({"gpus": "4"}, 4)])
def test_the_first_container_gets_the_devices(stated: dict[str, str], count: int) -> None:
    question = asks.read(pod(container("a"), container("b"), **stated), FLEET)
    assert (question.container.name, question.count, question.asks_resource) == ("a", count, False)
    assert (question.needs.gpus, question.needs.resources) == (count, ())


def test_a_named_container_gets_them() -> None:
    question = asks.read(pod(container("a"), container("b"), container="b"), FLEET)
    assert question.container.name == "b"


def test_a_container_that_the_pod_has_not_is_refused_with_those_it_has() -> None:
    text = refused(pod(container("a"), container("b"), container="c"))
    assert text == "anygpu.io/container: 'c' is not a container of the pod; its containers are a, b"


def test_a_pod_without_containers_puts_no_question() -> None:
    assert "spec.containers" in refused(pod(gpus="1"))


@pytest.mark.parametrize(
    ("resource", "share"),
    [
        ("nvidia.com/gpu", "whole"),
        ("nvidia.com/gpu.shared", "any"),
        ("nvidia.com/mig-1g.10gb", "slice"),
        ("nvidia.com/mig-1g.10gb.shared", "any"),
        ("amd.com/gpu", "whole"),
        ("amd.com/cpx_nps4", "slice"),
        ("gpu.intel.com/xe", "whole"),
    ],
)
def test_a_resource_that_the_pod_asks_fixes_name_count_and_what_it_may_be(resource: str, share: str) -> None:
    question = asks.read(pod(container("a"), container("b", resource, 2)), FLEET)
    assert (question.container.name, question.count, question.asks_resource) == ("b", 2, True)
    assert (question.needs.resources, question.needs.gpus, question.needs.share) == ((resource,), 2, share)


def test_what_is_asked_in_two_containers_adds_up_for_the_node() -> None:
    question = asks.read(pod(container("a", "amd.com/gpu", 1), container("b", "amd.com/gpu", 2)), FLEET)
    assert (question.container.name, question.needs.gpus, question.count) == ("a", 1, 3)


def test_an_init_container_gives_its_devices_back() -> None:
    question = asks.read(pod(container("a", "amd.com/gpu", 1), init=[container("i", "amd.com/gpu", 2)]), FLEET)
    assert question.count == 2
    sidecar = container("s", "amd.com/gpu", 2, restartPolicy="Always")
    assert asks.read(pod(container("a", "amd.com/gpu", 1), init=[sidecar]), FLEET).count == 3


def test_a_resource_at_zero_is_not_asked() -> None:
    assert not asks.read(pod(container("a", "nvidia.com/gpu", 0)), FLEET).asks_resource


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            pod(container("a", "nvidia.com/gpu"), container("b", "amd.com/gpu")),
            "the pod itself asks amd.com/gpu and nvidia.com/gpu",
        ),
        (pod(container("a", "nvidia.com/gpu", 2), gpus="1"), "anygpu.io/gpus: 1 contradicts container a"),
        (pod(container("a", "nvidia.com/gpu"), vendor="amd"), "anygpu.io/vendor: amd contradicts container a"),
        (
            pod(container("a", "nvidia.com/gpu"), container("b"), container="b"),
            "anygpu.io/container: b is named, but a asks",
        ),
        (pod(container("a", "nvidia.com/gpu"), container="x"), "anygpu.io/container: 'x' is not a container"),
        (pod(container("a", "nvidia.com/gpu", "500m")), "nvidia.com/gpu is no whole number of devices"),
        (pod(container("a", "nvidia.com/gpu", "-1")), "nvidia.com/gpu is no whole number of devices"),
        (pod(container("a", "nvidia.com/gpu", "one")), "container a: 'one' is not a Kubernetes quantity"),
        (pod(container("a", "cpu", "many")), "container a: 'many' is not a Kubernetes quantity"),
        (pod(container("a"), precison="fp8"), "anygpu.io/precison: unknown; did you mean precision?"),
    ],
)
def test_a_contradiction_between_annotations_and_spec_is_refused(asked: kube.Pod, says: str) -> None:
    assert says in refused(asked)


def test_annotations_that_agree_with_the_spec_are_no_contradiction() -> None:
    question = asks.read(pod(container("a", "nvidia.com/gpu", 2), gpus="2", vendor="amd,nvidia", container="a"), FLEET)
    assert question.count == 2


@pytest.mark.parametrize(("value", "opted_out"), [("false", True), ("true", False), ("False", False), ("", False)])
def test_only_false_opts_out(value: str, opted_out: bool) -> None:
    assert asks.is_opted_out({"anygpu.io/inject": value}) == opted_out
    assert not asks.is_opted_out({})
