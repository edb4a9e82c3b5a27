"""Checkpoints that the user names (Salimans and Bulatov 2018, `collection`)."""

from __future__ import annotations

import time
from collections.abc import Iterable

from memfit.errors import UsageError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions
from memfit.planners.salimans.checkpoints import plan_of_checkpoints

__all__ = ["named_ops", "plan"]


def named_ops(graph: TrainingGraph, names: Iterable[str]) -> list[int]:
    """Ids of the forward ops that are called so, or make a value that is; ascending.

    Raises:
        UsageError: no forward op and no value of one has a name.
    """
    by_name: dict[str, int] = {}
    for v, op in enumerate(graph.forward_ops):
        for value in op.outputs:
            by_name.setdefault(graph.values[value].name, v)
    for v, op in enumerate(graph.forward_ops):
        by_name[op.name] = v
    found: set[int] = set()
    for name in names:
        if name not in by_name:
            raise UsageError(
                f"checkpoint {name!r} is no forward op of {graph.name} and no value of one; names "
                "are those of the graph file"
            )
        found.add(by_name[name])
    return sorted(found)


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """The plan that keeps the outputs of the ops in `options.checkpoints`.

    Raises:
        InfeasibleBudgetError: its simulated peak is over the budget.
        UsageError: a checkpoint that the graph does not have.
    """
    began = time.perf_counter()
    kept = named_ops(graph, options.checkpoints)
    notes = () if kept else ("no checkpoints were named; nothing is computed again",)
    return plan_of_checkpoints(
        graph, budget_bytes, kept, planner="salimans-collection", began=began, notes=notes
    )
