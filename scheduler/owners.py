"""Who owns a pod, and whether evicting it brings a successor: the rules of Kubernetes' own controllers.

As read in k8s.io/kubernetes v1.37.2, and tried on it. A ReplicaSet, ReplicationController or StatefulSet makes a new
pod at once. A Job counts the evicted pod as failed, then makes a new one after its back-off: under podReplacementPolicy
TerminatingOrFailed as soon as the pod is being deleted (pkg/controller/job, isPodFailed), under Failed when it has
failed, which for a pod without a node is PodGC's doing, every 20 s (pkg/controller/podgc, gcUnscheduledTerminating).
Its podFailurePolicy sees the condition DisruptionTarget, which evictions set (registry/core/pod/storage/eviction.go).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from scheduler import kube

JOB_CONTROLLER = "kubernetes.io/job-controller"
JOB_FINALIZER = "batch.kubernetes.io/job-tracking"
"""On pods that the Job controller has not counted yet."""
JOB_UID_LABEL = "batch.kubernetes.io/controller-uid"
INDEX_FAILURES = "batch.kubernetes.io/job-index-failure-count"
ENDED = ("Complete", "Failed", "SuccessCriteriaMet", "FailureTarget")
DISRUPTED = kube.Condition(type="DisruptionTarget", status="True")

Kind = Literal["none", "replicas", "stateful", "job", "daemons", "unknown"]
_KINDS: dict[tuple[str, str], Kind] = {
    ("apps", "ReplicaSet"): "replicas",
    ("v1", "ReplicationController"): "replicas",
    ("apps", "StatefulSet"): "stateful",
    ("batch", "Job"): "job",
    ("apps", "DaemonSet"): "daemons",
}


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a pod's place when the pod is evicted."""

    replaced: bool
    """Whether a successor is made, at no price that the user would not want to pay."""
    says: str
    """Why not and what to do instead, or what it costs; may be empty."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The owner ends, pauses or is no more, and its pods go with it."""


def controller(pod: kube.Pod) -> kube.OwnerReference | None:
    """The one owner that controls the pod; None: a bare pod."""
    return next((each for each in pod.metadata.owner_references or () if each.controller), None)


def kind(owner: kube.OwnerReference | None) -> Kind:
    """How the owner treats its pods."""
    if owner is None:
        return "none"
    return _KINDS.get((owner.api_version.partition("/")[0], owner.kind), "unknown")


def named(owner: kube.OwnerReference) -> str:
    """The owner as texts name it."""
    return f"{owner.kind} {owner.name}"


def fate(owner: kube.OwnerReference | None) -> Fate:
    """What becomes of the place of an owner's waiting pod, Jobs aside."""
    match kind(owner):
        case "replicas" | "stateful":
            return Fate(True, "")
        case "none":
            return Fate(
                False,
                "no controller owns the pod: delete it and create it again, and the choice is made anew",
            )
        case "daemons":
            return Fate(
                False, "a DaemonSet's pods are left alone: delete the pod, and the choice is made anew for its node"
            )
        case _:
            assert owner is not None  # noqa: S101 - else the kind is none
            return Fate(
                False,
                f"whether {named(owner)} ({owner.api_version}) makes a new pod for a deleted one is not known: "
                "delete the pod if it does",
            )


def counts_rejected(owner: kube.OwnerReference) -> str:
    """What a Job does about a pod that its kubelet rejected, and what helps: the pod failed, and stays counted."""
    return (
        f"{named(owner)} counts it as a failed pod, and makes another while its backoffLimit allows: with binding late "
        "leave a Job a backoffLimit above 0"
    )


class FailurePattern(kube.Base, frozen=True):
    """A pod condition that a rule looks for."""

    type: str
    status: str = "True"


class FailureRule(kube.Base, frozen=True):
    """One rule of a podFailurePolicy; one about exit codes has no patterns, and a pod that never ran no exit code."""

    action: str
    on_pod_conditions: list[FailurePattern] | None = None


class FailurePolicy(kube.Base, frozen=True):
    """What pod failures mean to a Job; the first rule that matches counts."""

    rules: list[FailureRule] | None = None


class JobSpec(kube.Base, frozen=True):
    """What of a Job's spec matters."""

    suspend: bool | None = None
    managed_by: str | None = None
    backoff_limit: int = 6
    backoff_limit_per_index: int | None = None
    pod_failure_policy: FailurePolicy | None = None


class Uncounted(kube.Base, frozen=True):
    """Pods that are finished and in no count yet."""

    failed: list[str] | None = None


class JobStatus(kube.Base, frozen=True):
    """What of a Job's status matters."""

    failed: int | None = None
    uncounted_terminated_pods: Uncounted | None = None
    conditions: list[kube.Condition] | None = None


class Job(kube.Base, frozen=True):
    """A Job."""

    metadata: kube.Metadata
    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()


class _TrackedMetadata(kube.Metadata, frozen=True):
    finalizers: list[str] | None = None


class TrackedPod(kube.Base, frozen=True):
    """A pod as the Job controller counts it."""

    metadata: _TrackedMetadata
    status: kube.PodStatus = kube.PodStatus()

    @property
    def failed_uncounted(self) -> bool:
        """Whether it will count as failed, or may, and no status has it yet."""
        if JOB_FINALIZER not in (self.metadata.finalizers or ()) or self.status.phase == "Succeeded":
            return False
        return self.status.phase == "Failed" or self.metadata.deletion_timestamp is not None


class _TrackedPods(kube.Base, frozen=True):
    items: list[TrackedPod] | None = None


def to_job(document: Any) -> Job:
    """A Job from parsed JSON; raises msgspec.ValidationError."""
    return msgspec.convert(document, Job)


def pods_of(document: Any, job: str) -> list[TrackedPod]:
    """The pods that a Job (by uid) controls, of a parsed list; raises msgspec.ValidationError."""
    pods = msgspec.convert(document, _TrackedPods).items or []
    return [
        pod for pod in pods if any(each.controller and each.uid == job for each in pod.metadata.owner_references or ())
    ]


def job_fate(job: Job, pods: Sequence[TrackedPod], pod: kube.Pod) -> Fate | Gone:
    """What becomes of the place of a Job's waiting pod; the Job must have been read after its pods."""
    spec, name = job.spec, f"Job {job.metadata.name}"
    if spec.managed_by not in (None, JOB_CONTROLLER):
        return Fate(
            False,
            f"{name} is managed by {spec.managed_by}, and whether that makes a new pod for a deleted one is not known: "
            "delete the pod if it does",
        )
    ended = any(each.type in ENDED and each.status == "True" for each in job.status.conditions or ())
    if job.metadata.deletion_timestamp or spec.suspend or ended:
        return Gone()
    action = _action(spec.pod_failure_policy, [*(pod.status.conditions or ()), DISRUPTED])
    if action in ("FailJob", "FailIndex"):
        return Fate(
            False,
            f"the podFailurePolicy of {name} answers a disrupted pod with {action}: make that Ignore for the condition "
            "DisruptionTarget, or delete and create the Job again",
        )
    if action == "Ignore":
        return Fate(True, f"its podFailurePolicy counts no failure of {name}")
    spent = _index_failures(pod)
    if spec.backoff_limit_per_index is not None and spent + 1 >= spec.backoff_limit_per_index:
        return Fate(
            False,
            f"{name} would count the pod as failed: {spent} of backoffLimitPerIndex {spec.backoff_limit_per_index} "
            "failures are spent, and the last retry stays for a failure of its own; delete and create the Job again",
        )
    uncounted = (job.status.uncounted_terminated_pods or Uncounted()).failed or []
    failed = (job.status.failed or 0) + len(uncounted) + _not_counted(pods, uncounted)
    if failed + 1 >= spec.backoff_limit:
        return Fate(
            False,
            f"{name} would count the pod as failed: {failed} of backoffLimit {spec.backoff_limit} failures are spent, "
            f"and the last retry stays for a failure of its own; raise backoffLimit to {failed + 2}, or delete and "
            "create the Job again",
        )
    return Fate(True, f"{name} counts it as failure {failed + 1} of backoffLimit {spec.backoff_limit}")


def _not_counted(pods: Sequence[TrackedPod], counted: Collection[str]) -> int:
    return sum(pod.failed_uncounted and pod.metadata.uid not in counted for pod in pods)


def _index_failures(pod: kube.Pod) -> int:
    """Failures of the pod's completion index before it; what is no number counts as none, as the controller has it."""
    text = pod.annotations.get(INDEX_FAILURES, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _action(policy: FailurePolicy | None, conditions: Sequence[kube.Condition]) -> str | None:
    """What the policy does about a failed pod of these conditions (matchPodFailurePolicy); None: it counts."""
    for rule in (policy.rules or ()) if policy else ():
        for pattern in rule.on_pod_conditions or ():
            if any((each.type, each.status) == (pattern.type, pattern.status) for each in conditions):
                return rule.action
    return None
