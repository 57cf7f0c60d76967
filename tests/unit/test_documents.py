"""Documents as people have them: YAML or JSON, Lists, templates, and what is wrong with them in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from capability_db.catalogue import Catalogue
from scheduler import documents, errors
from scheduler import fleet as fleets

POD = {"kind": "Pod", "metadata": {"name": "p"}}
NODE = {"kind": "Node", "metadata": {"name": "n"}}


def refused(text: str) -> str:
    """What is wrong with a snapshot."""
    with pytest.raises(errors.InvalidInput) as caught:
        documents.load(fleets.Fleet(Catalogue.builtin()), documents.parse(text, "file.yaml"), "file.yaml")
    return str(caught.value)


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("kind: Pod", ["Pod"]),
        ('{"kind": "Pod"}', ["Pod"]),
        ('\n  {"kind": "Pod"}\n', ["Pod"]),
        ("kind: Pod\n---\nkind: Node\n", ["Pod", "Node"]),
        ("---\n# nothing\n---\nkind: Pod\n---\n", ["Pod"]),
        ("", []),
    ],
)
def test_yaml_and_json_are_told_apart(text: str, kinds: list[str]) -> None:
    assert [each["kind"] for each in documents.parse(text, "x")] == kinds


def test_dates_stay_text_as_kubernetes_has_them() -> None:
    (document,) = documents.parse("kind: Node\ncreated: 2026-01-02T03:04:05Z\nday: 2026-01-02", "x")
    assert (document["created"], document["day"]) == ("2026-01-02T03:04:05Z", "2026-01-02")


def test_aliases_are_followed() -> None:
    (document,) = documents.parse("kind: Pod\nmetadata: {labels: &l {a: b}, annotations: *l}", "x")
    assert document["metadata"]["annotations"] == {"a": "b"}


BOMB = "kind: Node\na0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON: "),
        ('{"kind": "Pod"} x', "no JSON: "),
        ("kind: [", "no YAML: "),
        ("kind: Pod\x00", "no YAML: "),
        ("kind: !!python/object/apply:os.getcwd []", "no YAML: "),
        ("kind: Pod\na: !!timestamp x", "no YAML: "),
        ("kind: Pod\na: !!bool x", "no YAML: "),
        ("kind: Pod\na: !!int x", "no YAML: "),
        ("kind: Pod\na: " + "9" * 5000, "no YAML: "),
        ("kind: Pod\n[a, b]: c", "no YAML: "),
        ('{"a":' * 5000, ""),
        ('{"kind": "Pod", "a": ' + "9" * 5000 + "}", "no JSON: "),
        (BOMB, "its aliases"),
        ("&a\nkind: List\nitems: [*a]", "its aliases"),
        ("kind: Node\nmetadata: &a\n  labels: *a", "its aliases"),
        ("just text", "no Kubernetes object"),
        ("[1, 2]", "no Kubernetes object"),
        ("kind: 7", "no Kubernetes object"),
        ("kind: List\nitems: [a]", "no Kubernetes object"),
        ("kind: List\nitems: [{}]", "no Kubernetes object"),
        ("kind: Pod\nmetadata: {name: p}", "holds no Node"),
        ("", "holds no Node"),
        ("kind: Node", "Node without a name: "),
        ("kind: Node\nmetadata: {}", "Node without a name: metadata.name is missing"),
        ("kind: Node\nmetadata: {name: n, labels: {a: 1}}", "Node n: metadata.labels: a: 1 is no string; quote it"),
        ("kind: Node\nmetadata: {name: n}\nstatus: {allocatable: [a]}", "Node n: "),
        ("kind: Node\nmetadata: {name: n}\nspec: {taints: [{effect: NoSchedule}]}", "Node n: "),
        ("kind: Node\nmetadata: " + "{a: " * 3000 + "1" + "}" * 3000, "nests deeper than"),
        ("[" * 100_000, "nests deeper than"),
        ("- " * 100_000 + "a", "nests deeper than"),
    ],
    ids=range(30),
)
def test_a_bad_snapshot_is_refused_in_one_line_that_names_it(text: str, says: str) -> None:
    message = refused(text)
    assert message.startswith("file.yaml: ")
    assert says in message
    assert message.isprintable()
    assert len(message) < 500


# --- Lists and folders ------------------------------------------------------------------------------------------------


def test_lists_are_opened_at_any_depth() -> None:
    inner = {"kind": "List", "items": [POD, {"kind": "List", "items": [NODE]}]}
    assert documents.opened([NODE, inner], "x") == [NODE, POD, NODE]


def test_items_of_a_typed_list_have_its_kind() -> None:
    (found,) = documents.opened([{"kind": "PodList", "items": [{"metadata": {"name": "a"}}]}], "x")
    assert found == {"kind": "Pod", "metadata": {"name": "a"}}


def test_a_snapshot_takes_nodes_and_pods_and_passes_over_the_rest() -> None:
    fleet = fleets.Fleet(Catalogue.builtin())
    others: list[Any] = [{"kind": "ConfigMap", "data": [1]}, {"kind": "Namespace", "metadata": {"labels": ["a"]}}]
    documents.load(fleet, [*others, NODE, POD], "x")
    assert [*fleet.rows] == ["n"]
    assert [pod.key for pod in fleet.pods()] == ["default/p"]


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(POD))
    (tmp_path / "a.yaml").write_text("kind: Node\n---\nkind: Pod\n")
    (tmp_path / "notes.txt").write_text("{")
    assert [each["kind"] for each in documents.read(tmp_path)] == ["Node", "Pod", "Pod"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, says in [(tmp_path / "no.yaml", "cannot be read"), (tmp_path, "holds no .yaml, .yml or .json")]:
        with pytest.raises(errors.InvalidInput, match=says) as caught:
            documents.read(path)
        assert str(path) in str(caught.value)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.InvalidInput, match=r"binary\.yaml"):
        documents.read(tmp_path)


# --- Pods of templates ------------------------------------------------------------------------------------------------

TEMPLATE = {"metadata": {"annotations": {"anygpu.io/gpus": "2"}}, "spec": {"containers": [{"name": "c"}]}}


@pytest.mark.parametrize("kind", [*documents.TEMPLATES])
def test_every_workload_makes_pods_of_its_template(kind: str) -> None:
    spec: dict[str, Any] = {"template": TEMPLATE}
    spec = {"jobTemplate": {"spec": spec}} if kind == "CronJob" else spec
    workload = {"kind": kind, "metadata": {"name": "w", "namespace": "team"}, "spec": spec}
    pod = documents.to_pod(documents.pod_of(workload, "x"), "x")
    assert pod.key == "team/w"
    assert pod.annotations == {"anygpu.io/gpus": "2"}
    assert [container.name for container in pod.containers] == ["c"]


def test_a_pod_is_itself() -> None:
    assert documents.pod_of(POD, "x") is POD


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"kind": "Service", "metadata": {"name": "s"}}, "Service s makes no pods; give a Pod, Deployment, "),
        ({"kind": "Deployment"}, "Deployment without a name has no spec.template"),
        ({"kind": "Job", "metadata": {"name": "j"}, "spec": {"template": None}}, "Job j has no spec.template"),
        ({"kind": "Job", "spec": []}, "has no spec.template"),
        ({"kind": "CronJob", "spec": {"template": TEMPLATE}}, "has no spec.jobTemplate.spec.template"),
    ],
)
def test_what_makes_no_pods_is_refused(document: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.InvalidInput, match=says):
        documents.pod_of(document, "x")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"annotations": {"anygpu.io/gpus": 2}}, "metadata.annotations: anygpu.io/gpus: 2 is no string; quote it"),
        ({"annotations": {"anygpu.io/mig": True}}, "anygpu.io/mig: True is no string; quote it"),
        ({"annotations": {"anygpu.io/sku": ["t4"] * 9999}}, "anygpu.io/sku: ['t4', 't4', "),
        ({"annotations": "anygpu.io/gpus=2"}, "annotations"),
    ],
)
def test_an_unquoted_annotation_is_named(metadata: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        documents.to_pod({"kind": "Pod", "metadata": {"name": "p"} | metadata}, "x")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300
