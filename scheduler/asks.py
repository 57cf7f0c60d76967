"""A pod -> the question it puts: its needs, which container gets the devices, and how many the whole pod takes."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

from capability_db import errors as capability_errors
from capability_db import vendors
from images import resolve
from scheduler import claims, decision, errors, kube, needs, policies
from scheduler import fleet as fleets
from scheduler import offers as offers_


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """What a pod asks of anygpu."""

    needs: needs.Needs
    container: kube.Container
    """The container that gets the devices."""
    count: int
    """Devices that the whole pod takes."""
    asks_resource: bool
    """Whether the pod itself names the GPU resource, which fixes the vendor."""

    def ask(self, pod: kube.Pod, image: resolve.Resolved | None) -> offers_.Ask:
        """The question as `offers.survey` takes it."""
        named = kube.named_nodes(pod.spec)
        runs_on = None if image is None else {vendor: _one_runs(each) for vendor, each in image.options.items()}
        return offers_.Ask(pod, self.needs, self.count, runs_on, frozenset(named) if named else None)


def _one_runs(options: tuple[resolve.Pinned, ...]) -> Callable[[Collection[str]], bool]:
    return lambda targets: any(option.runs_on_all(targets) for option in options)


MIRROR_ANNOTATION = "kubernetes.io/config.mirror"


def is_opted_out(labels: Mapping[str, str]) -> bool:
    """Whether the label `anygpu.io/inject: "false"` keeps anygpu away."""
    return labels.get(needs.INJECT_LABEL) == "false"


def concerns(pod: kube.Pod, opted_out: Collection[str]) -> bool:
    """Whether the pod wants anything of anygpu: opted in, neither it nor its namespace opted out, no mirror pod.

    Mirror pods stand for a kubelet's static pods, which nobody schedules.
    """
    return (
        needs.is_opted_in(pod.annotations)
        and not is_opted_out(pod.labels)
        and (pod.metadata.namespace or "default") not in opted_out
        and MIRROR_ANNOTATION not in pod.annotations
    )


def read(pod: kube.Pod, fleet: fleets.Fleet) -> Question:
    """The pod's question; raises InvalidNeeds naming what is wrong in its annotations or contradicts its spec.

    The policies are those of its namespace, for a decided pod those that its decision records.
    """
    made = decision.read(pod.annotations)
    policy = fleet.policy(pod.metadata.namespace) if made is None else made.policy or policies.NONE
    needed = needs.parse(pod.annotations, fleet.catalogue, policy=policy)
    if needed.binding == "early":
        made = None
    if made is not None and made.binding != "early":
        return _decided(pod, made, fleet, policy)
    containers = pod.spec.containers or []
    if not containers:
        raise errors.InvalidNeeds(["spec.containers: empty; a pod needs a container that gets the GPU"])
    _check_names(pod)
    asked = _gpu_requests(pod)
    if made is not None:
        needed = needed.model_copy(update={"binding": made.binding})  # a pod that names its node is decided early
    elif asked and needed.binding != "early" and not states_binding(pod):
        # A policy's default is not for a pod that asks one vendor's resource.
        needed = needed.model_copy(update={"binding": "early"})
    elif asked and needed.binding != "early":
        first, names = next((name, " and ".join(gpus)) for name, gpus in asked.items())
        raise errors.InvalidNeeds(
            [
                f"anygpu.io/binding: {needed.binding} leaves the vendor open, but container {first} asks {names}; "
                "drop the resource, or the binding"
            ]
        )
    if needed.binding == "claim" and (own := _neutral(pod)):
        raise errors.InvalidNeeds(
            [
                f"anygpu.io/binding: claim makes a claim from the annotations, but container {own} asks "
                f"{claims.GPU_RESOURCE} itself, which would be a second GPU; drop one of the two"
            ]
        )
    if not asked:
        container = _named(needed.container, pod) if needed.container else containers[0]
        return Question(needed, container, needed.gpus, asks_resource=False)
    return _follow(pod, needed, asked, fleet)


def states_binding(pod: kube.Pod) -> bool:
    """Whether the pod itself says how it is bound, else a policy or nobody does."""
    return f"{needs.PREFIX}binding" in pod.annotations


def _neutral(pod: kube.Pod) -> str | None:
    """The container that asks the neutral extended resource; None: none does."""
    return next((each.name for each in pod.containers if claims.GPU_RESOURCE in kube.requests(each.resources)), None)


def _decided(pod: kube.Pod, made: decision.Decision, fleet: fleets.Fleet, policy: policies.Effective) -> Question:
    """The question of a late or claim pod that admission has been at: what it asks now are all its alternatives."""
    needed = needs.parse(pod.annotations, fleet.catalogue, devices=made.count, policy=policy)
    late = made.binding == "late"
    resources = tuple(made.injected) if late else tuple(dict.fromkeys(each.resource for each in made.alternatives))
    needed = needed.model_copy(update={"binding": made.binding, "gpus": made.count, "resources": resources})
    return Question(needed, _named(made.container, pod), made.count, asks_resource=False)


def _check_names(pod: kube.Pod) -> None:
    """A decision names containers, so each needs a name of its own, as the apiserver demands later."""
    names = [container.name for container in pod.containers]
    if not all(names):
        raise errors.InvalidNeeds(["spec.containers: a container has no name"])
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise errors.InvalidNeeds([f"spec.containers: two containers are named {twice}"])


def _gpu_requests(pod: kube.Pod) -> dict[str, dict[str, int]]:
    """Container name -> GPU resource -> devices, for what the pod itself asks."""
    found: dict[str, dict[str, int]] = {}
    for container in pod.containers:
        try:
            amounts = kube.requests(container.resources)
        except capability_errors.QuantityError as error:
            raise errors.InvalidNeeds([f"container {container.name}: {error}"]) from error
        gpus = {name: amounts[name] // 1000 for name in vendors.gpu_resources(amounts) if amounts[name]}
        for name in gpus:
            if amounts[name] < 0 or amounts[name] % 1000:
                raise errors.InvalidNeeds(
                    [f"container {container.name}: {name} is no whole number of devices; write for example 1"]
                )
        if gpus:
            found[container.name] = gpus
    return found


def _named(name: str, pod: kube.Pod) -> kube.Container:
    sidecars = [each for each in pod.spec.init_containers or () if each.restart_policy == "Always"]
    lasting: list[kube.Container] = [*(pod.spec.containers or ()), *sidecars]
    for container in lasting:
        if container.name == name:
            return container
    known = ", ".join(container.name for container in lasting)
    raise errors.InvalidNeeds(
        [f"anygpu.io/container: {name!r} is not a container of the pod; its containers are {known}"]
    )


def _follow(pod: kube.Pod, needed: needs.Needs, asked: dict[str, dict[str, int]], fleet: fleets.Fleet) -> Question:
    names = sorted({name for gpus in asked.values() for name in gpus})
    if len(names) > 1:
        raise errors.InvalidNeeds(
            [f"the pod itself asks {' and '.join(names)}: GPUs of one pod come under one name; keep one or none"]
        )
    resource = names[0]
    vendor = vendors.of_resource(resource)
    assert vendor is not None  # noqa: S101 - gpu_resources found it
    first = next(iter(asked))
    if needed.container and needed.container not in asked:
        _named(needed.container, pod)
        raise errors.InvalidNeeds(
            [f"anygpu.io/container: {needed.container} is named, but {first} asks {resource}; make them agree"]
        )
    name = needed.container or first
    count = asked[name][resource]
    if "anygpu.io/gpus" in pod.annotations and needed.gpus != count:
        raise errors.InvalidNeeds(
            [
                f"anygpu.io/gpus: {needed.gpus} contradicts container {name}, which asks {resource}: {count}; "
                "make them equal, or drop one"
            ]
        )
    if count != needed.gpus:
        # The model is sized for what the pod asks.
        needed = needs.parse(pod.annotations, fleet.catalogue, devices=count, policy=needed.policy)
    if needed.vendors and vendor.name not in needed.vendors:
        raise errors.InvalidNeeds(
            [
                f"anygpu.io/vendor: {','.join(needed.vendors)} contradicts container {name}, which asks {resource}; "
                f"add {vendor.name}, or drop the resource"
            ]
        )
    share = needed.share
    if vendor.shared_suffix and resource.endswith(vendor.shared_suffix):
        share = "any"  # whoever asks the shared name wants a share
    elif vendor.mode_in(resource) and share == "whole":
        share = "slice"
    container = next(each for each in pod.containers if each.name == name)
    needed = needed.model_copy(update={"resources": (resource,), "gpus": count, "share": share})
    return Question(needed, container, kube.pod_requests(pod)[resource] // 1000, asks_resource=True)
