"""A graph whose backward pass does not follow its forward pass at once: others run in between.

To a planner the rest of the step is one op more, at the end of the forward pass, and its backward
op, at the beginning of the backward pass, whose workspace is the memory that the rest takes. What
the graph keeps between its passes is then there beside it, and planners that minimise the peak keep
less. `resumed` takes both ops out of a plan again.
"""

from __future__ import annotations

from dataclasses import replace

from memfit.graph.plan import Plan, make_plan
from memfit.graph.schedule import Compute, Schedule
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind

__all__ = ["paused", "resumed"]

_NAME = "memfit.other_graphs"


def paused(graph: TrainingGraph, pause_bytes: int) -> TrainingGraph:
    """The graph with a pause between its passes, in which others take `pause_bytes`.

    The gradients that the backward pass is given are made by the others, and part of what they
    take.
    """
    given = sum(v.size_bytes for v in graph.values if v.kind is ValueKind.TANGENT)
    count = len(graph.values)
    tangents = {i for i, v in enumerate(graph.values) if v.kind is ValueKind.TANGENT}
    handed_out = [
        i for i, v in enumerate(graph.values) if v.kind is ValueKind.ACTIVATION and v.is_output
    ]
    away = Op(
        name=_NAME,
        target=_NAME,
        phase=Phase.FORWARD,
        inputs=tuple(handed_out),
        outputs=(count,),
        cost=0,
        workspace_bytes=pause_bytes,
        recomputable=False,
    )
    back = Op(
        name=f"{_NAME}_backward",
        target=_NAME,
        phase=Phase.BACKWARD,
        inputs=(*sorted(tangents), count),
        outputs=(count + 1,),
        cost=0,
        workspace_bytes=max(0, pause_bytes - given),
        recomputable=False,
    )
    values = (
        *graph.values,
        Value(_NAME, 0, ValueKind.ACTIVATION),
        Value(f"{_NAME}_backward", 0, ValueKind.GRADIENT),
    )
    backward = [
        replace(op, inputs=(*op.inputs, count + 1)) if tangents.intersection(op.inputs) else op
        for op in graph.backward_ops
    ]
    ops = (*graph.forward_ops, away, back, *backward)
    return TrainingGraph(values, ops, cost_unit=graph.cost_unit, name=graph.name)


def resumed(plan: Plan, graph: TrainingGraph) -> Plan:
    """A plan for `graph`, made of one for `paused(graph, …)`."""
    start = graph.forward_count
    steps = [
        Compute(op if op < start else op - 2, copy, reads[: len(graph.ops[op - 2].inputs)])
        if op > start
        else Compute(op, copy, reads)
        for op, copy, reads in plan.schedule.steps
        if op not in (start, start + 1)
    ]
    schedule = Schedule(tuple(steps), plan.schedule.backward_start - 1)
    return make_plan(
        graph,
        schedule,
        planner=plan.planner,
        family=plan.family,
        mode=plan.mode,
        status=plan.status,
        budget_bytes=plan.budget_bytes,
        smallest_feasible_budget_bytes=plan.smallest_feasible_budget_bytes,
        lower_sets=plan.lower_sets,
        stages=plan.stages,
        seconds=plan.seconds,
        notes=plan.notes,
        complete=plan.complete,
        provenance=plan.provenance,
    )
