"""`anygpu crds`: the definitions of anygpu's kinds, as the API server takes them."""

import sys
from typing import Annotated

import typer
import yaml

from capability_db import crds, resources
from scheduler.cli import common


def command(
    output: Annotated[
        common.Output,
        typer.Option("--output", "-o", help="yaml and json for kubectl; table lists the kinds for people"),
    ] = common.Output.yaml,
) -> None:
    """The CustomResourceDefinitions of anygpu's kinds: GPU models, models, images, policies, nodes' GPUs.

    Examples:

      anygpu crds | kubectl apply -f -

      anygpu crds -o table
    """
    if output is common.Output.table:
        rows = (
            (kind.name, ",".join(kind.short), "namespaced" if kind.namespaced else "cluster", kind.description)
            for kind in resources.KINDS.values()
        )
        common.table(("KIND", "SHORT", "SCOPE", "HOLDS"), rows)
    elif output is common.Output.json:
        common.emit({"apiVersion": "v1", "kind": "List", "items": crds.documents()}, output)
    else:
        sys.stdout.write(yaml.safe_dump_all(crds.documents(), sort_keys=False, width=120))
