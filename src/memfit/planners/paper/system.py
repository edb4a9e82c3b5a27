"""The paper's dynamic program over a family of lower sets; what exact and approximate share.

Kusumoto et al. 2019, section 4. States (L, t, m): overhead t so far, cached bytes m so far; the
Pareto front of (t, m) is kept for each L. A stage L -> L' may be taken where m and the paper's peak
of the stage fit the budget. Budgets given to planners are those of the whole step, so the formulas
get what is left of them beside the resident values. The nodes are functions: ops with their
bookkeeping (`memfit.cuts.functions`), as in the paper's graphs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from memfit import _core
from memfit.cuts.backward import BackwardStages
from memfit.cuts.functions import functions_of
from memfit.cuts.lower_sets import choose_family
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph.plan import Plan, PlanStatus
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import (
    MODES,
    PlannerOptions,
    Progress,
    TimeIsUp,
    TradeOff,
    TradeOffPoint,
    limited,
)
from memfit.planners.candidate import Candidate, infeasible
from memfit.strategies.canonical import canonical_order, canonical_stages
from memfit.strategies.formulas import (
    formula_peaks,
    formula_stages,
    node_bytes,
    node_costs,
    peaks_of,
)

__all__ = ["PaperTable", "build_table", "plan_paper", "trade_off_paper"]

_CENTRIC = ("time", "memory")

_MAX_LOWER_SETS = {"native": 1 << 17, "python": 1 << 12}
_COST_STEPS = 1 << 25
_FEW_LOWER_SETS = 256
_LARGEST = 1 << 62
_JUDGED_OPS = 1000  # strategies are judged whose ops come to so many, if one has fewer
_LEAST_RUNGS, _MOST_RUNGS = 4, 16
_FINEST_SHARE = 4  # costs are rounded by at most this share of an op's mean cost


@dataclass(frozen=True, eq=False)
class Strategy(Candidate):
    """A canonical strategy that the dynamic program found.

    Attributes:
        mode: `time` or `memory`.
        lower_sets: L_1 … L_k.
    """

    mode: str = "time"
    lower_sets: tuple[int, ...] = ()


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
        if path is None or nominal_bytes < self.minimum_bytes:
            return None
        sets = tuple(self.lower_sets[state] for state in path)
        graph, stages = self.graph, self._backward_stages
        return Strategy(
            graph,
            partial(canonical_order, graph, sets, backward_stages=stages),
            partial(canonical_stages, graph, sets),
            mode,
            sets,
        )

    @cached_property
    def _backward_stages(self) -> BackwardStages:
        return BackwardStages(self.graph)


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
        complete=table.complete,
    )


def plan_paper(
    graph: TrainingGraph, budget_bytes: int, options: PlannerOptions, *, planner: str, family: str
) -> Plan:
    """A plan of the paper's dynamic program.

    Modes `time` and `memory` accept a budget where the paper's formulas do. Mode `auto` accepts one
    where the simulated peak fits; see `AuthorsSystem`.

    Raises:
        InfeasibleBudgetError: nothing fits; names the smallest budget that does.
        UsageError: an unknown mode or family.
    """
    began = time.perf_counter()
    if options.mode not in MODES:
        raise UsageError(f"unknown mode {options.mode!r}; known modes: {', '.join(MODES)}")
    table = build_table(graph, family, options)
    if options.mode == "auto":
        system = AuthorsSystem(table)
        found, smallest = system.choose(budget_bytes), system.minimum_bytes
    else:
        found, smallest = _choose_by_formula(table, budget_bytes, options.mode)
    notes = list(table.notes)
    if found.peak_bytes > budget_bytes:
        notes.append(
            f"the simulated peak is {found.peak_bytes} bytes, over the budget: the paper's formula "
            "knows no parameter gradients, workspace or gradients that leave a stage"
        )
    formula = formula_stages(graph, found.lower_sets)
    plan = found.plan(
        budget_bytes,
        planner=planner,
        family=table.family,
        mode=found.mode,
        status=table.status if options.mode == "time" else PlanStatus.FEASIBLE,
        smallest_bytes=smallest,
        lower_sets=len(table.lower_sets),
        began=began,
        formula_overhead=sum(stage.overhead for stage in formula),
        formula_peak_bytes=graph.resident_bytes + max(peaks_of(formula), default=0),
        formula_cached_bytes=sum(stage.cached_bytes for stage in formula),
        notes=notes,
        complete=table.complete,
        provenance={"core": _core.core_name(), "requested_mode": options.mode},
    )
    if options.progress is not None:
        options.progress("planned", 1.0)
    return plan


def _choose_by_formula(table: PaperTable, budget_bytes: int, mode: str) -> tuple[Strategy, int]:
    graph = table.graph
    smallest = graph.resident_bytes + table.minimum_bytes
    found = table.strategy(budget_bytes - graph.resident_bytes, mode)
    if found is None:
        least = table.strategy(table.minimum_bytes, mode)
        sets = least.lower_sets if least is not None else ()
        peaks = formula_peaks(graph, sets)
        top = sets[peaks.index(max(peaks))] if peaks else 0
        raise InfeasibleBudgetError(
            budget_bytes=budget_bytes,
            minimum_bytes=smallest,
            binding_op=graph.ops[top.bit_length() - 1].name if top else None,
            detail=f"family {table.family}, the paper's formula",
        )
    return found, smallest


@dataclass(frozen=True)
class AuthorsSystem:
    """The authors' system: strategies of the formulas, judged by their simulated peaks.

    The formula is no bound of the peak: it knows no parameter gradients, workspace or gradients
    that leave a stage. So what a nominal budget gives may need more than the real one, and what a
    smaller one gives may need more still. What may be planned is therefore a set of strategies
    that only grows with the budget:

    - at any budget those for the smallest nominal one, in both modes; where they need more than it
      promises, also those for nominal budgets in between;
    - those for nominal budgets up to the real one: the time-centric ones for all, the
      memory-centric ones for some.

    Of those that fit the cheapest is the plan. The smallest budget is the least peak of the first
    kind, and all from it on are accepted. Of the second kind all are judged where the graph is
    small, so that the overhead never rises with the budget; where it is large, a few.

    Attributes:
        table: the strategies.
    """

    table: PaperTable
    _known: dict[tuple[int, ...], Strategy] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _always(self) -> list[Strategy]:
        """The strategies that any budget may be met with."""
        low = self.table.minimum_bytes
        found = [self._strategy(low, mode) for mode in _CENTRIC]
        high = min(s.peak_bytes for s in found) - self.table.graph.resident_bytes
        return found + [self._strategy(n, m) for n in self._rungs(low, high)[1:] for m in _CENTRIC]

    @cached_property
    def _least(self) -> Strategy:
        return min(self._always, key=lambda s: s.peak_bytes)

    @property
    def minimum_bytes(self) -> int:
        """The smallest budget that is accepted."""
        return self._least.peak_bytes

    def choose(self, budget_bytes: int) -> Strategy:
        """The strategy for a budget.

        Raises:
            InfeasibleBudgetError: none fits.
        """
        if budget_bytes < self.minimum_bytes:
            detail = f"family {self.table.family}, with liveness analysis"
            raise infeasible(self._least, budget_bytes, detail=detail)
        judged = [*self._more(budget_bytes), *self._always]
        fitting = [s for s in judged if s.peak_bytes <= budget_bytes]
        return min(fitting, key=lambda s: (s.overhead, s.mode != "time", s.peak_bytes))

    def _more(self, budget_bytes: int) -> Iterator[Strategy]:
        """Strategies for nominal budgets up to the real one.

        Time-centric ones by falling budget. Where none of the first ones fits, the first one that
        does is looked for by halving, and memory-centric ones are tried too.
        """
        table = self.table
        nominal = budget_bytes - table.graph.resident_bytes
        if nominal <= table.minimum_bytes:
            return
        first = self._judged(1)
        fits = False
        if first == 1:  # this needs no whole trade-off
            yield (found := self._strategy(nominal, "time"))
            if found.peak_bytes <= budget_bytes:
                return
        curve = [budget for _, budget in table.stages.curve()]
        budgets = [budget for budget in curve if budget <= nominal]
        for budget in budgets[: first if first > 1 else 0]:
            yield (found := self._strategy(budget, "time"))
            fits = fits or found.peak_bytes <= budget_bytes
        low, high = first - 1, 0 if fits else len(budgets)
        while high - low > 1:
            middle = (low + high) // 2
            yield (found := self._strategy(budgets[middle], "time"))
            low, high = (low, middle) if found.peak_bytes <= budget_bytes else (middle, high)
        if not fits or len(curve) <= first:
            for rung in self._rungs(table.minimum_bytes, curve[0]):
                if rung <= nominal:
                    yield self._strategy(rung, "memory")

    def _rungs(self, low: int, high: int) -> list[int]:
        """Nominal budgets from `low` on below `high`, evenly apart; none if it is no higher."""
        count = min(_MOST_RUNGS, self._judged(_LEAST_RUNGS))
        return sorted({low + (high - low) * i // count for i in range(count)}) if low < high else []

    def _judged(self, least: int) -> int:
        """How many strategies to judge, fewer where the graph is large."""
        return max(least, _JUDGED_OPS // max(1, len(self.table.graph.ops)))

    def _strategy(self, nominal_bytes: int, mode: str) -> Strategy:
        found = self.table.strategy(nominal_bytes, mode)
        assert found is not None, "a nominal budget from the smallest one on has a strategy"
        # Many nominal budgets give the same one, which is simulated once.
        return self._known.setdefault(found.lower_sets, found)
