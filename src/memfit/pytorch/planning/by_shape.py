"""Plans for one module at several input shapes: each is made from what is known of the others.

Steps of the same *structure* have the same ops, edges and kinds of values; only sizes and costs
differ. A schedule for one computes the other too. Whether it fits is simulated on the other's own
graph, with its own workspaces, before it is *taken over*.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from memfit.errors import InfeasibleBudgetError
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan, PlanStatus, make_plan
from memfit.graph.schedule import Schedule
from memfit.graph.simulator import MemoryTimeline, simulate
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.pytorch.compat.eager import plain_mode, profiler_active
from memfit.pytorch.cost.analytic import analytic_cost
from memfit.pytorch.cost.op_calls import OpCall
from memfit.pytorch.planning.fresh import Fresh
from memfit.pytorch.planning.on_disk import CachedPlan, open_plan_cache, plan_key
from memfit.pytorch.planning.protocol import Draft, Occasion, PlannedStep
from memfit.pytorch.planning.shape_times import estimated_times

__all__ = ["LEAST_LIMIT_S", "ByShape", "structure_of"]

LEAST_LIMIT_S = 0.1
"""Seconds that planning a new shape in the middle of training may take, where a step takes less."""

_MOST_TRIED = 8  # schedules simulated for a new shape, some ten milliseconds each
_PLAIN_WHERE_IT_FITS = ("auto", "liveness")  # planners that keep everything where that fits


@dataclass(frozen=True)
class _Known:
    """A shape that has been planned."""

    graph: TrainingGraph
    plan: Plan
    calls: Sequence[OpCall]
    measured: bool
    inputs: str

    @cached_property
    def analytic(self) -> list[int]:
        return _analytic(self.calls)


def structure_of(graph: TrainingGraph) -> str:
    """Digest of all but sizes and costs: equal for graphs that can run each other's schedules."""
    payload = [
        [[v.kind.value, v.is_output] for v in graph.values],
        [[o.target, o.phase.value, o.inputs, o.outputs, o.recomputable] for o in graph.ops],
    ]
    text = json.dumps(payload, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ByShape:
    """The plans of one fitted module; a `Planning`.

    Args:
        fresh: makes plans where none is known that fits.
        digest: of all that a plan depends on beyond its graph; names plans on disk. None where
            plans are not kept: what the device has free differs from run to run.
    """

    def __init__(self, fresh: Fresh, digest: str | None) -> None:
        self._fresh = fresh
        self._digest = digest
        self._measures = fresh.options.capture.cost == "measured"
        self._known: dict[str, list[_Known]] = {}

    def plan(self, draft: Draft[Any], occasion: Occasion) -> PlannedStep[Any]:
        """See `Planning`."""
        if draft.programs:
            return self._fresh.plan(draft, occasion)
        step, calls = draft.step, draft.calls()
        kept_by = draft.kept_by()
        key = plan_key(step.graph, [*calls, *kept_by], self._digest) if self._digest else None
        cache = open_plan_cache() if key else None
        structure = structure_of(step.graph)
        shapes = self._known.setdefault(structure, [])
        began = time.perf_counter()
        found = cache.get(key, step.graph) if cache and key else None
        if found is not None:
            step = step.with_costs(found.costs)
            seconds = {"costs": 0.0, "planning": time.perf_counter() - began}
            plan = _told(found.plan, occasion, "cached", seconds, "taken from the plans on disk")
            shapes.append(_Known(step.graph, plan, calls, found.measured, occasion.inputs))
            return PlannedStep(step, plan)
        times = self._times(shapes, calls, occasion)
        step = draft.priced(times)
        planning = time.perf_counter()
        plan, how, lasting = self._decide(step.graph, shapes, occasion)
        note = "times of ops estimated from other shapes'; workspaces measured" if times else ""
        done = time.perf_counter()
        seconds = {"costs": planning - began, "planning": done - planning}
        plan = _told(plan, occasion, how, seconds, note)
        # Under a profiler nothing is measured: such costs are too rough to be used again.
        rough = self._measures and profiler_active()
        measured = self._measures and times is None and not rough
        shapes.append(_Known(step.graph, plan, calls, measured, occasion.inputs))
        if cache and key and lasting and not rough:
            pairs = [(op.cost, op.workspace_bytes) for op in step.graph.ops]
            cache.put(key, CachedPlan(plan, pairs, measured))
        return PlannedStep(step, plan)

    def _times(
        self, shapes: Sequence[_Known], calls: Sequence[OpCall], occasion: Occasion
    ) -> dict[int, int] | None:
        """Estimated times; None where ops are to be measured.

        Two shapes are measured where there is time, the largest and the smallest, so that the
        others lie between them.
        """
        measured = [known for known in shapes if known.measured]
        if not self._measures or len(measured) < (2 if occasion.ahead else 1):
            return None
        points = [(known.analytic, [op.cost for op in known.graph.ops]) for known in measured]
        return dict(enumerate(estimated_times(points, _analytic(calls))))

    def _decide(
        self, graph: TrainingGraph, shapes: Sequence[_Known], occasion: Occasion
    ) -> tuple[Plan, str, bool]:
        """A plan, how it came about, and whether more time would give the same."""
        budget_bytes = occasion.budget_bytes or self._fresh.resolve(graph)
        if not shapes:
            fresh = self._fresh.within(graph, budget_bytes)
            return fresh, "planned", fresh.complete
        best = min(
            self._taken_over(graph, budget_bytes, shapes),
            key=lambda plan: (plan.overhead, plan.peak_bytes),
            default=None,
        )
        if best is not None and best.overhead == 0:
            return best, "taken over", True
        limit = None
        if not occasion.ahead:
            step_s = occasion.step_s if occasion.step_s is not None else graph.total_cost / 1e9
            limit = max(step_s, LEAST_LIMIT_S)
            took = [known.plan.seconds for known in shapes if known.plan.seconds]
            if best is not None and took and min(took) > limit:
                return best, "taken over", False
        try:
            fresh = self._fresh.within(graph, budget_bytes, limit)
        except InfeasibleBudgetError:
            if best is not None:
                return best, "taken over", limit is None
            if limit is None:
                raise
            # What the quick search finds infeasible need not be so.
            fresh, best = self._fresh.within(graph, budget_bytes), None
        lasting = fresh.complete
        if best is None or fresh.overhead <= best.overhead:
            return fresh, "planned", lasting
        return best, "taken over", lasting

    def _taken_over(
        self, graph: TrainingGraph, budget_bytes: int, shapes: Sequence[_Known]
    ) -> Iterator[Plan]:
        """Schedules that are known to compute a step of this structure, as far as they fit."""
        plain = store_all_schedule(graph)
        plain_peak = simulate(graph, plain)
        fits = plain_peak.peak_bytes <= budget_bytes
        tried = {known.plan.schedule: known for known in _nearest(graph, shapes)}
        found = {schedule: simulate(graph, schedule) for schedule in tried}
        smallest = min(t.peak_bytes for t in (plain_peak, *found.values()))

        def plan(
            schedule: Schedule,
            timeline: MemoryTimeline,
            planner: str,
            family: str,
            note: str,
            complete: bool,
        ) -> Plan:
            made = make_plan(
                graph,
                schedule,
                planner=planner,
                family=family,
                mode=None,
                status=PlanStatus.FEASIBLE,
                budget_bytes=budget_bytes,
                smallest_feasible_budget_bytes=smallest,
                lower_sets=0,
                stages=(),
                seconds=0.0,
                complete=complete,
                timeline=timeline,
            )
            return replace(made, notes=(note,), provenance=self._fresh.origin(graph))

        if fits and self._fresh.planner in _PLAIN_WHERE_IT_FITS:
            note = "keeps everything, which fits; no search was made"
            yield plan(plain, plain_peak, "store-all", "none", note, True)
        for schedule, known in tried.items():
            timeline = found[schedule]
            if timeline.peak_bytes <= budget_bytes:
                source = known.plan
                note = (
                    f"taken over from a plan for {_size(known)}, and simulated on this step; the "
                    "smallest feasible budget is that of the plans known, planning anew may find "
                    "a smaller one"
                )
                yield plan(schedule, timeline, source.planner, source.family, note, source.complete)


def _analytic(calls: Sequence[OpCall]) -> list[int]:
    with plain_mode():
        return [analytic_cost(call).time_ns for call in calls]


def _size(known: _Known) -> str:
    if known.inputs:
        return f"inputs of {known.inputs}"
    size = sum(v.size_bytes for v in known.graph.values if v.kind is ValueKind.INPUT)
    return f"inputs of {size} bytes"


def _nearest(graph: TrainingGraph, shapes: Sequence[_Known]) -> list[_Known]:
    """A few shapes to take a schedule from: larger ones first, the nearest of them first."""

    def total(one: TrainingGraph) -> int:
        return sum(v.size_bytes for v in one.values)

    size = total(graph)
    distances = [total(known.graph) - size for known in shapes]
    order = sorted(range(len(shapes)), key=lambda i: (distances[i] < 0, abs(distances[i])))
    return [shapes[i] for i in order[:_MOST_TRIED]]


def _told(
    plan: Plan, occasion: Occasion, how: str, seconds: Mapping[str, float], note: str
) -> Plan:
    """The plan, saying how it came about and what it took."""
    shape = {
        "inputs": occasion.inputs,
        "how": how,
        "ahead": occasion.ahead,
        "seconds": {
            "capture": round(occasion.capture_s, 4),
            **{name: round(value, 4) for name, value in seconds.items()},
        },
    }
    notes = (*plan.notes, note) if note else plan.notes
    return replace(plan, notes=notes, provenance={**plan.provenance, "shape": shape})
