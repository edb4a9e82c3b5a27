"""How far plans of the published graphs are from the proven optimum."""

from __future__ import annotations

from pathlib import Path

import pytest

from memfit.bounds import bound_plan
from memfit.graph.graph_file import read_graph
from memfit.graph.plain import store_all_schedule
from memfit.graph.simulator import simulate
from memfit.planners import PlannerOptions, get_planner

# Optima in the paper's cost model, for the order of the plan's ops, by share of the plain peak.
OPTIMA = {
    "vgg19": {90: 11, 80: 12, 70: 23, 60: 34},
    "unet": {90: 3, 80: 10, 70: 23, 60: 38},
}


def check(reference_dir: Path, name: str, percent: int, optimum: int) -> None:
    pytest.importorskip("highspy")
    graph = read_graph(reference_dir / "graphs" / f"cg_{name}.txt")
    budget = simulate(graph, store_all_schedule(graph)).peak_bytes * percent // 100
    plan = get_planner("refined")(graph, budget, PlannerOptions())
    plan.schedule.validate(graph)
    assert simulate(graph, plan.schedule).peak_bytes <= budget
    assert plan.overhead <= get_planner("auto")(graph, budget, PlannerOptions()).overhead
    _, bound = bound_plan(graph, plan)
    assert (bound.overhead, bound.proven_optimum) == (optimum, True)
    gap = bound.gap_percent(plan.overhead)
    assert gap is not None
    assert 0 <= gap <= 2


@pytest.mark.parametrize(
    ("name", "percent"), [("vgg19", 80), ("vgg19", 60), ("unet", 90), ("unet", 70)]
)
def test_plans_are_within_two_percent_of_the_optimum(
    reference_dir: Path, name: str, percent: int
) -> None:
    check(reference_dir, name, percent, OPTIMA[name][percent])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "percent"), [("vgg19", 90), ("vgg19", 70), ("unet", 80), ("unet", 60)]
)
def test_other_plans_are_too(reference_dir: Path, name: str, percent: int) -> None:
    check(reference_dir, name, percent, OPTIMA[name][percent])


@pytest.mark.slow
def test_the_tightest_plan_is_too(reference_dir: Path) -> None:
    check(reference_dir, "unet", 50, 76)
