"""The agent over stub libraries that are compiled once a session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import stublibs


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a libnvidia-ml.so.1 and a libamd_smi.so."""
    if shutil.which("gcc") is None:
        if os.environ.get("CI", "").lower() in {"1", "true"} or os.environ.get("ANYGPU_REQUIRE_REAL") == "1":
            pytest.fail("gcc is missing: the stub libraries cannot be compiled", pytrace=False)
        pytest.skip("gcc is missing: the stub libraries cannot be compiled")
    directory = tmp_path_factory.mktemp("libraries")
    stublibs.nvidia_library(directory)
    return stublibs.amd_library(directory)


@pytest.fixture(scope="session")
def nvidia_libraries(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a libnvidia-ml.so.1 alone."""
    directory = tmp_path_factory.mktemp("nvidia")
    (directory / stublibs.NVIDIA_LIBRARY).symlink_to(libraries / stublibs.NVIDIA_LIBRARY)
    return directory
