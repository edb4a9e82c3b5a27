"""The examples run as they stand, in this process.

The quick run of an example estimates the costs of ops, which takes less than measuring them.
"""

from __future__ import annotations

import functools
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import memfit

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[object, str]]
COSTS = pytest.mark.parametrize(
    "cost", ["analytic", pytest.param("measured", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cost cache that the tests of this file share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs an example in an empty folder: what it exits with, None at its end, and its stdout."""

    def call(name: str, *arguments: str, cost: str = "measured") -> tuple[object, str]:
        torch.compiler.reset()
        monkeypatch.setattr(memfit, "fit", functools.partial(memfit.fit, cost=cost))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MEMFIT_CACHE_DIR", str(cache))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        code = None
        try:
            runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().out

    return call


@pytest.mark.slow
def test_training_within_a_budget(run: Run) -> None:
    code, said = run("train_within_budget.py")
    assert code is None
    losses = [float(x) for x in re.findall(r"loss (\d+\.\d+)", said)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    sizes = dict(re.findall(r"^([a-z ]+): +([\d.]+) MiB$", said, re.MULTILINE))
    assert float(sizes["planned step"]) <= float(sizes["budget"]) < float(sizes["plain step"])


@COSTS
def test_a_budget_that_is_too_small_is_one_line(run: Run, cost: str) -> None:
    code, said = run("train_within_budget.py", "1MiB", cost=cost)
    assert said == ""
    assert isinstance(code, str)
    assert code.startswith("error: ")
    assert "below the smallest feasible budget" in code
    assert "\n" not in code


@pytest.mark.slow
def test_saving_and_loading_a_plan(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    code, said = run("save_and_load_plan.py", str(target))
    assert code is None
    assert '"schema_version"' in target.read_text(encoding="utf-8")
    assert "trained from the file: loss" in said
    assert "refused for another batch size: the plan is for graph" in said
