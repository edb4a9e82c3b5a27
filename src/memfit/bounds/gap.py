"""How far a plan is from the best schedule that runs its ops in its order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from memfit.bounds.lower_bound import LowerBound
from memfit.bounds.search import DEFAULT_TIME_LIMIT_S, bound_graph
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.strategies.carried import StepOrder

__all__ = ["bound_plan"]


def bound_plan(
    graph: TrainingGraph,
    plan: Plan,
    *,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Plan, LowerBound]:
    """The bound for a plan's budget and order of ops, and the plan with it in its provenance.

    Args:
        graph: the plan's graph.
        plan: the plan.
        time_limit_s, progress: as for `bound_graph`.

    Raises:
        UsageError: highspy is not installed.
        PlanMismatchError: the plan is for another graph.
    """
    plan.check_graph(graph)
    found = bound_graph(
        graph,
        plan.budget_bytes,
        order=StepOrder.of_schedule(graph, plan.schedule),
        known=plan.schedule,
        time_limit_s=time_limit_s,
        progress=progress,
    )
    provenance = {**plan.provenance, "bound": found.to_dict(plan.overhead)}
    return replace(plan, provenance=provenance), found
