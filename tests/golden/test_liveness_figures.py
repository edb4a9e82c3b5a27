"""The liveness planner on the published graphs, against the figures of an independent prototype.

The prototype used the same memory model (its simulated peak of the plain step is asserted below),
kept boundaries only and searched the same families.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from memfit.errors import InfeasibleBudgetError
from memfit.graph import TrainingGraph
from memfit.graph_io import read_graph
from memfit.liveness import simulate
from memfit.planners import liveness_dp
from memfit.planners.base import PlannerOptions
from memfit.stages import store_all_schedule


def graph(folder: Path, name: str) -> TrainingGraph:
    return read_graph(folder / "graphs" / f"cg_{name}.txt")


# network, plain peak, smallest peak of the prototype, (share of the plain peak, percent of the
# forward cost that it recomputed there)
FIGURES = [
    ("vgg19", 2_132_279_296, 1_644_000_000, [(0.9, 6.3), (0.8, 7.9)]),
    ("unet", 7_803_387_904, 3_545_000_000, [(0.9, 6.5), (0.8, 12.1), (0.7, 19.0), (0.5, 52.8)]),
    ("resnet50", 3_468_165_120, 822_000_000, [(0.9, 1.4), (0.7, 5.5), (0.5, 15.5), (0.3, 37.8)]),
]


@pytest.mark.parametrize(("name", "plain", "smallest", "figures"), FIGURES)
def test_no_worse_than_the_prototype(
    reference_dir: Path,
    name: str,
    plain: int,
    smallest: int,
    figures: list[tuple[float, float]],
) -> None:
    found = graph(reference_dir, name)
    assert simulate(found, store_all_schedule(found)).peak_bytes == plain
    table = liveness_dp.build_table(found, PlannerOptions())
    assert table.family == "all"
    last = -1
    for share, percent in figures:
        plan = liveness_dp.plan_from_table(table, int(share * plain), 0.0)
        plan.schedule.validate(found)
        assert plan.peak_bytes <= int(share * plain)
        assert 100 * plan.overhead / found.forward_cost <= percent + 0.05
        assert plan.overhead >= last
        last = plan.overhead
    low = plan.smallest_feasible_budget_bytes
    assert low <= smallest
    assert liveness_dp.plan_from_table(table, low, 0.0).peak_bytes == low
    with pytest.raises(InfeasibleBudgetError):
        liveness_dp.plan_from_table(table, low - 1, 0.0)


def test_vgg19_at_80_percent_is_the_proven_optimum_over_all_schedules(reference_dir: Path) -> None:
    found = graph(reference_dir, "vgg19")
    plain = simulate(found, store_all_schedule(found)).peak_bytes
    plan = liveness_dp.plan(found, int(0.8 * plain), PlannerOptions())
    assert plan.overhead == 12  # 6.3% of 190, proven by constraint programming


@pytest.mark.parametrize("name", ["googlenet", "pspnet"])
def test_too_many_lower_sets_are_found_out_and_said(reference_dir: Path, name: str) -> None:
    found = graph(reference_dir, name)
    table = liveness_dp.build_table(found, PlannerOptions())
    assert table.family == "pruned+prefix"
    assert "more than" in table.notes[0]
    plain = simulate(found, store_all_schedule(found)).peak_bytes
    plan = liveness_dp.plan_from_table(table, plain // 2, 0.0)
    assert plan.peak_bytes <= plain // 2
    assert plan.provenance["notes"]
