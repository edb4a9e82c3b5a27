"""The examples and the README's quick start run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python in an empty folder, with a cost cache that the tests of this file share."""
    cache = tmp_path_factory.mktemp("cache")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path_factory.mktemp("run"),
            env={**os.environ, "MEMFIT_CACHE_DIR": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_training_within_a_budget(run: Run) -> None:
    done = run(str(ROOT / "examples/train_within_budget.py"))
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"loss (\d+\.\d+)", done.stdout)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    sizes = dict(re.findall(r"^([a-z ]+): +([\d.]+) MiB$", done.stdout, re.MULTILINE))
    assert float(sizes["planned step"]) <= float(sizes["budget"]) < float(sizes["plain step"])


def test_a_budget_that_is_too_small_is_one_line(run: Run) -> None:
    done = run(str(ROOT / "examples/train_within_budget.py"), "1MiB")
    assert done.returncode == 1
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "below the smallest feasible budget" in errors[0]
    assert "Traceback" not in done.stderr
    assert "nanobind" not in done.stderr


def test_saving_and_loading_a_plan(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    done = run(str(ROOT / "examples/save_and_load_plan.py"), str(target))
    assert done.returncode == 0, done.stderr
    assert '"schema_version"' in target.read_text(encoding="utf-8")
    assert "trained from the file: loss" in done.stdout
    assert "refused for another batch size: the plan is for graph" in done.stdout


@pytest.mark.slow
def test_the_quick_start(run: Run) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Quick start\n\n```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    done = run("-c", code.group(1))
    assert done.returncode == 0, done.stderr
