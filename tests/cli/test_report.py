"""`memfit report` in this process: what it writes, what it reads, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memfit.cli import main
from memfit.graph.graph_file import write_graph
from memfit.graph.plan import Plan
from memfit.graph.plan_file import load_plan_file, save_plan_file
from support.report_graphs import network

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs memfit: exit code, stdout, stderr."""

    def call(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        written = capsys.readouterr()
        return code, written.out, written.err

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> Path:
    """A current folder with graph.json, plan.json of it, and bare.json, a plan without a graph."""
    monkeypatch.chdir(tmp_path)
    write_graph(network(2), "graph.json")
    words = ("solve", "graph.json", "--budget", "70%", "--quiet", "-o", "plan.json")
    assert run(*words)[0] == 0
    Plan.load("plan.json").save("bare.json")
    return tmp_path


def data(page: Path) -> Any:
    return json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])


def test_a_plan_file_holds_its_graph(folder: Path) -> None:
    file = load_plan_file(folder / "plan.json")
    assert file.graph == network(2)
    assert file.plan == Plan.load(folder / "plan.json") == load_plan_file("bare.json").plan
    assert load_plan_file("bare.json").graph is None
    shapes = [None, *["2x3 float32"] * (len(network(2).ops) - 1)]
    save_plan_file("shaped.json", file.plan, network(2), shapes)
    assert list(load_plan_file("shaped.json").shapes) == shapes


def test_a_report_from_one_file(folder: Path, run: Run) -> None:
    code, out, err = run("report", "plan.json", "-o", "page.html")
    assert (code, err) == (0, "")
    assert out.startswith("report written to page.html (")
    found = data(folder / "page.html")
    assert found["plan"]["peakBytes"] == Plan.load("plan.json").peak_bytes
    assert found["curve"] is None


def test_json_and_curve(folder: Path, run: Run) -> None:
    code, out, err = run("report", "plan.json", "--curve", "--curve-points", "3", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["report"] == "report.html"
    assert said["bytes"] == (folder / "report.html").stat().st_size
    curve = data(folder / "report.html")["curve"]
    assert said["curve_points"] == len(curve["points"]) > 3
    assert len(curve["plans"]) == 3


def test_the_graph_beside_the_plan(folder: Path, run: Run) -> None:
    assert run("report", "bare.json", "--graph", "graph.json", "-o", "page.html")[0] == 0
    assert run("report", "plan.json", "-o", "other.html")[0] == 0
    assert (folder / "page.html").read_text() == (folder / "other.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.json"], "missing.json cannot be read: No such file or directory; give a file"),
        (["text.json"], "text.json is not JSON"),
        (["graph.json"], "graph.json is a graph, not a plan; plan it with memfit solve"),
        (["bare.json"], "holds no graph, which a report needs; plan again with memfit plan -o"),
        (["bare.json", "--graph", "other.json"], "plan again for this model"),
        (["bare.json", "--graph", "nowhere.json"], "nowhere.json cannot be read"),
        (["plan.json", "-o", "no/page.html"], "there is no folder no; choose one that exists"),
        (["plan.json", "-o", "."], "it is a folder; name a file"),
        (["plan.json", "-o", "plan.json"], "it is the plan; name another file with -o"),
        (["plan.json", "--curve-points", "1"], "--curve-points is 1; it must be 2 or more"),
        (["mixed.json"], "the plan is for graph"),
        (["shapeless.json"], "shapes is not a list of"),
    ],
)
def test_refusals_say_what_to_do(folder: Path, run: Run, words: list[str], message: str) -> None:
    (folder / "text.json").write_text("no JSON")
    write_graph(network(3), "other.json")
    whole = json.loads((folder / "plan.json").read_text())
    mixed = {**whole, "graph": json.loads((folder / "other.json").read_text())}
    (folder / "mixed.json").write_text(json.dumps(mixed))
    (folder / "shapeless.json").write_text(json.dumps({**whole, "shapes": ["2x3"]}))
    code, out, err = run("report", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not (folder / "report.html").exists()


def test_solve_writes_no_plan_of_a_curve(folder: Path, run: Run) -> None:
    code, _, err = run("solve", "graph.json", "--curve", "-o", "curve.json")
    assert code == 2
    assert "--curve makes none; give --budget" in err
