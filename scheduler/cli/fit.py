"""`anygpu fit`: on which GPUs a model fits, how many of them, with what headroom."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from capability_db import errors as capability_errors
from capability_db import models, quantities
from capability_db.catalogue import Catalogue
from capability_db.node_facts import DeviceClass
from capability_db.sku import FORMATS, Format
from scheduler import errors, needs
from scheduler import fit as fits
from scheduler.cli import common


@dataclass(frozen=True, slots=True)
class Option:
    """The model on one kind of device."""

    device: DeviceClass
    gpus: int
    """The fewest that hold the model; where none do, the most that were tried."""
    reason: str | None
    """Why it does not fit; None: it does."""
    estimate: models.Estimate
    """What each of them must hold."""

    @property
    def headroom_gib(self) -> float | None:
        """GiB of each device that the model leaves, below 0 where it lacks some; None: its memory is unknown."""
        if self.device.memory_mib is None:
            return None
        left = self.device.memory_mib * quantities.MIB - self.estimate.memory_bytes
        return round(left / models.GIB, 1) + 0.0

    def as_json(self) -> dict[str, Any]:
        """The option as programs read it."""
        return {
            "sku": self.device.label,
            "gpus": self.gpus,
            "fits": self.reason is None,
            "headroom_gib": self.headroom_gib,
            "reason": self.reason,
        }


def command(
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="for example llama-3.1-8b")],
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="FORMAT", help="of the weights; default: the model's own")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", metavar="TOKENS", help="of one sequence; default: the model's longest")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="sequences at a time; default: 1")] = None,
    cluster: common.ClusterOption = None,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="every GPU model of the capability DB, in place of a cluster's")
    ] = False,
    output: common.OutputOption = common.Output.table,
) -> None:
    """On which of my GPUs a model fits, on how many of one node, and with what headroom on each.

    Asks a snapshot with --cluster, else the kubeconfig's cluster; without any kubeconfig, or with --all, the whole
    capability DB (8 GPUs a node). Counts the GPUs that nodes have, free or not.

    Examples:

      anygpu fit --model llama-3.1-70b --context 8192 --batch 16

      anygpu fit --model deepseek-v3 --precision fp8 --cluster snapshot.yaml -o json
    """
    if every and cluster is not None:
        raise errors.InvalidInput("--all: asks the capability DB, and --cluster a snapshot; drop one of the two")
    catalogue, devices = _shipped() if every else _offered(cluster)
    work = _workload(model, precision, context, batch, catalogue)
    options = [_option(work, device, most) for device, most in devices]
    if not options:
        common.warn("no node has a GPU")
    options.sort(key=lambda each: (each.reason is not None, each.gpus, each.device.memory_mib or 0, each.device.label))
    if output is common.Output.table:
        rows = [
            (each.device.label, each.gpus, "yes" if each.reason is None else "no", _gib(each.headroom_gib), each.reason)
            for each in options
        ]
        common.table(("GPU", "GPUS", "FITS", "HEADROOM", "REASON"), rows, right=("GPUS", "HEADROOM"))
    else:
        common.emit({"model": work.profile.id, "options": [each.as_json() for each in options]}, output)
    if all(each.reason is not None for each in options):
        raise typer.Exit(errors.NothingFits.exit_status)


def _workload(
    model: str, precision: str | None, context: int | None, batch: int | None, catalogue: Catalogue
) -> models.Workload:
    if precision is not None and precision not in FORMATS:
        raise errors.InvalidInput(f"--precision {precision!r}: write one of {', '.join(FORMATS)}")
    stated: Format | None = next((each for each in get_args(Format) if each == precision), None)
    values = {"model": model, "precision": precision, "context": context, "batch": batch}
    try:
        work = models.workload(catalogue.models.find(model), stated, batch, context)
        work.on(1)  # what cannot be sized at all is said once, not for every device
    except capability_errors.ModelError as error:
        what = "is unknown: " if error.key == "model" else ""
        raise errors.InvalidInput(f"--{error.key} {values.get(error.key)!r}: {what}{error}") from error
    return work


def _offered(cluster: Path | None) -> tuple[Catalogue, list[tuple[DeviceClass, int]]]:
    """The capability DB and the device classes of the cluster, with the most devices of each that one node has."""
    try:
        fleet = common.load_fleet(cluster)
    except errors.NoCluster as error:
        if os.environ.get("KUBECONFIG"):
            raise
        common.warn(f"{error}; these are the GPU models of the capability DB")
        return _shipped()
    most: dict[int, int] = {}
    for row in fleet.rows.values():
        for pool in row.facts.pools:
            most[id(pool.device)] = max(most.get(id(pool.device), 0), pool.allocatable)
    return fleet.catalogue, [(device, most[id(device)]) for device in fleet.classes() if most[id(device)]]


def _shipped() -> tuple[Catalogue, list[tuple[DeviceClass, int]]]:
    """The capability DB that ships with anygpu, and every GPU model of it, whole."""
    catalogue = Catalogue.builtin()
    return catalogue, [(next(iter(fits.possible_classes(sku))), models.MOST_DEVICES) for sku in catalogue]


def _option(work: models.Workload, device: DeviceClass, most: int) -> Option:
    """The model on one kind of device; slices and shared devices are taken singly, since servers cannot join them."""
    counts = models.device_counts(work.profile, most if device.kind == "whole" else 1)
    memory = None if device.memory_mib is None else device.memory_mib * quantities.MIB
    enough = None if memory is None else work.fewest(memory, counts[-1])
    estimate = work.on(enough or counts[-1])
    needed = needs.Needs(
        gpus=estimate.devices,
        memory_bytes=estimate.memory_bytes,
        memory_text=quantities.gib(estimate.memory_bytes / quantities.MIB).replace(" GiB", "Gi"),
        precision=(work.precision,),
        share="any",
        workload=work,
    )
    return Option(device, estimate.devices, fits.refusal(needed, device), estimate)


def _gib(headroom: float | None) -> str | None:
    return None if headroom is None else f"{headroom:.1f} GiB"
