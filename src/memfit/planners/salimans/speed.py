"""Checkpoints at all costly ops (Salimans and Bulatov 2018, `speed`).

From their description: to lose the least time, keep the outputs of all ops that are typically
expensive, namely convolutions and matrix multiplications, and compute the rest again.
"""

from __future__ import annotations

import time

from memfit.graph.plan import Plan
from memfit.graph.training_graph import Op, TrainingGraph
from memfit.planners.base import PlannerOptions
from memfit.planners.salimans.checkpoints import plan_of_checkpoints

__all__ = ["costly_ops", "plan"]

_PRODUCTS = frozenset(
    {
        "addbmm", "addmm", "addmv", "baddbmm", "bmm", "dot", "einsum", "linear", "linearfunction",
        "matmul", "mm", "mv",
    }
)  # fmt: skip


def is_costly(op: Op) -> bool:
    """Whether an op is a convolution or a matrix multiplication, by what it is called."""
    name = op.target.lower()
    parts = name.split(".")
    base = parts[1] if parts[0] == "aten" and len(parts) > 1 else parts[0]
    return "conv" in base or base in _PRODUCTS


def costly_ops(graph: TrainingGraph) -> list[int]:
    """Ids of the forward ops that are convolutions or matrix multiplications."""
    return [v for v, op in enumerate(graph.forward_ops) if is_costly(op)]


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """The plan that keeps the outputs of all convolutions and matrix multiplications.

    Raises:
        InfeasibleBudgetError: its simulated peak is over the budget.
    """
    began = time.perf_counter()
    kept = costly_ops(graph)
    notes = (
        ()
        if kept
        else ("the graph has no convolution or matrix product; nothing is computed again",)
    )
    return plan_of_checkpoints(
        graph, budget_bytes, kept, planner="salimans-speed", began=began, notes=notes
    )
