"""Plans for any budget from one search are those that are searched for one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import pytest

from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PLANNERS, PlannerOptions, get_planner
from memfit.planners.liveness import planner as liveness_planner
from memfit.planners.registry import get_plans

MakeGraph = Callable[[Random, int], TrainingGraph]
NAMES = [name for name in ("auto", *PLANNERS) if name not in ("revolve",)]


def answer(plans: Callable[[int], Plan], budget_bytes: int) -> Plan | str:
    try:
        return replace(plans(budget_bytes), seconds=0.0)
    except InfeasibleBudgetError as error:
        return str(error)


def _asked(name: str, graph: TrainingGraph, budget_bytes: int) -> Plan:
    return get_planner(name)(graph, budget_bytes, PlannerOptions())


@pytest.mark.parametrize("name", NAMES)
def test_one_search_gives_the_same_plans(name: str, joint_graph: MakeGraph) -> None:
    for seed in range(4):
        graph, options = joint_graph(Random(seed), 12), PlannerOptions()
        plain = get_planner("store-all")(graph, 2**50, options).plain_peak_bytes
        plans = get_plans(name, graph, options)
        for share in (120, 100, 80, 60, 45, 30):
            budget = plain * share // 100
            one = answer(partial(_asked, name, graph), budget)
            assert answer(plans, budget) == one, share


@pytest.mark.parametrize("name", ["auto", "liveness"])
def test_one_search_is_made(
    name: str, joint_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, options = joint_graph(Random(1), 12), PlannerOptions()
    searched: list[TrainingGraph] = []
    table_for = liveness_planner.table_for

    def counted(graph: TrainingGraph, options: PlannerOptions) -> object:
        searched.append(graph)
        return table_for(graph, options)

    monkeypatch.setattr(liveness_planner, "table_for", counted)
    plans = get_plans(name, graph, options)
    for budget in (2**50, 2**40, 2**30):
        plans(budget)
    assert len(searched) == 1
