"""The parts of Kubernetes objects that decisions read, decoded from JSON bytes or parsed YAML; nothing else is kept.

Field names are the API's, so that msgspec skips the rest of each object as it decodes.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NewType

import msgspec

from capability_db import errors as capability_errors
from capability_db import quantities

NodeName = NewType("NodeName", str)
PodUid = NewType("PodUid", str)


class Base(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """An immutable piece of an API object; fields that the API sends as null read as their defaults."""


class OwnerReference(Base, frozen=True):
    """Who owns an object."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class Metadata(Base, frozen=True):
    """Object metadata; times as the API writes them (RFC 3339)."""

    name: str = ""
    namespace: str | None = None
    generate_name: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class Taint(Base, frozen=True):
    """A node's taint."""

    key: str
    value: str | None = None
    effect: str = ""


class Toleration(Base, frozen=True):
    """A pod's toleration."""

    key: str | None = None
    operator: str | None = None
    value: str | None = None
    effect: str | None = None


class Condition(Base, frozen=True):
    """A condition of a node or a pod."""

    type: str
    status: str = ""
    reason: str | None = None
    message: str | None = None
    last_transition_time: str | None = None


class NodeSpec(Base, frozen=True):
    """What of a node's spec matters."""

    unschedulable: bool | None = None
    taints: list[Taint] | None = None


class NodeStatus(Base, frozen=True):
    """What of a node's status matters; quantities as the API writes them."""

    capacity: dict[str, str | int] | None = None
    allocatable: dict[str, str | int] | None = None
    conditions: list[Condition] | None = None


class Node(Base, frozen=True):
    """A node."""

    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class Namespace(Base, frozen=True):
    """A namespace."""

    metadata: Metadata = Metadata()


class ConfigMap(Base, frozen=True):
    """A ConfigMap."""

    metadata: Metadata = Metadata()
    data: dict[str, str] | None = None


class DeviceClassSpec(Base, frozen=True):
    """What of a DRA DeviceClass's spec matters."""

    extended_resource_name: str | None = None


class DeviceClass(Base, frozen=True):
    """A DRA DeviceClass."""

    metadata: Metadata = Metadata()
    spec: DeviceClassSpec = DeviceClassSpec()


class Resources(Base, frozen=True):
    """Requests and limits."""

    requests: dict[str, str | int | float] | None = None
    limits: dict[str, str | int | float] | None = None


class Container(Base, frozen=True):
    """A container, init container or sidecar."""

    name: str = ""
    image: str | None = None
    resources: Resources | None = None
    restart_policy: str | None = None


class Requirement(Base, frozen=True):
    """One expression of a node or label selector."""

    key: str
    operator: str
    values: list[str] | None = None


class NodeSelectorTerm(Base, frozen=True):
    """Expressions that all must hold."""

    match_expressions: list[Requirement] | None = None
    match_fields: list[Requirement] | None = None


class NodeSelector(Base, frozen=True):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] | None = None


class PreferredNodeTerm(Base, frozen=True):
    """A soft preference."""

    weight: int
    preference: NodeSelectorTerm


class NodeAffinity(Base, frozen=True):
    """Hard and soft node affinity."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredNodeTerm] | None = None


class LabelSelector(Base, frozen=True):
    """Selects pods by label."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[Requirement] | None = None


class PodAffinityTerm(Base, frozen=True):
    """Near or far from which pods, by which node label."""

    topology_key: str
    label_selector: LabelSelector | None = None
    namespaces: list[str] | None = None
    namespace_selector: LabelSelector | None = None


class PodAffinity(Base, frozen=True):
    """Hard pod affinity or anti-affinity."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] | None = None


class Affinity(Base, frozen=True):
    """A pod's affinities."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class PodClaim(Base, frozen=True):
    """A claim that a pod makes of DRA."""

    name: str = ""
    resource_claim_template_name: str | None = None


class PodSpec(Base, frozen=True):
    """What of a pod's spec matters."""

    node_name: str | None = None
    scheduler_name: str | None = None
    priority_class_name: str | None = None
    priority: int | None = None
    preemption_policy: str | None = None
    active_deadline_seconds: int | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    overhead: dict[str, str | int | float] | None = None
    resources: Resources | None = None
    node_selector: dict[str, str] | None = None
    affinity: Affinity | None = None
    tolerations: list[Toleration] | None = None
    resource_claims: list[PodClaim] | None = None


class PodStatus(Base, frozen=True):
    """What of a pod's status matters."""

    phase: str | None = None
    reason: str | None = None
    message: str | None = None
    conditions: list[Condition] | None = None
    nominated_node_name: str | None = None
    start_time: str | None = None


class Pod(Base, frozen=True):
    """A pod."""

    metadata: Metadata = Metadata()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def key(self) -> str:
        """`namespace/name`, as logs and tables show it."""
        return f"{self.metadata.namespace or 'default'}/{self.metadata.name or self.metadata.generate_name or 'pod'}"

    @property
    def identity(self) -> PodUid:
        """What tells pods apart: the uid, or the key where a snapshot has none."""
        return PodUid(self.metadata.uid or self.key)

    @property
    def annotations(self) -> Mapping[str, str]:
        """The pod's annotations."""
        return self.metadata.annotations or {}

    @property
    def labels(self) -> Mapping[str, str]:
        """The pod's labels."""
        return self.metadata.labels or {}

    @property
    def containers(self) -> Iterator[Container]:
        """Containers and init containers (sidecars are among these)."""
        yield from self.spec.containers or ()
        yield from self.spec.init_containers or ()

    @property
    def finished(self) -> bool:
        """Whether the pod holds nothing any more."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def unschedulable(self) -> bool:
        """Whether kube-scheduler tried the pod as the cluster is now and found no node."""
        return any(
            condition.type == "PodScheduled" and condition.status == "False" and condition.reason == "Unschedulable"
            for condition in self.status.conditions or ()
        )


def to_pod(document: Mapping[str, Any]) -> Pod:
    """A pod from parsed JSON or YAML; raises msgspec.ValidationError naming the field that is not as the API has it."""
    cleaned = without_nulls(document)
    metadata = document.get("metadata")
    given = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    if isinstance(given, Mapping):
        # A null annotation is an empty one to the API; not to see it would be to ignore what was asked.
        for key in [key for key, value in given.items() if value is None]:
            cleaned["metadata"]["annotations"][key] = ""
    return msgspec.convert(cleaned, Pod)


def to_node(document: Mapping[str, Any]) -> Node:
    """A node from parsed JSON or YAML; raises msgspec.ValidationError likewise."""
    return msgspec.convert(without_nulls(document), Node)


def to_json(pod: Pod) -> dict[str, Any]:
    """What is known of a pod, as JSON that `to_pod` takes."""
    document: dict[str, Any] = without_nulls(msgspec.to_builtins(pod))
    return document


def without_nulls(value: Any) -> Any:
    """JSON without null fields: to the API a null and an absent field mean the same."""
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def pod_requests(pod: Pod) -> dict[str, int]:
    """What the pod asks of its node, in thousandths (as the scheduler counts: component-helpers resource/helpers.go).

    The sum of containers and sidecars, or an init container with the sidecars started before it where that is more;
    plus overhead. Pod-level cpu and memory replace the sum. Raises QuantityError.
    """
    total: dict[str, int] = {}
    for container in pod.spec.containers or ():
        _add(total, requests(container.resources))
    sidecars: dict[str, int] = {}
    highest: dict[str, int] = {}
    for container in pod.spec.init_containers or ():
        asked = requests(container.resources)
        if container.restart_policy == "Always":
            _add(sidecars, asked)
            asked = dict(sidecars)
        else:
            _add(asked, sidecars)
        for name, amount in asked.items():
            highest[name] = max(highest.get(name, 0), amount)
    _add(total, sidecars)
    for name, amount in highest.items():
        total[name] = max(total.get(name, 0), amount)
    stated = pod.spec.resources.requests or {} if pod.spec.resources else {}
    for name, amount in requests(pod.spec.resources).items():
        total[name] = amount if name in stated else total.get(name, amount)
    _add(total, {name: quantities.milli(str(amount)) for name, amount in (pod.spec.overhead or {}).items()})
    return total


def priority(pod: Pod) -> int:
    """The pod's priority; without one it has that of no class."""
    return pod.spec.priority or 0


def requests(resources: Resources | None) -> dict[str, int]:
    """Requests in thousandths; a limit without a request is one, as the API defaults it."""
    if resources is None:
        return {}
    merged = {**(resources.limits or {}), **(resources.requests or {})}
    return {name: quantities.milli(str(amount)) for name, amount in merged.items()}


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount


def amounts(resources: Mapping[str, str | int] | None) -> dict[str, int]:
    """A node's resources in thousandths; what is no quantity counts as none, since one bad node must not stop all."""
    found: dict[str, int] = {}
    for name, text in (resources or {}).items():
        try:
            found[name] = quantities.milli(str(text))
        except capability_errors.QuantityError:
            found[name] = 0
    return found


def tolerates(tolerations: list[Toleration] | None, taint: Taint) -> bool:
    """Whether one of the tolerations tolerates the taint (corev1 Toleration.ToleratesTaint)."""
    return any(
        (not toleration.effect or toleration.effect == taint.effect)
        and (not toleration.key or toleration.key == taint.key)
        and (
            toleration.operator == "Exists"
            or (
                toleration.operator in (None, "", "Equal")
                and bool(toleration.key)
                and (toleration.value or "") == (taint.value or "")
            )
        )
        for toleration in tolerations or ()
    )


def expression_holds(expression: Requirement, labels: Mapping[str, str]) -> bool:
    """Whether one node selector expression holds (NodeSelectorOperator)."""
    value, values = labels.get(expression.key), expression.values or []
    match expression.operator:
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value is None or value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            left, right = _int64(value), _int64(values[0] if len(values) == 1 else None)
            if left is None or right is None:
                return False
            return left > right if expression.operator == "Gt" else left < right
        case _:
            return False


def _int64(text: str | None) -> int | None:
    """The whole number that Go's ParseInt reads; None: it reads none."""
    if text is None or not re.fullmatch(r"[+-]?[0-9]{1,64}", text) or not -(2**63) <= int(text) < 2**63:
        return None
    return int(text)


def term_holds(term: NodeSelectorTerm, name: str, labels: Mapping[str, str]) -> bool:
    """Whether a node selector term holds; an empty term matches nothing."""
    if not term.match_expressions and not term.match_fields:
        return False
    return all(expression_holds(each, labels) for each in term.match_expressions or ()) and all(
        expression_holds(each, {"metadata.name": name}) for each in term.match_fields or ()
    )


def node_affinity_holds(spec: PodSpec, name: str, labels: Mapping[str, str]) -> bool:
    """Whether nodeSelector and required node affinity admit a node."""
    if any(labels.get(key) != value for key, value in (spec.node_selector or {}).items()):
        return False
    affinity = spec.affinity.node_affinity if spec.affinity else None
    required = affinity.required_during_scheduling_ignored_during_execution if affinity else None
    if required is None:
        return True
    return any(term_holds(term, name, labels) for term in required.node_selector_terms or ())


def selector_holds(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches; none matches nothing, an empty one everything."""
    if selector is None:
        return False
    return all(labels.get(key) == value for key, value in (selector.match_labels or {}).items()) and all(
        expression_holds(each, labels) for each in selector.match_expressions or ()
    )


def named_nodes(spec: PodSpec) -> list[str] | None:
    """The nodes that a pod names itself: `nodeName`, or a DaemonSet's affinity to one; None: it names none."""
    if spec.node_name:
        return [spec.node_name]
    affinity = spec.affinity.node_affinity if spec.affinity else None
    required = affinity.required_during_scheduling_ignored_during_execution if affinity else None
    terms = (required.node_selector_terms or []) if required else []
    names: list[str] = []
    for term in terms:
        by_name = [each for each in term.match_fields or () if each.key == "metadata.name" and each.operator == "In"]
        if not by_name:
            return None
        names += by_name[0].values or []
    return names or None
