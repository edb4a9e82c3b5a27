"""Dynamic programming over lower sets with simulated stage peaks; `auto` where room is not short.

The recurrence is that of Kusumoto et al. 2019, section 4.2; the peak of a stage is simulated with
every value freed at its last use instead of bounded by their formula, the last stage need not be
recomputed, and a stage may keep more than its boundary. It runs from V back to the empty set over
pairs (overhead still to come, bytes still needed), so that one run serves every budget.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from memfit import _core
from memfit.graph.plan import Plan, PlanStatus
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import (
    PlannerOptions,
    Searched,
    TimeIsUp,
    TradeOff,
    TradeOffPoint,
    limited,
)
from memfit.planners.candidate import Candidate, infeasible, plain_candidate
from memfit.planners.liveness.table import FULL, QUICK, LivenessTable, build_table
from memfit.strategies.staged import StagePath

__all__ = [
    "CHEAPER_TRIES",
    "plan",
    "plan_from_table",
    "plans",
    "search_all",
    "table_for",
    "trade_off",
    "trade_off_from_table",
]

CHEAPER_TRIES = 3
"""So many points of a trade-off are tried though they are reckoned to need more than the budget."""


def _candidate(path: StagePath) -> Candidate:
    """A way through the stages."""
    return Candidate(path.space.blocks.graph, path.order, lambda _: path.stages())


def table_for(graph: TrainingGraph, options: PlannerOptions) -> LivenessTable:
    """Simulate all stages of a graph.

    With `options.time_limit_s` and no time left, a quick search over fewer lower sets is made
    instead, and its table says so.

    Raises:
        UsageError: an unknown family.
    """
    try:
        return build_table(
            graph,
            family=options.family,
            max_lower_sets=options.max_lower_sets,
            effort=FULL[_core.core_name()],
            progress=limited(options),
        )
    except TimeIsUp:
        table = build_table(
            graph,
            family="prefix",
            max_lower_sets=options.max_lower_sets,
            effort=QUICK[_core.core_name()],
            progress=options.progress,
        )
        note = (
            f"the time limit of {options.time_limit_s:g} s was reached; a quick search over a few "
            "prefixes of the program order was made instead"
        )
        return replace(table, notes=(*table.notes, note), complete=False)


def trade_off(graph: TrainingGraph, options: PlannerOptions) -> TradeOff:
    """The overhead of every budget, from one run.

    Raises:
        UsageError: an unknown family.
    """
    began = time.perf_counter()
    return trade_off_from_table(table_for(graph, options), began)


def plans(graph: TrainingGraph, options: PlannerOptions) -> Callable[[int], Plan]:
    """What `plan` gives for any budget, from one run.

    Raises:
        UsageError: an unknown family.
    """
    table = table_for(graph, options)
    return lambda budget_bytes: plan_from_table(table, budget_bytes, time.perf_counter())


def search_all(graph: TrainingGraph, options: PlannerOptions) -> Searched:
    """The trade-off, and plans for any budget, from one run.

    Raises:
        UsageError: an unknown family.
    """
    began = time.perf_counter()
    table = table_for(graph, options)
    return Searched(
        trade_off_from_table(table, began),
        lambda budget_bytes: plan_from_table(table, budget_bytes, time.perf_counter()),
    )


def trade_off_from_table(table: LivenessTable, began: float) -> TradeOff:
    """As `trade_off`, from stages simulated before."""
    graph = table.graph
    points = [
        TradeOffPoint(table.fixed_bytes + budget, cost) for cost, budget in reversed(table.curve)
    ]
    return TradeOff(
        planner="liveness",
        family=table.family,
        status=PlanStatus.FEASIBLE,
        cost_unit=graph.cost_unit,
        total_cost=graph.total_cost,
        lower_sets=table.lower_sets,
        points=tuple(points),
        seconds=time.perf_counter() - began,
        notes=table.notes,
        complete=table.complete,
    )


def _search(table: LivenessTable, budget_bytes: int, smallest: Candidate) -> Candidate:
    """Least overhead whose exactly simulated peak fits the budget.

    A finished schedule may need less than the dynamic program reckons with (a cached value was dead
    already), so the next cheaper points of the trade-off are tried too. Always as many: what is
    tried then only grows with the budget, and the overhead never rises with it.
    """
    falling = [-need for _, need in table.curve]
    at = bisect_left(falling, table.fixed_bytes - budget_bytes)
    for _, need in table.curve[max(0, at - CHEAPER_TRIES) : at + 1]:
        path = table.path(need)
        assert path is not None, "a point of the trade-off has a path"
        found = _candidate(path)
        if found.peak_bytes <= budget_bytes:
            return found
    return smallest


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """The plan with the least recomputation whose simulated peak fits the budget.

    Raises:
        InfeasibleBudgetError: no plan of the family fits.
        UsageError: an unknown family.
    """
    began = time.perf_counter()
    return plan_from_table(table_for(graph, options), budget_bytes, began)


def plan_from_table(table: LivenessTable, budget_bytes: int, began: float) -> Plan:
    """As `plan`, from stages simulated before."""
    graph = table.graph
    plain = plain_candidate(graph)
    path = table.path(table.curve[-1][1])
    assert path is not None, "the smallest budget has a path"
    smallest = _candidate(path)
    minimum = min(smallest.peak_bytes, plain.peak_bytes)
    if budget_bytes < minimum:
        raise infeasible(smallest, budget_bytes, minimum_bytes=minimum)
    fits = plain.peak_bytes <= budget_bytes
    found = plain if fits else _search(table, budget_bytes, smallest)
    return found.plan(
        budget_bytes,
        planner="liveness",
        family=table.family,
        smallest_bytes=minimum,
        lower_sets=table.lower_sets,
        began=began,
        notes=table.notes,
        complete=table.complete,
        provenance={"core": _core.core_name()},
    )
