"""Candidate: a way to run a step, judged by the simulator; what planners choose from and return."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memfit.errors import InfeasibleBudgetError
from memfit.graph.plain import store_all_order
from memfit.graph.plan import Plan, PlanStatus, Stage, make_plan
from memfit.graph.schedule import OpOrder, Schedule, make_schedule
from memfit.graph.simulator import MemoryTimeline, peak_of_order, simulate
from memfit.graph.training_graph import TrainingGraph

__all__ = ["Candidate", "infeasible", "one_stage", "plain_candidate"]


def one_stage(graph: TrainingGraph, schedule: Schedule) -> tuple[Stage, ...]:
    """A schedule that need not come in stages as a single one; none without forward ops."""
    ops = graph.forward_ops
    if not ops:
        return ()
    kept = sum(graph.values[v].size_bytes for v in schedule.kept(graph))
    return (Stage(len(ops), ops[0].name, ops[-1].name, kept, schedule.overhead(graph)),)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to run a step of `graph`. What it needs and costs is found when it is asked for, once.

    Attributes:
        graph: the graph.
        made: makes its order of computations, or its schedule. Of an order the peak is found
            several times faster.
        staged: its stages, given its schedule; None for `one_stage`.
    """

    graph: TrainingGraph
    made: Callable[[], OpOrder | Schedule]
    staged: Callable[[Schedule], tuple[Stage, ...]] | None = None

    @cached_property
    def _made(self) -> OpOrder | Schedule:
        return self.made()

    @cached_property
    def schedule(self) -> Schedule:
        """The exact order of computations."""
        made = self._made
        return made if isinstance(made, Schedule) else make_schedule(self.graph, *made)

    @cached_property
    def timeline(self) -> MemoryTimeline:
        """Simulated memory of the whole step."""
        return simulate(self.graph, self.schedule)

    @cached_property
    def peak_bytes(self) -> int:
        """Simulated peak of the whole step."""
        made = self._made
        if isinstance(made, Schedule):
            return self.timeline.peak_bytes
        return peak_of_order(self.graph, made)

    @cached_property
    def overhead(self) -> int:
        """Cost of all recomputations, in the graph's cost unit."""
        made = self._made
        if isinstance(made, Schedule):
            return made.overhead(self.graph)
        count = self.graph.forward_count
        return sum(self.graph.ops[op].cost for op in made.backward if op < count)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Its stages, in forward order."""
        if self.staged is None:
            return one_stage(self.graph, self.schedule)
        return self.staged(self.schedule)

    @property
    def binding_op(self) -> str | None:
        """Source or name of the op at which it reaches its peak; None for a step without ops."""
        if not self.schedule.steps:
            return None
        op = self.graph.ops[self.schedule.steps[self.timeline.peak_step].op]
        return str(op.source or op.name)

    def plan(
        self,
        budget_bytes: int,
        *,
        planner: str,
        family: str,
        smallest_bytes: int,
        lower_sets: int,
        began: float,
        mode: str | None = None,
        status: PlanStatus = PlanStatus.FEASIBLE,
        formula_overhead: int | None = None,
        formula_peak_bytes: int | None = None,
        formula_cached_bytes: int | None = None,
        notes: Iterable[str] = (),
        complete: bool = True,
        provenance: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The plan that follows it.

        Args:
            budget_bytes: the budget that it was chosen for.
            smallest_bytes: the smallest budget that its planner can meet.
            began: when planning began, by `time.perf_counter`.
            planner, family, lower_sets, mode, status, formula_overhead, formula_peak_bytes,
                formula_cached_bytes, notes, complete, provenance: as in `Plan`.
        """
        return make_plan(
            self.graph,
            self.schedule,
            planner=planner,
            family=family,
            mode=mode,
            status=status,
            budget_bytes=budget_bytes,
            smallest_feasible_budget_bytes=smallest_bytes,
            lower_sets=lower_sets,
            stages=self.stages,
            seconds=time.perf_counter() - began,
            formula_overhead=formula_overhead,
            formula_peak_bytes=formula_peak_bytes,
            formula_cached_bytes=formula_cached_bytes,
            notes=notes,
            complete=complete,
            provenance=provenance,
            timeline=self.timeline,
        )


def plain_candidate(graph: TrainingGraph) -> Candidate:
    """The plain step: everything that the backward pass reads is kept."""
    return Candidate(graph, lambda: store_all_order(graph))


def infeasible(
    smallest: Candidate, budget_bytes: int, *, minimum_bytes: int | None = None, detail: str = ""
) -> InfeasibleBudgetError:
    """The error for a budget that a planner cannot meet.

    Args:
        smallest: the candidate with the smallest peak.
        budget_bytes: the budget asked for.
        minimum_bytes: the smallest budget that the planner can meet; the candidate's peak if None.
        detail: as in `InfeasibleBudgetError`.
    """
    return InfeasibleBudgetError(
        budget_bytes=budget_bytes,
        minimum_bytes=smallest.peak_bytes if minimum_bytes is None else minimum_bytes,
        binding_op=smallest.binding_op,
        detail=detail,
    )
