"""What the name `auto` stands for: single recomputations where they do, nested ones where not.

Nested strategies are searched where the budget is below what single recomputations can meet, or so
little above it that computing some ops more than once may cost less (docs/adr/0007 has figures).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions, Searched, TradeOff
from memfit.planners.liveness import planner as liveness_dp
from memfit.planners.nested import planner as nested_dp
from memfit.planners.nested.table import NestedPlans

__all__ = ["plan", "plans", "search_all", "trade_off"]

_ROOMY = 1.5
"""Beyond what is resident, so many times what single recomputations need at least is roomy."""


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """The plan with the least recomputation whose simulated peak fits the budget.

    Raises:
        InfeasibleBudgetError: no plan of either family fits; names the smallest feasible budget.
        UsageError: an unknown family.
    """
    return plans(graph, options)(budget_bytes)


def plans(graph: TrainingGraph, options: PlannerOptions) -> Callable[[int], Plan]:
    """What `plan` gives for any budget, from one run; nested plans are searched when asked for.

    Raises:
        UsageError: an unknown family.
    """
    searching = time.perf_counter()
    table = liveness_dp.table_for(graph, options)
    spent = time.perf_counter() - searching

    @cache
    def nested() -> NestedPlans | None:
        left = options
        if options.time_limit_s is not None:
            left = replace(options, time_limit_s=max(0.0, options.time_limit_s - spent))
        return nested_dp.nested_for(graph, left)

    def within(budget_bytes: int) -> Plan:
        began = time.perf_counter() - spent
        single, error = nested_dp.single_plan(table, budget_bytes, began)
        if single is not None:
            fixed = table.fixed_bytes
            enough = fixed + _ROOMY * (single.smallest_feasible_budget_bytes - fixed)
            if single.overhead == 0 or budget_bytes >= enough:
                return single
        return nested_dp.better_plan(table, nested(), single, error, budget_bytes, began)

    return within


def trade_off(graph: TrainingGraph, options: PlannerOptions) -> TradeOff:
    """The overhead of every budget, by single or nested recomputations.

    Raises:
        UsageError: an unknown family.
    """
    return search_all(graph, options).trade_off


def search_all(graph: TrainingGraph, options: PlannerOptions) -> Searched:
    """The trade-off, and the better of single and nested plans for any budget, from one run.

    `plan` keeps to single recomputations where a budget is roomy; here both have been searched.

    Raises:
        UsageError: an unknown family.
    """
    found = nested_dp.search_all(graph, options)
    return replace(found, trade_off=replace(found.trade_off, planner="auto"))
