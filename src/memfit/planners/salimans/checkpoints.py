"""Checkpoints at given ops, anywhere in the graph: what is kept, when the rest is computed again.

After Salimans and Bulatov 2018 (the package gradient-checkpointing and its description, "Fitting
larger networks into memory"): the outputs of some ops are kept; whatever else the backward pass
reads is computed again from them. Their three choices of checkpoints have a planner each:
`salimans-memory`, `salimans-speed`, `salimans-collection`. None of them looks at the budget: there
is one plan, and it fits or it does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from memfit.graph.plan import Plan, Stage
from memfit.graph.schedule import OpOrder, Schedule
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.candidate import Candidate, infeasible
from memfit.strategies.canonical import missing_ops

__all__ = ["checkpoint_order", "plan_of_checkpoints"]


def checkpoint_order(graph: TrainingGraph, checkpoints: Collection[int]) -> OpOrder:
    """The order of computations that keeps the outputs of some forward ops.

    Kept too are forward outputs, outputs of ops that must not run again, and everything after the
    last checkpoint in program order, for its backward comes first. All else is computed again right
    before the first backward op that reads it, once, and is freed at its last use.

    Args:
        graph: the graph.
        checkpoints: ids of forward ops; without any, nothing is computed again.
    """
    last = max(checkpoints, default=-1)
    chosen = set(checkpoints)
    keep = {
        v
        for i, op in enumerate(graph.forward_ops)
        for v in op.outputs
        if i in chosen or i > last or not op.recomputable or graph.values[v].is_output
    }
    count = graph.forward_count
    available = {v for v, p in enumerate(graph.producer) if v in keep or p is None or p >= count}
    backward: list[int] = []
    for op_id in range(count, len(graph.ops)):
        for again in missing_ops(graph, graph.ops[op_id].inputs, available):
            backward.append(again)
            available.update(graph.ops[again].outputs)
        backward.append(op_id)
    return OpOrder(range(count), backward, keep)


def plan_of_checkpoints(
    graph: TrainingGraph,
    budget_bytes: int,
    checkpoints: Collection[int],
    *,
    planner: str,
    began: float,
    notes: Iterable[str] = (),
) -> Plan:
    """The plan that keeps the outputs of some forward ops.

    Raises:
        InfeasibleBudgetError: its simulated peak is over the budget.
    """
    found = Candidate(
        graph,
        lambda: checkpoint_order(graph, checkpoints),
        lambda schedule: _stages(graph, sorted(checkpoints), schedule),
    )
    if found.peak_bytes > budget_bytes:
        detail = f"{planner} has one plan, whatever the budget"
        raise infeasible(found, budget_bytes, detail=detail)
    return found.plan(
        budget_bytes,
        planner=planner,
        family="checkpoints",
        smallest_bytes=found.peak_bytes,
        lower_sets=0,
        began=began,
        notes=notes,
        provenance={"checkpoints": len(checkpoints)},
    )


def _stages(
    graph: TrainingGraph, checkpoints: Sequence[int], schedule: Schedule
) -> tuple[Stage, ...]:
    """What lies between checkpoints in program order."""
    kept = schedule.kept(graph)
    again = [0] * graph.forward_count
    for op_id in schedule.recomputed_ops:
        again[op_id] += graph.ops[op_id].cost
    ends = [c + 1 for c in checkpoints]
    if graph.forward_count and ends[-1:] != [graph.forward_count]:
        ends.append(graph.forward_count)
    stages = []
    start = 0
    for end in ends:
        ops = graph.ops[start:end]
        stages.append(
            Stage(
                forward_ops=len(ops),
                first_op=ops[0].name,
                last_op=ops[-1].name,
                kept_bytes=sum(
                    graph.values[v].size_bytes for op in ops for v in op.outputs if v in kept
                ),
                recompute_cost=sum(again[start:end]),
            )
        )
        start = end
    return tuple(stages)
