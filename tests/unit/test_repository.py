"""The repository itself: generated files current, modules importable alone, docs naming what there is."""

import re
import subprocess
import sys
from pathlib import Path

import typer.main

from scheduler import claims, needs
from scheduler.cli import main

ROOT = Path(__file__).parents[2]
PACKAGES = ("capability_db", "images", "scheduler", "webhooks")
README = (ROOT / "README.md").read_text()


def tracked() -> list[Path]:
    """The files of the repository; outside git, those under its folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    found = [ROOT / name for name in listed if name] or [
        path for each in PACKAGES for path in (ROOT / each).rglob("*.py")
    ]
    return [path for path in found if path.is_file()]


def test_generated_files_are_current() -> None:
    ended = subprocess.run(
        [sys.executable, "manifests/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_each_module_imports_alone() -> None:
    paths = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert len(modules) > 40
    # Each in a child of one fresh interpreter that has loaded the slow libraries, and none of ours.
    script = """
import os, sys, traceback
import fastapi, httpx, kubernetes, msgspec, prometheus_client, pydantic, rich.table, structlog, typer, uvicorn, yaml
assert not {name.partition(".")[0] for name in sys.modules} & set(sys.argv[1].split(","))
failed = []
for module in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        try:
            __import__(module)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        failed.append(module)
sys.exit(f"do not import alone: {failed}" if failed else 0)
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, ",".join(PACKAGES), *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_each_package_and_module_says_what_it_is() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert path.read_text().startswith('"""'), f"{path}: no docstring"


def test_the_readme_names_every_command() -> None:
    for command in typer.main.get_command(main.app).commands:  # type: ignore[attr-defined]
        assert f"anygpu {command}" in README, command


def test_the_readme_names_every_annotation_key_and_no_other() -> None:
    for key in needs.KEYS:
        assert re.search(rf"`(anygpu\.io/)?{re.escape(key)}`", README), key
    named = set(re.findall(r"anygpu\.io/([a-z][a-z-]*)\b(?![./])", README))
    written_back = {key.removeprefix(needs.PREFIX) for key in (*needs.WRITTEN_BACK, needs.INJECT_LABEL)}
    labels = {"sku", "partition"}
    resources = {claims.GPU_RESOURCE.removeprefix(needs.PREFIX), claims.MARKER.removeprefix(needs.PREFIX)}
    assert named <= {*needs.KEYS, *written_back, *labels, *resources}


def test_no_file_names_a_path_of_one_machine() -> None:
    machine = re.compile(r"/(?:work|root|Users)/[A-Za-z0-9_.]|/home/(?!nonroot)[a-z]")
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found = [] if path == Path(__file__) else machine.findall(text)
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_the_version_is_in_the_changelog() -> None:
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert version[1] in changelog or "Unreleased" in changelog
