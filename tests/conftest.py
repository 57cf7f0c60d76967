"""The real things that tests run against: one control plane and one OCI registry a session.

A test that asks for one is skipped, with the reason, where the binaries cannot be had; under ``CI=true`` or
``ANYGPU_REQUIRE_REAL=1`` it fails instead, so that a green run means that they ran.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent / "controlplane"))  # its files run as scripts too, hence flat names

import build
import cluster
import oci
import registry

# How long one example takes depends on who else uses the machine.
hypothesis.settings.register_profile("anygpu", deadline=None)
hypothesis.settings.load_profile("anygpu")

#: What fetches the binaries behind a fixture.
FETCH: dict[str, Callable[[], Path]] = {
    "control_plane": build.build,
    "late_control_plane": build.build,
    "oci_registry": registry.fetch,
}

#: Why a fixture cannot be had, for those that cannot.
MISSING = pytest.StashKey[dict[str, str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build or fetch what the selected tests need now, since a cold build takes longer than any test's timeout."""
    missing = session.config.stash.setdefault(MISSING, {})
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    capture = session.config.pluginmanager.getplugin("capturemanager")
    for name, fetch in FETCH.items():
        if name not in wanted:
            continue
        with capture.global_and_fixture_disabled():  # its progress is for whoever waits
            try:
                fetch()
            except (build.UnavailableError, OSError) as error:
                missing[name] = str(error)


def _require(request: pytest.FixtureRequest, name: str) -> None:
    why = request.config.stash[MISSING].get(name)
    if why is None:
        return
    if os.environ.get("CI", "").lower() in {"1", "true"} or os.environ.get("ANYGPU_REQUIRE_REAL") == "1":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


@pytest.fixture(scope="session")
def control_plane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[cluster.Cluster]:
    """Yield a running control plane without nodes; tests share it, so each brings its own nodes and namespace."""
    _require(request, "control_plane")
    with cluster.Cluster(tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture(scope="session")
def late_control_plane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[cluster.Cluster]:
    """Yield a second control plane, for late and claim binding: rights, webhooks and schedulers differ there."""
    _require(request, "late_control_plane")
    with cluster.Cluster(tmp_path_factory.mktemp("late-control-plane")) as running:
        yield running


@pytest.fixture
def namespace(control_plane: cluster.Cluster) -> Iterator[str]:
    """Yield a namespace of this test's own; it is deleted afterwards, and nobody waits for that."""
    yield from _namespace(control_plane)


@pytest.fixture
def late_namespace(late_control_plane: cluster.Cluster) -> Iterator[str]:
    """Yield a namespace of this test's own on the control plane with late and claim binding."""
    yield from _namespace(late_control_plane)


def _namespace(running: cluster.Cluster) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    running.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    running.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def oci_registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[oci.OciRegistry]:
    """Yield a running, empty registry; the tests share it, so each pushes to repositories of its own."""
    _require(request, "oci_registry")
    running = oci.OciRegistry(tmp_path_factory.mktemp("registry"), registry.fetch())
    running.start()
    yield running
    running.close()
