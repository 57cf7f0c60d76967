"""What is watched for the node table, and what each event does to it."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from capability_db import registered, reports, resources, slices
from scheduler import claims, control, kube, needs, quota, rescue, reservations, stranded, verdicts, watch
from scheduler import fleet as fleets

T = TypeVar("T")
DRA = "/apis/resource.k8s.io/v1"


@dataclasses.dataclass(frozen=True, slots=True)
class Feed(Generic[T]):
    """One kind of object, and what its list and its changes do; called on the loop that owns the node table."""

    path: str
    kind: type[T]
    on_list: Callable[[list[T]], None]
    on_event: Callable[[T, bool], None]
    """(object, whether it is gone)"""
    selector: Mapping[str, str] | None = None
    optional: bool = False
    """Whether the API server may not serve it, which counts as none there."""
    settle: Callable[[], None] = lambda: None
    """Called after each list and each batch of changes."""

    def reflector(self, api: Any, post: Callable[[Callable[[], None]], object], listed: Callable[[], None]) -> Any:
        """The thread that watches; `post` runs a call on the loop, `listed` says that the first list is in."""

        def lists(items: list[T]) -> None:
            def apply() -> None:
                self.on_list(items)
                self.settle()
                listed()

            post(apply)

        def events(batch: list[tuple[str, T]]) -> None:
            def apply() -> None:
                for kind, item in batch:
                    self.on_event(item, kind == "DELETED")
                self.settle()

            post(apply)

        return watch.Reflector(api, self.path, self.kind, lists, events, self.selector, optional=self.optional)


def feeds(
    fleet: fleets.Fleet,
    bindings: Collection[needs.Binding],
    writer: control.Writer | None = None,
    rescuer: rescue.Rescuer | None = None,
    reporter: verdicts.Reporter | None = None,
) -> list[Feed[Any]]:
    """Everything that the bindings that are on want known; who writes is told what concerns it.

    What admins registered comes first, so that nodes are read by it.
    """
    found: list[Feed[Any]] = [_registered(fleet, kind, writer, reporter) for kind in registered.KINDS]
    found += [_nodes(fleet, writer), _pods(fleet, writer), _namespaces(fleet), _reports(fleet, writer)]
    if {"late", "claim"} & {*bindings}:
        found += [_records(fleet), _device_classes(fleet)]
    if "late" in bindings:
        found.append(_quotas(fleet))
    if "late" in bindings and rescuer is not None:
        found.append(_rejected(rescuer))
    if "claim" in bindings:
        found += [_slices(fleet, writer), _claims(fleet)]
    return found


def _nudge(writer: control.Writer | None) -> None:
    if writer is not None:
        writer.nudge()


def _registered(
    fleet: fleets.Fleet, kind: str, writer: control.Writer | None, reporter: verdicts.Reporter | None
) -> Feed[registered.Object]:
    known = fleet.registered

    def on_list(found: list[registered.Object]) -> None:
        known.replace(kind, found)

    def on_event(found: registered.Object, gone: bool) -> None:
        (known.remove if gone else known.put)(kind, found)

    def settle() -> None:
        if fleet.use_registered():
            _nudge(writer)
        if reporter is not None:
            reporter.nudge()

    path = resources.KINDS[kind].path
    return Feed(path, registered.Object, on_list, on_event, optional=True, settle=settle)


def _nodes(fleet: fleets.Fleet, writer: control.Writer | None) -> Feed[kube.Node]:
    def on_list(nodes: list[kube.Node]) -> None:
        fleet.replace(nodes=nodes)
        _nudge(writer)

    def on_event(node: kube.Node, gone: bool) -> None:
        if gone:
            fleet.remove_node(node.metadata.name)
        else:
            fleet.apply_node(node)
        _nudge(writer)

    return Feed("/api/v1/nodes", kube.Node, on_list, on_event)


def _pods(fleet: fleets.Fleet, writer: control.Writer | None) -> Feed[kube.Pod]:
    def on_list(pods: list[kube.Pod]) -> None:
        fleet.replace(pods=pods)
        if writer:
            for pod in pods:
                writer.saw_pod(pod)

    def on_event(pod: kube.Pod, gone: bool) -> None:
        if gone:
            fleet.remove_pod(pod.identity)
            if writer:
                writer.forgot_pod(pod.identity)
        else:
            fleet.apply_pod(pod)
            if writer:
                writer.saw_pod(pod)

    return Feed("/api/v1/pods", kube.Pod, on_list, on_event, watch.RUNNING_PODS)


def _reports(fleet: fleets.Fleet, writer: control.Writer | None) -> Feed[reports.NodeGPUs]:
    def on_list(found: list[reports.NodeGPUs]) -> None:
        fleet.replace_reports(found)
        _nudge(writer)

    def on_event(found: reports.NodeGPUs, gone: bool) -> None:
        before = fleet.facts_version
        if gone:
            fleet.remove_report(found.metadata.name)
        else:
            fleet.apply_report(found)
        if fleet.facts_version != before:  # most beats bring nothing new
            _nudge(writer)

    return Feed(resources.KINDS["NodeGPUs"].path, reports.NodeGPUs, on_list, on_event, optional=True)


def _rejected(rescuer: rescue.Rescuer) -> Feed[kube.Pod]:
    def on_list(pods: list[kube.Pod]) -> None:
        for pod in pods:
            rescuer.saw_failed(pod)

    def on_event(pod: kube.Pod, gone: bool) -> None:
        if gone:
            rescuer.forgot(pod.identity)
        else:
            rescuer.saw_failed(pod)

    return Feed("/api/v1/pods", kube.Pod, on_list, on_event, stranded.REJECTED_LATE_PODS)


def _namespaces(fleet: fleets.Fleet) -> Feed[kube.Namespace]:
    def on_list(namespaces: list[kube.Namespace]) -> None:
        fleet.opted_out = {each.metadata.name for each in namespaces}

    def on_event(namespace: kube.Namespace, gone: bool) -> None:
        (fleet.opted_out.discard if gone else fleet.opted_out.add)(namespace.metadata.name)

    return Feed("/api/v1/namespaces", kube.Namespace, on_list, on_event, watch.OPTED_OUT_NAMESPACES)


def _records(fleet: fleets.Fleet) -> Feed[kube.ConfigMap]:
    def on_list(found: list[kube.ConfigMap]) -> None:
        fleet.replace(records=[record for each in found if (record := reservations.of(each))])

    def on_event(found: kube.ConfigMap, gone: bool) -> None:
        record = reservations.of(found)
        if record is not None and gone:
            fleet.remove_reservations(record.node)
        elif record is not None:
            fleet.apply_reservations(record)

    return Feed(reservations.COLLECTION, kube.ConfigMap, on_list, on_event, reservations.SELECTOR)


def _quotas(fleet: fleets.Fleet) -> Feed[quota.ResourceQuota]:
    def on_event(found: quota.ResourceQuota, gone: bool) -> None:
        (fleet.quotas.remove if gone else fleet.quotas.apply)(found)

    return Feed(quota.PATH, quota.ResourceQuota, fleet.quotas.replace, on_event)


def _device_classes(fleet: fleets.Fleet) -> Feed[kube.DeviceClass]:
    def on_list(classes: list[kube.DeviceClass]) -> None:
        fleet.device_classes = {each.metadata.name: each.spec.extended_resource_name for each in classes}

    def on_event(found: kube.DeviceClass, gone: bool) -> None:
        known = dict(fleet.device_classes or {})
        known.pop(found.metadata.name, None)
        fleet.device_classes = known if gone else known | {found.metadata.name: found.spec.extended_resource_name}

    return Feed(f"{DRA}/deviceclasses", kube.DeviceClass, on_list, on_event, optional=True)


def _slices(fleet: fleets.Fleet, writer: control.Writer | None) -> Feed[slices.ResourceSlice]:
    def on_list(found: list[slices.ResourceSlice]) -> None:
        fleet.replace_dra(found=found)
        _nudge(writer)

    def on_event(found: slices.ResourceSlice, gone: bool) -> None:
        (fleet.remove_slice if gone else fleet.apply_slice)(found)
        _nudge(writer)

    return Feed(f"{DRA}/resourceslices", slices.ResourceSlice, on_list, on_event, optional=True)


def _claims(fleet: fleets.Fleet) -> Feed[claims.Claim]:
    def on_list(found: list[claims.Claim]) -> None:
        fleet.replace_dra(held=found)

    def on_event(found: claims.Claim, gone: bool) -> None:
        (fleet.remove_claim if gone else fleet.apply_claim)(found)

    return Feed(f"{DRA}/resourceclaims", claims.Claim, on_list, on_event, optional=True)
