"""Pods that name a model get GPUs that hold it, and refusals that say so."""

import gpunodes
import placing
import pytest

from scheduler import asks, errors, fit, kube, offers
from scheduler import fleet as fleets


def question(resource: str | None = None, count: int = 1, **annotations: str) -> asks.Question:
    pod = gpunodes.pod("p", image=placing.PINNED, **annotations)
    if resource:
        pod["spec"]["containers"][0]["resources"] = {"limits": {resource: str(count)}}
    return asks.read(kube.to_pod(pod), fleets.Fleet(placing.CATALOGUE))


FLEET = [gpunodes.nvidia("l4", "l4"), gpunodes.nvidia("h100", "h100"), gpunodes.amd("mi300x", "mi300x")]


@pytest.mark.parametrize(
    ("annotations", "node", "count"),
    [
        ({"model": "bert-base", "precision": "fp16"}, "l4", 1),
        ({"model": "llama-3.1-8b"}, "h100", 1),
        ({"model": "llama-3.1-70b", "context": "8192"}, "mi300x", 1),
        ({"model": "llama-3.1-70b", "context": "8192", "gpus": "4"}, "h100", 4),
        ({"model": "llama-3.1-70b", "context": "8192", "vendor": "nvidia", "memory": "70Gi"}, "h100", 4),
    ],
)
def test_a_pod_that_names_its_model_lands_where_the_model_fits(
    annotations: dict[str, str], node: str, count: int
) -> None:
    admitted = placing.admit(gpunodes.pod("p", **annotations), placing.fleet_of(FLEET))
    assert admitted.decision.node == node
    assert admitted.decision.count == count


def test_a_gpu_resource_of_the_pods_own_says_how_many_devices_share_the_model() -> None:
    one, four = (question("nvidia.com/gpu", count, model="llama-3.1-70b").needs for count in (2, 4))
    assert (one.gpus, one.memory_text) == (2, "104.5Gi")
    assert (four.gpus, four.memory_text) == (4, "53.5Gi")
    with pytest.raises(errors.InvalidNeeds, match=r"anygpu.io/model: 'llama-3.1-70b': .*3 devices cannot share evenly"):
        question("nvidia.com/gpu", 3, model="llama-3.1-70b")


def test_a_refusal_names_the_model_and_the_number_of_devices_that_would_do() -> None:
    fleet = placing.fleet_of(FLEET[1:2])
    needs = question(model="llama-3.1-70b", context="8192").needs
    (found,) = fit.unmet(needs, fleet.classes()[0])
    assert found.text == "h100-sxm: 79.6 GiB of memory, 161.9Gi needed by llama-3.1-70b on 1 GPU"
    assert (found.key, found.change) == ("memory", "gpus: 4")
    asked = question("nvidia.com/gpu", model="llama-3.1-70b", gpus="1").needs
    assert fit.unmet(asked, fleet.classes()[0])[0].change is None  # the pod's own count stays


def test_a_model_that_no_gpu_holds_is_blamed_on_the_annotation_that_names_it() -> None:
    needs = question(model="llama-3.1-70b", mig="1g.10gb").needs
    why = fit.impossible(needs, placing.CATALOGUE, [])
    assert why is not None
    assert why.startswith("anygpu.io/model: no GPU model in the capability DB meets this")
    assert "206.6Gi needed by llama-3.1-70b on 1 GPU" in why


@pytest.mark.parametrize(("count", "advice"), [(8, ["gpus: 4"]), (2, [])])
def test_advice_on_devices_counts_what_the_node_has_free(count: int, advice: list[str]) -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("h100", "h100", count)])
    admitted = placing.admit(gpunodes.pod("p", model="llama-3.1-70b", context="8192"), fleet)
    assert admitted.decision.node is None
    assert offers.smallest_changes(admitted.survey.verdicts) == advice


def test_a_model_is_never_advised_to_take_fewer_devices() -> None:
    fleet = placing.fleet_of([gpunodes.nvidia("h100", "h100", 2)])
    admitted = placing.admit(gpunodes.pod("p", model="llama-3.1-70b", context="8192", gpus="4"), fleet)
    assert admitted.decision.node is None
    assert offers.smallest_changes(admitted.survey.verdicts) == []
