"""What all subcommands share: exit codes, error lines, JSON, and no PyTorch before it is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memfit
from memfit.cli import main, output
from memfit.cli.commands import demo as demo_command
from memfit.cli.output import one_line, print_json
from memfit.errors import ExecutionError, InfeasibleBudgetError
from memfit.graph.graph_file import write_graph
from memfit.graph.published import bare_graph

COMMANDS = (
    "demo", "inspect", "sweep", "plan", "verify", "report", "max-batch", "explain", "solve",
)  # fmt: skip


def _python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120
    )


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    before = [[v - 1] if v else [] for v in range(6)]
    graph = bare_graph(before, [8] * 6, [1] * 6, [[*before[v], v] for v in range(6)], name="chain")
    write_graph(graph, tmp_path / "chain.json")
    return tmp_path / "chain.json"


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)])
def test_help_and_version_need_no_torch(words: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from memfit.cli import main
try:
    main({words!r})
except SystemExit as done:
    assert done.code == 0, done.code
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""
    done = _python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "memfit" in done.stdout


def test_solve_needs_no_torch(chain: Path) -> None:
    code = f"""
import sys
from memfit.cli import main
assert main(["solve", {str(chain)!r}, "--budget", "100%", "--json"]) == 0
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""
    done = _python(code, chain.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["planner"] == "liveness"


def test_wrong_arguments_are_seen_before_torch_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from memfit.cli import main
assert main(["plan", "m:f", "--input", "2x3", "--budget", "3 apples"]) == 2
assert main(["plan", "m:f", "--input", "2y3", "--budget", "3GB"]) == 2
assert main(["verify", "m:f", "--input", "2x3", "--budget", "3GB", "--planner", "oracle"]) == 2
assert main(["sweep", "m:f", "--input", "2x3", "--planner", "oracle"]) == 2
assert main(["inspect", "m:f", "--input", "2x3", "--memory", "much"]) == 2
assert main(["max-batch", "m:f", "--input", "2x3", "--budget", "50%"]) == 2
assert main(["explain", "m:f", "--input", "2x3", "--budget", "auto"]) == 2
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""
    done = _python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 7


def test_version_names_the_core(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    written = capsys.readouterr().out
    assert written.startswith(f"memfit {memfit.__version__} (")
    assert f"{memfit.build_info()['core']} core" in written


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["conquer"],
        ["plan"],
        ["plan", "m:f", "--budget"],
        ["plan", "m:f", "--budget", "3GB", "--mode", "sideways"],
        ["plan", "m:f", "--budget", "3GB", "--optimizer", "magic"],
        ["verify", "m:f", "--input", "2", "--budget", "3GB", "--rounds", "0"],
        ["solve", "graph.json", "--budget", "3GB", "--json", "--wrong"],
        ["solve", "no-such-graph.json", "--budget", "3GB"],
        ["demo", "--output", __file__],
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith("memfit: error: ")
    assert len(err.splitlines()) == 1
    if "--json" in words:
        payload = json.loads(out)
        assert payload["status"] == "ERROR"
        assert payload["message"] in err
        assert payload["smallest_feasible_budget"] is None
    else:
        assert out == ""


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (ExecutionError("the executor gave up"), 1, "ERROR"),
        (ValueError("two\nlines"), 1, "ERROR"),
        (
            InfeasibleBudgetError(budget_bytes=10, minimum_bytes=20, binding_op="conv1"),
            3,
            "INFEASIBLE",
        ),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_failures(
    error: Exception,
    code: int,
    status: str,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.delenv("MEMFIT_DEBUG", raising=False)
    monkeypatch.setattr(demo_command, "_plain", fail)
    words = ["demo", "-o", str(tmp_path / "out"), *(["--json"] if as_json else [])]
    assert main(words) == code
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert one_line(str(error)) in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    if as_json:
        payload = json.loads(out)
        assert payload["status"] == status
        assert one_line(str(error)) in payload["message"]
        assert payload["smallest_feasible_budget"] == (20 if code == 3 else None)
    else:
        assert out == ""


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("deep inside")

    monkeypatch.setenv("MEMFIT_DEBUG", "1")
    monkeypatch.setattr(demo_command, "_plain", fail)
    assert main(["demo", "-o", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in fail" in err
    assert err.splitlines()[-1].startswith("memfit: error: unexpected ValueError: deep inside")


def test_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_command, "_plain", interrupt)
    assert main(["demo", "-o", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "memfit: interrupted\n"


SHORT = (
    ["--help"],
    ["solve", "chain.json", "--budget", "100%"],
    ["solve", "chain.json", "--budget", "1", "--json"],
    ["sweep", "chain.json", "--csv", "-"],
)


def _written_to(words: list[str], chain: Path, **streams: Any) -> tuple[int, str | None]:
    done = subprocess.run(
        [sys.executable, "-m", "memfit", *words],
        **{"stderr": subprocess.PIPE, **streams},
        text=True,
        timeout=120,
        cwd=chain.parent,
    )
    return done.returncode, done.stderr


@pytest.fixture
def no_reader() -> Iterator[int]:
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.skipif(os.name != "posix", reason="pipes that break with a signal")
@pytest.mark.parametrize("words", SHORT, ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(words: list[str], chain: Path, no_reader: int) -> None:
    assert _written_to(words, chain, stdout=no_reader) == (141, "")


@pytest.mark.skipif(os.name != "posix", reason="pipes that break with a signal")
def test_nobody_reads_errors(chain: Path, no_reader: int) -> None:
    words = SHORT[1]
    assert _written_to(words, chain, stdout=no_reader, stderr=no_reader) == (141, None)
    assert _written_to(words, chain, stdout=subprocess.DEVNULL, stderr=no_reader) == (0, None)
    assert _written_to(["plan"], chain, stderr=no_reader) == (2, None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
@pytest.mark.parametrize("words", SHORT, ids=" ".join)
def test_a_full_disk_is_told_in_one_line(words: list[str], chain: Path) -> None:
    with open("/dev/full", "w") as full:
        code, said = _written_to(words, chain, stdout=full)
    assert code == 1
    assert said is not None
    assert said.count("\n") == 1
    assert said.startswith("memfit: error: cannot read or write: No space left on device")


def test_json_has_no_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": -float("inf")}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("after_s", [0.0, 60.0])
def test_progress_is_for_terminals_and_for_what_takes_long(
    terminal: bool,
    shown: bool,
    after_s: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(output, "PROGRESS_AFTER_S", after_s)
    monkeypatch.setenv("TERM", "xterm")
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with output.progress("loading", shown=shown) as report:
        assert (report is not None) == (terminal and shown)
        if report is not None:
            report("simulating stages", 0.5)
            time.sleep(0.2)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("simulating stages" in err) == (terminal and shown and after_s == 0)
    if not terminal or not shown or after_s:
        assert err == ""


def test_the_time_left_is_shown_where_it_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "PROGRESS_AFTER_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    for variable in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    with output.progress("loading", shown=True) as report:
        assert report is not None
        report("capturing", 0.0)  # does not say how far it is
        time.sleep(0.4)
        for tenth in range(1, 6):
            report("searching [stages]", tenth / 10)
            time.sleep(0.15)
    err = capsys.readouterr().err
    before, _, after = err.partition("searching [stages]")
    assert "capturing" in before
    assert "left" not in before
    assert re.search(r"about [0-9]+ s left", after)


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    "words",
    [
        ("solve", "--budget", "80%"),
        pytest.param(("sweep",), marks=pytest.mark.slow),
        pytest.param(("explain", "--budget", "9"), marks=pytest.mark.slow),
    ],
)
def test_terminals_get_colours_pipes_and_no_color_do_not(
    words: tuple[str, ...], chain: Path
) -> None:
    command = [sys.executable, "-m", "memfit", words[0], str(chain), *words[1:]]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert plain.returncode == (3 if words[0] == "explain" else 0)
    assert "\x1b" not in plain.stdout
    assert "─" not in plain.stdout
    assert "━" not in plain.stdout
    shown = {}
    for name, extra in (("colour", {}), ("none", {"NO_COLOR": "1"})):
        ours, theirs = os.openpty()
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        done = subprocess.run(
            command,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**environment, "TERM": "xterm-256color", "COLUMNS": "120", **extra},
            timeout=120,
        )
        os.close(theirs)
        shown[name] = os.read(ours, 1 << 16).decode()
        os.close(ours)
        assert (done.returncode, done.stderr) == (plain.returncode, b"")
    coloured = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;[0-9;]+)m")
    assert not coloured.search(shown["none"])
    assert shown["none"].split()  # it says the same, without colours
