"""The paper's dynamic program over a family of lower sets; what exact and approximate share.

Kusumoto et al. 2019, section 4. States (L, t, m): overhead t so far, cached bytes m so far; the
Pareto front of (t, m) is kept for each L. A stage L -> L' may be taken where m and the paper's peak
of the stage fit the budget. Budgets given to planners are those of the whole step, so the formulas
get what is left of them beside the resident values. The nodes are functions: ops with their
bookkeeping (`memfit.bookkeeping`), as in the paper's graphs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property

from memfit import _core
from memfit.bookkeeping import functions_of
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph import TrainingGraph
from memfit.liveness import MemoryTimeline, peak_of_order, simulate
from memfit.lower_sets import choose_family
from memfit.plan import Plan, PlanStatus, make_plan
from memfit.planners.base import (
    PlannerOptions,
    Progress,
    TimeIsUp,
    TradeOff,
    TradeOffPoint,
    limited,
)
from memfit.schedule import OpOrder, Schedule, make_schedule
from memfit.stages import BackwardStages, store_all_order
from memfit.strategy import (
    canonical_order,
    canonical_stages,
    formula_peaks,
    formula_stages,
    node_bytes,
    node_costs,
    peak_op,
    peaks_of,
)

__all__ = ["MODES", "PaperTable", "build_table", "plan_paper", "trade_off_paper"]

MODES = ("time", "memory", "auto")

_MAX_LOWER_SETS = {"native": 1 << 17, "python": 1 << 12}
_COST_STEPS = 1 << 25
_FEW_LOWER_SETS = 256
_LARGEST = 1 << 62
_FINEST_SHARE = 4  # costs are rounded by at most this share of an op's mean cost


@dataclass(frozen=True)
class Strategy:
    """A canonical strategy that the dynamic program found.

    Attributes:
        graph: the graph.
        mode: `time` or `memory`.
        lower_sets: L_1 … L_k.
        backward_stages: those of the graph.
    """

    graph: TrainingGraph
    mode: str
    lower_sets: tuple[int, ...]
    backward_stages: BackwardStages

    @cached_property
    def _order(self) -> OpOrder:
        return canonical_order(self.graph, self.lower_sets, backward_stages=self.backward_stages)

    @cached_property
    def schedule(self) -> Schedule:
        """Its schedule."""
        return make_schedule(self.graph, *self._order)

    @cached_property
    def timeline(self) -> MemoryTimeline:
        """Simulated memory of the whole step, with liveness analysis."""
        return simulate(self.graph, self.schedule)

    @cached_property
    def peak_bytes(self) -> int:
        """Simulated peak of the whole step, with liveness analysis."""
        return peak_of_order(self.graph, self._order)


@dataclass(frozen=True)
class PaperTable:
    """The trade-off of one family; strategies for any budget are read off it.

    Attributes:
        graph: the graph.
        family: name of the family.
        lower_sets: its lower sets.
        notes: what a reader of the plan should know: a family that was reduced, costs rounded.
        stages: the stages under the paper's formulas.
        quantum: costs were rounded up to multiples of it.
        complete: whether the search was not cut short.
    """

    graph: TrainingGraph
    family: str
    lower_sets: tuple[int, ...]
    notes: tuple[str, ...]
    stages: _core.CanonicalTable
    quantum: int
    complete: bool = True

    @property
    def status(self) -> PlanStatus:
        """How good a time-centric strategy is known to be."""
        return (
            PlanStatus.OPTIMAL_IN_FAMILY
            if self.quantum == 1 and self.complete
            else PlanStatus.FEASIBLE
        )

    @cached_property
    def minimum_bytes(self) -> int:
        """Smallest budget of the formulas, resident values left out."""
        return self.stages.smallest_budget()

    def strategy(self, nominal_bytes: int, mode: str) -> Strategy | None:
        """The time- or memory-centric strategy for a budget of the formulas, None if none fits.

        Time-centric is the least overhead, memory-centric the largest on the Pareto front at V.
        """
        path = self.stages.shortest(min(nominal_bytes, _LARGEST), longest=mode == "memory")
        if path is None:
            return None
        sets = tuple(self.lower_sets[state] for state in path)
        return Strategy(self.graph, mode, sets, self._backward_stages)

    @cached_property
    def _backward_stages(self) -> BackwardStages:
        return BackwardStages(self.graph)

    @cached_property
    def smallest(self) -> tuple[Strategy, ...]:
        """The time- and the memory-centric strategy for the smallest budget of the formulas."""
        found = [self.strategy(self.minimum_bytes, mode) for mode in ("time", "memory")]
        return tuple(strategy for strategy in found if strategy is not None)


def _cost_quantum(lower_sets: int, ops: int, total_cost: int) -> int:
    """What costs are rounded up to a multiple of, so that the search's memory is known ahead.

    1 where there are few lower sets or few different costs.
    """
    steps = _COST_STEPS // lower_sets
    if lower_sets <= _FEW_LOWER_SETS or total_cost < steps:
        return 1
    # Rounding up adds at most a step for each op.
    return -(-total_cost // max(_FEW_LOWER_SETS, steps - ops - 1))


def build_table(graph: TrainingGraph, family: str, options: PlannerOptions) -> PaperTable:
    """Find a family's trade-off.

    With `options.time_limit_s` and no time left, the family `pruned` is searched instead, which
    takes a moment, and the table says so.

    Args:
        graph: the graph.
        family: the family to search where the options leave the choice open.
        options: see `PlannerOptions`.
    """
    wanted = family if options.family == "auto" else options.family
    limit = options.max_lower_sets or _MAX_LOWER_SETS[_core.core_name()]
    try:
        return _build(graph, wanted, limit, limited(options))
    except TimeIsUp:
        table = _build(graph, "pruned", limit, options.progress)
        note = (
            f"the time limit of {options.time_limit_s:g} s was reached; family pruned was searched "
            f"instead of {wanted}"
        )
        return replace(table, notes=(*table.notes, note), complete=wanted == "pruned")


def _build(graph: TrainingGraph, wanted: str, limit: int, progress: Progress | None) -> PaperTable:
    def report(label: str, share: float) -> None:
        if progress is not None:
            progress(label, share)

    report("listing lower sets", 0.0)
    functions = functions_of(graph)
    count = len(functions.heads)
    sizes, costs = (functions.added(of(graph)) for of in (node_bytes, node_costs))
    name, masks = choose_family(functions.predecessors, wanted, limit)
    notes = []
    if name != wanted:
        notes.append(
            f"family {wanted} has more than {limit} lower sets; family {name} was searched instead"
        )
    quantum = _cost_quantum(len(masks), count, sum(costs))
    if name == "all" and quantum > 1 and quantum * _FINEST_SHARE * count > sum(costs):
        notes.append(
            f"family all has {len(masks)} lower sets, too many for costs as fine as these; family "
            "pruned+prefix was searched instead"
        )
        name, masks = choose_family(functions.predecessors, "pruned+prefix", limit)
        quantum = _cost_quantum(len(masks), count, sum(costs))
    if quantum > 1:
        notes.append(f"costs were rounded up to multiples of {quantum} {graph.cost_unit}")
    stages = _core.canonical_table(
        functions.predecessors,
        sizes,
        [-(-cost // quantum) for cost in costs],
        masks,
        connected=name == "all",
        progress=lambda share: report("searching stages", share),
    )
    lower_sets = tuple(masks if functions.trivial else map(functions.widened, masks))
    return PaperTable(graph, name, lower_sets, tuple(notes), stages, quantum)


def trade_off_paper(
    graph: TrainingGraph, options: PlannerOptions, *, planner: str, family: str
) -> TradeOff:
    """The time-centric overhead of every budget, by the paper's formulas."""
    began = time.perf_counter()
    table = build_table(graph, family, options)
    points = [
        TradeOffPoint(graph.resident_bytes + budget, cost * table.quantum)
        for cost, budget in reversed(table.stages.curve())
    ]
    return TradeOff(
        planner=planner,
        family=table.family,
        status=table.status,
        cost_unit=graph.cost_unit,
        total_cost=graph.total_cost,
        lower_sets=len(table.lower_sets),
        points=tuple(points),
        seconds=time.perf_counter() - began,
        notes=table.notes,
    )


def plan_paper(
    graph: TrainingGraph, budget_bytes: int, options: PlannerOptions, *, planner: str, family: str
) -> Plan:
    """A plan of the paper's dynamic program.

    Modes `time` and `memory` accept a budget where the paper's formulas do. Mode `auto` is the
    authors' system: the time-centric strategy with liveness analysis where its simulated peak fits,
    else the memory-centric one with liveness analysis, for the budget or for the smallest that the
    formulas accept.

    Raises:
        InfeasibleBudgetError: nothing fits; names the smallest budget that does.
        UsageError: an unknown mode or family.
    """
    began = time.perf_counter()
    if options.mode not in MODES:
        raise UsageError(f"unknown mode {options.mode!r}; known modes: {', '.join(MODES)}")
    table = build_table(graph, family, options)
    choose = _choose_auto if options.mode == "auto" else _choose_by_formula
    found, smallest = choose(table, budget_bytes, options.mode)
    notes = list(table.notes)
    if found.peak_bytes > budget_bytes:
        notes.append(
            f"the simulated peak is {found.peak_bytes} bytes, over the budget: the paper's formula "
            "knows no parameter gradients, workspace or gradients that leave a stage"
        )
    formula = formula_stages(graph, found.lower_sets)
    plan = make_plan(
        graph,
        found.schedule,
        planner=planner,
        family=table.family,
        mode=found.mode,
        status=table.status if options.mode == "time" else PlanStatus.FEASIBLE,
        budget_bytes=budget_bytes,
        plain_peak_bytes=peak_of_order(graph, store_all_order(graph)),
        smallest_feasible_budget_bytes=smallest,
        lower_sets=len(table.lower_sets),
        stages=canonical_stages(graph, found.lower_sets, found.schedule),
        seconds=time.perf_counter() - began,
        formula_overhead=sum(stage.overhead for stage in formula),
        formula_peak_bytes=graph.resident_bytes + max(peaks_of(formula), default=0),
        formula_cached_bytes=sum(stage.cached_bytes for stage in formula),
        provenance={
            "notes": notes,
            "core": _core.core_name(),
            "requested_mode": options.mode,
        },
        timeline=found.timeline,
    )
    if options.progress is not None:
        options.progress("planned", 1.0)
    return plan


def _choose_by_formula(table: PaperTable, budget_bytes: int, mode: str) -> tuple[Strategy, int]:
    graph = table.graph
    smallest = graph.resident_bytes + table.minimum_bytes
    found = table.strategy(budget_bytes - graph.resident_bytes, mode)
    if found is None:
        sets = table.smallest[0].lower_sets
        peaks = formula_peaks(graph, sets)
        top = sets[peaks.index(max(peaks))] if peaks else 0
        raise InfeasibleBudgetError(
            budget_bytes=budget_bytes,
            minimum_bytes=smallest,
            binding_op=graph.ops[top.bit_length() - 1].name if top else None,
            detail=f"family {table.family}, the paper's formula",
        )
    return found, smallest


def _choose_auto(table: PaperTable, budget_bytes: int, mode: str) -> tuple[Strategy, int]:
    least = min(table.smallest, key=lambda strategy: strategy.peak_bytes)
    nominal = budget_bytes - table.graph.resident_bytes
    candidates: list[Strategy] = []
    if nominal > table.minimum_bytes:
        for centric in ("time", "memory"):
            found = table.strategy(nominal, centric)
            if found is not None and found.peak_bytes <= budget_bytes:
                candidates.append(found)
                break
    # The formula bounds the simulated peak only nearly, so a larger nominal budget may miss where
    # the smallest one fits; with these tried too, every budget from the smallest on is accepted.
    candidates += [s for s in table.smallest if s.peak_bytes <= budget_bytes]
    if not candidates:
        raise InfeasibleBudgetError(
            budget_bytes=budget_bytes,
            minimum_bytes=least.peak_bytes,
            binding_op=peak_op(table.graph, least.schedule),
            detail=f"family {table.family}, with liveness analysis",
        )
    return candidates[0], min(least.peak_bytes, budget_bytes)
