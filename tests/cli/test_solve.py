"""`memfit solve` in this process: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memfit.cli import main
from memfit.graph.graph_file import write_graph
from memfit.graph.published import bare_graph
from memfit.planners.paper import system as paper_dp

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    n = 9
    before = [[v - 1] if v else [] for v in range(n)]
    graph = bare_graph(
        before, [10] * n, [2] * n, [[*before[v], v] for v in range(n)], name="a-chain"
    )
    write_graph(graph, tmp_path / "chain.json")
    return tmp_path / "chain.json"


@pytest.fixture
def run(graph_file: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs solve on the chain: exit code, stdout, stderr."""

    def call(*words: str, graph: Path = graph_file) -> tuple[int, str, str]:
        code = main(["solve", str(graph), *words])
        written = capsys.readouterr()
        return code, written.out, written.err

    return call


KEYS = {
    "status", "planner", "family", "lower_sets", "overhead", "total_time", "cached_bytes",
    "formula_peak_bytes", "peak_bytes", "stages", "seconds", "smallest_feasible_budget",
}  # fmt: skip


@pytest.mark.parametrize(
    "planner", ["auto", "liveness", "exact", "approximate", "refined", "chen", "store-all"]
)
def test_json(planner: str, run: Run) -> None:
    code, out, err = run("--planner", planner, "--budget", "100%", "--json")
    assert (code, err) == (0, "")
    result: dict[str, Any] = json.loads(out)
    assert set(result) >= KEYS
    assert result["planner"] == ("liveness" if planner == "auto" else planner)
    assert result["graph"] == "a-chain"
    assert result["total_time"] == 18
    assert result["peak_bytes"] <= result["budget_bytes"] == result["plain_peak_bytes"]
    assert result["smallest_feasible_budget"] <= result["peak_bytes"]
    assert sum(stage["forward_ops"] for stage in result["stages"]) in (0, 9)


def test_overhead_is_the_papers_for_its_planners_only(run: Run) -> None:
    exact = json.loads(run("--planner", "exact", "--mode", "time", "--budget", "80", "--json")[1])
    assert exact["overhead"] == exact["formula_overhead"] > exact["executed_overhead"]
    assert exact["overhead_percent"] == 100 * exact["overhead"] / 18
    chen = json.loads(run("--planner", "chen", "--budget", "80", "--json")[1])
    assert chen["overhead"] == chen["executed_overhead"] < chen["formula_overhead"]
    assert chen["cached_bytes"] == chen["kept_bytes"]


def test_checkpoints_by_name(run: Run) -> None:
    words = ("--planner", "salimans-collection", "--budget", "100%", "--json")
    plain = json.loads(run(*words)[1])
    assert plain["overhead"] == 0
    code, out, _ = run(*words, "--checkpoint", "op_3", "--checkpoint", "op_6")
    names = json.loads(out)
    assert code == 0
    assert (len(names["stages"]), names["executed_overhead"] > 0) == (3, True)
    assert names["peak_bytes"] < plain["peak_bytes"]
    code, _, err = run(*words[:-1], "--checkpoint", "nowhere")
    assert code == 2
    assert "checkpoint 'nowhere' is no forward op of a-chain" in err


def test_an_infeasible_budget(run: Run) -> None:
    code, out, err = run("--planner", "exact", "--mode", "time", "--budget", "20", "--json")
    result = json.loads(out)
    assert (code, err) == (3, "")
    assert (result["status"], result["budget_bytes"]) == ("INFEASIBLE", 20)
    smallest = str(result["smallest_feasible_budget"])
    assert run("--planner", "exact", "--mode", "time", "--budget", smallest)[0] == 0
    code, out, err = run("--planner", "exact", "--mode", "time", "--budget", "20")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert f"smallest feasible budget {smallest} B ({smallest} bytes)" in err


def test_the_table(run: Run) -> None:
    code, out, err = run("--planner", "exact", "--mode", "memory", "--budget", "1 KiB")
    assert (code, err) == (0, "")
    for text in ("a-chain: exact, memory-centric", "1.00 KiB (1,024 bytes)", "all (10 lower sets)"):
        assert text in out


def test_a_reduced_family_is_noted(run: Run) -> None:
    words = ("--planner", "exact", "--max-lower-sets", "4", "--budget", "1000")
    note = "family all has more than 4 lower sets; family pruned+prefix was searched instead"
    assert f"note: {note}" in run(*words)[1]
    result = json.loads(run(*words, "--json")[1])
    assert (result["notes"], result["family"]) == ([note], "pruned+prefix")


def test_costs_that_were_rounded_are_noted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_dp, "_FEW_LOWER_SETS", 4)
    monkeypatch.setattr(paper_dp, "_COST_STEPS", 150)
    words = ("--planner", "exact", "--mode", "time", "--budget", "80")
    # 10 lower sets leave 15 steps of cost, 10 of them taken up by rounding: 18 / 5 is 4.
    note = "costs were rounded up to multiples of 4 unit"
    assert f"note: {note}" in run(*words)[1]
    result = json.loads(run(*words, "--json")[1])
    assert result["status"] == "FEASIBLE"
    assert note in result["notes"]
    assert result["formula_peak_bytes"] <= 80


def test_a_family_by_name(run: Run) -> None:
    result = json.loads(
        run("--planner", "exact", "--family", "prefix", "--budget", "1000", "--json")[1]
    )
    assert result["family"] == "prefix"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--planner", "best", "--budget", "1"], "unknown planner 'best'; known planners: auto,"),
        (["--planner", "exact", "--mode", "fast", "--budget", "1"], "unknown mode 'fast'; known"),
        (["--planner", "exact", "--family", "odd", "--budget", "1"], "unknown family 'odd'; known"),
        (["--budget", "much"], "budget 'much' cannot be read"),
        (["--budget", "0"], "is not between 1 and"),
        (["--budget", "auto"], 'budget "auto" needs a device'),
        ([], "--budget"),
        (["--budget", "1", "--max-lower-sets", "1"], "--max-lower-sets is 1; it must be 2"),
    ],
)
def test_wrong_usage(words: list[str], message: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("text", [None, "", "3 2\n0 1", '{"format": "memfit-graph"', "<graph/>"])
def test_a_wrong_file(text: str | None, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "wrong.txt"
    if text is not None:
        file.write_text(text)
    code, out, err = run("--budget", "1", graph=file)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(file) in err


def test_bound_and_gap(run: Run) -> None:
    pytest.importorskip("highspy")
    code, out, err = run("--budget", "80%", "--bound", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    bound = result["bound"]
    assert 0 < bound["overhead"] <= result["executed_overhead"]
    assert bound["budget_bytes"] == result["budget_bytes"]
    assert bound["gap_percent"] == pytest.approx(
        100 * (result["executed_overhead"] - bound["overhead"]) / result["total_time"]
    )
    code, out, err = run("--budget", "80%", "--bound")
    assert (code, err) == (0, "")
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert (
        f"{bound['overhead']}, {bound['overhead_percent']:.1f}% of a forward pass"
        in (lines["lower bound"])
    )
    assert "% of a forward pass" in lines["gap"]
    assert "HiGHS" in lines["bound found by"]
    assert "bound" not in json.loads(run("--budget", "80%", "--json")[1])


def test_bound_of_an_infeasible_budget(run: Run) -> None:
    pytest.importorskip("highspy")
    code, out, _ = run("--budget", "20", "--bound", "--json")
    assert code == 3
    assert json.loads(out)["bound"]["infeasible"]
    code, out, err = run("--budget", "20", "--bound")
    assert (code, out) == (3, "")
    assert "(it is proven that no schedule in program order fits)" in err


def test_a_plan_file_holds_the_bound(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("highspy")
    assert run("--budget", "80%", "--bound", "-o", str(tmp_path / "plan.json"))[0] == 0
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved["provenance"]["bound"]["proven_optimum"] in (True, False)


def test_wrong_uses_of_bound(run: Run) -> None:
    pytest.importorskip("highspy")
    code, out, err = run("--budget", "80%", "--bound-time-limit", "5")
    assert (code, out) == (2, "")
    assert err == "memfit: error: --bound-time-limit 5 has no bound to limit; give --bound\n"
    code, out, err = run("--curve", "--bound")
    assert (code, out) == (2, "")
    assert "--bound is for one budget" in err
