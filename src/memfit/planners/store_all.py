"""The plain step as a plan: everything that the backward pass reads is kept."""

from __future__ import annotations

import time

from memfit.errors import InfeasibleBudgetError
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan, PlanStatus, Stage, make_plan
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions
from memfit.strategies.canonical import peak_op

__all__ = ["plan"]


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """One stage, no recomputation.

    Raises:
        InfeasibleBudgetError: the plain step's simulated peak is over the budget.
    """
    began = time.perf_counter()
    schedule = store_all_schedule(graph)
    peak = simulate(graph, schedule).peak_bytes
    if peak > budget_bytes:
        raise InfeasibleBudgetError(
            budget_bytes=budget_bytes,
            minimum_bytes=peak,
            binding_op=peak_op(graph, schedule),
            detail="store-all recomputes nothing",
        )
    kept = sum(graph.values[v].size_bytes for v in schedule.kept(graph))
    forward = graph.forward_ops
    stages = (Stage(len(forward), forward[0].name, forward[-1].name, kept, 0),) if forward else ()
    return make_plan(
        graph,
        schedule,
        planner="store-all",
        family="none",
        mode=None,
        status=PlanStatus.OPTIMAL_IN_FAMILY,
        budget_bytes=budget_bytes,
        plain_peak_bytes=peak,
        smallest_feasible_budget_bytes=peak,
        lower_sets=2 if forward else 1,
        stages=stages,
        seconds=time.perf_counter() - began,
        provenance={"notes": []},
    )
