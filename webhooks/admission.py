"""/mutate and /validate: a review in, the answer out; the only steps that wait are the registry's."""

import copy
import time
from collections.abc import Callable, Collection
from typing import Any

import structlog

from capability_db import vendors
from images import errors as image_errors
from images import resolve
from scheduler import asks, claims, decision, documents, errors, fit, kube, needs, offers, service, templates, watch
from scheduler import binder as binder_
from scheduler import fleet as fleets
from webhooks import inject, mutate, review

REMEMBER_SECONDS = 30.0
"""Longer than any admission takes, reinvocation included (the apiserver's limit)."""
NOT_SYNCED = f"{service.NOT_SYNCED}; try again in a few seconds"

log = structlog.get_logger()


class Admission:
    """Answers reviews from the node table and the registry."""

    def __init__(
        self,
        fleet: fleets.Fleet,
        resolver: resolve.Resolver,
        new_id: Callable[[], str],
        synced: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        *,
        bindings: Collection[needs.Binding] = needs.EARLY,
        binder: binder_.Binder | None = None,
        claim_templates: templates.Templates | None = None,
    ) -> None:
        self._fleet, self._resolver = fleet, resolver
        self._bindings, self._binder, self._templates = bindings, binder, claim_templates
        self._new_id, self._synced, self._clock = new_id, synced, clock
        self._made: dict[str, tuple[decision.Decision, float]] = {}
        """Decisions of the last moments, oldest first, with when to forget them: the only ones believed of a pod."""

    async def mutate(self, body: bytes) -> bytes:
        """The answer to a pod's review; raises InvalidInput for a body that is none."""
        request = review.decode(body)
        try:
            return await self._mutate(request)
        except errors.AnygpuError as error:
            return review.deny(request.uid, str(error))
        except watch.BROKEN as error:
            return review.deny(request.uid, f"the pod's ResourceClaimTemplate could not be made: {error}", code=503)
        except image_errors.RegistryError as error:
            return review.deny(request.uid, str(error), code=503)
        except image_errors.ImageError as error:
            return review.deny(request.uid, str(error))
        except Exception:
            # Whatever went wrong, the pod must not run with an image or a count that nobody decided.
            log.exception("mutate failed", uid=request.uid)
            return review.deny(request.uid, "anygpu failed to decide; its log has the details", code=500)

    async def _mutate(self, request: review.Request) -> bytes:
        document = request.object
        if document is None or request.operation != "CREATE" or (request.kind.kind or "Pod") != "Pod":
            return review.allow(request.uid)
        pod = _pod(request, document)
        if not asks.concerns(pod, self._fleet.opted_out):
            return review.allow(request.uid, document, inject.without_forgeries(document, pod))
        if not self._synced():
            return review.deny(request.uid, NOT_SYNCED, code=503)
        self._forget(self._clock())
        made = decision.read(pod.annotations)
        if made is not None and self._made.get(made.id, (None, 0.0))[0] == made:
            # The apiserver asks again after another webhook changed the pod we decided on a moment ago.
            return review.allow(request.uid, document, inject.again(document, made))
        honest = inject.without_forgeries(document, pod)
        pod = _pod(request, honest)
        question = asks.read(pod, self._fleet)
        self._check_binding(pod, question)
        image = await self._resolver.variants(question.container.image or "")
        admitted = mutate.admit(honest, pod, question, image, self._fleet, self._new_id)
        made = admitted.decision
        self._check_classes(made)
        if admitted.template is not None and self._templates is not None and not request.dry_run:
            await self._templates.ensure(admitted.template)
        self._made[made.id] = (made, self._clock() + REMEMBER_SECONDS)
        if not request.dry_run:
            self._fleet.ledger.reserve(made.id, admitted.hold, self._clock())
        log.info(
            "decided",
            namespace=pod.metadata.namespace,
            pod=pod.metadata.name or pod.metadata.generate_name,
            id=made.id,
            vendor=made.vendor,
            resource=made.resource,
            count=made.count,
            node=made.node,
            binding=made.binding,
            dry_run=bool(request.dry_run),
        )
        warnings = (*admitted.warnings, *((f"anygpu: {made.reason}",) if made.waits else ()))
        return review.allow(request.uid, document, admitted.pod, warnings)

    def _check_binding(self, pod: kube.Pod, question: asks.Question) -> None:
        if question.needs.binding not in self._bindings:
            wanted, on = question.needs.binding, [*self._bindings]
            drop = "drop the annotation"
            if not asks.states_binding(pod):
                drop = f"PlacementPolicy {question.needs.policy.binding_from} asks it; state early"
            raise errors.InvalidNeeds(
                [
                    f"anygpu.io/binding: {wanted} is not switched on in this cluster ({', '.join(on)} {_is(on)}); "
                    f"{drop}, or have an admin run anygpu serve --bindings {','.join([*on, wanted])}"
                ]
            )

    def _check_classes(self, made: decision.Decision) -> None:
        """Refuse a claim whose DeviceClasses are not there: its pod would wait without a word."""
        known = self._fleet.device_classes
        if made.binding != "claim" or known is None:
            return
        wanted = [claims.vendor_class(vendors.VENDORS[each.vendor]) for each in made.alternatives]
        lacking = [name for name in dict.fromkeys(wanted) if name not in known]
        if lacking:
            raise errors.NothingFits(
                f"anygpu.io/binding: claim needs DeviceClass {lacking[0]}, which the cluster does not have; an admin "
                "applies manifests/device-classes.yaml"
            )

    def _forget(self, now: float) -> None:
        self._fleet.ledger.expire(now)
        for key in [key for key, (_, until) in self._made.items() if until <= now]:
            del self._made[key]

    async def validate(self, body: bytes) -> bytes:
        """The answer to a workload's review, refused where its template's annotations state no valid need, or to a
        Binding's, refused where it would take a device that was promised to another pod.
        """
        request = review.decode(body)
        try:
            return review.allow(request.uid, warnings=await self._validate(request))
        except errors.AnygpuError as error:
            return review.deny(request.uid, str(error))
        except Exception:
            log.exception("validate failed", uid=request.uid)
            return review.deny(request.uid, "anygpu failed to validate; its log has the details", code=500)

    async def _validate(self, request: review.Request) -> tuple[str, ...]:
        document = request.object
        if document is None or request.operation not in ("CREATE", "UPDATE"):
            return ()
        if request.kind.kind == "Binding":
            await self._validate_binding(request, document)
            return ()
        document = {"kind": request.kind.kind, **document}
        if document["kind"] not in documents.TEMPLATES:
            return ()
        template = documents.pod_of(document, "template")
        pod = _pod(request, inject.without_forgeries(template, _pod(request, template)))
        if not asks.concerns(pod, self._fleet.opted_out):
            return ()
        if request.old_object and _same_template(request.old_object, document):
            return ()  # scaling, status, finalizers: a workload that is in must stay operable, and deletable
        question = asks.read(pod, self._fleet)
        self._check_binding(pod, question)
        never = fit.impossible(question.needs, self._fleet.catalogue, self._fleet.classes())
        if never:
            raise errors.InvalidNeeds([never])
        image: resolve.Resolved | None = None
        warnings: list[str] = []
        try:
            image = await self._resolver.variants(question.container.image or "")
        except image_errors.BadReference as error:
            raise errors.InvalidInput(f"container {question.container.name}: {error}") from error
        except image_errors.ImageError as error:
            # The image may be pushed before the first pod is made: a warning here, a refusal there.
            warnings.append(f"anygpu: {error}")
        if self._synced():
            survey = offers.survey(question.ask(pod, image), self._fleet)
            if not any(verdict.fits for verdict in survey.verdicts):
                warnings.append(_nothing_now(survey))
        return tuple(warnings)

    async def _validate_binding(self, request: review.Request, document: dict[str, Any]) -> None:
        if self._binder is None or not self._synced():
            return
        asked = _binding(request, document)
        if asked is not None:
            await self._binder.admit(asked, dry_run=bool(request.dry_run))


def _is(things: Collection[object]) -> str:
    return "is" if len(things) == 1 else "are"


def _binding(request: review.Request, document: dict[str, Any]) -> binder_.Arguments | None:
    """The pod and the node of a Binding; None: the API server will refuse it anyway."""
    metadata, target = document.get("metadata"), document.get("target")
    if not isinstance(metadata, dict) or not isinstance(target, dict):
        return None
    name, node = metadata.get("name") or request.name, target.get("name")
    if not name or not node or not request.namespace:
        return None
    return binder_.Arguments(name, request.namespace, kube.PodUid(metadata.get("uid") or ""), node)


def _pod(request: review.Request, document: dict[str, Any]) -> kube.Pod:
    metadata = document.get("metadata")
    namespace = metadata.get("namespace") if isinstance(metadata, dict) else None
    if request.namespace and not namespace:
        document = copy.copy(document)
        document["metadata"] = {**(metadata or {}), "namespace": request.namespace}
    return documents.to_pod(document, "pod")


def _same_template(old: dict[str, Any], new: dict[str, Any]) -> bool:
    kind = {"kind": new["kind"]}
    before, after = (documents.pod_of({**each, **kind}, "template") for each in (old, new))
    return before == after


def _nothing_now(survey: offers.Survey) -> str:
    changes = offers.smallest_changes(survey.verdicts)
    hint = f"; a node would fit with {' or '.join(changes)}" if changes else ""
    return f"anygpu: no node meets the pods' needs now, they will wait ({offers.in_words(survey.verdicts)}){hint}"
