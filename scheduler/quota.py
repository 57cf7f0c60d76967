"""Whether what was injected into a pod fits its namespace's ResourceQuotas, told before the API server refuses it.

A late pod carries every vendor's resource name and quota charges each of them, though only one is used. What this
module does not judge (scopes it does not know, usage not computed yet, cpu and memory) is left to the API server,
which has the last word in any case: its counts are newer. It agrees with the API server's evaluator where it judges
(kubernetes pkg/quota/v1/evaluator/core/pods.go, apiserver plugin/resourcequota/controller.go).
"""

from collections.abc import Collection, Iterable, Mapping

from capability_db import errors as capability_errors
from capability_db import quantities, vendors
from scheduler import kube

PATH = "/api/v1/resourcequotas"
PREFIX = "requests."
"""Quota knows extended resources under this prefix only."""


class ScopeRequirement(kube.Base, frozen=True):
    """A scope that a pod must be of."""

    scope_name: str
    operator: str = "Exists"
    values: list[str] | None = None


class ScopeSelector(kube.Base, frozen=True):
    """Scopes of which a pod must be of all."""

    match_expressions: list[ScopeRequirement] | None = None


class Spec(kube.Base, frozen=True):
    """Which pods a quota is for."""

    scopes: list[str] | None = None
    scope_selector: ScopeSelector | None = None


class Status(kube.Base, frozen=True):
    """What the API server enforces, as it does: not the spec, but what the quota controller last made of it."""

    hard: dict[str, str | int] | None = None
    used: dict[str, str | int] | None = None


class ResourceQuota(kube.Base, frozen=True):
    """A ResourceQuota."""

    metadata: kube.Metadata = kube.Metadata()
    spec: Spec = Spec()
    status: Status = Status()


class Quotas:
    """Every ResourceQuota, by namespace."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, ResourceQuota]] = {}

    def of(self, namespace: str) -> Collection[ResourceQuota]:
        """The quotas of a namespace."""
        return self._found.get(namespace, {}).values()

    def replace(self, quotas: Iterable[ResourceQuota]) -> None:
        """Take a whole list: what is not in it is gone."""
        self._found = {}
        for quota in quotas:
            self.apply(quota)

    def apply(self, quota: ResourceQuota) -> None:
        """Take a quota as it is now."""
        self._found.setdefault(quota.metadata.namespace or "default", {})[quota.metadata.name] = quota

    def remove(self, quota: ResourceQuota) -> None:
        """Forget a quota."""
        namespace = quota.metadata.namespace or "default"
        self._found.get(namespace, {}).pop(quota.metadata.name, None)
        if not self._found.get(namespace):
            self._found.pop(namespace, None)


def refusal(quotas: Iterable[ResourceQuota], pod: kube.Pod, injected: Collection[str]) -> str | None:
    """Why a pod does not fit its namespace's quotas, and what would help; None: nothing known speaks against it.

    `pod` is as it will be stored, with what was injected; only the names in `injected` are judged.
    """
    try:
        charged = {name: amount for name, amount in kube.pod_requests(pod).items() if name in injected}
        over = [(quota, found) for quota in quotas if (found := _exceeded(quota, pod, charged))]
    except capability_errors.QuantityError:
        return None
    if not over:
        return None
    told = [
        f"ResourceQuota {quota.metadata.namespace}/{quota.metadata.name}: {PREFIX}{name} would be "
        f"{_amount(used + charged[name])} of {_amount(hard)} (used {_amount(used)}, this pod {_amount(charged[name])})"
        for quota, found in sorted(over, key=lambda each: each[0].metadata.name)
        for name, (used, hard) in sorted(found.items())
    ]
    if len(charged) > 1:
        told.append(f"the pod is charged for each of {', '.join(sorted(charged))}, whichever it is given")
    return "; ".join([*told, _fixes(charged, {name for _, found in over for name in found})])


def _fixes(charged: Collection[str], exceeded: Collection[str]) -> str:
    owners = {name: vendors.of_resource(name) for name in sorted(charged)}
    full = {owner.name for name in exceeded if (owner := owners[name])}
    fitting = dict.fromkeys(owner.name for owner in owners.values() if owner and owner.name not in full)
    if fitting and all(owners[name] for name in exceeded):
        without = ", ".join(sorted(exceeded))
        return f"anygpu.io/vendor: {','.join(fitting)} leaves {without} out, or have the quota raised"
    return "have the quota raised, or wait until pods of the namespace are gone"


def _exceeded(quota: ResourceQuota, pod: kube.Pod, charged: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Resource name -> (used, hard) in thousandths, for each name of which the pod asks more than a quota leaves."""
    found: dict[str, tuple[int, int]] = {}
    if not _applies(quota.spec, pod):
        return found
    for name, amount in charged.items():
        hard, used = ((side or {}).get(f"{PREFIX}{name}") for side in (quota.status.hard, quota.status.used))
        if hard is None or used is None or not amount:
            continue
        limit, taken = quantities.milli(hard), quantities.milli(used)
        if taken + amount > limit:
            found[name] = (taken, limit)
    return found


def _applies(spec: Spec, pod: kube.Pod) -> bool:
    """Whether a quota is for the pod: it is of all the quota's scopes, and of none that we do not know."""
    scopes = [ScopeRequirement(scope_name=name) for name in spec.scopes or ()]
    scopes += (spec.scope_selector.match_expressions or ()) if spec.scope_selector else ()
    return all(_is_of(scope, pod) for scope in scopes)


def _is_of(scope: ScopeRequirement, pod: kube.Pod) -> bool:
    match scope.scope_name:
        case "Terminating" | "NotTerminating":
            # Of pods that are to end by themselves, whether or not they are being deleted.
            ends = pod.spec.active_deadline_seconds is not None and pod.spec.active_deadline_seconds >= 0
            return ends == (scope.scope_name == "Terminating")
        case "BestEffort" | "NotBestEffort":
            return _is_best_effort(pod) == (scope.scope_name == "BestEffort")
        case "PriorityClass":
            given = pod.spec.priority_class_name
            expression = kube.Requirement(key=scope.scope_name, operator=scope.operator, values=scope.values)
            return kube.expression_holds(expression, {scope.scope_name: given} if given else {})
        case _:
            return False


def _is_best_effort(pod: kube.Pod) -> bool:
    """Whether the pod asks no cpu and no memory, of itself where it says anything of itself (ComputePodQOS)."""
    own = pod.spec.resources
    named = {**(own.requests or {}), **(own.limits or {})} if own else {}
    says = any(name in ("cpu", "memory") or name.startswith("hugepages-") for name in named)
    judged = [own] if says else [container.resources for container in pod.containers]
    return not any(
        quantities.milli(str(amount))
        for resources in judged
        if resources
        for side in (resources.requests, resources.limits)
        for name, amount in (side or {}).items()
        if name in ("cpu", "memory")
    )


def _amount(milli: int) -> str:
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"
