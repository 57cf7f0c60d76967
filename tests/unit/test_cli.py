"""The commands: what they print, and their exit statuses, through the real entry point."""

import io
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpunodes
import gpureports
import placing
import pytest
import registering
import typer.main
import yaml
from kubernetes.config import kube_config

from scheduler.cli import main

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
DEMO = ROOT / "manifests" / "demo" / "cluster.yaml"
COMMANDS = sorted(typer.main.get_command(main.app).commands)  # type: ignore[attr-defined]


class Anygpu:
    """The command, run in this process."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys, self.folder = monkeypatch, capsys, tmp_path
        nodes = [gpunodes.nvidia("t4", "t4", 4), gpunodes.nvidia("h100", "h100"), gpunodes.amd("mi", "mi300x")]
        waits = gpunodes.pod("waits", image=placing.PINNED, memory="500Gi", precision="fp8", vendor="nvidia")
        waits["metadata"]["annotations"]["anygpu.io/memory"] = "200Gi"
        runs = placing.bound("runs", "t4", {"nvidia.com/gpu": 1})
        self.snapshot = self.file("snapshot.yaml", {"kind": "List", "items": [*nodes, runs, waits]})

    def file(self, name: str, content: Any) -> str:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    def __call__(self, *arguments: str, stdin: str | bytes = "") -> tuple[int, str, str]:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        self._monkeypatch.setattr(sys, "argv", ["anygpu", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        output = self._capsys.readouterr()
        assert "Traceback" not in output.err + output.out
        assert "a defect of anygpu" not in output.err
        return int(ended.value.code or 0), output.out, output.err

    def place(self, document: Any, *more: str) -> tuple[int, str, str]:
        text = document if isinstance(document, str | bytes) else json.dumps(document)
        return self("place", "--cluster", self.snapshot, "-f", "-", *more, stdin=text)

    def placed(self, document: Any, status: int = 0) -> Json:
        code, out, err = self.place(document, "-o", "json")
        assert code == status, err
        answer: Json = json.loads(out)
        return answer


@pytest.fixture
def anygpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Anygpu:
    return Anygpu(tmp_path, monkeypatch, capsys)


def pod(name: str = "p", **needs: str) -> Json:
    return gpunodes.pod(name, image=placing.PINNED, **(needs or {"gpus": "1"}))


def workload(kind: str, **needs: str) -> Json:
    made = pod(**needs)
    template: Json = {"template": {"metadata": {"annotations": made["metadata"]["annotations"]}, "spec": made["spec"]}}
    spec = {"jobTemplate": {"spec": template}} if kind == "CronJob" else template
    return {"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "w", "namespace": "team"}, "spec": spec}


def with_registered(anygpu: Anygpu, tmp_path: Path, *found: Any) -> str:
    """The snapshot, with registered objects besides."""
    documents = [
        {
            "apiVersion": "anygpu.io/v1alpha1",
            "kind": each.kind,
            "metadata": {"name": each.metadata.name, "namespace": each.metadata.namespace},
            "spec": each.spec,
        }
        for each in found
    ]
    folder = tmp_path / "with-registered"
    folder.mkdir()
    (folder / "nodes.json").write_text(Path(anygpu.snapshot).read_text())
    (folder / "registered.yaml").write_text(yaml.safe_dump_all(documents))
    return str(folder)


def test_what_a_snapshot_registers_counts_in_every_command(anygpu: Anygpu, tmp_path: Path) -> None:
    snapshot = with_registered(
        anygpu,
        tmp_path,
        registering.sku("next-64", "NVIDIA-Next-64GB"),
        registering.sku("t4", "Tesla-T4", memoryGib=17),
        registering.made("ModelProfile", "our-model", {"kind": "embedding", "precision": "fp16", "memoryGib": 100}),
        registering.policy(prices=[{"sku": "mi300x", "usdHour": 3.25}]),
        registering.policy("team", vendors=["nvidia"]),
        registering.policy("wrong", skus=["nothing"]),
    )
    code, out, err = anygpu("skus", "--cluster", snapshot, "-o", "json")
    origins = {each["id"]: each["origin"] for each in json.loads(out)}
    assert (code, origins["next-64"], origins["t4"], origins["l4"]) == (0, "registered", "override", "shipped")
    assert "warning: PlacementPolicy wrong/default: spec.skus[0]: 'nothing' is no SKU" in err
    assert "override" in anygpu("skus", "--cluster", snapshot)[1]

    nodes = json.loads(anygpu("nodes", "--cluster", snapshot, "-o", "json")[1])
    prices = {node["name"]: node["devices"][0]["priceUsdHour"] for node in nodes}
    assert (prices["mi"], prices["t4"]) == (3.25, None)
    assert "3.25" in anygpu("nodes", "--cluster", snapshot)[1]

    fits = json.loads(anygpu("fit", "--model", "our-model", "--cluster", snapshot, "-o", "json")[1])
    assert [each["sku"] for each in fits["options"] if each["fits"]] == ["mi300x"]

    asked = json.dumps(workload("Deployment", model="our-model"))
    code, out, _ = anygpu("place", "--cluster", snapshot, "-f", "-", stdin=asked)
    assert code == 1
    assert "amd: not allowed by PlacementPolicy team/default, which allows nvidia" in out


# --- place ------------------------------------------------------------------------------------------------------------


def test_place_prints_the_pod_as_it_would_run_and_every_nodes_reason(anygpu: Anygpu) -> None:
    answer = anygpu.placed(pod(memory="20Gi", vendor="amd,nvidia"))
    assert set(answer) == {"pod", "decision", "nodes"}
    assert answer["pod"]["spec"]["nodeName"] == answer["decision"]["node"] == "mi"
    assert answer["pod"]["spec"]["containers"][0]["resources"]["limits"] == {"amd.com/gpu": "1"}
    assert answer["nodes"] == [
        {"name": "h100", "fits": True, "score": 8, "reason": ""},
        {"name": "mi", "fits": True, "score": 10, "reason": ""},
        {"name": "t4", "fits": False, "score": 0, "reason": "t4: 15 GiB of memory, 20Gi asked"},
    ]


def test_place_says_no_with_status_1_and_what_would_let_it_run(anygpu: Anygpu) -> None:
    answer = anygpu.placed(pod(memory="120Gi", vendor="nvidia"), status=1)
    assert "nodeName" not in answer["pod"]["spec"]
    assert answer["decision"]["node"] is None
    code, out, _ = anygpu.place(pod(memory="120Gi", vendor="nvidia"))
    assert code == 1
    assert "none: the pod waits" in out
    assert "A node would fit with: " in out


def test_place_for_people_names_node_device_and_reason(anygpu: Anygpu) -> None:
    code, out, err = anygpu.place(pod())
    assert (code, err) == (0, "")
    assert "node:        t4" in out
    assert "the least capable GPU that fits" in out
    assert "pinned by digest" in out


def test_place_prints_yaml_too(anygpu: Anygpu) -> None:
    _, out, _ = anygpu.place(pod(), "-o", "yaml")
    assert yaml.safe_load(out)["decision"]["node"] == "t4"


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"])
def test_a_workload_stands_for_its_pod(anygpu: Anygpu, kind: str) -> None:
    answer = anygpu.placed(workload(kind))
    assert (answer["pod"]["kind"], answer["pod"]["metadata"]["namespace"]) == ("Pod", "team")
    assert answer["pod"]["spec"]["nodeName"] == "t4"


def test_a_list_is_placed_one_after_the_other(anygpu: Anygpu) -> None:
    items = [pod(f"p{number}", sku="t4") for number in range(4)]
    answer = anygpu.placed({"kind": "List", "items": items}, status=1)
    assert list(answer) == ["items"]
    assert [each["pod"]["spec"].get("nodeName") for each in answer["items"]] == ["t4", "t4", "t4", None]


def test_several_documents_are_placed_like_a_list(anygpu: Anygpu) -> None:
    text = "---\n".join(yaml.safe_dump(each) for each in (pod("a"), workload("Deployment"), {"kind": "Service"}))
    assert len(anygpu.placed(text)["items"]) == 2


def test_a_list_of_one_is_still_a_list(anygpu: Anygpu) -> None:
    assert len(anygpu.placed({"kind": "PodList", "items": [{**pod(), "kind": None} | {"kind": "Pod"}]})["items"]) == 1


def test_one_bad_pod_of_a_list_does_not_hide_the_others(anygpu: Anygpu) -> None:
    code, out, err = anygpu.place({"kind": "List", "items": [pod("good"), pod("bad", gpus="x")]}, "-o", "json")
    assert code == 2
    assert err.startswith("error: Pod bad: anygpu.io/gpus: 'x'")
    assert [each["pod"]["metadata"]["name"] for each in json.loads(out)["items"]] == ["good", "bad"]


def test_a_pod_without_annotations_goes_where_kube_scheduler_would_put_it(anygpu: Anygpu) -> None:
    plain = {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    answer = anygpu.placed(plain)
    node = answer["pod"]["spec"].pop("nodeName")
    assert node in {"t4", "h100", "mi"}
    assert (answer["pod"], answer["decision"]) == (plain, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no object"),
        ("# nothing\n---\n", "holds no object"),
        ("{", "no JSON"),
        ("a: [", "no YAML"),
        ("\t- x", "no YAML"),
        ("just words", "no Kubernetes object"),
        ("[]", "no Kubernetes object"),
        ("kind: Service\nmetadata: {name: s}", "Service s makes no pods"),
        ("kind: Deployment\nmetadata: {name: d}", "has no spec.template"),
        ("kind: Pod\nmetadata: {annotations: {anygpu.io/gpus: 2}}\nspec: {}", "anygpu.io/gpus: 2 is no string"),
        ("kind: Pod\nmetadata: {annotations: {anygpu.io/gpus: '2'}}\nspec: {}", "a pod needs a container"),
        ("kind: Pod\nspec: {containers: {}}", "Expected `array"),
        (json.dumps(pod(gpus="-1")), "anygpu.io/gpus: '-1'"),
        (json.dumps(pod(memory="40")), "a unit is required"),
        (json.dumps(pod(precison="fp8")), "anygpu.io/precison: unknown; did you mean precision?"),
        (json.dumps(pod(binding="lat")), "is not one of early, late, claim; did you mean late?"),
        (json.dumps(pod(container="other")), "'other' is not a container of the pod"),
        (json.dumps(pod(memory="10Ti")), "no GPU model in the capability DB meets this"),
        (b"\xff\xfe\x00binary", "standard input"),
        (json.dumps(pod() | {"spec": {"containers": [{"name": "c", "image": "UPPER CASE"}]}}), "UPPER CASE"),
        (json.dumps(pod() | {"spec": {"containers": [{"name": "c"}]}}), "image"),
        (json.dumps(pod(gpus="2") | {"spec": {"containers": [{"image": placing.PINNED}]}}), "has no name"),
        (json.dumps(pod() | {"spec": {"containers": [{"name": "c", "image": "x"}] * 2}}), "two containers are named c"),
        ("kind: Pod\nmetadata: {name: p, x: !!binary aGk=}", "has no JSON form"),
        ("kind: Pod\nspec: {containers: [{name: c, resources: {limits: {cpu: lots}}}]}", "'lots' is not a Kubernetes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_status_2(anygpu: Anygpu, text: str | bytes, said: str) -> None:
    code, out, err = anygpu.place(text)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_json_documents_between_yaml_markers_and_flow_style_are_yaml(anygpu: Anygpu) -> None:
    assert len(anygpu.placed(f"{json.dumps(pod('a'))}\n---\n{json.dumps(pod('b'))}\n")["items"]) == 2
    flow = f'{{kind: Pod, metadata: {{name: p}}, spec: {{containers: [{{name: c, image: "{placing.PINNED}"}}]}}}}'
    assert anygpu.placed(flow)["decision"] is None


def test_text_that_the_terminal_cannot_show_is_escaped(anygpu: Anygpu) -> None:
    document = pod()
    document["metadata"]["annotations"]["other"] = "\ud800"
    assert anygpu.placed(document)["pod"]["metadata"]["annotations"]["other"] == "\ud800"


@pytest.mark.parametrize("field", [{"env": {"A": "b"}}, {"volumeMounts": {"name": "x"}}, {"env": "x"}, {"env": ["x"]}])
def test_lists_that_are_none_are_named(anygpu: Anygpu, field: Json) -> None:
    document = pod(gpus="2", vendor="nvidia")
    document["spec"]["containers"][0] |= field
    document["spec"]["containers"].append({"name": "sibling", "image": placing.PINNED} | field)
    code, _, err = anygpu.place(document)
    assert code == 2
    assert err.endswith(f"{next(iter(field))} is no list of objects\n")


def test_a_file_that_is_not_there_is_status_2(anygpu: Anygpu) -> None:
    code, _, err = anygpu("place", "--cluster", anygpu.snapshot, "-f", "nowhere.yaml")
    assert (code, "nowhere.yaml: cannot be read" in err) == (2, True)


def test_an_unreachable_registry_is_status_3(anygpu: Anygpu) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    code, _, err = anygpu.place(gpunodes.pod(image=f"127.0.0.1:{port}/team/app:v1", gpus="1"))
    assert code == 3
    assert f"127.0.0.1:{port}" in err
    assert err.count("\n") == 1


def test_an_image_that_runs_on_no_fitting_gpu_is_status_1(anygpu: Anygpu) -> None:
    image = placing.PINNED.replace("app@", "app:v1-rocm6.2@")
    code, _, err = anygpu.place(gpunodes.pod(image=image, sku="t4"))
    assert (code, "amd" in err) == (1, True)


# --- snapshots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no Node"),
        ("kind: List\nitems: []", "holds no Node"),
        ("kind: Node\nmetadata: []", "Expected `object"),
        ("kind: Node\nmetadata: {name: n}\nstatus: {allocatable: [1]}", "Expected `object"),
        ("[", "no YAML"),
    ],
)
def test_a_snapshot_that_is_none_is_status_2(anygpu: Anygpu, content: str, said: str) -> None:
    code, _, err = anygpu("nodes", "--cluster", anygpu.file("bad.yaml", content))
    assert code == 2
    assert said in err
    assert "bad.yaml" in err


def test_a_snapshot_may_be_a_folder_of_yaml_and_json(anygpu: Anygpu) -> None:
    folder = anygpu.folder / "snapshot"
    folder.mkdir()
    (folder / "nodes.json").write_text(json.dumps({"kind": "NodeList", "items": [gpunodes.nvidia("a", "t4")]}))
    (folder / "more.yml").write_text(yaml.safe_dump(gpunodes.amd("b", "mi300x")))
    (folder / "notes.txt").write_text("not a snapshot")
    code, out, _ = anygpu("nodes", "--cluster", str(folder), "-o", "json")
    assert (code, [node["name"] for node in json.loads(out)]) == (0, ["a", "b"])
    empty = anygpu.folder / "empty"
    empty.mkdir()
    assert anygpu("nodes", "--cluster", str(empty))[0] == 2


@pytest.mark.parametrize("command", [("nodes",), ("explain", "x"), ("place", "-f", "-")])
def test_without_a_snapshot_and_a_cluster_it_is_status_3(
    anygpu: Anygpu, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    def use(path: str) -> None:
        monkeypatch.setenv("KUBECONFIG", path)
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", path)  # read when it is imported

    use(str(anygpu.folder / "none"))
    code, _, err = anygpu(*command, stdin=json.dumps(pod()))
    assert (code, err.startswith("error: no cluster: ")) == (3, True)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
    }
    use(anygpu.file("config", config))
    code, _, err = anygpu(*command, stdin=json.dumps(pod()))
    assert (code, "127.0.0.1:1" in err) == (3, True)


# --- explain, nodes, skus ---------------------------------------------------------------------------------------------


def test_explain_says_where_and_why(anygpu: Anygpu) -> None:
    code, out, _ = anygpu("explain", "default/runs", "--cluster", anygpu.snapshot)
    assert (code, out.splitlines()[0]) == (0, "default/runs runs on t4; it asks nothing of anygpu")


def test_explain_says_what_would_let_a_pod_run_with_status_1(anygpu: Anygpu) -> None:
    code, out, _ = anygpu("explain", "waits", "--cluster", anygpu.snapshot)
    assert code == 1
    assert "waits: no node of the cluster could serve it as it is" in out
    code, out, _ = anygpu("explain", "waits", "--cluster", anygpu.snapshot, "-o", "json")
    answer = json.loads(out)
    assert (code, answer["pod"], answer["node"], len(answer["nodes"])) == (1, "default/waits", None, 3)
    assert yaml.safe_load(anygpu("explain", "waits", "--cluster", anygpu.snapshot, "-o", "yaml")[1]) == answer


@pytest.mark.parametrize("name", ["nobody", "team/runs", "/", ""])
def test_explain_of_a_pod_that_is_not_there_is_status_2(anygpu: Anygpu, name: str) -> None:
    code, _, err = anygpu("explain", name, "--cluster", anygpu.snapshot)
    assert (code, "not found" in err) == (2, True)


def test_nodes_shows_each_resource_and_what_is_free(anygpu: Anygpu) -> None:
    code, out, _ = anygpu("nodes", "--cluster", anygpu.snapshot)
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("t4"))
    assert "nvidia.com/gpu" in row
    assert "3/4" in row
    answer = json.loads(anygpu("nodes", "--cluster", anygpu.snapshot, "-o", "json")[1])
    assert [(node["name"], node["devices"][0]["free"]) for node in answer] == [("h100", 8), ("mi", 8), ("t4", 3)]
    assert yaml.safe_load(anygpu("nodes", "--cluster", anygpu.snapshot, "-o", "yaml")[1]) == answer


def test_nodes_shows_what_agents_report(anygpu: Anygpu) -> None:
    """Several models in one node, a lost GPU, a contradiction, and what still fits on GPUs that are cut."""
    cut = [gpureports.cut(each, ("3g.40gb", 4)) for each in gpureports.several("a100-80", 2)]
    mixed = [*gpureports.several("t4", 1), gpureports.sick(gpureports.nvidia("x", "l4"), "lost")]
    snapshot = anygpu.file(
        "reports.yaml",
        {
            "kind": "List",
            "items": [
                gpunodes.node("cut", {}, {"nvidia.com/mig-3g.40gb": 2}),
                gpunodes.node("mixed", {}, {"nvidia.com/gpu": 2}),
                gpunodes.nvidia("wrong", "t4", 1),
                gpunodes.nvidia("odd", "t4", 1),
                gpureports.report("cut", cut),
                gpureports.report("mixed", mixed),
                gpureports.report("wrong", gpureports.several("l4", 1)),
                gpureports.report("odd", []) | {"status": "nonsense"},
            ],
        },
    )
    answer = {node["name"]: node for node in json.loads(anygpu("nodes", "--cluster", snapshot, "-o", "json")[1])}
    fits = {"1g.10gb": 8, "1g.10gb+me": 2, "1g.20gb": 4, "2g.20gb": 4, "3g.40gb": 2, "4g.40gb": 2, "7g.80gb": 0}
    assert answer["cut"]["devices"][0]["fits"] == fits
    (device,) = answer["mixed"]["devices"]
    assert (device["skus"], device["allocatable"], device["fits"]) == (["t4", "l4"], 1, None)
    assert device["skuCounts"] == {"t4": 1, "l4": 1}
    assert answer["wrong"]["conflicts"] == [
        "nvidia.com/gpu: l4 by the agent, t4 by labels (nvidia.com/gpu.product=Tesla-T4)"
    ]
    assert answer["odd"]["agent"]["problem"].startswith("status: ")
    assert answer["cut"]["agent"] == {
        "heartbeat": "2026-01-01T00:00:00Z",
        "stale": False,
        "problem": None,
        "errors": {},
    }
    table = anygpu("nodes", "--cluster", snapshot)[1]
    assert "STILL FITS" in table
    assert "1g.10gb x8, 1g.10gb+me x2, 1g.20gb x4, 2g.20gb x4, 3g.40gb x2, 4g.40gb x2" in table
    assert "nvidia.com/gpu: 1 of 2 unhealthy (GPU-x: lost)" in table
    assert "conflict: nvidia.com/gpu: l4 by the agent" in table


def test_skus_shows_how_a_model_can_be_cut(anygpu: Anygpu) -> None:
    parts = {each["mode"]: each for each in json.loads(anygpu("skus", "h100-sxm", "-o", "json")[1])["partitions"]}
    assert parts["3g.40gb"] == {
        "mode": "3g.40gb",
        "max": 2,
        "memoryMiB": 40448,
        "compute": "3/7",
        "starts": [0, 4],
        "size": 4,
    }
    amd = {each["mode"]: each for each in json.loads(anygpu("skus", "mi300x", "-o", "json")[1])["partitions"]}
    assert amd["cpx_nps4"] == {"mode": "cpx_nps4", "max": 8, "memoryMiB": 24574, "compute": "1/8"}
    assert json.loads(anygpu("skus", "t4", "-o", "json")[1])["partitions"] == []
    table = anygpu("skus", "h100-sxm")[1]
    assert ["3g.40gb", "2", "39.5", "GiB", "3/7", "0,4"] in [line.split() for line in table.splitlines()]
    assert "PARTITION" not in anygpu("skus", "t4")[1]


def test_skus_lists_the_db_or_one_in_full(anygpu: Anygpu) -> None:
    assert len(json.loads(anygpu("skus", "-o", "json")[1])) > 60
    assert json.loads(anygpu("skus", "h100-sxm", "-o", "json")[1])["id"] == "h100-sxm"
    assert yaml.safe_load(anygpu("skus", "h100-sxm", "-o", "yaml")[1])["vendor"] == "nvidia"
    assert "h100-sxm" in anygpu("skus")[1]
    code, _, err = anygpu("skus", "h100-sxn")
    assert (code, "did you mean h100-sxm?" in err) == (2, True)


def test_the_demos_cluster_takes_the_demos_kinds_of_pods(anygpu: Anygpu) -> None:
    anygpu.snapshot = str(DEMO)
    assert anygpu.placed(pod(memory="180Gi"))["decision"]["vendor"] in ("nvidia", "amd")
    assert anygpu.placed(pod(mig="3g.40gb"))["decision"]["resource"].startswith("nvidia.com/")
    assert anygpu("explain", "serving/serve-671b-0", "--cluster", str(DEMO))[0] == 1
    assert anygpu("nodes", "--cluster", str(DEMO), "-a")[0] == 0


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(anygpu: Anygpu, command: str) -> None:
    code, out, _ = anygpu(command, "--help")
    assert code == 0
    assert "Example" in out
    assert f"anygpu {command}" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("place",),
        ("place", "-f", "-", "-o", "xml"),
        ("skus", "--bogus"),
        ("explain",),
        ("serve", "--port", "99999"),
        ("serve", "--host", "0.0.0.0"),
    ],
)
def test_wrong_usage_is_status_2(anygpu: Anygpu, arguments: tuple[str, ...]) -> None:
    code, out, err = anygpu(*arguments)
    assert (code, out) == (2, "")
    assert err


def test_the_installed_command_reads_a_pipe_and_ends_with_its_status(anygpu: Anygpu) -> None:
    command = [str(Path(sys.executable).with_name("anygpu")), "place", "--cluster", anygpu.snapshot, "-f", "-"]
    ended = subprocess.run(command, input=json.dumps(pod(memory="10Ti")), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: anygpu.io/memory: ")
    assert ended.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_gets_no_noise() -> None:
    command = [str(Path(sys.executable).with_name("anygpu")), "skus", "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout
        assert started.stderr
        started.stdout.close()
        started.wait(30)
        assert started.stderr.read() == b""


# --- crds -------------------------------------------------------------------------------------------------------------


def test_crds_are_those_of_the_shipped_file_in_each_form(anygpu: Anygpu) -> None:
    shipped = list(yaml.safe_load_all((ROOT / "manifests" / "crds.yaml").read_text()))
    code, out, _ = anygpu("crds")
    assert code == 0
    assert list(yaml.safe_load_all(out)) == shipped
    assert json.loads(anygpu("crds", "-o", "json")[1]) == {"apiVersion": "v1", "kind": "List", "items": shipped}
    head, *rows = anygpu("crds", "-o", "table")[1].splitlines()
    assert head.split() == ["KIND", "SHORT", "SCOPE", "HOLDS"]
    assert [row.split()[0] for row in rows] == [each["spec"]["names"]["kind"] for each in shipped]
