"""Why a pod is where it is, or why it waits and what would let it run: from the API's objects alone."""

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

from capability_db import errors as capability_errors
from capability_db import node_facts
from scheduler import asks, decision, errors, kube, needs, offers, plain, policies
from scheduler import fleet as fleets


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """The answer to "why is this pod here, or not running?"."""

    pod: str
    node: str | None
    """Where it is; None: it waits."""
    summary: str
    decision: decision.Decision | None
    problem: str | None
    """What is wrong with the pod's annotations, if anything."""
    changes: tuple[str, ...]
    """Single changes of the pod that would let some node take it."""
    advice: str | None
    verdicts: tuple[offers.Verdict, ...]
    scheduler_says: str | None
    """The message of the pod's PodScheduled condition."""
    policy: tuple[str, ...] = ()
    """What PlacementPolicies say for the pod, a line for each thing, and which says it."""

    def as_json(self) -> dict[str, Any]:
        """The stable JSON shape."""
        return {
            "pod": self.pod,
            "node": self.node,
            "summary": self.summary,
            "decision": self.decision.model_dump(mode="json") if self.decision else None,
            "problem": self.problem,
            "changes": list(self.changes),
            "advice": self.advice,
            "schedulerSays": self.scheduler_says,
            "policy": list(self.policy),
            "nodes": [{"name": each.name, "fits": each.fits, "reason": each.reason or ""} for each in self.verdicts],
        }


def explain(pod: kube.Pod, fleet: fleets.Fleet) -> Explanation:
    """Judge the pod anew, as if it were not there, against the cluster as it is. The node table is left as it was."""
    with fleet.without(pod):
        answer = _explain(pod, fleet)
    return dataclasses.replace(answer, policy=_policy(pod, fleet))


def _policy(pod: kube.Pod, fleet: fleets.Fleet) -> tuple[str, ...]:
    if not asks.concerns(pod, fleet.opted_out):
        return ()
    stated = [key.removeprefix(needs.PREFIX) for key in pod.annotations if key.startswith(needs.PREFIX)]
    now, made = fleet.policy(pod.metadata.namespace), decision.read(pod.annotations)
    if made is None:
        return tuple(policies.in_words(now, stated))
    given = made.policy or policies.NONE
    lines = policies.in_words(given, stated)
    if given != now:
        other = "; ".join(policies.in_words(now, stated)) or "none hold now"
        lines.append(f"as it was admitted; for a pod made now: {other}")
    return tuple(lines)


def _explain(pod: kube.Pod, fleet: fleets.Fleet) -> Explanation:
    node = pod.spec.node_name or None
    made = decision.read(pod.annotations)
    says = next((each.message for each in pod.status.conditions or () if each.type == "PodScheduled"), None)
    problem: str | None = None
    advice: str | None = None
    changes: tuple[str, ...] = ()
    original = _unbound(as_written(pod, made))
    try:
        kube.pod_requests(original)
    except capability_errors.QuantityError as error:
        return Explanation(pod.key, node, "what it asks is no amount", made, str(error), (), None, (), says)
    if not asks.concerns(pod, fleet.opted_out):
        verdicts = plain.survey(original, fleet)
        summary = f"runs on {node}" if node else "waits"
        summary += "; it asks nothing of anygpu"
    else:
        try:
            question = asks.read(original, fleet)
        except errors.InvalidNeeds as error:
            return Explanation(
                pod.key, node, "its annotations state no valid need", made, str(error), (), None, (), says
            )
        survey = offers.survey(question.ask(original, None), fleet)
        verdicts = list(survey.verdicts)
        if node:
            summary = _runs(node, made)
        else:
            fits = any(verdict.fits for verdict in verdicts)
            changes = () if fits else tuple(offers.smallest_changes(verdicts))
            summary, advice = _waits(survey, made)
            advice = advice or _of_policy(question.needs, verdicts)
    return Explanation(pod.key, node, summary, made, problem, changes, advice, tuple(verdicts), says)


def _of_policy(needed: needs.Needs, verdicts: Iterable[offers.Verdict]) -> str | None:
    """Whom to ask, where nothing but policies keeps the pod off nodes; None: they do not."""
    texts = [v.missing[0].text for v in verdicts if v.missing and {each.key for each in v.missing} == {"policy"}]
    rules = [rule for rule in needed.policy.rules if any(rule.who in text for text in texts)]
    return policies.who_can_change(rules) if rules and not any(verdict.fits for verdict in verdicts) else None


def _runs(node: str, made: decision.Decision | None) -> str:
    if made is None:
        return f"runs on {node}; anygpu's webhook did not see it when it was created"
    moved = "" if made.node in (node, None) else f" (expected on {made.node} at admission)"
    return f"runs on {node}{moved} with {made.resource}: {made.count}; {made.reason}"


_PREEMPTION = {
    "late": "of a priority above those that hold the devices, anygpu would evict for it",
    "claim": "its priority evicts nobody: Kubernetes 1.37 does not preempt for devices that DRA allocates; it waits "
    "until one is free",
}
"""What a pod's priority does for it while it waits, by binding."""


def _waits(survey: offers.Survey, made: decision.Decision | None) -> tuple[str, str | None]:
    fits = [verdict for verdict in survey.verdicts if verdict.fits]
    choice = survey.choice
    open_ = made is not None and made.binding != "early"
    if (
        not open_
        and made is not None
        and choice is not None
        and choice.node
        and choice.device.resource != made.resource
    ):
        return (
            f"waits for {made.resource}, which nothing fitting has free",
            f"{choice.node} would take it now with {choice.device.resource}, but a pod's resource cannot change: "
            "delete the pod, so that its owner makes a new one and the choice is made anew",
        )
    advice = _PREEMPTION.get(made.binding) if made is not None else None
    if fits:
        return (
            f"waits, though nodes fit ({len(fits)}): kube-scheduler has not come to it, or has its own reasons",
            None,
        )
    could = [verdict for verdict in survey.verdicts if verdict.offer]
    if could:
        return f"waits: nodes that could serve it: {len(could)}, none can now ({offers.in_words(could)})", advice
    return "waits: no node of the cluster could serve it as it is", None


def as_written(pod: kube.Pod, made: decision.Decision | None) -> kube.Pod:
    """The pod as its user wrote it, as far as decisions read it: without the resource and affinity anygpu added."""
    if made is None:
        return pod
    document = copy.deepcopy(kube.to_json(pod))
    spec = document["spec"]
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        for amounts in (container.get("resources") or {}).values():
            for resource in made.injected if container.get("name") == made.container and amounts else ():
                amounts.pop(resource, None)
    node = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms: list[dict[str, Any]] = []
    for term in required.get("nodeSelectorTerms") or []:
        kept = [each for each in term.get("matchExpressions") or [] if not node_facts.is_ours(each["key"])]
        stripped = {**term, "matchExpressions": kept}
        if stripped not in terms:
            terms.append(stripped)
    if required:
        if all(not term.get("matchExpressions") and not term.get("matchFields") for term in terms):
            del node["requiredDuringSchedulingIgnoredDuringExecution"]
        else:
            required["nodeSelectorTerms"] = terms
    return kube.to_pod(document)


def undecided(pod: kube.Pod) -> kube.Pod:
    """The pod as one made anew would come in: nothing decided yet."""
    document = kube.to_json(pod)
    annotations = document["metadata"].get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if not needs.is_written_back(key)}
    return kube.to_pod({**document, "metadata": {**document["metadata"], "annotations": kept}})


def _unbound(pod: kube.Pod) -> kube.Pod:
    document = kube.to_json(pod)
    document["spec"].pop("nodeName", None)
    return kube.to_pod(document)
