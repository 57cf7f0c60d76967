"""Late and claim binding, the pure part: what a pod may be given when its node is chosen, and what it is then.

Late: the pod carries the resource name of every vendor that could serve it, and kubelets ignore the names that their
node does not list (kubernetes pkg/kubelet/lifecycle/predicate.go). Claim: DRA allocates, the driver tells the vendor.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from capability_db import vendors
from capability_db.node_facts import DeviceClass
from capability_db.sku import VendorName
from images import resolve
from scheduler import decision, kube, needs, offers, score
from scheduler import fleet as fleets

SCHEDULER = "anygpu-scheduler"
"""The kube-scheduler that leaves the vendors' resources to anygpu: whatever runs on it, anygpu counts and binds."""
UNRESOLVED = "anygpu.invalid/unresolved"
"""The image until the pod is bound: nothing can pull it, so a bind that passes anygpu by fails safe."""
VENDOR_ENV = "ANYGPU_VENDOR"
VOID_DEVICES = ("NVIDIA_VISIBLE_DEVICES", "void")
"""CUDA images bake in `all`, which under NVIDIA's runtime shows every GPU to a container that asked none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a pod is given at bind."""

    decision: decision.Decision
    images: Mapping[str, str]
    """Container -> image."""
    annotations: Mapping[str, str]


def names(ask: offers.Ask, fleet: fleets.Fleet) -> tuple[str, ...]:
    """The resource names under which nodes may give the pod its devices, the best first; for claim, DRA drivers.

    Never two device-plugin names that one node lists, even at 0, since its kubelet would demand both: of these the one
    that more devices are offered under. Of a vendor that no node offers suitably now, the name that a node to come
    would most likely use.
    """
    admitting = [row for row in fleet.rows.values() if kube.node_affinity_holds(ask.pod.spec, row.name, row.labels)]
    near = {id(pool.device): pool.device for row in admitting for pool in row.facts.pools}
    # Names of nodes that the pod's own nodeSelector keeps away would only stand in the way of others.
    seen = _best(ask, near.values()) or _best(ask, fleet.classes())
    there = {device.vendor for device in seen.values()}
    to_come: dict[VendorName, DeviceClass] = {}
    shipped = _best(ask, offers.shipped(fleet)).values()
    for device in sorted(shipped, key=lambda each: (each.kind != "whole", _preference(ask, each))):
        if device.vendor not in there:
            to_come.setdefault(device.vendor, device)
    devices = _devices(ask, admitting)
    together = _listed_together(fleet)
    chosen: list[DeviceClass] = []
    for device in sorted(
        [*seen.values(), *to_come.values()], key=lambda each: (-devices.get(each.resource, 0), _preference(ask, each))
    ):
        if not any({device.resource, other.resource} <= both for other in chosen for both in together):
            chosen.append(device)
    return tuple(device.resource for device in sorted(chosen, key=lambda each: _preference(ask, each)))


def left_out(ask: offers.Ask, fleet: fleets.Fleet, carried: Sequence[str]) -> tuple[str, ...]:
    """What the pod's decision says of names that would serve it too, and that stand beside one it carries on a node."""
    free = dataclasses.replace(ask, needs=ask.needs.model_copy(update={"resources": ()}))
    found: list[str] = []
    for name in sorted(_best(free, fleet.classes()).keys() - {*carried}):
        for row in fleet.rows.values():
            listed = vendors.gpu_resources({**row.capacity, **row.allocatable})
            other = next((each for each in carried if each in listed), None)
            if name in listed and other:
                found.append(
                    f"late without {name}: node {row.name} lists it beside {other}, and would be asked for both"
                )
                break
    return tuple(found)


def _devices(ask: offers.Ask, rows: Sequence[fleets.Row]) -> dict[str, int]:
    """Resource name -> devices that nodes offer under it and that meet the needs, free or not."""
    classes = {id(pool.device): pool.device for row in rows for pool in row.facts.pools}
    fits = {key for key, device in classes.items() if not offers.missing(ask, device)}
    found: dict[str, int] = {}
    for row in rows:
        for pool in row.facts.pools:
            if id(pool.device) in fits:
                found[pool.device.resource] = found.get(pool.device.resource, 0) + pool.allocatable
    return found


def _best(ask: offers.Ask, devices: offers.Devices) -> dict[str, DeviceClass]:
    """Resource name -> the best of the device classes under it that meet the needs."""
    found: dict[str, DeviceClass] = {}
    for device in devices:
        if not offers.missing(ask, device):
            old = found.get(device.resource)
            if old is None or _preference(ask, device) < _preference(ask, old):
                found[device.resource] = device
    return found


def _preference(ask: offers.Ask, device: DeviceClass) -> tuple[score.Rank, str]:
    return (score.rank(ask.needs, device), device.resource)


def _listed_together(fleet: fleets.Fleet) -> set[frozenset[str]]:
    """The sets of GPU resource names that single nodes list."""
    found: set[frozenset[str]] = set()
    for row in fleet.rows.values():
        listed = vendors.gpu_resources({**row.capacity, **row.allocatable})
        if len(listed) > 1:
            found.add(frozenset(listed))
    return found


def alternatives(
    ask: offers.Ask, fleet: fleets.Fleet, resources: Sequence[str], image: resolve.Resolved, containers: Sequence[str]
) -> tuple[tuple[decision.Alternative, ...], list[list[dict[str, object]]]]:
    """What the pod may be bound with, the best first, and the node selector terms of all nodes that may serve it."""
    found: list[decision.Alternative] = []
    terms: list[list[dict[str, object]]] = []
    for resource in resources:
        vendor = vendors.of_resource(resource) or vendors.of_driver(resource)
        assert vendor is not None  # noqa: S101 - names() takes vendors' names only
        for option in image.options.get(vendor.name, ()):
            admitted = offers.admitted_skus(
                dataclasses.replace(ask, runs_on={vendor.name: option.runs_on_all}), resource, fleet
            )
            if not admitted.partitions:
                continue
            images = {} if image.pinned_by_user else dict.fromkeys(containers, option.image)
            env = dict([VOID_DEVICES]) if vendor is vendors.NVIDIA else {}
            found.append(
                decision.Alternative(
                    resource=resource, vendor=vendor.name, skus=tuple(admitted.partitions), images=images, env=env
                )
            )
            terms += [term for term in offers.node_label_terms(admitted) if term not in terms]
    return tuple(found), terms


def alternative(made: decision.Decision, device: DeviceClass) -> decision.Alternative | None:
    """The first of a decision's alternatives whose image runs on whatever device of the class the pod is given."""
    return alternative_of(made.alternatives, device)


def alternative_of(given: Sequence[decision.Alternative], device: DeviceClass) -> decision.Alternative | None:
    """The first alternative whose image runs on whatever device of the class the pod is given."""
    return next(
        (
            each
            for each in given
            if each.resource == device.resource and device.skus and {sku.id for sku in device.skus} <= {*each.skus}
        ),
        None,
    )


def outcome(made: decision.Decision, chosen: decision.Alternative, device: DeviceClass, node: str) -> Outcome:
    """What a pod with this decision is given on a node with devices of this class."""
    expected = made.node == node and made.resource == chosen.resource
    reason = (
        made.reason if expected else f"{device.label} on {node}, as kube-scheduler chose; at admission: {made.reason}"
    )
    given = made.model_copy(
        update={
            "vendor": chosen.vendor,
            "resource": chosen.resource,
            "sku": device.skus[0].id if device.skus else None,
            "node": node,
            "images": chosen.images,
            "reason": reason,
        }
    )
    annotations = {
        needs.DECISION: given.model_dump_json(),
        needs.BOUND_VENDOR: chosen.vendor,
        **{f"{needs.ENV_PREFIX}{name}": value for name, value in chosen.env.items()},
    }
    return Outcome(given, chosen.images, annotations)


def early(made: decision.Decision, node: str) -> Outcome:
    """What a pod that was decided at admission is given: what was decided, where it now is."""
    given = made.model_copy(update={"node": node})
    return Outcome(given, {}, {needs.DECISION: given.model_dump_json(), needs.BOUND_VENDOR: made.vendor})


def is_open(made: decision.Decision, annotations: Mapping[str, str]) -> bool:
    """Whether the decision leaves the vendor to the bind, which has not been yet."""
    return made.binding != "early" and needs.BOUND_VENDOR not in annotations


def counted_here(pod: kube.Pod) -> bool:
    """Whether the pod runs on the scheduler that leaves all counting of GPUs to anygpu."""
    return pod.spec.scheduler_name == SCHEDULER


def takes(pod: kube.Pod) -> dict[str, int]:
    """Devices of each device-plugin resource that the pod carries; raises QuantityError."""
    requests = kube.pod_requests(pod)
    return {name: -(-requests[name] // 1000) for name in vendors.gpu_resources(requests) if requests[name]}


def requested(made: decision.Decision, image: str) -> str:
    """The `anygpu.io/requested-image` annotation."""
    return json.dumps(dict.fromkeys(made.images, image), sort_keys=True)
