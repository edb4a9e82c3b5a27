"""The comparison with the paper's own plans that benchmarks/paper makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from memfit.analysis.peers import PeerPoint, undominated
from memfit.errors import InfeasibleBudgetError
from memfit.graph.graph_file import read_graph
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_planner
from memfit.planners.paper.system import build_table
from support.benchmarks import benchmark_module


@pytest.fixture(scope="module")
def plans() -> ModuleType:
    return benchmark_module("paper.plans")


def silent(text: str) -> None:
    """Says nothing."""


def test_no_nominal_budget_gives_a_plan_that_is_left_out(
    plans: ModuleType, full_graph: Callable[[Random, int], TrainingGraph]
) -> None:
    """Against every single byte as the nominal budget."""
    random = Random(2)
    compared = 0
    for _ in range(40):
        graph = full_graph(random, 7)
        plain = plans.plain_peak_bytes(graph)
        if plain > 3_000:
            continue
        table = build_table(graph, "all", PlannerOptions())
        changes = [budget for _, budget in table.stages.curve()]
        for mode in ("time", "memory"):
            every = set()
            for budget in range(min(changes), max(changes) + 1):
                strategy = table.strategy(budget, mode)
                assert strategy is not None
                every.add((strategy.peak_bytes, strategy.schedule.overhead(graph)))
            found = plans.paper_strategies(table, plain, True, silent)
            wanted = undominated([PeerPoint(mode, "", *point) for point in every])
            points = undominated(found.points(mode))
            assert [(p.peak_bytes, p.overhead) for p in points] == [
                (p.peak_bytes, p.overhead) for p in wanted
            ]
            compared += len(every) > 1
    assert compared > 5


@pytest.mark.parametrize("name", ["vgg19", "unet"])
def test_a_published_graph(plans: ModuleType, reference_dir: Path, name: str) -> None:
    graph = read_graph(reference_dir / "graphs" / f"cg_{name}.txt")
    found = plans.describe(graph, thorough=True, say=silent)
    plain = found["plain_bytes"]
    for family in ("exact", "approximate"):
        row = found[family]
        low = found["smallest"][family]["peak_bytes"]
        for planner in ("liveness", "nested"):
            mine = found["smallest"][planner]["peak_bytes"]
            assert row["smallest_peak_lower"][planner] == 1 - mine / low >= 0.07
        assert row["overhead_lower"] >= 0.3
        # The authors' system gives no plan that those compared do not match.
        with pytest.raises(InfeasibleBudgetError) as caught:
            get_planner(family)(graph, 0, PlannerOptions())
        least = caught.value.minimum_bytes
        for budget in (least, (least + plain) // 2, plain - 1):
            plan = get_planner(family)(graph, budget, PlannerOptions())
            assert low <= plan.peak_bytes
            assert plan.overhead >= min(
                theirs for peak, theirs, _ in row["equal_peak"] if peak <= plan.peak_bytes
            )
        for peak, theirs, mine in row["equal_peak"]:
            assert 0 <= mine <= theirs
            assert low <= peak <= plain * 11 // 10
