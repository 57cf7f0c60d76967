#!/usr/bin/env python3
"""Fetches a real OCI registry, Debian's ``docker-registry``, without root and without installing it.

Run it as ``python3 tests/controlplane/registry.py``: it prints the path of the binary. The standard library is all it
needs besides apt. A ``docker-registry`` that is on PATH is taken as it is.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import build

NAME = "docker-registry"

HINT = (
    f"no OCI registry for the tests: {NAME} is not on PATH and could not be fetched.\n"
    f"  On Debian or Ubuntu:  sudo apt-get install {NAME}\n"
    "  Elsewhere: put the binary of https://github.com/distribution/distribution (2.8) on PATH under that name."
)


def fetch() -> Path:
    """Return the registry's binary: from PATH, from the cache, or unpacked from Debian's package."""
    installed = shutil.which(NAME)
    if installed:
        return Path(installed)
    target = build.cache_root() / NAME
    binary = target / NAME
    if binary.is_file():
        return binary
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise build.UnavailableError(f"{HINT}\n  (this {platform.system()} has no apt-get)")
    with build.locked(target.with_suffix(".lock"), f"another run fetches {NAME}; waiting for it"):
        if binary.is_file():
            return binary
        build.say(f"fetching Debian's {NAME} (5 MB, once) into {target}")
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "bin").mkdir(parents=True)
        package = download(partial)
        run(["dpkg-deb", "--extract", str(package), str(partial / "root")], partial)
        shutil.copy2(partial / f"root/usr/bin/{NAME}", partial / f"bin/{NAME}")
        run([str(partial / f"bin/{NAME}"), "--version"], partial)
        shutil.rmtree(target, ignore_errors=True)
        (partial / "bin").rename(target)  # at once: a killed run leaves nothing that looks whole
        shutil.rmtree(partial, ignore_errors=True)
    return binary


def download(folder: Path) -> Path:
    """Return the downloaded package; the machine's package lists are used, or private ones where they do not do."""
    for sub in ("cache/archives/partial", "state/lists/partial"):
        (folder / sub).mkdir(parents=True)
    cache = ["-q", "-o", f"Dir::Cache={folder}/cache", "-o", "APT::Sandbox::User=root"]
    private = [*cache, "-o", f"Dir::State={folder}/state", "-o", "Dir::State::status=/var/lib/dpkg/status"]
    try:
        run(["apt-get", *cache, "download", NAME], folder)
    except build.UnavailableError:  # empty lists, or older than the archive
        build.say("the package lists are missing or stale; reading them anew, aside")
        # Some machines hook a cleaning of root's folders to every update, which fails for others: what counts is below.
        subprocess.run(["apt-get", *private, "update"], cwd=folder, capture_output=True, check=False)
        run(["apt-get", *private, "download", NAME], folder)
    return next(folder.glob(f"{NAME}_*.deb"))


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command; a failure becomes a text that says what to do instead."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()[-1500:]
        raise build.UnavailableError(f"{HINT}\n  {command[0]} said: {said}")


def main() -> int:
    """Fetch and print the path; return the exit status."""
    try:
        print(fetch())
    except build.UnavailableError as error:
        build.say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
