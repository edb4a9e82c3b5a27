"""Checkpoints at bottlenecks, a square root of the ops apart (Salimans and Bulatov 2018, `memory`).

From their description: find the tensors that part the graph in two when they are removed
(articulation points, "bottlenecks"), and keep so many of them that memory grows with the square
root of the number of ops. Here: a bottleneck is kept where √n ops or more have run since the last
one that was. Written from that description alone. Where a graph has no bottleneck, nothing is
computed again, and the plan says so.
"""

from __future__ import annotations

import math
import time

from memfit.cuts.articulations import articulations
from memfit.cuts.functions import Functions, functions_of
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions
from memfit.planners.salimans.checkpoints import plan_of_checkpoints

__all__ = ["bottlenecks", "plan", "spaced_bottlenecks"]


def bottlenecks(graph: TrainingGraph, functions: Functions) -> list[tuple[int, int]]:
    """(end, f) for each bottleneck: of the first `end` functions, later ones read f alone.

    Each is named once, with the first such `end`.
    """
    found: dict[int, int] = {}
    for end, f in articulations(graph, functions):
        found.setdefault(f, end)
    return sorted((end, f) for f, end in found.items())


def spaced_bottlenecks(graph: TrainingGraph) -> list[int]:
    """Ids of the ops whose outputs are kept, ascending."""
    functions = functions_of(graph)
    length = max(1, math.isqrt(len(functions.heads)))
    kept: list[int] = []
    done = 0
    for end, f in bottlenecks(graph, functions):
        if end - done >= length:
            kept.append(functions.heads[f])
            done = end
    return sorted(kept)


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """The plan that keeps bottlenecks about √n ops apart.

    Raises:
        InfeasibleBudgetError: its simulated peak is over the budget.
    """
    began = time.perf_counter()
    kept = spaced_bottlenecks(graph)
    notes = () if kept else ("the graph has no bottleneck; nothing is computed again",)
    return plan_of_checkpoints(
        graph, budget_bytes, kept, planner="salimans-memory", began=began, notes=notes
    )
