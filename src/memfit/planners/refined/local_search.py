"""Local search on a schedule: drop what was kept, and spend what that frees on what saves more.

A schedule is said by what is carried over each backward op (`memfit.strategies.carried`). A *drop*
stops carrying a value from where it was last touched up to its next use, where it is computed again
(in a second stage if it had been computed again before); with *merging*, what is then computed
twice is carried from the first time to the second, so that a recomputation moves to an earlier row.
A *keep* carries a value from where it was last there to where it is computed again, which saves
that run.

The search drops each value in turn, relieves the peak by more drops where the budget needs it, and
then keeps what saves most as long as it fits. The first schedule that is cheaper than the best one
is the new best, and the search begins anew. So it only ever improves, and where the search ends
depends on how many schedules it may try, not on the time that takes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from memfit._core.problem import bits
from memfit.graph.schedule import Schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import Progress, TimeIsUp
from memfit.strategies.carried import CarriedValues, Row, StepOrder
from memfit.strategies.row_memory import RowMemory

__all__ = ["MOST_ROWS", "Choice", "Search", "improve", "too_large"]

MOST_ROWS = 500_000
"""Rows of schedules that are looked at, at most."""

_MOST_BITS = 1 << 24
_MOST_KNOWN = 1 << 18
_DROPS_DEEP = 3
_DROPS_WIDE = 4

Carried = tuple[int, ...]
"""For each row, 0 for the forward pass, the values carried over it (a bitmask over value ids)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is carried, with what follows from it.

    Attributes:
        carried: the values carried over each row; each of them is used later.
        rows: for each row from 1 on, at index row - 1, what runs again in it.
        overhead: cost of these runs.
        row_bytes: most bytes alive during each row, 0 for the forward pass.
    """

    carried: Carried
    rows: tuple[Row, ...]
    overhead: int
    row_bytes: tuple[int, ...]

    @property
    def peak_bytes(self) -> int:
        return max(self.row_bytes)


class _AllTried(Exception):
    """As many rows have been looked at as the search may."""


class Search:
    def __init__(
        self, values: CarriedValues, budget_bytes: int, most_rows: int, report: Progress
    ) -> None:
        self.values, self.memory = values, RowMemory(values)
        self.graph = values.graph
        self.budget = budget_bytes
        self.most_rows = self.rows_left = most_rows
        self.report = report
        self.tried: set[Carried] = set()
        # Neighbours share most of their rows.
        self.known: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], int] = {}

    def choice(self, wanted: Sequence[int]) -> Choice:
        """What follows from carrying `wanted`; what nothing uses is neither carried nor made."""
        self.rows_left -= len(wanted)
        if self.rows_left < 0:
            raise _AllTried
        values, ops = self.values, self.graph.ops
        rows = values.rows(dict(enumerate(wanted)))
        overhead = 0
        used = 0  # by later rows, and not made again before
        carried = [0] * len(wanted)
        row_bytes = [0] * len(wanted)
        for number in range(len(rows), 0, -1):
            row = Row([], [])
            carried[number] = (wanted[number] | values.always) & used
            used = carried[number] | values.inputs[values.order.backward[number - 1]]
            for op, made in zip(*map(reversed, rows[number - 1]), strict=True):
                if made & used:
                    row.ops.insert(0, op)
                    row.made.insert(0, made)
                    used = used & ~made | values.inputs[op]
                    overhead += ops[op].cost
            rows[number - 1] = row
            row_bytes[number] = self.row_bytes(number, row, carried[number])
        carried[0] = (wanted[0] | values.always) & used
        row_bytes[0] = self.row_bytes(0, None, carried[0])
        return Choice(tuple(carried), tuple(rows), overhead, tuple(row_bytes))

    def row_bytes(self, number: int, row: Row | None, stays: int) -> int:
        """Most bytes alive during a row, or during the forward pass where there is no row."""
        key = (number, stays, tuple(row.ops) if row else (), tuple(row.made) if row else ())
        found = self.known.get(key)
        if found is None:
            if len(self.known) > _MOST_KNOWN:
                self.known.clear()
            memory = self.memory
            found = memory.row_bytes(number, row, stays) if row else memory.forward_bytes(stays)
            self.known[key] = found
        return found

    def better(self, best: Choice) -> Choice | None:
        """The first choice found that fits the budget for less than `best`."""
        for carried in chain([best.carried], self.every_drop(best)):
            self.report("refining", 1.0 - self.rows_left / self.most_rows)
            for start in (carried, self.merged(carried)):
                if start is None or start in self.tried:
                    continue
                self.tried.add(start)
                fitting = self.relieved(self.choice(start), _DROPS_DEEP)
                if fitting is not None:
                    barred = self.dropped(best.carried, start)
                    for dense in (False, True):
                        found = self.filled(fitting, barred, dense=dense)
                        if found.overhead < best.overhead:
                            return found
        return None

    def relieved(self, choice: Choice, depth: int) -> Choice | None:
        """A choice that fits the budget, some drops away."""
        if choice.peak_bytes <= self.budget:
            return choice
        if depth == 0:
            return None
        ways = [self.choice(c) for c in self.drops_at(choice, self.worst_row(choice))]
        ways.sort(key=lambda c: (max(0, c.peak_bytes - self.budget), c.overhead, c.carried))
        for way in ways[:_DROPS_WIDE]:
            if way.carried not in self.tried:
                self.tried.add(way.carried)
                found = self.relieved(way, depth - 1)
                if found is not None:
                    return found
        return None

    def dropped(self, before: Carried, after: Carried) -> dict[int, int]:
        """By row, values that are no longer carried from there on."""
        found = {}
        gone = 0
        for row, (had, has) in enumerate(zip(before, after, strict=True)):
            if had & ~has & ~gone:
                found[row] = had & ~has & ~gone
            gone = had & ~has
        return found

    def filled(self, choice: Choice, barred: dict[int, int], *, dense: bool) -> Choice:
        """With one keep after another, as long as they fit.

        Args:
            choice: what is carried.
            barred: by row, values that must not be carried over it, so that no drop is undone.
            dense: those that save most for the memory they take come first; otherwise those that
                save most.
        """
        while True:
            options = []
            for carried in self.keeps(choice):
                if any(carried[row] & mask for row, mask in barred.items()):
                    continue
                kept = self.choice(carried)
                if kept.overhead < choice.overhead and kept.peak_bytes <= self.budget:
                    options.append(kept)
            if not options:
                return choice
            now, taken = choice.overhead, sum(choice.row_bytes)

            def rank(c: Choice, now: int = now, taken: int = taken) -> tuple[float, int, Carried]:
                more = sum(c.row_bytes) - taken
                worth = (now - c.overhead) / max(1, more) if dense else now - c.overhead
                return -worth, more, c.carried

            options.sort(key=rank)
            choice = options[0]
            for option in options[1:]:
                together = map(operator.or_, choice.carried, option.carried)
                kept = self.choice(tuple(together))
                if kept.overhead < choice.overhead and kept.peak_bytes <= self.budget:
                    choice = kept

    def keeps(self, choice: Choice) -> Iterator[Carried]:
        """What is carried after each keep, and after keeping all that a row computes again."""
        made, useful = self.values.made, self.values.useful
        there = [0] * len(self.graph.values)  # the last row in which a value was there
        for row, (again, _) in enumerate(choice.rows, 1):
            outputs = [v for op in again for v in self.graph.ops[op].outputs if made >> v & 1]
            whole = list(choice.carried)
            wanted = choice.carried[row] | self.values.inputs[self.values.order.backward[row - 1]]
            for v in outputs:
                carried = list(choice.carried)
                for between in range(there[v], row):
                    carried[between] |= 1 << v & useful[between]
                    if wanted >> v & 1:
                        whole[between] |= 1 << v & useful[between]
                yield tuple(carried)
            if len(outputs) > 1:
                yield tuple(whole)
            for v in (*outputs, *bits(choice.carried[row])):
                there[v] = row

    def every_drop(self, choice: Choice) -> Iterator[Carried]:
        """What is carried after each drop."""
        touched = self.touched(choice)
        seen: set[Carried] = set()
        for row in range(len(choice.carried)):
            begun = choice.carried[row]
            if row:
                begun &= ~choice.carried[row - 1] | touched[row]
            for carried in self._drops(choice, row, begun, touched):
                if carried not in seen:
                    seen.add(carried)
                    yield carried

    def worst_row(self, choice: Choice) -> int:
        return max(range(len(choice.row_bytes)), key=lambda row: (choice.row_bytes[row], -row))

    def drops_at(self, choice: Choice, row: int) -> Iterator[Carried]:
        """What is carried after each drop that may relieve a row: over it or into it."""
        touched = self.touched(choice)
        seen: set[Carried] = set()
        for over in {max(0, row - 1), row}:
            for carried in self._drops(choice, over, choice.carried[over], touched):
                if carried not in seen:
                    seen.add(carried)
                    yield carried

    def _drops(
        self, choice: Choice, over: int, candidates: int, touched: Sequence[int]
    ) -> Iterator[Carried]:
        rows = len(choice.carried)
        for v in bits(candidates & ~self.values.always):
            bit = 1 << v
            first = last = over
            while first > 0 and choice.carried[first - 1] & bit and not touched[first] & bit:
                first -= 1
            while (
                last + 1 < rows and choice.carried[last + 1] & bit and not touched[last + 1] & bit
            ):
                last += 1
            carried = list(choice.carried)
            for between in range(first, last + 1):
                carried[between] &= ~bit
            yield tuple(carried)

    def touched(self, choice: Choice) -> list[int]:
        """For each row, the values that are read or made in it."""
        inputs, outputs = self.values.inputs, self.values.outputs
        result = [self.values.made]
        for op, (again, _) in zip(self.values.order.backward, choice.rows, strict=True):
            mask = inputs[op]
            for forward_op in again:
                mask |= inputs[forward_op] | outputs[forward_op]
            result.append(mask)
        return result

    def merged(self, carried: Carried) -> Carried | None:
        """With what several rows compute again carried from one to the next; None if nothing is."""
        choice = self.choice(carried)
        useful = self.values.useful
        ran: dict[int, int] = {}
        result = list(choice.carried)
        for row, (again, _) in enumerate(choice.rows, 1):
            wanted = choice.carried[row] | self.values.inputs[self.values.order.backward[row - 1]]
            for op in again:
                if op in ran:
                    for between in range(ran[op], row):
                        result[between] |= self.values.outputs[op] & wanted & useful[between]
                ran[op] = row
        return tuple(result) if tuple(result) != choice.carried else None


def too_large(graph: TrainingGraph) -> bool:
    """Whether what is carried takes too much memory to write down for many schedules."""
    return len(graph.backward_ops) * len(graph.values) > _MOST_BITS


def improve(
    graph: TrainingGraph,
    schedule: Schedule,
    budget_bytes: int,
    *,
    report: Progress | None = None,
    most_rows: int = MOST_ROWS,
) -> Schedule:
    """The cheapest schedule found near `schedule` that fits the budget.

    It is `schedule` itself where none is found, or where the graph is `too_large`.

    Args:
        graph: the graph.
        schedule: a schedule that fits the budget.
        budget_bytes: peak of the whole step.
        report: called with a label and the share done; the search ends when it raises `TimeIsUp`.
        most_rows: rows of schedules that are looked at, at most.
    """
    if too_large(graph):
        return schedule
    values = CarriedValues(graph, StepOrder.of_schedule(graph, schedule))
    search = Search(values, budget_bytes, most_rows, report or (lambda *_: None))
    carried = values.of_schedule(schedule)
    best_overhead = schedule.overhead(graph)
    try:
        choice = search.choice([carried[row] for row in range(values.row_count + 1)])
        while best_overhead:
            if choice.overhead > best_overhead or choice.peak_bytes > budget_bytes:
                break  # what it carries does not say the whole schedule
            found = search.better(choice)
            if found is None:
                break
            played = values.schedule(dict(enumerate(found.carried)))
            if simulate(graph, played).peak_bytes > budget_bytes:
                break
            schedule, choice, best_overhead = played, found, found.overhead
    except (_AllTried, TimeIsUp):
        pass
    return schedule
