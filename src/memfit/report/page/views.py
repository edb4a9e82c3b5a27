"""What a report page shows of one schedule: memory over the step, stages, kept and repeated ops."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from memfit.analysis.trace import Trace, trace_of
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan
from memfit.graph.schedule import Schedule
from memfit.graph.simulator import CATEGORIES, category_of
from memfit.graph.training_graph import TrainingGraph, ValueKind

__all__ = ["activation_ids", "plain_view", "plan_view", "stage_of_ops", "timeline_columns"]

LIVE_ROWS = 400
"""Values that are listed at a peak; the rest is summed up."""


def activation_ids(graph: TrainingGraph) -> list[int]:
    """Ids of the values that forward ops write, ascending."""
    return [i for i, v in enumerate(graph.values) if v.kind is ValueKind.ACTIVATION]


def stage_of_ops(graph: TrainingGraph, plan: Plan) -> list[int]:
    """Stage number of each forward op, from 0; all 0 for plans without stages.

    A schedule runs the forward ops stage by stage.
    """
    stages = [0] * graph.forward_count
    sizes = [stage.forward_ops for stage in plan.stages]
    if sum(sizes) != graph.forward_count:
        return stages
    numbers = [n for n, size in enumerate(sizes) for _ in range(size)]
    forward = (s.op for s in plan.schedule.steps[: plan.schedule.backward_start])
    for op, number in zip(forward, numbers, strict=True):
        stages[op] = number
    return stages


def timeline_columns(trace: Trace, schedule: Schedule, columns: int) -> dict[str, Any]:
    """Memory over the step in at most about `columns` columns, for drawing.

    Steps that are too short to be seen by themselves share a column, which shows the one among
    them with the most memory, so that no peak is lost. With fewer steps than columns, each step is
    a column.

    Returns:
        `edges`, where columns start and end in units of cost; `op` and `copy`, what runs in each;
        `parts`, bytes by category name, one number where they never change, absent where 0;
        `peak`, the column of the peak; `backward`, when the backward pass starts.
    """
    live = trace.timeline.live_bytes
    edges, shown = [0], []
    if len(live) <= columns:
        edges, shown = list(trace.edges), list(range(len(live)))
    else:
        first = 0
        for step in range(len(live)):
            long_enough = (trace.edges[step + 1] - edges[-1]) * columns >= trace.total
            if long_enough or step + 1 == len(live):
                shown.append(max(range(first, step + 1), key=live.__getitem__))
                edges.append(trace.edges[step + 1])
                first = step + 1
    parts: dict[str, Any] = {}
    for number, category in enumerate(CATEGORIES):
        heights = [trace.timeline.parts_bytes[step][number] for step in shown]
        if any(heights):
            parts[category.value] = heights[0] if len(set(heights)) == 1 else heights
    return {
        "edges": edges,
        "op": [schedule.steps[step].op for step in shown],
        "copy": [schedule.steps[step].copy for step in shown],
        "parts": parts,
        "peak": shown.index(trace.timeline.peak_step),
        "backward": trace.backward_start,
    }


def _live_rows(
    graph: TrainingGraph, trace: Trace, kept: frozenset[int], most: int
) -> dict[str, Any]:
    """The largest values alive at the peak, resident ones left out."""
    alive = sorted(trace.timeline.live_at_peak, key=lambda item: -graph.values[item[0]].size_bytes)
    rows = []
    for value, copy in alive[:most]:
        category = category_of(graph.values[value], copy, kept=value in kept)
        producer = graph.producer[value]
        rows.append(
            [
                graph.values[value].name,
                graph.values[value].size_bytes,
                category.value,
                -1 if producer is None else producer,
            ]
        )
    rest = sum(graph.values[value].size_bytes for value, _ in alive[most:])
    return {"rows": rows, "more": max(0, len(alive) - most), "moreBytes": rest}


def _view(
    graph: TrainingGraph, schedule: Schedule, trace: Trace, columns: int, live_rows: int
) -> dict[str, Any]:
    kept = schedule.kept(graph)
    again = [0] * graph.forward_count
    for op in schedule.recomputed_ops:
        again[op] += 1
    peak = trace.timeline.peak_step
    return {
        "timeline": timeline_columns(trace, schedule, columns),
        "peakBytes": trace.timeline.peak_bytes,
        "peakOp": schedule.steps[peak].op,
        "peakCopy": schedule.steps[peak].copy,
        "peakParts": {k: v for k, v in trace.timeline.peak_parts().items() if v},
        "live": _live_rows(graph, trace, kept, live_rows),
        "kept": hex_bits([value in kept for value in activation_ids(graph)]),
        "keptBytes": sum(graph.values[value].size_bytes for value in kept),
        "again": run_lengths(again),
    }


def plain_view(graph: TrainingGraph, columns: int) -> dict[str, Any]:
    """The step that keeps everything."""
    schedule = store_all_schedule(graph)
    return _view(graph, schedule, trace_of(graph, schedule), columns, LIVE_ROWS)


def plan_view(
    graph: TrainingGraph, plan: Plan, columns: int, live_rows: int = LIVE_ROWS
) -> dict[str, Any]:
    """A plan: its schedule, its stages and what people want to know of it."""
    view = _view(graph, plan.schedule, trace_of(graph, plan.schedule), columns, live_rows)
    return {
        **view,
        "planner": plan.planner + (f", mode {plan.mode}" if plan.mode else ""),
        "family": plan.family,
        "lowerSets": plan.lower_sets,
        "status": plan.status.value,
        "budgetBytes": plan.budget_bytes,
        "smallestBytes": plan.smallest_feasible_budget_bytes,
        "overhead": plan.overhead,
        "overheadPercent": round(plan.overhead_percent, 3),
        "recomputedOps": len(set(plan.schedule.recomputed_ops)),
        "mostRecomputations": plan.most_recomputations,
        "stages": len(plan.stages),
        "stageOf": run_lengths(stage_of_ops(graph, plan)),
        "seconds": round(plan.seconds, 3),
        "notes": list(plan.notes),
    }


def hex_bits(flags: Sequence[bool]) -> str:
    """Flags as hexadecimal digits, four to a digit, the first one its highest bit."""
    padded = [*flags, *([False] * (-len(flags) % 4))]
    quads = (padded[i : i + 4] for i in range(0, len(padded), 4))
    return "".join(f"{8 * a + 4 * b + 2 * c + d:x}" for a, b, c, d in quads)


def run_lengths(numbers: Sequence[int]) -> list[int]:
    """The numbers as pairs of a number and how often it stands there in a row, in one list."""
    return [n for key, run in itertools.groupby(numbers) for n in (key, len(list(run)))]
