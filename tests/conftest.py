"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from memfit import _core

settings.register_profile("memfit", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("memfit")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the published graphs and golden values; the test is skipped where it is absent."""
    given = os.environ.get("MEMFIT_REFERENCE")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "reference"
    if not (folder / "golden.json").is_file():
        pytest.skip(f"no reference data at {folder}; set MEMFIT_REFERENCE to its folder")
    return folder


@pytest.fixture(params=["native", "python"])
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once with each core; the native run is skipped where it is not built."""
    name: str = request.param
    if name == "native":
        module = pytest.importorskip("memfit._core.native_core", reason="native core is not built")
        monkeypatch.setattr(_core, "_fast", module)
    else:
        monkeypatch.setattr(_core, "_fast", None)
    return name
