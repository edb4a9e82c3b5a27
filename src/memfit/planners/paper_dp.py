"""The paper's dynamic program over a family of lower sets; what exact and approximate share.

Kusumoto et al. 2019, section 4. States (L, t, m): overhead t so far, cached bytes m so far; the
Pareto front of (t, m) is kept for each L. A stage L -> L' may be taken where m and the paper's peak
of the stage fit the budget. Budgets given to planners are those of the whole step, so the formulas
get what is left of them beside the resident values.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from memfit import _core
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph import TrainingGraph
from memfit.liveness import simulate
from memfit.lower_sets import choose_family
from memfit.plan import Plan, PlanStatus, make_plan
from memfit.planners.base import PlannerOptions
from memfit.schedule import Schedule
from memfit.stages import store_all_schedule
from memfit.strategy import (
    cached_bytes,
    canonical_schedule,
    canonical_stages,
    formula_overhead,
    formula_peak_bytes,
    formula_peaks,
    node_bytes,
    node_costs,
    peak_op,
)

__all__ = ["MODES", "PaperTable", "build_table", "plan_paper"]

MODES = ("time", "memory", "auto")


@dataclass(frozen=True)
class Strategy:
    """A canonical strategy that the dynamic program found, with its simulated peak.

    Attributes:
        mode: `time` or `memory`.
        lower_sets: L_1 … L_k.
        schedule: its schedule.
        peak_bytes: simulated peak of the whole step, with liveness analysis.
    """

    mode: str
    lower_sets: tuple[int, ...]
    schedule: Schedule
    peak_bytes: int


@dataclass(frozen=True)
class PaperTable:
    """All stages of one family; strategies for any budget are read off it.

    Attributes:
        graph: the graph.
        family: name of the family.
        lower_sets: its lower sets.
        note: why it is not the family asked for, if it is not.
        edges: the stages under the paper's formulas.
        minimum_bytes: smallest budget of the formulas, resident values left out.
    """

    graph: TrainingGraph
    family: str
    lower_sets: tuple[int, ...]
    note: str | None
    edges: _core.EdgeTable
    minimum_bytes: int

    def strategy(self, nominal_bytes: int, mode: str) -> Strategy | None:
        """The time- or memory-centric strategy for a budget of the formulas, None if none fits.

        Time-centric is the least overhead, memory-centric the largest on the Pareto front at V.
        """
        path = self.edges.shortest(nominal_bytes, longest=mode == "memory")
        return None if path is None else self._judge(path, mode)

    @cached_property
    def smallest(self) -> tuple[Strategy, ...]:
        """The time- and the memory-centric strategy for the smallest budget of the formulas."""
        found = [self.strategy(self.minimum_bytes, mode) for mode in ("time", "memory")]
        return tuple(strategy for strategy in found if strategy is not None)

    def _judge(self, path: Sequence[int], mode: str) -> Strategy:
        sets = tuple(self.lower_sets[self.edges.edge(e)[1]] for e in path)
        schedule = canonical_schedule(self.graph, sets)
        return Strategy(mode, sets, schedule, simulate(self.graph, schedule).peak_bytes)


def build_table(graph: TrainingGraph, family: str, options: PlannerOptions) -> PaperTable:
    """Tabulate a family's stages.

    Args:
        graph: the graph.
        family: the family to search where the options leave the choice open.
        options: see `PlannerOptions`.
    """
    wanted = family if options.family == "auto" else options.family

    def report(label: str, share: float) -> None:
        if options.progress is not None:
            options.progress(label, share)

    report("listing lower sets", 0.0)
    name, masks, note = choose_family(graph, wanted, options.max_lower_sets)
    report("tabulating stages", 0.2)
    edges = _core.canonical_edges(
        graph.forward_predecessors, node_bytes(graph), node_costs(graph), masks
    )
    report("searching stages", 0.6)
    minimum, _ = edges.smallest_budget()
    return PaperTable(graph, name, tuple(masks), note, edges, minimum)


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
    notes = [table.note] if table.note else []
    if found.peak_bytes > budget_bytes:
        notes.append(
            f"the simulated peak is {found.peak_bytes} bytes, over the budget: the paper's formula "
            "knows no parameter gradients, workspace or gradients that leave a stage"
        )
    plan = make_plan(
        graph,
        found.schedule,
        planner=planner,
        family=table.family,
        mode=found.mode,
        status=PlanStatus.OPTIMAL_IN_FAMILY if options.mode == "time" else PlanStatus.FEASIBLE,
        budget_bytes=budget_bytes,
        plain_peak_bytes=simulate(graph, store_all_schedule(graph)).peak_bytes,
        smallest_feasible_budget_bytes=smallest,
        lower_sets=len(table.lower_sets),
        stages=canonical_stages(graph, found.lower_sets, found.schedule),
        seconds=time.perf_counter() - began,
        formula_overhead=formula_overhead(graph, found.lower_sets),
        formula_peak_bytes=graph.resident_bytes + formula_peak_bytes(graph, found.lower_sets),
        formula_cached_bytes=cached_bytes(graph, found.lower_sets),
        provenance={
            "notes": notes,
            "core": _core.core_name(),
            "requested_mode": options.mode,
        },
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
