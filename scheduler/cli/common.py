"""What the commands share: where the cluster comes from, and how answers are printed."""

import asyncio
import json
import sys
import uuid
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import rich.console
import rich.table
import rich.text
import typer
import yaml

from capability_db.catalogue import Catalogue
from images import errors as image_errors
from images import registry, resolve
from scheduler import documents, errors, needs
from scheduler import fleet as fleets

FORBIDDEN = 403
MUST_READ = ("/api/v1/nodes", "/api/v1/pods", "/api/v1/namespaces")
"""Without these there is nothing to say; what else may not be read is warned of."""


class Output(StrEnum):
    """Forms of an answer."""

    table = "table"
    json = "json"
    yaml = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table for people; json and yaml for programs")]
ClusterOption = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE|DIR",
        help="a snapshot (what `kubectl get nodes,pods -A -o yaml` prints) in place of the kubeconfig's cluster",
        show_default=False,
    ),
]


def load_fleet(cluster: Path | None) -> fleets.Fleet:
    """The node table of a snapshot, or of the kubeconfig's cluster; raises InvalidInput or Unreachable."""
    fleet = fleets.Fleet(Catalogue.builtin())
    if cluster is not None:
        documents.load(fleet, documents.read(cluster), str(cluster))
        return fleet
    from scheduler import feeds, kubeapi, watch

    api = kubeapi.connect()
    for feed in feeds.feeds(fleet, needs.BINDINGS):
        try:
            feed.on_list(watch.list_all(api, feed.path, feed.kind, feed.selector))
        except watch.BROKEN as error:
            status = error.status if isinstance(error, kubeapi.ApiError) else None
            if status == watch.NOT_FOUND and feed.optional:
                continue
            if status != FORBIDDEN or feed.path in MUST_READ:
                raise errors.Unreachable(f"the cluster at {api.server} did not answer: {error}") from error
            warn(f"warning: {feed.path} may not be read; what it says of GPUs, late and claim pods is not counted")
    return fleet


def new_id() -> str:
    """A decision's id."""
    return uuid.uuid4().hex


async def _variants(images: Sequence[str]) -> dict[str, resolve.Resolved | image_errors.ImageError]:
    found: dict[str, resolve.Resolved | image_errors.ImageError] = {}
    async with registry.Registry() as client:
        resolver = resolve.Resolver(client)
        for image in images:
            try:
                found[image] = await resolver.variants(image)
            except image_errors.ImageError as error:
                found[image] = error
    return found


def resolve_images(images: Iterable[str]) -> dict[str, resolve.Resolved | image_errors.ImageError]:
    """The variants of each image, or why there are none."""
    return asyncio.run(_variants(list(dict.fromkeys(images))))


def emit(answer: Any, output: Output) -> None:
    """Print a program's answer."""
    if output is Output.yaml:
        sys.stdout.write(yaml.safe_dump(answer, sort_keys=False, allow_unicode=True))
    else:
        sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")


def console(*, stderr: bool = False) -> rich.console.Console:
    """A console that never cuts what a pipe or a file receives."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 100_000
    return rich.console.Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print rows under headings, in the plain form of kubectl's."""
    made = rich.table.Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(rich.text.Text("-" if cell is None or cell == "" else str(cell)) for cell in row))
    console().print(made)


def say(text: str) -> None:
    """Print a line for people."""
    sys.stdout.write(text + "\n")


def warn(text: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(text + "\n")
