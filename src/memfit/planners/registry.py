"""Planners by name. A new planner is one file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from types import ModuleType
from typing import cast

from memfit.errors import InfeasibleBudgetError, UnknownPlannerError, UsageError
from memfit.graph.estimates import estimate_note, noting_estimates
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import Curve, Planner, PlannerOptions, Searched, TradeOff

__all__ = ["DEFAULT_PLANNER", "PLANNERS", "get_curve", "get_planner", "get_plans", "search_all"]

DEFAULT_PLANNER = "auto"
"""The planner where none is named: `liveness`, or `nested` where room is short."""

PLANNERS: dict[str, str] = {
    "liveness": "memfit.planners.liveness.planner",
    "exact": "memfit.planners.paper.exact",
    "approximate": "memfit.planners.paper.approximate",
    "nested": "memfit.planners.nested.planner",
    "refined": "memfit.planners.refined.planner",
    "chen": "memfit.planners.chen",
    "salimans-memory": "memfit.planners.salimans.memory",
    "salimans-speed": "memfit.planners.salimans.speed",
    "salimans-collection": "memfit.planners.salimans.collection",
    "revolve": "memfit.planners.revolve",
    "store-all": "memfit.planners.store_all",
}
"""Modules by planner name; each has a function `plan` and may have a function `trade_off`.

Where one run can serve both, it has `search_all`, too; `plans` where one run has the plans of all
budgets.
"""


def _module(name: str) -> ModuleType:
    known = isinstance(name, str)  # a list would not even be looked up
    module = (
        "memfit.planners.auto" if name == DEFAULT_PLANNER else PLANNERS.get(name) if known else None
    )
    if module is None:
        raise UnknownPlannerError(name, (DEFAULT_PLANNER, *PLANNERS))
    return importlib.import_module(module)


def get_planner(name: str) -> Planner:
    """The planner of that name; `DEFAULT_PLANNER` is one, too.

    Raises:
        UnknownPlannerError: there is none; lists those that there are.
    """
    plan = cast(Planner, _module(name).plan)

    @wraps(plan)
    def saying_estimates(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
        try:
            return plan(graph, budget_bytes, options)
        except InfeasibleBudgetError as error:
            raise noting_estimates(error, graph) from None

    return saying_estimates


def get_plans(name: str, graph: TrainingGraph, options: PlannerOptions) -> Callable[[int], Plan]:
    """The plans of the planner of that name for any budget, from one run where it can.

    Raises:
        UnknownPlannerError: there is none; lists those that there are.
    """
    planner = get_planner(name)
    at_once = getattr(_module(name), "plans", None)
    if at_once is None:
        return lambda budget_bytes: planner(graph, budget_bytes, options)
    return cast(Callable[[int], Plan], at_once(graph, options))


def get_curve(name: str) -> Curve:
    """The trade-off over all budgets of the planner of that name; `DEFAULT_PLANNER` is one, too.

    Raises:
        UnknownPlannerError: there is no such planner; lists those that there are.
        UsageError: the planner has no trade-off.
    """
    found = getattr(_module(name), "trade_off", None)
    if found is None:
        having = ", ".join(n for n in PLANNERS if hasattr(_module(n), "trade_off"))
        raise UsageError(f"planner {name!r} has no trade-off over budgets; these have: {having}")
    trade_off = cast(Curve, found)

    @wraps(trade_off)
    def saying_estimates(graph: TrainingGraph, options: PlannerOptions) -> TradeOff:
        return _noted(trade_off(graph, options), graph)

    return saying_estimates


def _noted(curve: TradeOff, graph: TrainingGraph) -> TradeOff:
    note = estimate_note(graph)
    if note is None or note in curve.notes:
        return curve
    return replace(curve, notes=(*curve.notes, note))


def search_all(name: str, graph: TrainingGraph, options: PlannerOptions) -> Searched:
    """The trade-off of the planner of that name, and its plans for any budget.

    From one run where the planner can; else each plan is searched for itself.

    Raises:
        UnknownPlannerError: there is no such planner; lists those that there are.
        UsageError: the planner has no trade-off.
    """
    curve = get_curve(name)
    at_once = getattr(_module(name), "search_all", None)
    if at_once is not None:
        found = cast(Searched, at_once(graph, options))
        return replace(found, trade_off=_noted(found.trade_off, graph))
    planner, quiet = get_planner(name), replace(options, progress=None)
    return Searched(curve(graph, options), lambda budget: planner(graph, budget, quiet))
