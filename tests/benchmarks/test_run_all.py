"""benchmarks/run_all.py goes on after a failure, and every benchmark it lists is there."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    file = FOLDER / "run_all.py"
    if not file.is_file():
        pytest.skip("the benchmarks are not there: a source distribution leaves them out")
    spec = importlib.util.spec_from_file_location("run_all", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_every_part_has_its_script_once(runner: ModuleType) -> None:
    files = [part.file for part in runner.PARTS]
    assert len(set(files)) == len(files)
    assert [f for f in files if not (FOLDER / f).is_file()] == []


def test_the_parts_after_a_failing_one_still_run(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tuple(runner.Part(name, "", ("--quick",)) for name in ("a.py", "b.py", "c.py"))
    ran: list[tuple[str, Sequence[str]]] = []

    def run(part: Any, arguments: Sequence[str]) -> int:
        ran.append((part.file, arguments))
        return 3 if part.file == "b.py" else 0

    monkeypatch.setattr(runner, "PARTS", parts)
    monkeypatch.setattr(runner, "run_part", run)
    assert runner.main([]) == 1
    assert ran == [(name, ("--quick",)) for name in ("a.py", "b.py", "c.py")]
    assert "b.py: FAILED (3)" in capsys.readouterr().out
    assert runner.main(["a.py", "c.py"]) == 0


def test_a_quick_run_leaves_out_what_has_no_quick_form(runner: ModuleType) -> None:
    parts = [runner.Part("slow.py", "", None, ("--all",)), runner.Part("a.py", "", ())]
    quick = runner.run_parts(parts, full=False, run=lambda part, arguments: 0)
    full = runner.run_parts(parts, full=True, run=lambda part, arguments: len(arguments))
    assert [part.file for part, _, _ in quick] == ["a.py"]
    assert [(part.file, code) for part, code, _ in full] == [("slow.py", 1), ("a.py", 0)]


def test_nothing_runs_after_an_interruption(runner: ModuleType) -> None:
    def run(part: Any, arguments: Sequence[str]) -> int:
        raise KeyboardInterrupt

    done = runner.run_parts([runner.Part("a.py", "", ())] * 2, full=False, run=run)
    assert [(part.file, code) for part, code, _ in done] == [("a.py", 130)]
