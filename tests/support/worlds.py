"""What the API server holds of nodes, pods and records, for tests of what follows the whole of it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import msgspec
import placing

from scheduler import fleet as fleets
from scheduler import kube, ledger, reservations

Json = dict[str, Any]

PATHS = {"/api/v1/nodes": "node", "/api/v1/pods": "pod", reservations.COLLECTION: "record"}


@dataclasses.dataclass(frozen=True)
class Event:
    """A change of one object as a watch tells it; None: the object is gone."""

    what: str
    key: str
    document: Json | None


def to_record(document: Json) -> reservations.Record:
    found = reservations.of(msgspec.convert(document, kube.ConfigMap))
    assert found is not None
    return found


class World:
    """Documents by what they are and by key, under one resourceVersion; answers lists."""

    def __init__(self) -> None:
        self.there: dict[tuple[str, str], Json] = {}
        self.version, self.lists = 0, 0

    def put(self, what: str, key: str, document: Json) -> Event:
        """Create or change an object."""
        self.version += 1
        document = copy.deepcopy(document)
        document["metadata"]["resourceVersion"] = str(self.version)
        self.there[what, key] = document
        return Event(what, key, document)

    def delete(self, what: str, key: str) -> Event:
        self.there.pop((what, key), None)
        return Event(what, key, None)

    def get(self, path: str, query: Mapping[str, str], timeout: Any = None) -> Any:
        """A list in one page, as `kubeapi.Api.get` answers it."""
        self.lists += 1
        items = [document for (what, _), document in self.there.items() if what == PATHS[path]]
        page = {"metadata": {"resourceVersion": str(self.version)}, "items": items}
        return type("Answer", (), {"data": json.dumps(page).encode()})

    def true(self) -> fleets.Fleet:
        """The node table of what is there."""
        fleet = fleets.Fleet(placing.CATALOGUE)
        for (what, key), document in self.there.items():
            apply(fleet, Event(what, key, document))
        return fleet


def apply(fleet: fleets.Fleet, event: Event) -> None:
    """Have a node table know of an event, as the feeds do."""
    found = event.document
    match event.what, found:
        case "node", None:
            fleet.remove_node(event.key)
        case "node", found:
            fleet.apply_node(kube.to_node(found))
        case "pod", None:
            fleet.remove_pod(kube.PodUid(event.key))
        case "pod", found:
            fleet.apply_pod(kube.to_pod(found))
        case "record", None if event.key in fleet.reservations:
            fleet.remove_reservations(event.key)
        case "record", found if found is not None:
            fleet.apply_reservations(to_record(found))


def counts(fleet: fleets.Fleet) -> Json:
    """All that a node table counts, and of what, in whatever version.

    What records promise to pods that are gone is left out: it is dropped when they go, and does not come with a list.
    """

    def says(found: Any) -> Any:
        metadata = msgspec.structs.replace(found.metadata, resource_version=None)
        return msgspec.structs.replace(found, metadata=metadata)

    pods = {pod.identity: says(pod) for pod in fleet.pods()}
    return {
        "nodes": {name: says(row.node) for name, row in fleet.rows.items()},
        "offered": {name: (row.facts, row.labels, row.allocatable) for name, row in fleet.rows.items()},
        "pods": pods,
        "amounts": {name: row.usage.amounts for name, row in fleet.rows.items()},
        "on nodes": {name: row.usage.pods.keys() for name, row in fleet.rows.items()},
        "holds": dict(fleet.ledger.items()),
        "promises": {key: hold for key, hold in fleet.promises.items() if key.partition("@")[0] in pods},
        "adds up": _adds_up(fleet.ledger) and _adds_up(fleet.promises),
        "records": {name: record.entries for name, record in fleet.reservations.items()},
    }


def _adds_up(held: ledger.Ledger) -> bool:
    """Whether a ledger's sums are those of what it holds."""
    anew = ledger.Ledger()
    for key, hold in held.items():
        anew.put(key, hold)
    return (held._on_node, held._waiting) == (anew._on_node, anew._waiting)
