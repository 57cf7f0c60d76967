"""`anygpu place`: the dry run of admission and scheduling."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from capability_db import errors as capability_errors
from capability_db import node_facts
from images import errors as image_errors
from images import resolve
from scheduler import asks, binding, decision, documents, errors, kube, offers, plain
from scheduler import fleet as fleets
from scheduler.cli import common
from webhooks import inject, mutate

Json = dict[str, Any]
Images = dict[str, resolve.Resolved | image_errors.ImageError]


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """One pod's answer."""

    pod: Json
    """The pod as it would run; `spec.nodeName` is its node, absent where nothing fits."""
    decision: decision.Decision | None
    """None: a pod that asks nothing of anygpu."""
    verdicts: list[offers.Verdict]
    scores: dict[str, int]
    warnings: tuple[str, ...] = ()

    @property
    def node(self) -> str | None:
        """The chosen node."""
        name: str | None = self.pod["spec"].get("nodeName") if any(verdict.fits for verdict in self.verdicts) else None
        return name

    def as_json(self) -> Json:
        """The stable JSON shape."""
        return {
            "pod": self.pod,
            "decision": self.decision.model_dump(mode="json") if self.decision else None,
            "nodes": [
                {
                    "name": each.name,
                    "fits": each.fits,
                    "score": self.scores.get(each.name, 0),
                    "reason": each.reason or "",
                }
                for each in self.verdicts
            ],
        }


class Refused(errors.NothingFits):
    """A pod that admission refuses though its needs are valid."""

    def __init__(self, text: str, verdicts: list[offers.Verdict]) -> None:
        self.verdicts = verdicts
        super().__init__(text)


def place_one(document: Json, fleet: fleets.Fleet, images: Images, source: str) -> Placed:
    """Admit and place one pod; raises InvalidNeeds, NothingFits, Unreachable as admission would refuse it."""
    pod = documents.to_pod(document, source)
    document = inject.without_forgeries(document, pod)
    pod = documents.to_pod(document, source)
    try:
        kube.pod_requests(pod)
    except capability_errors.QuantityError as error:
        raise errors.InvalidInput(f"{documents.describe(document)}: {error}") from error
    if not asks.concerns(pod, fleet.opted_out):
        return _place_plain(document, pod, fleet)
    question = asks.read(pod, fleet)
    image = images.get(question.container.image or "")
    if isinstance(image, image_errors.ImageError):
        raise _refused(image) from image
    if image is None:
        raise errors.InvalidInput(f"container {question.container.name}: has no image; name the logical image")
    try:
        admitted = mutate.admit(document, pod, question, image, fleet, common.new_id)
    except errors.NothingFits as error:
        raise Refused(str(error), list(offers.survey(question.ask(pod, image), fleet).verdicts)) from error
    placed, made = admitted.pod, admitted.decision
    if made.node is not None:
        placed["spec"]["nodeName"] = made.node
        if made.binding != "early" and admitted.survey.choice is not None:
            made = _bind(placed, made, admitted.survey.choice.device)
    return Placed(placed, made, list(admitted.survey.verdicts), dict(admitted.survey.scores), admitted.warnings)


def _bind(placed: Json, made: decision.Decision, device: node_facts.DeviceClass) -> decision.Decision:
    """Give a late or claim pod what /bind would give it on the chosen node; returns the decision as it is then."""
    chosen = binding.alternative(made, device)
    if chosen is None or made.node is None:
        return made
    given = binding.outcome(made, chosen, device, made.node)
    placed["metadata"]["annotations"].update(given.annotations)
    for container in [*placed["spec"]["containers"], *(placed["spec"].get("initContainers") or [])]:
        container["image"] = given.images.get(container["name"], container.get("image"))
    return given.decision


def _refused(error: image_errors.ImageError) -> errors.AnygpuError:
    """An image's error as the command reports it."""
    if isinstance(error, image_errors.BadReference):
        return errors.InvalidInput(str(error))
    if isinstance(error, image_errors.RegistryError):
        return errors.Unreachable(str(error))
    return errors.NothingFits(str(error))


def _place_plain(document: Json, pod: kube.Pod, fleet: fleets.Fleet) -> Placed:
    verdicts = plain.survey(pod, fleet)
    fitting = [verdict.name for verdict in verdicts if verdict.fits]
    best = max(fitting, key=lambda name: (plain.score(pod, fleet.rows[name]), _reversed(name)), default=None)
    spec = {**(document.get("spec") or {})}
    if best is not None:
        spec["nodeName"] = best
    return Placed({**document, "spec": spec}, None, verdicts, {})


def _reversed(name: str) -> tuple[int, ...]:
    """Sorts names backwards under `max`: the first by name wins a tie."""
    return tuple(-ord(character) for character in name)


def logical_images(documents_: list[Json], fleet: fleets.Fleet, source: str) -> list[str]:
    """The images that pods which ask anything of anygpu want variants of."""
    found: list[str] = []
    for document in documents_:
        try:
            pod = documents.to_pod(document, source)
            if asks.concerns(pod, fleet.opted_out):
                found.append(asks.read(pod, fleet).container.image or "")
        except errors.AnygpuError:
            continue  # said when its turn comes
    return [image for image in found if image]


def remember(placed: Placed, fleet: fleets.Fleet, number: int) -> None:
    """Count a placed pod for those that follow."""
    document = {**placed.pod, "metadata": {**(placed.pod.get("metadata") or {}), "uid": f"placed-{number}"}}
    fleet.apply_pod(kube.to_pod(document))


def _standard_input(source: str) -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise errors.InvalidInput(f"{source}: cannot be read: {error}") from error


def _pods(documents_: list[Json], source: str) -> list[Json]:
    making = [each for each in documents_ if each["kind"] == "Pod" or each["kind"] in documents.TEMPLATES]
    if not making and not documents_:
        raise errors.InvalidInput(f"{source}: holds no object; give a Pod, {', '.join(documents.TEMPLATES)} or a List")
    # A manifest may hold Services beside its Deployment; alone they are a mistake.
    return [documents.pod_of(each, source) for each in making or documents_]


def command(
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE|-", help="Pod, Deployment, Job, StatefulSet, … or a List")
    ],
    cluster: common.ClusterOption = None,
    output: common.OutputOption = common.Output.table,
) -> None:
    """Dry run: the pod as it would run, its node and devices, and every node's reason.

    Exit status: 0 placed, 1 nothing fits, 2 invalid, 3 cluster or registry unreachable.

    Examples:

      anygpu place -f pod.yaml

      anygpu place --cluster snapshot.yaml -f - -o json < pod.yaml
    """
    source = "standard input" if file == "-" else file
    text = documents.parse(_standard_input(source), source) if file == "-" else documents.read(Path(file))
    pods = _pods(documents.opened(text, source), source)
    several = len(pods) > 1 or any(documents.is_list(each) for each in text)
    fleet = common.load_fleet(cluster)
    images = common.resolve_images(logical_images(pods, fleet, source))
    answers: list[Json] = []
    status = 0
    for number, document in enumerate(pods):
        try:
            placed = place_one(document, fleet, images, source)
        except errors.AnygpuError as error:
            if not several and not isinstance(error, Refused):
                raise
            status = max(status, error.exit_status)
            name = f"{documents.describe(document)}: " if several else ""
            common.warn(f"error: {name}{error}")
            verdicts = error.verdicts if isinstance(error, Refused) else []
            answers.append({**Placed(document, None, verdicts, {}).as_json(), "error": str(error)})
            continue
        remember(placed, fleet, number)
        status = max(status, 0 if placed.node else 1)
        for warning in placed.warnings:
            common.warn(f"warning: {warning}")
        answers.append(placed.as_json())
        if output is common.Output.table:
            _print(placed, fleet)
    if output is not common.Output.table:
        common.emit({"items": answers} if several else answers[0], output)
    raise typer.Exit(status)


def _print(placed: Placed, fleet: fleets.Fleet) -> None:
    made = placed.decision
    metadata = placed.pod.get("metadata") or {}
    name = f"{metadata.get('namespace', 'default')}/{metadata.get('name') or metadata.get('generateName', 'pod')}"
    rows: list[tuple[str, object]] = [("pod", name), ("node", placed.node or "none: the pod waits")]
    if made is None:
        rows.append(("anygpu", "asks nothing: placed as kube-scheduler would, untouched"))
    else:
        carries = ", ".join(f"{name}: {count}" for name, count in made.injected.items())
        open_ = [("binding", f"{made.binding}; the pod carries, and its quota is charged, {carries}")]
        open_ = [] if made.binding == "early" else open_
        rows += [
            ("resource", f"{made.resource}: {made.count} (container {made.container})"),
            *open_,
            ("device", made.sku),
            *((f"image of {container}", image) for container, image in made.images.items()),
            ("why", made.reason),
            *(("kept", kept) for kept in made.kept),
        ]
    for key, value in rows:
        common.say(f"{key + ':':<12} {value}")
    ordered = sorted(
        placed.verdicts,
        key=lambda each: (not each.fits, -placed.scores.get(each.name, 0), each.reason or "", each.name),
    )
    common.say("")
    common.table(
        ("NODE", "GPU", "FITS", "SCORE", "REASON"),
        (
            (
                each.name,
                ", ".join(dict.fromkeys(pool.device.label for pool in fleet.rows[each.name].facts.pools)),
                "yes" if each.fits else "no",
                placed.scores.get(each.name) if each.fits else None,
                each.reason,
            )
            for each in ordered
        ),
        right=("SCORE",),
    )
    if made is not None and placed.node is None and (changes := offers.smallest_changes(placed.verdicts)):
        common.say(f"\nA node would fit with: {' or '.join(changes)}")
    common.say("")
