"""What every planner takes and gives: `plan(graph, budget_bytes, options) -> Plan`."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from memfit.graph.plan import Plan, PlanStatus
from memfit.graph.training_graph import TrainingGraph

__all__ = [
    "MODES",
    "Curve",
    "Planner",
    "PlannerOptions",
    "Progress",
    "Searched",
    "TimeIsUp",
    "TradeOff",
    "TradeOffPoint",
    "limited",
]

Progress = Callable[[str, float], None]

MODES = ("auto", "time", "memory")
"""Of the paper's planners; `auto` tries time, then memory."""


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """Options that any planner may read; each ignores those it has no use for.

    Attributes:
        mode: `time`, `memory` or `auto` (the paper's planners).
        family: `auto` (the planner's own choice) or a name of `memfit.cuts.lower_sets.FAMILIES`.
        max_lower_sets: enumeration of all lower sets stops there, and the planner goes on with the
            next smaller family and says so in the plan's notes. None: as many as the planner
            and the core can take.
        time_limit_s: seconds after which the search stops with the best plan so far, which says so;
            None for no limit.
        progress: called with a label and the share done, 0 to 1.
        checkpoints: names of forward ops, or of values, to keep (`salimans-collection`).
    """

    mode: str = "auto"
    family: str = "auto"
    max_lower_sets: int | None = None
    time_limit_s: float | None = None
    progress: Progress | None = None
    checkpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TradeOffPoint:
    """The smallest budget that a planner can meet at an overhead.

    Attributes:
        budget_bytes: the budget, peak of the whole step.
        overhead: cost of recomputation, in the graph's cost unit.
    """

    budget_bytes: int
    overhead: int


@dataclass(frozen=True, slots=True)
class TradeOff:
    """The whole trade-off between peak and overhead: what every budget costs.

    Attributes:
        planner: name of the planner.
        family: family of lower sets that was searched.
        status: how good the points are known to be.
        cost_unit: unit of the overheads.
        total_cost: cost of one step without recomputation.
        lower_sets: number of lower sets searched.
        points: the points by rising budget and falling overhead; the first one has the smallest
            feasible budget.
        seconds: time it took.
        notes: what a reader should know, such as a family that was reduced.
        complete: whether the search was not cut short by a time limit.
    """

    planner: str
    family: str
    status: PlanStatus
    cost_unit: str
    total_cost: int
    lower_sets: int
    points: tuple[TradeOffPoint, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    complete: bool = True

    def overhead_at(self, budget_bytes: int) -> int | None:
        """The overhead within a budget; None if it is smaller than the smallest feasible one."""
        at = bisect_right(self.points, budget_bytes, key=lambda point: point.budget_bytes)
        return self.points[at - 1].overhead if at else None


@dataclass(frozen=True, slots=True)
class Searched:
    """What one search found: the trade-off, and the plan for any budget.

    Attributes:
        trade_off: the trade-off over all budgets.
        plan: takes a budget in bytes and gives what the planner's `plan` would, errors included.
    """

    trade_off: TradeOff
    plan: Callable[[int], Plan]


class TimeIsUp(Exception):
    """The time limit has been reached; planners catch it and fall back on a quick search."""


def limited(options: PlannerOptions) -> Progress:
    """A progress callback that raises `TimeIsUp` once the options' time limit has been reached."""
    began = time.perf_counter()

    def report(label: str, share: float) -> None:
        limit = options.time_limit_s
        if limit is not None and time.perf_counter() - began >= limit:
            raise TimeIsUp
        if options.progress is not None:
            options.progress(label, share)

    return report


class Curve(Protocol):
    """A planner's trade-off over all budgets, from one run."""

    def __call__(self, graph: TrainingGraph, options: PlannerOptions) -> TradeOff: ...


class Planner(Protocol):
    """A planner.

    Raises:
        InfeasibleBudgetError: no plan of its family fits; names the smallest feasible budget.
    """

    def __call__(
        self, graph: TrainingGraph, budget_bytes: int, options: PlannerOptions
    ) -> Plan: ...
