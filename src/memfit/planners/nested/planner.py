"""Nested canonical strategies: what a stage computes again is itself planned in stages.

A stage's backward is planned within the memory that is left: from the checkpoint at its lower cut
its forward ops run again, keeping inner boundaries only, then its inner stages are run backward, to
any depth. On a chain this is revolve (Griewank and Walther 2000); on other graphs costs, sizes and
what backward ops read are the graph's own (docs/adr/0007). Where a strategy of single
recomputations (`liveness`) costs no more, that is the plan.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import replace

from memfit import _core
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import (
    PlannerOptions,
    Searched,
    TimeIsUp,
    TradeOff,
    TradeOffPoint,
    limited,
)
from memfit.planners.candidate import Candidate
from memfit.planners.liveness import planner as liveness_dp
from memfit.planners.liveness.planner import CHEAPER_TRIES
from memfit.planners.liveness.table import LivenessTable
from memfit.planners.nested.table import EFFORT, NestedPlans, build_nested

__all__ = ["candidate", "nested_for", "plan", "plan_from_tables", "search_all", "trade_off"]


def candidate(plans: NestedPlans, label: int) -> Candidate:
    """The strategy of a label of the trade-off."""
    path = plans.path(label)
    return Candidate(plans.graph, lambda: path.schedule, lambda _: path.stages())


def nested_for(graph: TrainingGraph, options: PlannerOptions) -> NestedPlans | None:
    """All nested strategies of a graph; None if the time limit was reached first."""
    try:
        return build_nested(graph, EFFORT[_core.core_name()], limited(options))
    except TimeIsUp:
        return None


def search(plans: NestedPlans, budget_bytes: int, smallest: Candidate) -> Candidate | None:
    """Least overhead whose exactly simulated peak fits the budget; None if none does.

    The program reckons with some values a little longer than they live, so the next cheaper labels
    are tried too, always as many (see `liveness_dp`).
    """
    needs = plans.front[1]
    at = bisect_left([-need for need in needs], plans.fixed_bytes - budget_bytes)
    labels = range(max(0, at - CHEAPER_TRIES), min(at + 1, len(needs)))
    found = [smallest, *(candidate(plans, label) for label in labels)]
    fitting = [f for f in found if f.peak_bytes <= budget_bytes]
    return min(fitting, key=lambda f: (f.overhead, f.peak_bytes), default=None)


def trade_off(graph: TrainingGraph, options: PlannerOptions) -> TradeOff:
    """The overhead of every budget: of nested strategies and of those that recompute once.

    Raises:
        UsageError: an unknown family.
    """
    return search_all(graph, options).trade_off


def search_all(graph: TrainingGraph, options: PlannerOptions) -> Searched:
    """The trade-off, and plans for any budget, from one run.

    Raises:
        UsageError: an unknown family.
    """
    began = time.perf_counter()
    table = liveness_dp.table_for(graph, options)
    plans = nested_for(graph, options)
    return Searched(
        _trade_off(table, plans, began),
        lambda budget_bytes: plan_from_tables(table, plans, budget_bytes, time.perf_counter()),
    )


def _trade_off(table: LivenessTable, plans: NestedPlans | None, began: float) -> TradeOff:
    single = liveness_dp.trade_off_from_table(table, began)
    notes = list(single.notes)
    points = list(single.points)
    if plans is not None:
        points += [
            TradeOffPoint(plans.fixed_bytes + max(0, need), cost)
            for cost, need in zip(*plans.front, strict=True)
        ]
        notes += plans.notes
    best: list[TradeOffPoint] = []
    for point in sorted(points, key=lambda p: (p.budget_bytes, p.overhead)):
        if not best or point.overhead < best[-1].overhead:
            best.append(point)
    return replace(
        single,
        planner="nested",
        points=tuple(best),
        lower_sets=max(single.lower_sets, plans.cut_count if plans else 0),
        seconds=time.perf_counter() - began,
        notes=tuple(notes),
        complete=single.complete and plans is not None,
    )


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """The plan with the least recomputation whose simulated peak fits the budget.

    Raises:
        InfeasibleBudgetError: no plan of the family fits.
        UsageError: an unknown family.
    """
    began = time.perf_counter()
    table = liveness_dp.table_for(graph, options)
    return plan_from_tables(table, nested_for(graph, options), budget_bytes, began)


def single_plan(
    table: LivenessTable, budget_bytes: int, began: float
) -> tuple[Plan | None, InfeasibleBudgetError | None]:
    """The plan of single recomputations, or why there is none."""
    try:
        return liveness_dp.plan_from_table(table, budget_bytes, began), None
    except InfeasibleBudgetError as error:
        return None, error


def plan_from_tables(
    table: LivenessTable, plans: NestedPlans | None, budget_bytes: int, began: float
) -> Plan:
    """As `plan`, from stages simulated before."""
    single, error = single_plan(table, budget_bytes, began)
    return better_plan(table, plans, single, error, budget_bytes, began)


def better_plan(
    table: LivenessTable,
    plans: NestedPlans | None,
    single: Plan | None,
    error: InfeasibleBudgetError | None,
    budget_bytes: int,
    began: float,
) -> Plan:
    """The cheaper one of a plan of single recomputations and the best nested one.

    Args:
        table: the stages of the former.
        plans: nested strategies, if there was time for them.
        single, error: the plan of single recomputations, or why there is none.
        budget_bytes: the budget.
        began: when planning began.

    Raises:
        InfeasibleBudgetError: neither fits.
    """
    if single is not None:
        least, binding = single.smallest_feasible_budget_bytes, None
    else:
        assert error is not None, "there is a plan, or a reason why not"
        least, binding = error.minimum_bytes, error.binding_op
    if plans is None or not plans.front[0]:
        if single is None:
            raise InfeasibleBudgetError(
                budget_bytes=budget_bytes, minimum_bytes=least, binding_op=binding
            )
        recounted = _recounted(single, began, least, plans.notes if plans is not None else ())
        return recounted if plans is not None else replace(recounted, complete=False)
    smallest = candidate(plans, len(plans.front[0]) - 1)
    minimum = min(least, smallest.peak_bytes)
    if budget_bytes < minimum:
        if smallest.peak_bytes < least:
            binding = smallest.binding_op
        raise InfeasibleBudgetError(
            budget_bytes=budget_bytes, minimum_bytes=minimum, binding_op=binding
        )
    if single is not None and single.overhead == 0:
        return _recounted(single, began, minimum, plans.notes)
    found = search(plans, budget_bytes, smallest)
    if found is None or (single is not None and single.overhead <= found.overhead):
        assert single is not None, "a budget that can be met has a plan"
        return _recounted(single, began, minimum, plans.notes)
    return found.plan(
        budget_bytes,
        planner="nested",
        family=table.family,
        smallest_bytes=minimum,
        lower_sets=plans.cut_count,
        began=began,
        notes=(*table.notes, *plans.notes),
        complete=table.complete,
        provenance={"core": _core.core_name()},
    )


def _recounted(plan: Plan, began: float, minimum: int, notes: tuple[str, ...]) -> Plan:
    """A plan of single recomputations with what nested strategies would allow."""
    return replace(
        plan,
        smallest_feasible_budget_bytes=minimum,
        seconds=time.perf_counter() - began,
        notes=(*plan.notes, *notes),
    )
