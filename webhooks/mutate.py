"""A pod at admission -> the pod as it will run, with the decision: pure, given the fleet and the image's variants."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from capability_db import vendors
from images import resolve
from scheduler import asks, binding, claims, decision, errors, fit, kube, needs, offers, policies, quota
from scheduler import fleet as fleets
from scheduler.ledger import Hold
from webhooks import inject

Json = dict[str, Any]

MAX_REJECTIONS = 8
DEFAULT_TOLERATIONS = "node.kubernetes.io/"
"""What the apiserver's DefaultTolerationSeconds adds to every pod."""
BEST = {
    "pack": "the least capable GPU that fits",
    "cost": "the cheapest GPU that fits",
    "speed": "the fastest GPU that fits",
    "energy": "the GPU of fewest watts that fits",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """The answer to an admitted pod."""

    pod: Json
    decision: decision.Decision
    hold: Hold
    survey: offers.Survey
    warnings: tuple[str, ...] = ()
    template: Json | None = None
    """The ResourceClaimTemplate that must exist for the pod to run."""


def admit(
    document: Json,
    pod: kube.Pod,
    question: asks.Question,
    image: resolve.Resolved,
    fleet: fleets.Fleet,
    new_id: Callable[[], str],
) -> Admission:
    """Choose for the pod and write the choice into a copy of its document.

    Raises InvalidNeeds where no GPU model could ever meet the needs, NothingFits where the image or the node that the
    pod names rules out every GPU.
    """
    question = _decidable(pod, question)
    never = fit.impossible(question.needs, fleet.catalogue, fleet.classes())
    if never:
        raise errors.InvalidNeeds([never])
    ask = question.ask(pod, image)
    names: tuple[str, ...] = ()
    if question.needs.binding != "early":
        names = binding.names(ask, fleet)
        _check_names(question.needs.binding, names, fleet)
        # All that follows is about what the pod will carry.
        ask = dataclasses.replace(ask, needs=question.needs.model_copy(update={"resources": names}))
    survey = offers.survey(ask, fleet)
    choice = survey.choice
    if choice is None:
        have = ", ".join(sorted(image.by_vendor))
        lacks = offers.image_lacks(ask, fleet) or f"no {have} GPU model meets the pod's needs"
        raise errors.NothingFits(
            f"image {image.requested}: has variants for {have} only, none for a GPU that the pod needs ({lacks}); "
            "push that variant or relax the needs"
        )
    warnings = _check_named_node(pod, survey, choice)
    one = _early if question.needs.binding == "early" else _open
    given = one(pod, question, image, names, ask, choice, fleet)
    made = _decide(pod, question, image, given, choice, survey, new_id())
    besides = inject.Besides(
        question.container.image or "",
        given.terms if ask.nodes is None else [],
        _gpu_taints(made, fleet),
        given.template["metadata"]["name"] if given.template else None,
    )
    result = inject.write(document, made, besides)
    if made.binding == "late":
        over = quota.refusal(fleet.quotas.of(pod.metadata.namespace or "default"), kube.to_pod(result), made.injected)
        if over:
            raise errors.NothingFits(f"anygpu.io/binding: late: {over}")
    return Admission(
        result,
        made,
        Hold(choice.device.resource, ask.count, choice.node, frozenset(given.skus)),
        survey,
        warnings,
        given.template,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Given:
    """What the pod is to carry."""

    injected: Mapping[str, int]
    """Resource name -> devices, added to the container."""
    images: Mapping[str, str]
    """Container -> image, for the containers whose image is chosen: as chosen, or as expected."""
    skus: tuple[str, ...]
    terms: list[list[dict[str, object]]]
    """Node selector terms of the nodes that may serve it."""
    alternatives: tuple[decision.Alternative, ...] = ()
    template: Json | None = None
    """The ResourceClaimTemplate that the pod claims by; None: it claims nothing, or by a resource name."""


def _decidable(pod: kube.Pod, question: asks.Question) -> asks.Question:
    """The question, bound early where the pod names its node: no scheduler will ever ask where it goes."""
    how = question.needs.binding
    other_scheduler = pod.spec.scheduler_name not in (None, "", "default-scheduler", binding.SCHEDULER)
    if how == "late" and other_scheduler and asks.states_binding(pod):
        raise errors.InvalidNeeds(
            [
                f"spec.schedulerName: {pod.spec.scheduler_name} contradicts anygpu.io/binding: late, which runs on "
                f"{binding.SCHEDULER}; drop one of the two"
            ]
        )
    if how == "early" or not (pod.spec.node_name or (how == "late" and other_scheduler)):
        return question
    return dataclasses.replace(question, needs=question.needs.model_copy(update={"binding": "early"}))


def _check_names(how: needs.Binding, names: tuple[str, ...], fleet: fleets.Fleet) -> None:
    for name in names:
        if how == "late" and name in fleet.mapped:
            raise errors.NothingFits(
                f"anygpu.io/binding: late would ask {' and '.join(names)}, but DeviceClass {fleet.mapped[name]} maps "
                f"{name} (extendedResourceName), so that kube-scheduler demands it of DRA wherever the pod goes; "
                "use binding: claim, or leave that vendor out by anygpu.io/vendor"
            )


def _early(
    pod: kube.Pod,
    question: asks.Question,
    image: resolve.Resolved,
    _: tuple[str, ...],
    ask: offers.Ask,
    choice: offers.Choice,
    fleet: fleets.Fleet,
) -> _Given:
    chosen = _variant(image, choice)
    resource = choice.device.resource
    runs_on = {choice.device.vendor: chosen.runs_on_all}
    admitted = offers.admitted_skus(dataclasses.replace(ask, runs_on=runs_on), resource, fleet)
    return _Given(
        {} if question.asks_resource else {resource: question.needs.gpus},
        {} if image.pinned_by_user else dict.fromkeys(_same_image(pod, question), chosen.image),
        tuple(admitted.partitions),
        offers.node_label_terms(admitted),
    )


def _open(
    pod: kube.Pod,
    question: asks.Question,
    image: resolve.Resolved,
    names: tuple[str, ...],
    ask: offers.Ask,
    choice: offers.Choice,
    fleet: fleets.Fleet,
) -> _Given:
    """What a late or claim pod carries, which leaves the vendor open."""
    alternatives, terms = binding.alternatives(ask, fleet, names, image, _same_image(pod, question))
    expected = binding.alternative_of(alternatives, choice.device)
    template: Json | None = None
    injected: dict[str, int] = dict.fromkeys(names, question.needs.gpus)
    if question.needs.binding == "claim":
        runs_on = {each.vendor: frozenset[str]() for each in alternatives}
        for each in alternatives:
            runs_on[each.vendor] |= {*each.skus}
        injected = {claims.MARKER: 1}
        spec = claims.template_spec(question.needs, runs_on, fleet.catalogue, fleet.classes())
        template = claims.template(pod.metadata.namespace or "default", spec)
    return _Given(
        injected,
        expected.images if expected else {},
        tuple(dict.fromkeys(sku for each in alternatives for sku in each.skus)),
        terms,
        alternatives,
        template,
    )


def _check_named_node(pod: kube.Pod, survey: offers.Survey, choice: offers.Choice) -> tuple[str, ...]:
    """Refuse a pod whose nodeName cannot serve it: the kubelet would start it without a device, and nothing waits."""
    name = pod.spec.node_name
    if not name:
        return ()
    verdict = next((verdict for verdict in survey.verdicts if verdict.name == name), None)
    if verdict is None:
        raise errors.NothingFits(f"spec.nodeName: {name!r} is no node of the cluster; drop it or name one that is")
    if verdict.offer is None:
        raise errors.NothingFits(
            f"spec.nodeName: {name} cannot serve the pod ({verdict.reason}); drop nodeName, so that one can be chosen"
        )
    if choice.node is None:
        return (f"node {name}, which the pod names, is full ({verdict.reason}): its kubelet will reject the pod",)
    return ()


def _decide(
    pod: kube.Pod,
    question: asks.Question,
    image: resolve.Resolved,
    given: _Given,
    choice: offers.Choice,
    survey: offers.Survey,
    decision_id: str,
) -> decision.Decision:
    device = choice.device
    return decision.Decision(
        id=decision_id,
        binding=question.needs.binding,
        vendor=device.vendor,
        resource=device.resource,
        count=question.needs.gpus,
        container=question.container.name,
        sku=device.skus[0].id if device.skus else None,
        skus=given.skus,
        node=choice.node,
        images=dict(given.images),
        reason=_reason(question.needs, choice, survey),
        kept=_kept(pod, question, image),
        rejected=_rejections(survey),
        injected=dict(given.injected),
        alternatives=given.alternatives,
        policy=None if question.needs.policy == policies.NONE else question.needs.policy,
    )


def _reason(needed: needs.Needs, choice: offers.Choice, survey: offers.Survey) -> str:
    where = choice.device.label
    if choice.node is not None:
        fitting = sum(verdict.fits for verdict in survey.verdicts)
        best = BEST[needed.objective]
        how = f"objective {needed.objective}"
        if needed.weights is not None:
            best, how = "the best by weights", f"weights {policies.weights_in_words(needed.weights)}"
        elif needed.objective == "cost" and choice.device.price_usd_hour is None:
            best = f"no price is known, so {BEST['pack']}"
        first = f"of vendor {','.join(needed.vendors)}, in this order, " if len(needed.vendors) > 1 else ""
        return f"{where} on {choice.node}: {first}{best} ({how}); nodes that fit now: {fitting}"
    if choice.nodes:
        why = offers.in_words(verdict for verdict in survey.verdicts if verdict.offer)
        return f"waits for {where}: nodes that could serve it: {choice.nodes}, none can now ({why})"
    changes = offers.smallest_changes(survey.verdicts)
    hint = f"; a node would fit with {' or '.join(changes)}" if changes else ""
    why = offers.in_words(each for each in survey.verdicts if each.reason != offers.OTHER_NODE)
    return f"waits, asking for {where}: no node of the cluster could serve it ({why}){hint}"


def _rejections(survey: offers.Survey) -> tuple[decision.Rejection, ...]:
    counts: dict[tuple[str, str], int] = {}
    for verdict in survey.verdicts:
        if verdict.missing:
            what, _, reason = verdict.missing[0].text.partition(": ")
            key = (what, reason or what)
            counts[key] = counts.get(key, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        decision.Rejection(what=what, nodes=count, reason=reason) for (what, reason), count in ordered[:MAX_REJECTIONS]
    )


def _kept(pod: kube.Pod, question: asks.Question, image: resolve.Resolved) -> tuple[str, ...]:
    kept: list[str] = []
    if question.asks_resource:
        kept.append(f"resource {question.needs.resources[0]}: the pod asks it, the vendor follows")
    if image.pinned_by_user:
        kept.append(f"image {image.requested}: pinned by digest")
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity else None
    if affinity and affinity.required_during_scheduling_ignored_during_execution:
        kept.append("node affinity: and-ed with the SKUs that fit")
    if pod.spec.node_selector:
        kept.append("nodeSelector")
    if any(not (each.key or "").startswith(DEFAULT_TOLERATIONS) for each in pod.spec.tolerations or ()):
        kept.append("tolerations")
    if question.needs.binding != "late" and pod.spec.scheduler_name not in (None, "", "default-scheduler"):
        kept.append(f"schedulerName {pod.spec.scheduler_name}")
    if (
        pod.spec.node_name
        and "anygpu.io/binding" in pod.annotations
        and pod.annotations["anygpu.io/binding"] != "early"
    ):
        kept.append("binding early: the pod names its node, so nothing is left to decide later")
    named = kube.named_nodes(pod.spec)
    if named:
        kept.append(f"node {', '.join(named)}: the pod names it")
    return tuple(kept)


def _variant(image: resolve.Resolved, choice: offers.Choice) -> resolve.Pinned:
    """The first of the vendor's variants that runs on whatever device of the chosen class the pod is given."""
    targets = [sku.target for sku in choice.device.skus if sku.target]
    options = image.options[choice.device.vendor]
    return next(option for option in options if option.runs_on_all(targets))


def _same_image(pod: kube.Pod, question: asks.Question) -> list[str]:
    """The containers that name the same logical image as the one that gets the GPU."""
    return [each.name for each in pod.containers if each.image == question.container.image]


def _gpu_taints(made: decision.Decision, fleet: fleets.Fleet) -> list[tuple[str, str]]:
    """(key, effect) of the GPU taints on the nodes that could serve the pod with its resources."""
    found: set[tuple[str, str]] = set()
    given = {each.resource: each.vendor for each in made.alternatives} or {made.resource: made.vendor}
    for resource, name in given.items():
        vendor = vendors.VENDORS[name]
        serving = [row for row in fleet.rows.values() if any(p.device.resource == resource for p in row.facts.pools)]
        for row in serving:
            found |= {(taint.key, taint.effect) for taint in row.node.spec.taints or () if vendor.tolerates(taint.key)}
        if not serving:
            usual = resource if resource in vendor.taints else vendor.taints[0]
            found.add((usual, "NoSchedule"))  # nodes to come will likely carry the vendor's usual taint
    return sorted(found)
