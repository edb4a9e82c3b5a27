"""The paper's exact dynamic program: all lower sets (Kusumoto et al. 2019, section 4.2)."""

from __future__ import annotations

from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions, TradeOff
from memfit.planners.paper.system import plan_paper, trade_off_paper

__all__ = ["plan", "trade_off"]


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """The best canonical strategy over all lower sets; see `memfit.planners.paper.system`.

    Where there are more than `options.max_lower_sets` of them, the next smaller family is searched,
    and the plan says so.

    Raises:
        InfeasibleBudgetError: nothing fits; names the smallest budget that does.
        UsageError: an unknown mode or family.
    """
    return plan_paper(graph, budget_bytes, options, planner="exact", family="all")


def trade_off(graph: TrainingGraph, options: PlannerOptions) -> TradeOff:
    """The overhead of every budget, from one run; see `memfit.planners.paper.system`.

    Raises:
        UsageError: an unknown family.
    """
    return trade_off_paper(graph, options, planner="exact", family="all")
