"""`anygpu nodes` and `anygpu skus`: the fleet as anygpu sees it, and the capability DB."""

import time
from typing import Annotated, Any

import typer

from capability_db import quantities
from capability_db.node_facts import Pool
from capability_db.sku import FORMATS, Sku
from scheduler import errors, inventory
from scheduler.cli import common


def nodes(
    cluster: common.ClusterOption = None,
    output: common.OutputOption = common.Output.table,
    every: Annotated[bool, typer.Option("--all", "-a", help="also nodes without a GPU")] = False,
) -> None:
    """The fleet as anygpu sees it: every node's GPUs, what is free of them, and what is wrong.

    Examples:

      anygpu nodes

      anygpu nodes --cluster snapshot.yaml -o json
    """
    fleet = common.load_fleet(cluster)
    # Of a snapshot nobody knows how old it is: agents are compared with the one heard last.
    now = time.time() if cluster is None else inventory.last_heard(fleet)
    if output is not common.Output.table:
        common.emit(inventory.nodes(fleet, now), output)
        return
    rows: list[tuple[object, ...]] = []
    cut = any(pool.fits for row in fleet.rows.values() for pool in row.facts.pools)
    for name in sorted(fleet.rows):
        row = fleet.rows[name]
        state = inventory.state(row, now)
        if not row.facts.pools and (every or row.facts.present):
            rows.append((name, *[None] * (7 if cut else 6), state))
        for pool in row.facts.pools:
            free = max(0, row.left(pool))
            counts = f"{free}/{pool.allocatable}" + (f" of {pool.capacity}" if pool.capacity > pool.allocatable else "")
            if held := fleet.ledger.on_node(name, pool.device.resource):
                counts += f", {held} held"
            device = pool.device
            figures = (counts, _memory(pool), *((inventory.fits(pool),) if cut else ()), _price(pool))
            rows.append((name, device.vendor, device.label, device.resource, *figures, state))
    more = ("STILL FITS",) if cut else ()
    columns = ("NODE", "VENDOR", "GPU", "RESOURCE", "FREE", "MEMORY", *more, "USD/H", "STATUS")
    common.table(columns, rows, right=("FREE", "USD/H"))


def _memory(pool: Pool) -> str | None:
    if pool.device.memory_mib is None:
        return None
    return quantities.gib(pool.device.memory_mib) + ("" if pool.device.memory_reported else " (DB)")


def _price(pool: Pool) -> str | None:
    return None if pool.device.price_usd_hour is None else f"{pool.device.price_usd_hour:g}"


def skus(
    sku: Annotated[str | None, typer.Argument(metavar="[SKU]", help="one SKU, in full")] = None,
    cluster: common.ClusterOption = None,
    output: common.OutputOption = common.Output.table,
) -> None:
    """The capability DB: what each GPU model can do, per device, with dense TFLOPS.

    Where there is a cluster, with what is registered there (ORIGIN: registered, or an override of what ships).

    Examples:

      anygpu skus

      anygpu skus h100-sxm -o yaml
    """
    known = common.load_registered(cluster)
    catalogue = known.catalogue
    found = list(catalogue)
    if sku is not None:
        one = catalogue.get(sku)
        if one is None:
            near = catalogue.nearest(sku)
            raise errors.InvalidInput(f"SKU {sku!r}: unknown" + (f"; did you mean {near}?" if near else ""))
        found = [one]
    if output is not common.Output.table:
        documents: list[dict[str, Any]] = [inventory.sku(each, known.origin("GPUSKU", each.id)) for each in found]
        common.emit(documents[0] if sku is not None else documents, output)
        return
    common.table(
        (
            "SKU",
            "VENDOR",
            "ARCH",
            "TARGET",
            "MEMORY",
            "GB/S",
            *(name.upper() for name in FORMATS),
            "WATTS",
            "MIG",
            "LINK",
            "ORIGIN",
        ),
        ((*_row(each), known.origin("GPUSKU", each.id)) for each in found),
        right=("MEMORY", "GB/S", *(name.upper() for name in FORMATS), "WATTS"),
    )
    if sku is not None and (parts := inventory.parts(found[0])):
        common.say("")
        common.table(
            ("PARTITION", "MAX", "MEMORY", "COMPUTE", "STARTS"),
            (
                (
                    each["mode"],
                    each["max"],
                    quantities.gib(each["memoryMiB"]),
                    each["compute"],
                    ",".join(map(str, each.get("starts", ()))),
                )
                for each in parts
            ),
            right=("MAX", "MEMORY"),
        )


def _row(sku: Sku) -> tuple[object, ...]:
    rates = (sku.rate(number_format) for number_format in FORMATS)
    return (
        sku.id,
        sku.vendor,
        sku.architecture,
        sku.target,
        quantities.gib(sku.memory_mib),
        None if sku.bandwidth is None else f"{sku.bandwidth:g}",
        *(None if rate is None else f"{rate:g}" for rate in rates),
        None if sku.watts is None else f"{sku.watts:g}",
        "yes" if sku.mig else None,
        sku.link.name,
    )
