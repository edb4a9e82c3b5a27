"""Rounds, results and names of benchmarks, and the commands that the documentation gives."""

from __future__ import annotations

import json
import re
from types import ModuleType

import pytest

from support.benchmarks import FOLDER, ROOT, benchmark_module


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    return benchmark_module("lib.harness")


def test_every_second_round_is_in_reverse_order(harness: ModuleType) -> None:
    calls: list[str] = []
    seen: list[tuple[int, int]] = []

    def measure(name: str) -> int:
        calls.append(name)
        return len(calls)

    found = harness.interleaved(
        {"a": lambda: measure("a"), "b": lambda: measure("b")},
        2,
        warmup=2,
        after=lambda index, found: seen.append((index, len(found["a"]))),
    )
    assert "".join(calls) == "abbaabba"
    assert found == {"a": [5, 8], "b": [6, 7]}
    assert seen == [(-1, 0), (0, 0), (1, 1), (2, 2)]


def test_ratios_are_of_the_same_round(harness: ModuleType) -> None:
    assert harness.ratios([1, 6], [2, 3]) == [0.5, 2.0]
    assert harness.medians({"a": [3, 1, 9]}) == {"a": 3}
    with pytest.raises(ValueError, match="argument"):
        harness.ratios([1], [2, 3])


def test_results_have_a_row_a_line(harness: ModuleType) -> None:
    document = {
        "machine": {"cpus": 2, "torch": "2"},
        "rows": [{"name": "a", "times": [1, 2.5]}, {"name": "b", "plan": {"notes": []}}],
        "networks": {"x": {"peak": 1}, "y": {"rows": [{"peak": 2}], "empty": {}}},
        "curve": [[1, 2], [3, 4]],
        "none": [],
    }
    text = harness.to_json(document)
    assert (
        text
        == """{
 "machine": {"cpus": 2, "torch": "2"},
 "rows": [
  {"name": "a", "times": [1, 2.5]},
  {"name": "b", "plan": {"notes": []}}
 ],
 "networks": {
  "x": {"peak": 1},
  "y": {
   "rows": [
    {"peak": 2}
   ],
   "empty": {}
  }
 },
 "curve": [
  [1, 2],
  [3, 4]
 ],
 "none": []
}
"""
    )
    assert json.loads(text) == document
    assert harness.to_json({}) == "{}\n"


def test_results_that_are_kept_are_in_that_form(harness: ModuleType) -> None:
    files = sorted((FOLDER / "results").glob("*.json"))
    assert files
    for file in files:
        assert file == harness.results_file(file.stem)
        assert file.read_text() == harness.to_json(harness.read_results(file.stem)), file.name


def test_what_is_not_kept_is_an_error_or_what_was_asked_for(harness: ModuleType) -> None:
    assert harness.read_results("no such results", {"rows": []}) == {"rows": []}
    with pytest.raises(FileNotFoundError):
        harness.read_results("no such results")


def test_an_unknown_name_is_told_with_those_that_are_known(
    harness: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = harness.command_line("About.", names=("a", "b"))
    assert harness.chosen(parser, parser.parse_args([]).networks, ("a", "b")) == ["a", "b"]
    assert harness.chosen(parser, ["b"], ("a", "b")) == ["b"]
    with pytest.raises(SystemExit):
        harness.chosen(parser, ["c"], ("a", "b"))
    assert "unknown network 'c'; known networks: a, b" in capsys.readouterr().err


def test_commands_that_are_written_somewhere_name_modules_that_are_there(
    harness: ModuleType,
) -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *FOLDER.rglob("*.py")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"-m\s+(benchmarks\.[a-z_.]+[a-z])", text))
    assert len(named) > 10
    for name in named:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name
