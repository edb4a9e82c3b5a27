"""What every planner takes and gives: `plan(graph, budget_bytes, options) -> Plan`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from memfit.graph import TrainingGraph
from memfit.plan import Plan

__all__ = ["DEFAULT_MAX_LOWER_SETS", "Planner", "PlannerOptions", "Progress"]

DEFAULT_MAX_LOWER_SETS = 4096

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """Options that any planner may read; each ignores those it has no use for.

    Attributes:
        mode: `time`, `memory` or `auto` (the paper's planners).
        family: `auto` (the planner's own choice) or a name of `memfit.lower_sets.FAMILIES`.
        max_lower_sets: enumeration of all lower sets stops there, and the planner goes on with the
            next smaller family and says so in the plan's provenance.
        progress: called with a label and the share done, 0 to 1.
    """

    mode: str = "auto"
    family: str = "auto"
    max_lower_sets: int = DEFAULT_MAX_LOWER_SETS
    progress: Progress | None = None


class Planner(Protocol):
    """A planner.

    Raises:
        InfeasibleBudgetError: no plan of its family fits; names the smallest feasible budget.
    """

    def __call__(
        self, graph: TrainingGraph, budget_bytes: int, options: PlannerOptions
    ) -> Plan: ...
