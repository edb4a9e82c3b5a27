"""What every command writes where: JSON alone, no progress when quiet, no colours if unwanted.

The commands that capture a model take long, so that most of their runs are with the slow tests.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from memfit.cli import build_parser, main, output
from memfit.cli.commands import demo as demo_command
from memfit.graph.graph_file import write_graph
from memfit.pytorch.api import demo_model
from support.report_graphs import network

MODELS = """
from torch import nn

class Talkative(nn.Sequential):
    def __init__(self):
        super().__init__(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(3)))
        print("a word on stdout")
"""
MODEL = ("output_models:Talkative", "--input", "64x32")
CASES = {
    "demo": (),
    "inspect": MODEL,
    "sweep": ("graph.json",),
    "plan": (*MODEL, "--budget", "100%", "--cost", "analytic"),
    "verify": (*MODEL, "--budget", "100%", "--cost", "analytic", "--rounds", "1"),
    "report": ("plan.json", "--curve"),
    "max-batch": ("output_models:Talkative", "--input", "2x32", "--budget", "28KB"),
    "explain": ("graph.json", "--budget", "10%"),
    "solve": ("graph.json", "--budget", "70%"),
}


INFEASIBLE = ("explain",)


def _commands(*slow: str) -> pytest.MarkDecorator:
    marked = [pytest.param(c, marks=pytest.mark.slow if c in slow else ()) for c in CASES]
    return pytest.mark.parametrize("command", marked)


ALL = _commands("demo")
QUICK = _commands("demo", "plan", "verify", "max-batch")
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|9[0-7]|38;[0-9;]+)m")
DRAWN = re.compile(r"[\x1b\u2500-\u257f\u2580-\u259f]")
"""Escapes, lines of boxes, bars."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a model that prints, a graph and a plan; progress shows at once."""
    (tmp_path / "output_models.py").write_text(MODELS)
    write_graph(network(2), tmp_path / "graph.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(__import__("sys").modules, "output_models", raising=False)
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "cache"))
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("MEMFIT_DEBUG", raising=False)
    monkeypatch.setattr(output, "PROGRESS_AFTER_S", 0.0)
    case = demo_model.demo_case
    monkeypatch.setattr(demo_model, "demo_case", lambda **_: case(batch=1, size=32, width=8))
    monkeypatch.setattr(demo_command, "ROUNDS", 1)
    assert main(["solve", "graph.json", "--budget", "70%", "-o", "plan.json", "--json"]) == 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.reset()
    yield tmp_path
    torch.set_num_threads(threads)


def test_every_command_is_here() -> None:
    actions = build_parser()._subparsers
    assert actions is not None
    (commands,) = actions._group_actions
    assert commands.choices is not None
    assert list(commands.choices) == list(CASES)


def _run(command: str, *extra: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    capsys.readouterr()
    assert main([command, *CASES[command], *extra]) == (3 if command in INFEASIBLE else 0)
    written = capsys.readouterr()
    return written.out, written.err


def _said(err: str, command: str) -> str:
    """What is on stderr beside what the model prints there."""
    lines = err.splitlines(keepends=True)
    if "output_models:Talkative" in CASES[command]:
        assert "a word on stdout\n" in lines
    return "".join(line for line in lines if line != "a word on stdout\n")


@ALL
def test_json_is_alone_on_stdout(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm")
    out, err = _run(command, "--json", capsys=capsys)
    assert isinstance(json.loads(out), dict)
    assert out.startswith("{")
    assert out.endswith("}\n")
    assert _said(err, command) == ""


@QUICK
def test_files_and_pipes_get_plain_text(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = _run(command, capsys=capsys)
    assert out.strip()
    assert not DRAWN.search(out)
    assert _said(err, command) == ""


@QUICK
def test_a_reader_that_goes_away_is_no_error(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert main([command, *CASES[command]]) == 141
    assert _said(capsys.readouterr().err, command) == ""


@QUICK
def test_a_terminal_gets_progress_without_colours_where_they_are_not_wanted(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    out, err = _run(command, capsys=capsys)
    assert DRAWN.search(err), "no progress"
    assert not COLOUR.search(out)
    assert not COLOUR.search(err)


@QUICK
def test_quiet_shows_no_progress(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out, err = _run(command, "--quiet", capsys=capsys)
    assert out.strip()
    assert _said(err, command) == ""


@pytest.mark.parametrize("command", CASES)
def test_an_error_with_json_is_one_object(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["-o", "plan.json"] if command == "demo" else []  # a file, where a folder is wanted
    wrong = ["no-such.file" if i == 0 else w for i, w in enumerate(CASES[command])]
    assert main([command, *wrong, *words, "--json"]) == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["status"] == "ERROR"
    assert told["message"] in err
    assert len(err.splitlines()) == 1
