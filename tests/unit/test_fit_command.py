"""`anygpu fit`: on which GPUs a model fits, how many, with what headroom; through the real entry point."""

import json
import sys
from pathlib import Path
from typing import Any

import gpunodes
import placing
import pytest
import yaml

from capability_db.catalogue import Catalogue
from scheduler.cli import main

Json = dict[str, Any]


class Fit:
    """The command on a snapshot of some nodes, run in this process."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self._capsys, self.folder = monkeypatch, capsys, tmp_path

    def snapshot(self, *documents: Json) -> str:
        path = self.folder / "snapshot.yaml"
        path.write_text(yaml.safe_dump({"kind": "List", "items": list(documents)}))
        return str(path)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["anygpu", "fit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        output = self._capsys.readouterr()
        assert "Traceback" not in output.err + output.out
        assert "a defect of anygpu" not in output.err
        return int(ended.value.code or 0), output.out, output.err

    def options(self, *arguments: str, status: int = 0) -> dict[str, Json]:
        """The options by SKU."""
        code, out, err = self(*arguments, "-o", "json")
        assert code == status, err
        answer = json.loads(out)
        assert {*answer} == {"model", "options"}
        assert all({*each} == {"sku", "gpus", "fits", "headroom_gib", "reason"} for each in answer["options"])
        return {each["sku"]: each for each in answer["options"]}


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fit:
    return Fit(tmp_path, monkeypatch, capsys)


def test_every_kind_of_gpu_says_how_many_of_it_hold_the_model_and_what_they_leave(fit: Fit) -> None:
    nodes = (gpunodes.nvidia("h", "h100"), gpunodes.amd("m", "mi300x"), gpunodes.nvidia("l", "l4", 4))
    found = fit.options("--model", "llama-3.1-70b", "--context", "8192", "--cluster", fit.snapshot(*nodes))
    assert {sku: (each["gpus"], each["fits"]) for sku, each in found.items()} == {
        "mi300x": (1, True),
        "h100-sxm": (4, True),
        "l4": (4, False),
    }
    assert found["mi300x"]["headroom_gib"] == pytest.approx(192 - 161.9, abs=0.1)
    assert found["h100-sxm"]["reason"] is None
    assert found["l4"]["headroom_gib"] < 0
    assert found["l4"]["reason"] == "l4: 22.5 GiB of memory, 42.3Gi needed by llama-3.1-70b on each of 4 GPUs"


def test_only_as_many_as_one_node_has_are_joined(fit: Fit) -> None:
    nodes = [gpunodes.nvidia(f"h-{number}", "h100", 2) for number in range(4)]
    cluster = fit.snapshot(*nodes)
    assert not fit.options("--model", "llama-3.1-70b", "--cluster", cluster, status=1)["h100-sxm"]["fits"]
    assert fit.options("--model", "llama-3.1-70b", "--precision", "fp8", "--cluster", cluster)["h100-sxm"]["gpus"] == 2


def test_what_pods_take_does_not_count(fit: Fit) -> None:
    taken = placing.bound("runs", "h", {"nvidia.com/gpu": 8})
    assert fit.options("--model", "bert-base", "--cluster", fit.snapshot(gpunodes.nvidia("h", "h100"), taken))


def test_a_gpu_that_does_not_compute_the_format_does_not_fit(fit: Fit) -> None:
    cluster = fit.snapshot(gpunodes.nvidia("a", "a100-80"))
    found = fit.options("--model", "llama-3.1-8b", "--precision", "fp8", "--cluster", cluster, status=1)
    assert found["a100-sxm4-80gb"]["reason"] == "a100-sxm4-80gb: no native fp8"


def test_a_slice_is_taken_singly(fit: Fit) -> None:
    cluster = fit.snapshot(gpunodes.mig_single("m", "a100-80", "3g.40gb", 2))
    found = fit.options("--model", "llama-3.1-8b", "--context", "8192", "--cluster", cluster)
    assert (found["a100-sxm4-80gb 3g.40gb"]["gpus"], found["a100-sxm4-80gb 3g.40gb"]["fits"]) == (1, True)
    large = fit.options("--model", "llama-3.1-70b", "--cluster", cluster, status=1)
    assert large["a100-sxm4-80gb 3g.40gb"]["gpus"] == 1


def test_a_gpu_of_unknown_model_never_fits(fit: Fit) -> None:
    node = gpunodes.node("n", {"nvidia.com/gpu.product": "Riddle"}, {"nvidia.com/gpu": 8})
    found = fit.options("--model", "bert-base", "--cluster", fit.snapshot(node), status=1)
    assert found["unknown"]["headroom_gib"] is None
    assert "unknown GPU model" in found["unknown"]["reason"]


def test_more_of_everything_leaves_less(fit: Fit) -> None:
    cluster = fit.snapshot(gpunodes.nvidia("h", "h100", 1))
    ask = ("--model", "llama-3.1-8b", "--cluster", cluster)
    left = [
        fit.options(*ask, *more)["h100-sxm"]["headroom_gib"]
        for more in (
            ("--context", "4096", "--precision", "fp8"),
            ("--context", "4096"),
            ("--context", "8192"),
            ("--context", "8192", "--batch", "16"),
        )
    ]
    assert left == sorted(left, reverse=True)
    assert len({*left}) == 4


def test_without_nodes_nothing_fits(fit: Fit) -> None:
    code, out, err = fit("--model", "bert-base", "--cluster", fit.snapshot(gpunodes.node("cpu")), "-o", "json")
    assert (code, json.loads(out)) == (1, {"model": "bert-base", "options": []})
    assert "no node has a GPU" in err


def test_people_get_a_table_and_others_yaml(fit: Fit) -> None:
    cluster = fit.snapshot(gpunodes.nvidia("h", "h100"))
    code, out, _ = fit("--model", "llama-3.1-8b", "--cluster", cluster)
    assert code == 0
    assert out.split("\n")[0].split() == ["GPU", "GPUS", "FITS", "HEADROOM", "REASON"]
    assert out.split("\n")[1].split()[:3] == ["h100-sxm", "1", "yes"]
    code, out, _ = fit("--model", "llama-3.1-8b", "--cluster", cluster, "-o", "yaml")
    assert (code, yaml.safe_load(out)["options"][0]["sku"]) == (0, "h100-sxm")


def test_the_whole_capability_db_on_demand(fit: Fit) -> None:
    found = fit.options("--model", "deepseek-v3", "--context", "8192", "--all")
    assert {*found} == {sku.id for sku in Catalogue.builtin()}
    assert (found["h200-sxm"]["gpus"], found["h200-sxm"]["fits"]) == (8, True)
    assert not found["h100-sxm"]["fits"]


def test_without_any_kubeconfig_the_capability_db_answers_and_says_so(fit: Fit) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        fit.monkeypatch.delenv(name, raising=False)
    fit.monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(fit.folder / "none"))
    code, out, err = fit("--model", "bert-base", "-o", "json")
    assert code == 0
    assert len(json.loads(out)["options"]) == len(Catalogue.builtin())
    assert "these are the GPU models of the capability DB" in err


def test_a_kubeconfig_that_is_named_and_not_there_is_no_answer(fit: Fit) -> None:
    fit.monkeypatch.setenv("KUBECONFIG", str(fit.folder / "none"))
    code, out, err = fit("--model", "bert-base")
    assert (code, out) == (3, "")
    assert err.startswith("error: no cluster")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "llama-31-8b"), "--model 'llama-31-8b': is unknown: did you mean llama-3.1-8b?"),
        (("--model", ""), "write for example llama-3.1-8b"),
        (("--model", "llama-3.1-8b", "--precision", "fp9"), "--precision 'fp9': write one of fp64, fp32"),
        (("--model", "llama-3.1-8b", "--context", "0"), "--context 0: llama-3.1-8b takes from 1 to 131072 tokens"),
        (("--model", "llama-3.1-8b", "--context", "200000"), "takes from 1 to 131072 tokens"),
        (("--model", "resnet-50", "--context", "1"), "--context 1: resnet-50 (vision) has no context; leave it out"),
        (("--model", "llama-3.1-8b", "--batch", "0"), "--batch 0: is no number of sequences; write 1 or more"),
        (("--model", "sdxl-base", "--batch", "2"), "--batch 2: sdxl-base does not state its activation_values"),
        (("--model", "bert-base", "--cluster", "x.yaml"), "--all: asks the capability DB, and --cluster a snapshot"),
    ],
)
def test_what_cannot_be_asked_is_status_2_and_says_what_would_be_right(
    fit: Fit, arguments: tuple[str, ...], says: str
) -> None:
    code, out, err = fit(*arguments, "--all")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("--model",), ("--model", "bert-base", "--batch", "x"), ("bert-base",)])
def test_wrong_usage_is_status_2(fit: Fit, arguments: tuple[str, ...]) -> None:
    code, out, err = fit(*arguments)
    assert (code, out) == (2, "")
    assert err
