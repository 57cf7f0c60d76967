"""What the commands share: where the cluster comes from, and how answers are printed."""

import asyncio
import uuid
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from capability_db import registered, resources
from capability_db.catalogue import Catalogue
from images import errors as image_errors
from images import registry, resolve
from scheduler import documents, errors, needs
from scheduler import fleet as fleets
from scheduler.cli.printing import Output, OutputOption, console, emit, say, table, warn

__all__ = ["Output", "OutputOption", "console", "emit", "say", "table", "warn"]

FORBIDDEN = 403
MUST_READ = ("/api/v1/nodes", "/api/v1/pods", "/api/v1/namespaces")
"""Without these there is nothing to say; what else may not be read is warned of."""


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
    else:
        _read_cluster(fleet)
    _warn_of_invalid(fleet)
    return fleet


def _warn_of_invalid(fleet: fleets.Fleet) -> None:
    for key, verdict in fleet.registered.verdicts.items():
        if verdict.reason != "Accepted":
            warn(f"warning: {key}: {verdict.message}")


def _read_cluster(fleet: fleets.Fleet, only: Collection[str] = ()) -> None:
    """Fill the node table from the kubeconfig's cluster; with `only`, from these paths alone."""
    from scheduler import feeds, kubeapi, watch

    api = kubeapi.connect()
    for feed in feeds.feeds(fleet, needs.BINDINGS):
        if only and feed.path not in only:
            continue
        try:
            feed.on_list(watch.list_all(api, feed.path, feed.kind, feed.selector))
            feed.settle()
        except watch.BROKEN as error:
            status = error.status if isinstance(error, kubeapi.ApiError) else None
            if status == watch.NOT_FOUND and feed.optional:
                continue
            if status != FORBIDDEN or feed.path in MUST_READ:
                raise errors.Unreachable(f"the cluster at {api.server} did not answer: {error}") from error
            warn(f"warning: {feed.path} may not be read; what it says is not counted")


def load_registered(cluster: Path | None) -> registered.Registered:
    """What admins registered in a snapshot, or in the kubeconfig's cluster; nothing where that does not answer."""
    if cluster is not None:
        return load_fleet(cluster).registered
    fleet = fleets.Fleet(Catalogue.builtin())
    try:
        _read_cluster(fleet, {resources.KINDS[kind].path for kind in registered.KINDS})
    except errors.NoCluster:
        pass
    except errors.Unreachable as error:
        warn(f"warning: {error}; this is what ships with anygpu")
    _warn_of_invalid(fleet)
    return fleet.registered


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
