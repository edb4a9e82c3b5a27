"""The benchmarks' modules, for tests that reach into them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"


def benchmark_module(name: str) -> ModuleType:
    """A module by its name in `benchmarks`; the test is skipped where there are no benchmarks."""
    if not (FOLDER / "__main__.py").is_file():
        pytest.skip("the benchmarks are not there: a source distribution leaves them out")
    return importlib.import_module(f"benchmarks.{name}")
