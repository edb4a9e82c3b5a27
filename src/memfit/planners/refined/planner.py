"""The plan of `auto`, made better by local search (`memfit.planners.refined.local_search`)."""

from __future__ import annotations

import time
from dataclasses import replace

from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import auto
from memfit.planners.base import PlannerOptions, TimeIsUp, limited
from memfit.planners.candidate import Candidate
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
    complete = True

    def within(label: str, share: float) -> None:
        nonlocal complete
        try:
            report(label, share)
        except TimeIsUp:
            complete = False
            raise

    base = auto.plan(graph, budget_bytes, options)
    schedule = improve(graph, base.schedule, budget_bytes, report=within)
    complete = complete and base.complete
    saved = base.overhead - schedule.overhead(graph)
    if not saved:
        large = "the graph is too large for local search"
        note = large if too_large(graph) else "local search found nothing better"
        return replace(
            base,
            planner="refined",
            seconds=time.perf_counter() - began,
            notes=(*base.notes, note),
            complete=complete,
        )
    unit = "" if graph.cost_unit == "unit" else f" {graph.cost_unit}"
    note = f"local search took {saved}{unit} off the overhead of the plan of {base.planner}"
    return Candidate(graph, lambda: schedule).plan(
        budget_bytes,
        planner="refined",
        family=base.family,
        status=base.status,
        smallest_bytes=base.smallest_feasible_budget_bytes,
        lower_sets=base.lower_sets,
        began=began,
        notes=(*base.notes, note),
        complete=complete,
        provenance=base.provenance,
    )
