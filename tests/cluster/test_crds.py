"""The API server takes what our models take, refuses what they refuse, and says why."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import httpx
import install
import kindchanges
import kindobjects
import pydantic
import pytest
from cluster import Cluster

from capability_db import crds, resources

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
CHANGES = 200
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def kinds(control_plane: Cluster) -> Cluster:
    """A control plane that serves our kinds."""
    install.apply_crds(control_plane)
    _ = control_plane.http  # made before the threads that share it
    return control_plane


@pytest.fixture(scope="module")
def objects(kinds: Cluster) -> Iterator[dict[str, Json]]:
    """A good object of each kind, for real; the NodeGPUs with its status."""
    made: dict[str, Json] = {}
    for kind, good in kindobjects.GOOD.items():
        body = {key: value for key, value in good.items() if key != "status"}
        made[kind] = kinds.api("POST", f"{_path(kind)}?fieldValidation=Strict", body)
        if "status" in good:
            where = f"{_path(kind)}/{good['metadata']['name']}/status?fieldValidation=Strict"
            made[kind] = kinds.api("PUT", where, {**made[kind], "status": good["status"]})
    yield made
    for kind, good in kindobjects.GOOD.items():
        kinds.api("DELETE", f"{_path(kind)}/{good['metadata']['name']}", ok=[404])


def _path(kind: str, namespace: str = "default") -> str:
    found = resources.KINDS[kind]
    return f"{resources.API}/namespaces/{namespace}/{found.plural}" if found.namespaced else found.path


def _try(kinds: Cluster, document: Json) -> httpx.Response:
    """Create the object as kubectl does, or write its status if it states no more than that; to no effect."""
    query = "fieldValidation=Strict&dryRun=All"
    if "status" in document and "spec" not in document:
        where = f"{_path(document['kind'])}/{kindobjects.GOOD[document['kind']]['metadata']['name']}"
        return kinds.http.put(f"{where}/status?{query}", json={**kinds.api("GET", where), "status": document["status"]})
    return kinds.http.post(f"{_path(document['kind'], 'kube-system')}?{query}", json=document)


@pytest.mark.parametrize("kind", [*resources.KINDS])
def test_the_kind_is_established_and_its_schema_structural(kinds: Cluster, kind: str) -> None:
    name = f"{resources.KINDS[kind].plural}.{resources.GROUP}"
    found = kinds.api("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    conditions = {each["type"]: each["status"] for each in found["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_every_shipped_sku_and_model_is_taken_as_an_object(kinds: Cluster) -> None:
    def post(document: Json) -> str | None:
        answer = _try(kinds, document)
        return None if answer.is_success else f"{document['metadata']['name']}: {answer.json()['message']}"

    documents = [*kindobjects.shipped()]
    assert len(documents) > 120
    with futures.ThreadPoolExecutor(8) as pool:
        assert [said for said in pool.map(post, documents) if said] == []


@pytest.mark.parametrize("bad", kindobjects.BAD, ids=lambda bad: f"{bad.kind}: {bad.what}")
def test_a_wrong_object_is_refused_with_a_message_that_helps(
    kinds: Cluster, objects: dict[str, Json], bad: kindobjects.Bad
) -> None:
    answer = _try(kinds, bad.document)
    assert not answer.is_success
    assert bad.says in answer.json()["message"]


@pytest.mark.parametrize("kind", [*kindobjects.GOOD])
def test_the_same_object_without_the_mistake_is_taken(kinds: Cluster, objects: dict[str, Json], kind: str) -> None:
    document = copy.deepcopy(kindobjects.GOOD[kind])
    if not resources.KINDS[kind].namespaced and "spec" in document:
        document["metadata"]["name"] += "-too"
    answer = _try(kinds, document)
    assert answer.is_success, answer.text


@pytest.mark.parametrize("kind", [*resources.KINDS])
def test_whatever_is_written_the_api_server_and_the_model_agree(
    kinds: Cluster, objects: dict[str, Json], kind: str
) -> None:
    """Types, bounds, and every rule: written in CEL for the one, in Python for the other."""
    part = "status" if kind == "NodeGPUs" else "spec"
    schema = crds.schema(resources.KINDS[kind])["properties"][part]
    good, dice = kindobjects.GOOD[kind], random.Random(kind)
    documents = [good | {part: kindchanges.changed(dice, schema, good[part])} for _ in range(CHANGES)]

    def verdicts(document: Json) -> tuple[str | None, str | None]:
        answer = _try(kinds, document)
        # What exists already was found to be valid before.
        refused = None if answer.status_code in (200, 201, 409) else answer.json()["message"]
        try:
            kindobjects.read(document)
        except pydantic.ValidationError as error:
            return refused, str(error)
        return refused, None

    with futures.ThreadPoolExecutor(8) as pool:
        found = [*zip(documents, pool.map(verdicts, documents), strict=True)]
    differ = [(document[part], *both) for document, both in found if (both[0] is None) != (both[1] is None)]
    assert not differ, f"{len(differ)} of {len(found)}, such as {differ[0]}"
    taken = sum(both[0] is None for _, both in found)
    assert CHANGES / 10 < taken < CHANGES * 9 / 10


def test_a_sku_keeps_its_vendor(kinds: Cluster, objects: dict[str, Json]) -> None:
    change = {"spec": {"vendor": "intel", "mig": None}}
    where = f"{_path('GPUSKU')}/x100-sxm?dryRun=All"
    answer = kinds.http.patch(where, json=change, headers={"Content-Type": MERGE})
    assert answer.status_code == 422
    assert "spec.vendor: a GPU model never changes its vendor" in answer.json()["message"]


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("GPUSKU", ("spec", "devicesPerCard"), 1),
        ("ModelProfile", ("spec", "tiedEmbeddings"), False),
        ("PlacementPolicy", ("spec", "weights"), {"pack": 0.5, "cost": 2, "speed": 0, "energy": 0}),
        ("NodeGPUs", ("status", "devices", 0, "healthy"), True),
    ],
)
def test_what_is_left_out_gets_its_default(
    objects: dict[str, Json], kind: str, path: tuple[str | int, ...], value: object
) -> None:
    found: Any = objects[kind]
    for step in path:
        found = found[step]
    assert found == value


@pytest.mark.parametrize("kind", [*resources.KINDS])
def test_the_status_is_written_apart_from_the_rest(kinds: Cluster, objects: dict[str, Json], kind: str) -> None:
    live = objects[kind]
    where = f"{_path(kind)}/{live['metadata']['name']}"
    current = kinds.api("GET", where)
    told = {"status": {"observedGeneration": 77}, "metadata": {"labels": {"touched": "yes"}}}
    main = kinds.api("PATCH", f"{where}?dryRun=All", told, content_type=MERGE)
    assert main["metadata"]["labels"] == {"touched": "yes"}
    assert main.get("status") == current.get("status")
    apart = kinds.api(
        "PATCH", f"{where}/status?dryRun=All", {**told, "spec": {"vendors": ["intel"]}}, content_type=MERGE
    )
    assert apart["status"]["observedGeneration"] == 77
    assert apart.get("spec") == current.get("spec")
    assert apart["metadata"]["generation"] == current["metadata"]["generation"]


@pytest.mark.parametrize(
    ("kind", "heads", "cells"),
    [
        ("GPUSKU", ["VENDOR", "TARGET", "GIB", "READY", "AGE"], ["x100-sxm", "nvidia", "9.0", "80"]),
        (
            "ModelProfile",
            ["KIND", "PRECISION", "PARAMETERS", "READY", "AGE"],
            ["tiny-1.5b", "llm", "bf16", "1500000000"],
        ),
        ("ImageSet", ["REPOSITORY", "READY", "AGE"], ["llm-server", "registry.example.com:5000/team/llm-server"]),
        ("PlacementPolicy", ["OBJECTIVE", "BINDING", "MAXPRICE", "READY", "AGE"], ["default"]),
        ("NodeGPUs", ["HEARTBEAT", "READY", "AGE"], ["gpu-node-1", "2026-11-27T00:00:00Z", "True"]),
    ],
)
def test_kubectl_shows_the_kind_under_its_short_names(
    kinds: Cluster, objects: dict[str, Json], kind: str, heads: list[str], cells: list[str]
) -> None:
    for short in resources.KINDS[kind].short:
        head, row = kinds.kubectl("get", short, objects[kind]["metadata"]["name"]).stdout.splitlines()
        assert head.split() == ["NAME", *heads]
        assert row.split()[: len(cells)] == cells


def test_kubectl_gets_all_of_anygpu_at_once(kinds: Cluster, objects: dict[str, Json]) -> None:
    found = kinds.kubectl("get", "anygpu", "-A", "-o", "name").stdout
    for kind, document in objects.items():
        assert f"{kind.lower()}.{resources.GROUP}/{document['metadata']['name']}" in found


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("gpuskus.spec.reportedMemoryMib", "What drivers report, where known; below the nominal size."),
        ("modelprofiles.spec.latentSize", "multi-head latent attention"),
        ("placementpolicies.spec.prices.nodeLabels", "of several prices that hold the one with most labels wins"),
        ("imagesets.spec.variants.tag", "A tag of the set's repository"),
        ("nodegpus.status.links.between", "Their places in `devices`"),
    ],
)
def test_kubectl_explains_the_fields(kinds: Cluster, field: str, said: str) -> None:
    def explained() -> bool:
        # The API server publishes the schema of a new kind a moment after it serves the kind.
        return said in " ".join(kinds.kubectl("explain", field, check=False).stdout.split())

    kinds.wait(f"kubectl explain {field}", explained, timeout=30)


def test_kubectl_itself_says_why(kinds: Cluster) -> None:
    bad = next(each for each in kindobjects.BAD if each.what == "an unknown geometry")
    done = kinds.kubectl("apply", "-f", "-", input=json.dumps(bad.document), check=False)
    assert done.returncode == 1
    assert bad.says in done.stderr


def test_two_writers_of_a_status_keep_each_others_conditions(kinds: Cluster, objects: dict[str, Json]) -> None:
    """The agent applies its inventory, another its own condition: each owns what it applied."""
    name = f"{objects['NodeGPUs']['metadata']['name']}-shared"
    kinds.api("POST", _path("NodeGPUs"), resources.document("NodeGPUs", name))

    def apply(manager: str, status: Json) -> Json:
        where = f"{_path('NodeGPUs')}/{name}/status?fieldManager={manager}&fieldValidation=Strict"
        document = resources.document("NodeGPUs", name, status=status)
        return kinds.api("PATCH", where, document, content_type="application/apply-patch+yaml")

    try:
        (ready,) = kindobjects.GOOD["NodeGPUs"]["status"]["conditions"]
        devices = [{"index": 0, "vendor": "nvidia"}, {"index": 1, "vendor": "nvidia"}]
        apply("agent", {"devices": devices, "conditions": [ready]})
        both = apply("checker", {"conditions": [{**ready, "type": "Consistent", "status": "False"}]})["status"]
        assert {each["type"]: each["status"] for each in both["conditions"]} == {"Ready": "True", "Consistent": "False"}
        left = apply("agent", {"devices": devices[:1], "conditions": [ready]})["status"]
        assert [each["index"] for each in left["devices"]] == [0]
        assert len(left["conditions"]) == 2
    finally:
        kinds.api("DELETE", f"{_path('NodeGPUs')}/{name}", ok=[404])
