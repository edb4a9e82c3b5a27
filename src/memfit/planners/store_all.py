"""The plain step as a plan: everything that the backward pass reads is kept."""

from __future__ import annotations

import time

from memfit.graph.plan import Plan, PlanStatus
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions
from memfit.planners.candidate import infeasible, plain_candidate

__all__ = ["plan"]


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """One stage, no recomputation.

    Raises:
        InfeasibleBudgetError: the plain step's simulated peak is over the budget.
    """
    began = time.perf_counter()
    plain = plain_candidate(graph)
    if plain.peak_bytes > budget_bytes:
        raise infeasible(plain, budget_bytes, detail="store-all recomputes nothing")
    return plain.plan(
        budget_bytes,
        planner="store-all",
        family="none",
        status=PlanStatus.OPTIMAL_IN_FAMILY,
        smallest_bytes=plain.peak_bytes,
        lower_sets=2 if graph.forward_count else 1,
        began=began,
    )
