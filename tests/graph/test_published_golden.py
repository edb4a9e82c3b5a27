"""`memfit solve` on the published graphs against values computed by an independent program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memfit.cli import main
from memfit.cuts.lower_sets import lower_sets
from memfit.graph.graph_file import graph_from_json, graph_to_json, read_graph

PLANNER_OF = {"all": "exact", "pruned": "approximate"}


def _golden() -> dict[str, Any]:
    given = os.environ.get("MEMFIT_REFERENCE")
    folder = Path(given) if given else Path(__file__).parents[3] / "shared" / "reference"
    file = folder / "golden.json"
    if not file.is_file():
        return {"graphs": {}, "plans": [], "infeasible": []}
    data: dict[str, Any] = json.loads(file.read_text())
    return data


def _name(entry: dict[str, Any]) -> str:
    parts = [entry["graph"], entry["family"], entry.get("mode", ""), str(entry["budget_bytes"])]
    return "-".join(part for part in parts if part)


GOLDEN = _golden()


@pytest.fixture
def solved(
    reference_dir: Path, capsys: pytest.CaptureFixture[str], core: str
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs `memfit solve --json` in this process: exit code and what it wrote."""

    def run(graph: str, planner: str, mode: str, budget_bytes: int) -> tuple[int, dict[str, Any]]:
        file = reference_dir / "graphs" / f"cg_{graph}.txt"
        words = ["solve", str(file), "--planner", planner, "--mode", mode]
        code = main([*words, "--budget", str(budget_bytes), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_the_reference_data_has_entries(reference_dir: Path) -> None:
    assert len(GOLDEN["graphs"]) == 7
    assert len(GOLDEN["plans"]) > 40
    assert GOLDEN["infeasible"]


@pytest.mark.parametrize("name", sorted(GOLDEN["graphs"]))
def test_nodes_costs_and_lower_sets(name: str, reference_dir: Path, core: str) -> None:
    graph = read_graph(reference_dir / "graphs" / f"cg_{name}.txt")
    wanted = GOLDEN["graphs"][name]
    assert graph.forward_count == wanted["nodes"]
    assert graph.forward_cost == wanted["total_time"]
    assert len(lower_sets(graph.forward_predecessors, "all", 30_000)) == wanted["lower_sets"]
    assert graph_from_json(graph_to_json(graph)) == graph


def _plan_cases() -> list[Any]:
    """Every entry with each core; ResNet-152's 581 lower sets take the Python core many seconds."""
    return [
        pytest.param(
            core,
            entry,
            id=f"{core}-{_name(entry)}",
            marks=[pytest.mark.slow]
            if (core, entry["graph"], entry["family"]) == ("python", "resnet152", "all")
            else [],
        )
        for core in ("native", "python")
        for entry in GOLDEN["plans"]
    ]


@pytest.mark.parametrize(("core", "entry"), _plan_cases(), indirect=["core"])
def test_plans(entry: dict[str, Any], solved: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, result = solved(
        entry["graph"], PLANNER_OF[entry["family"]], entry["mode"], entry["budget_bytes"]
    )
    assert code == 0
    assert result["family"] == entry["family"]
    assert (result["overhead"], result["cached_bytes"]) == (
        entry["overhead"],
        entry["cached_bytes"],
    )
    assert result["total_time"] == GOLDEN["graphs"][entry["graph"]]["total_time"]
    assert result["formula_peak_bytes"] <= entry["budget_bytes"]
    # Not a law (see tests/property), but so it is on these networks.
    assert result["peak_bytes"] <= result["formula_peak_bytes"]


@pytest.mark.parametrize("mode", ["time", "memory"])
@pytest.mark.parametrize("entry", GOLDEN["infeasible"], ids=_name)
def test_infeasible_budgets_name_the_smallest_feasible_one(
    entry: dict[str, Any], mode: str, solved: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    planner = PLANNER_OF[entry["family"]]
    code, result = solved(entry["graph"], planner, mode, entry["budget_bytes"])
    assert (code, result["status"]) == (3, "INFEASIBLE")
    smallest = result["smallest_feasible_budget"]
    assert smallest > entry["budget_bytes"]
    code, result = solved(entry["graph"], planner, mode, smallest)
    assert code == 0
    assert result["smallest_feasible_budget"] == result["formula_peak_bytes"] == smallest
    code, result = solved(entry["graph"], planner, mode, smallest - 1)
    assert (code, result["smallest_feasible_budget"]) == (3, smallest)


@pytest.mark.parametrize(
    ("graph", "planner", "smallest_bytes"),
    [
        ("unet", "approximate", 4_460_257_280),
        ("resnet50", "approximate", 1_008_336_896),
    ],
)
def test_the_authors_fallback_reaches_their_smallest_peaks(
    graph: str,
    planner: str,
    smallest_bytes: int,
    solved: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    """Memory-centric with liveness analysis: 4.46 GB for U-Net, 1.01 GB for ResNet50."""
    code, result = solved(graph, planner, "auto", smallest_bytes)
    assert (code, result["mode"], result["peak_bytes"]) == (0, "memory", smallest_bytes)
    code, result = solved(graph, planner, "auto", smallest_bytes - 1)
    assert (code, result["smallest_feasible_budget"]) == (3, smallest_bytes)
