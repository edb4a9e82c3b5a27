"""`python -m benchmarks` goes on after a failure, and every benchmark it lists is there."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest

from support.benchmarks import FOLDER, benchmark_module


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    return benchmark_module("__main__")


def test_every_part_has_its_script_once(runner: ModuleType) -> None:
    modules = [part.module for part in runner.PARTS]
    assert len(set(modules)) == len(modules)
    assert [m for m in modules if not (FOLDER / f"{m.replace('.', '/')}.py").is_file()] == []


def test_the_parts_after_a_failing_one_still_run(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tuple(runner.Part(name, "", ("--quick",)) for name in ("a.run", "b.run", "c.run"))
    ran: list[tuple[str, Sequence[str]]] = []

    def run(part: Any, arguments: Sequence[str]) -> int:
        ran.append((part.module, arguments))
        return 3 if part.module == "b.run" else 0

    monkeypatch.setattr(runner, "PARTS", parts)
    monkeypatch.setattr(runner, "run_part", run)
    assert runner.main([]) == 1
    assert ran == [(name, ("--quick",)) for name in ("a.run", "b.run", "c.run")]
    assert "b.run: FAILED (3)" in capsys.readouterr().out
    assert runner.main(["a.run", "c.run"]) == 0


def test_a_quick_run_leaves_out_what_has_no_quick_form(runner: ModuleType) -> None:
    parts = [runner.Part("slow.run", "", None, ("--all",)), runner.Part("a.run", "", ())]
    quick = runner.run_parts(parts, full=False, run=lambda part, arguments: 0)
    full = runner.run_parts(parts, full=True, run=lambda part, arguments: len(arguments))
    assert [part.module for part, _, _ in quick] == ["a.run"]
    assert [(part.module, code) for part, code, _ in full] == [("slow.run", 1), ("a.run", 0)]


def test_nothing_runs_after_an_interruption(runner: ModuleType) -> None:
    def run(part: Any, arguments: Sequence[str]) -> int:
        raise KeyboardInterrupt

    done = runner.run_parts([runner.Part("a.run", "", ())] * 2, full=False, run=run)
    assert [(part.module, code) for part, code, _ in done] == [("a.run", 130)]
