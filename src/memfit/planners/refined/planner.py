"""The plan of `auto`, made better by local search (`memfit.planners.refined.local_search`)."""

from __future__ import annotations

import time
from dataclasses import replace

from memfit.graph.plan import Plan, Stage, make_plan
from memfit.graph.schedule import Schedule
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import auto
from memfit.planners.base import PlannerOptions, limited
from memfit.planners.refined.local_search import improve, too_large

__all__ = ["plan"]


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """A plan that is never worse than that of `auto`; deterministic without a time limit.

    Raises:
        InfeasibleBudgetError: `auto` has no plan that fits; names the smallest feasible budget.
        UsageError: an unknown family.
    """
    began = time.perf_counter()
    report = limited(options)
    base = auto.plan(graph, budget_bytes, options)
    schedule = improve(graph, base.schedule, budget_bytes, report=report)
    notes = list(base.provenance.get("notes", ()))
    saved = base.overhead - schedule.overhead(graph)
    if not saved:
        large = "the graph is too large for local search"
        note = large if too_large(graph) else "local search found nothing better"
        provenance = {**base.provenance, "notes": [*notes, note]}
        seconds = time.perf_counter() - began
        return replace(base, planner="refined", seconds=seconds, provenance=provenance)
    unit = "" if graph.cost_unit == "unit" else f" {graph.cost_unit}"
    notes.append(f"local search took {saved}{unit} off the overhead of the plan of {base.planner}")
    return make_plan(
        graph,
        schedule,
        planner="refined",
        family=base.family,
        mode=None,
        status=base.status,
        budget_bytes=budget_bytes,
        plain_peak_bytes=base.plain_peak_bytes,
        smallest_feasible_budget_bytes=base.smallest_feasible_budget_bytes,
        lower_sets=base.lower_sets,
        stages=(_whole(graph, schedule),),
        seconds=time.perf_counter() - began,
        provenance={**base.provenance, "notes": notes},
    )


def _whole(graph: TrainingGraph, schedule: Schedule) -> Stage:
    """The step as one stage: a refined schedule need not come in stages."""
    ops = graph.forward_ops
    kept = sum(graph.values[v].size_bytes for v in schedule.kept(graph))
    return Stage(len(ops), ops[0].name, ops[-1].name, kept, schedule.overhead(graph))
