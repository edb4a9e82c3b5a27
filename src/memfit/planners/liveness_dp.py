"""The default planner: dynamic programming over lower sets with simulated stage peaks.

The recurrence is that of Kusumoto et al. 2019, section 4.2; the peak of a stage is simulated with
every value freed at its last use instead of bounded by their formula, the last stage need not be
recomputed, and a stage may keep more than its boundary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from memfit import _core
from memfit._core.python_stage import Cut, StageProblem
from memfit.errors import InfeasibleBudgetError
from memfit.graph import TrainingGraph, ValueKind
from memfit.liveness import simulate
from memfit.lower_sets import choose_family
from memfit.plan import Plan, PlanStatus, make_plan
from memfit.planners.base import PlannerOptions
from memfit.schedule import Schedule
from memfit.stages import (
    BackwardStages,
    path_schedule,
    path_stages,
    stage_problem,
    store_all_schedule,
)

__all__ = ["LivenessTable", "keep_variants", "negligible_bytes", "plan", "useful_ops"]

_NEGLIGIBLE_BYTES = 1024
_NEGLIGIBLE_SHARE = 10_000

_MAX_CUTS = {"native": 640, "python": 80}
_COST_STEPS = 20_000
_NOMINAL_TRIES = 7


@dataclass(frozen=True)
class LivenessTable:
    """All stages of one graph, simulated once; plans for any budget are read off it."""

    graph: TrainingGraph
    problem: StageProblem
    cuts: tuple[Cut, ...]
    edges: _core.EdgeTable
    family: str
    notes: tuple[str, ...]
    fixed_bytes: int
    minimum_nominal_bytes: int
    minimum_path: tuple[int, ...]

    def path(self, edge_ids: Sequence[int]) -> list[tuple[Cut, Cut, int]]:
        """Edge ids as stages."""
        stages = []
        for e in edge_ids:
            source, target, variant = self.edges.edge(e)[:3]
            stages.append((self.cuts[source], self.cuts[target], variant))
        return stages

    def schedule(self, edge_ids: Sequence[int]) -> Schedule:
        """Edge ids as a schedule."""
        return path_schedule(self.graph, self.problem, self.path(edge_ids))

    def best_path(self, nominal_bytes: int) -> list[int] | None:
        """Least recomputation where every stage's simulated peak is at most `nominal_bytes`."""
        quantum = max(1, self.graph.total_cost // _COST_STEPS) if self._large else 1
        return self.edges.shortest(nominal_bytes, quantum=quantum)

    @property
    def _large(self) -> bool:
        return self.graph.total_cost > _COST_STEPS


def negligible_bytes(graph: TrainingGraph) -> int:
    """Size up to which a value is not worth a decision: 1 KiB, or 0.01% of all activations."""
    activations = sum(v.size_bytes for v in graph.values if v.kind is ValueKind.ACTIVATION)
    return min(_NEGLIGIBLE_BYTES, activations // _NEGLIGIBLE_SHARE)


def keep_variants(graph: TrainingGraph) -> list[list[bool]]:
    """Which values a stage keeps beyond its boundary, for each variant.

    Variant 0 keeps none, the last one all that the backward pass reads. Those between keep only
    what is dear to compute again: values ordered by cost per byte, the cheapest half (by bytes),
    then the cheapest three quarters, left out.
    """
    count = len(graph.values)
    start = graph.forward_count
    threshold = negligible_bytes(graph)
    wanted: list[tuple[float, int]] = []
    for op in graph.forward_ops:
        written = sum(graph.values[v].size_bytes for v in op.outputs)
        for v in op.outputs:
            if graph.values[v].size_bytes > threshold and any(
                c >= start for c in graph.consumers[v]
            ):
                wanted.append((op.cost / max(1, written), v))
    wanted.sort()
    total = sum(graph.values[v].size_bytes for _, v in wanted)
    variants = [[False] * count]
    for share in (0.75, 0.5, 0.25):
        flags = [False] * count
        running = 0
        for _, v in wanted:
            running += graph.values[v].size_bytes
            flags[v] = running > share * total
        if flags not in variants:
            variants.append(flags)
    everything = [False] * count
    for _, v in wanted:
        everything[v] = True
    variants.append(everything)
    return variants


def useful_ops(graph: TrainingGraph) -> list[bool]:
    """Forward ops after which a cut may help: something reads an output that is not negligible."""
    threshold = negligible_bytes(graph)
    return [
        any(graph.values[v].size_bytes > threshold and bool(graph.consumers[v]) for v in op.outputs)
        for op in graph.forward_ops
    ]


def _thin(cuts: list[Cut], problem: StageProblem, limit: int) -> list[Cut]:
    """At most `limit` cuts: of each run of neighbours the one with the smallest boundary."""
    inner = cuts[1:-1]
    window = math.ceil(len(inner) / max(1, limit - 2))

    def weight(cut: Cut) -> tuple[int, int]:
        size = problem.value_bytes
        return sum(size[s] for s in cut.boundary) + cut.base_bytes, cut.lower

    chosen = [min(inner[i : i + window], key=weight) for i in range(0, len(inner), window)]
    return [cuts[0], *chosen, cuts[-1]]


def build_table(graph: TrainingGraph, options: PlannerOptions) -> LivenessTable:
    """Simulate all stages of a family of lower sets."""
    limit = min(options.max_lower_sets or 1 << 30, _MAX_CUTS[_core.core_name()])
    useful = useful_ops(graph)
    family, masks, note = choose_family(graph, options.family, limit, useful)
    notes = [note] if note else []
    problem = stage_problem(graph, keep_variants(graph), negligible_bytes(graph))
    backward = BackwardStages(graph)
    cuts = [Cut.of(problem, mask, backward.finished(mask)) for mask in masks]
    if len(cuts) > limit:
        notes.append(f"{len(cuts)} cuts thinned to {limit}, smallest boundaries kept")
        cuts = _thin(cuts, problem, limit)
    progress = options.progress

    def report(share: float) -> None:
        if progress is not None:
            progress("simulating stages", share)

    edges = _core.stage_edges(problem, cuts, report)
    nominal, path = edges.smallest_budget()
    fixed = graph.resident_bytes + sum(
        v.size_bytes for v in graph.values if v.kind is ValueKind.TANGENT
    )
    return LivenessTable(
        graph, problem, tuple(cuts), edges, family, tuple(notes), fixed, nominal, tuple(path)
    )


@dataclass(frozen=True)
class _Found:
    edge_ids: tuple[int, ...]
    schedule: Schedule
    peak_bytes: int
    overhead: int


def _judge(table: LivenessTable, edge_ids: Sequence[int]) -> _Found:
    schedule = table.schedule(edge_ids)
    peak = simulate(table.graph, schedule).peak_bytes
    return _Found(tuple(edge_ids), schedule, peak, schedule.overhead(table.graph))


def _search(table: LivenessTable, budget_bytes: int, minimum: _Found) -> _Found:
    """Least overhead whose exactly simulated peak fits the budget.

    The DP counts cached values as alive even where they are already dead on the way back, so its
    peaks are upper bounds: a nominal budget above the real one may still fit, and costs less. A
    bisection over nominal budgets finds the largest one that the simulator accepts.
    """
    real = budget_bytes - table.fixed_bytes
    best = minimum
    low = max(real, table.minimum_nominal_bytes)
    high = max(low, math.ceil(low * 1.5))
    nominal = low
    for _ in range(_NOMINAL_TRIES):
        edge_ids = table.best_path(nominal)
        if edge_ids is None:
            low = nominal
        else:
            found = _judge(table, edge_ids)
            fits = found.peak_bytes <= budget_bytes
            if fits and (found.overhead, found.peak_bytes) < (best.overhead, best.peak_bytes):
                best = found
            if found.overhead == 0 and fits:
                break
            low, high = (nominal, high) if fits else (low, nominal)
        nominal = (low + high) // 2
    return best


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """The plan with the least recomputation whose simulated peak fits the budget.

    Raises:
        InfeasibleBudgetError: no plan of the family fits.
    """
    began = time.perf_counter()
    return plan_from_table(build_table(graph, options), budget_bytes, began)


def plan_from_table(table: LivenessTable, budget_bytes: int, began: float) -> Plan:
    """As `plan`, from stages simulated before."""
    graph = table.graph
    plain = simulate(graph, store_all_schedule(graph))
    minimum = _judge(table, table.minimum_path)
    if budget_bytes < minimum.peak_bytes:
        timeline = simulate(graph, minimum.schedule)
        step = minimum.schedule.steps[timeline.peak_step]
        raise InfeasibleBudgetError(
            budget_bytes=budget_bytes,
            minimum_bytes=minimum.peak_bytes,
            binding_op=graph.ops[step.op].source or graph.ops[step.op].name,
        )
    if plain.peak_bytes <= budget_bytes:
        schedule = store_all_schedule(graph)
        everything = len(table.problem.keep_flags) - 1
        path = [(table.cuts[0], table.cuts[-1], everything)]
    else:
        found = _search(table, budget_bytes, minimum)
        schedule, path = found.schedule, table.path(found.edge_ids)
    return make_plan(
        graph,
        schedule,
        planner="liveness",
        family=table.family,
        mode=None,
        status=PlanStatus.FEASIBLE,
        budget_bytes=budget_bytes,
        plain_peak_bytes=plain.peak_bytes,
        smallest_feasible_budget_bytes=minimum.peak_bytes,
        lower_sets=len(table.cuts),
        stages=path_stages(graph, table.problem, path),
        seconds=time.perf_counter() - began,
        provenance={"notes": list(table.notes), "core": _core.core_name()},
    )
