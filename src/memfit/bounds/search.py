"""The bound of a graph: small programs first, more rows where their answers break the budget.

A program with few spans is solved within a second and bounds the overhead already. Its solution is
played as a schedule. If that fits the budget and costs no more than the bound, it is optimal. If
not, the rows in which it breaks the budget get spans of their own, and so on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memfit.bounds.highs import Solved, highs_version, solve
from memfit.bounds.lower_bound import CLOSE, LowerBound
from memfit.bounds.program import SpanProgram, build_program
from memfit.errors import ExecutionError, UsageError
from memfit.graph.schedule import Schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.strategies.carried import CarriedValues, StepOrder
from memfit.strategies.row_memory import RowMemory

__all__ = ["DEFAULT_TIME_LIMIT_S", "bound_graph"]

DEFAULT_TIME_LIMIT_S = 60.0

_REPORT_EVERY_S = 0.2


@dataclass
class _Search:
    memory: RowMemory
    budget_bytes: int
    began: float
    limit_s: float
    progress: Callable[[str, float], None] | None
    best: int = 0
    known: Schedule | None = None
    notes: list[str] = field(default_factory=list)
    reported: float = 0.0

    @property
    def carried(self) -> CarriedValues:
        return self.memory.carried

    @property
    def graph(self) -> TrainingGraph:
        return self.memory.carried.graph

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.began

    def report(self) -> None:
        now = self.elapsed_s
        if self.progress is not None and now - self.reported >= _REPORT_EVERY_S:
            self.reported = now
            self.progress("bounding", min(1.0, now / self.limit_s) if self.limit_s else 1.0)

    def offer(self, schedule: Schedule) -> None:
        """Remember a schedule if it fits and is the cheapest so far."""
        known = self.known
        if known is not None and schedule.overhead(self.graph) >= known.overhead(self.graph):
            return
        if simulate(self.graph, schedule).peak_bytes <= self.budget_bytes:
            self.known = schedule

    @property
    def close(self) -> int:
        """An overhead so little above the bound attains it."""
        return self.graph.forward_cost // CLOSE

    @property
    def attained(self) -> bool:
        return self.known is not None and self.above(self.known) <= self.close

    def check(self, version: str) -> None:
        """Refuse a bound that a known schedule disproves."""
        if self.known is not None and self.above(self.known) < 0:
            raise ExecutionError(
                f"HiGHS {version} claims that no schedule costs less than {self.best} "
                f"{self.graph.cost_unit}, and one that costs {self.known.overhead(self.graph)} is "
                "known; please report this graph as a bug"
            )

    def above(self, schedule: Schedule) -> int:
        return schedule.overhead(self.graph) - self.best

    def solve(self, program: SpanProgram) -> Solved:
        enough = None
        if self.known is not None:
            wanted = self.known.overhead(self.graph) - self.close
            enough = -(-wanted // program.cost_grain)
        return solve(
            program.program,
            self.limit_s - self.elapsed_s,
            gap=self.close / program.cost_grain / 2,
            enough=enough,
            waiting=self.report,
        )

    def result(self, overhead: int | None, method: str) -> LowerBound:
        proven = overhead is not None and self.attained
        return LowerBound(
            overhead=overhead,
            proven_optimum=proven,
            witness=self.known if proven else None,
            budget_bytes=self.budget_bytes,
            cost_unit=self.graph.cost_unit,
            forward_cost=self.graph.forward_cost,
            method=method,
            seconds=self.elapsed_s,
            notes=tuple(self.notes),
        )


def bound_graph(
    graph: TrainingGraph,
    budget_bytes: int,
    *,
    order: StepOrder | None = None,
    known: Schedule | None = None,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Callable[[str, float], None] | None = None,
) -> LowerBound:
    """A lower bound on the overhead of every schedule of an order that fits a budget.

    Args:
        graph: the graph.
        budget_bytes: peak of the whole step.
        order: the order of first runs; program order where left out.
        known: a schedule in this order; the search ends early where it turns out to be optimal.
        time_limit_s: seconds after which the best bound so far is taken.
        progress: called with a label and the share of the time limit that is used.

    Raises:
        UsageError: highspy is not installed; `known` is in another order.
        ExecutionError: the solver's bound is above the overhead of a schedule that fits.
    """
    began = time.perf_counter()
    carried = CarriedValues(graph, order or StepOrder.of_program(graph))
    if known is not None and StepOrder.of_schedule(graph, known) != carried.order:
        raise UsageError("the known schedule runs ops in another order than the bound is for")
    search = _Search(RowMemory(carried), budget_bytes, began, time_limit_s, progress)
    if search.memory.floor_bytes > budget_bytes:
        return search.result(None, "memory that is alive in every schedule")
    everything = dict.fromkeys(range(carried.row_count + 1), carried.made)
    plain = carried.schedule(everything)
    search.offer(plain)
    if known is not None:
        search.offer(known)
    if search.attained or not carried.row_count:
        return search.result(0, "nothing has to run again")
    return _refine(search, _worst_rows(search, plain))


def _refine(search: _Search, rows: Sequence[tuple[int, int]]) -> LowerBound:
    last = search.carried.row_count
    ends = sorted({rows[0][1] if rows else last, last})
    version = highs_version()
    while True:
        program = build_program(search.memory, ends, search.budget_bytes)
        solved = search.solve(program)
        method = f"integer program over {len(ends)} of {last} rows, HiGHS {version}"
        if solved.bound is None:
            return search.result(None, method)
        search.best = max(search.best, solved.bound * program.cost_grain)
        search.check(version)
        if search.attained:
            break
        if not solved.closed or search.elapsed_s >= search.limit_s or solved.solution is None:
            search.notes.append(
                f"the time limit of {search.limit_s:g} s was reached; more time may raise the bound"
            )
            break
        schedule = search.carried.schedule(_chosen(program, solved.solution))
        search.offer(schedule)
        more = _next_rows(ends, [row for _, row in _worst_rows(search, schedule)], last)
        if search.attained or not more:
            break
        ends = sorted({*ends, *more})
    return search.result(search.best, method)


def _chosen(program: SpanProgram, solution: Sequence[bool]) -> dict[int, int]:
    """What a solution carries over the end of each span, 0 for the forward pass."""
    carried = {}
    for end, entering in zip((0, *program.ends[:-1]), program.carried_in, strict=True):
        carried[end] = sum(
            1 << v
            for v, term in entering.items()
            if term == "one" or (isinstance(term, int) and solution[term])
        )
    return carried


def _worst_rows(search: _Search, schedule: Schedule) -> list[tuple[int, int]]:
    """Rows in which a schedule breaks the budget, with its bytes there; the worst one first."""
    live = simulate(search.graph, schedule).live_bytes
    row, worst = 1, dict[int, int]()
    for step, alive in zip(
        schedule.steps[schedule.backward_start :], live[schedule.backward_start :], strict=True
    ):
        if alive > search.budget_bytes:
            worst[row] = max(worst.get(row, 0), alive)
        row += step.op >= search.graph.forward_count
    return sorted(((alive, row) for row, alive in worst.items()), key=lambda x: (-x[0], x[1]))


def _next_rows(ends: Sequence[int], broken: Sequence[int], last: int) -> set[int]:
    """Rows to end spans at: around the worst broken row, or as near as there are any left."""
    taken = set(ends)
    if not broken:  # the schedule fits and costs more than the bound: the longest span hides why
        gaps = [(end - start, start) for start, end in zip((0, *ends), ends, strict=False)]
        length, start = max(gaps)
        return {start + length // 2} if length > 1 else set()
    near: list[set[int]] = [{broken[0], broken[0] - 1}, set(broken)]
    near += [{row + by for row in broken for by in (-far, far)} for far in range(1, last)]
    for rows in near:
        found = {row for row in rows if 0 < row <= last} - taken
        if found:
            return found
    return set()
