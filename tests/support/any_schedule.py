"""Random schedules, and what a schedule says about the variables of a bound's program."""

from __future__ import annotations

from random import Random

from memfit.bounds.program import SpanProgram
from memfit.graph.schedule import Compute, Schedule
from memfit.graph.training_graph import TrainingGraph
from memfit.strategies.carried import CarriedValues

__all__ = ["assignment", "broken_rows", "random_schedule"]


def random_schedule(graph: TrainingGraph, random: Random) -> Schedule:
    """A schedule in program order whose recomputations are random: useless ones, twice in a row."""
    count = graph.forward_count
    ops = graph.ops
    steps = [Compute(i, 0, (0,) * len(ops[i].inputs)) for i in range(count)]
    copies = {v: [0] for op in ops[:count] for v in op.outputs}
    runs = [1] * count
    again = [i for i in range(count) if ops[i].recomputable]
    share, old = random.choice([0.2, 0.6]), random.choice([0.0, 0.3])

    def reads(op_id: int) -> tuple[int, ...]:
        found = []
        for v in ops[op_id].inputs:
            known = copies.get(v, [0])
            found.append(random.choice(known) if random.random() < old else known[-1])
        return tuple(found)

    for op_id in range(count, len(ops)):
        while again and random.random() < share:
            first = random.choice(again)
            for other in again[again.index(first) :]:
                if other == first or random.random() < 0.5:
                    steps.append(Compute(other, runs[other], reads(other)))
                    for v in ops[other].outputs:
                        copies[v].append(runs[other])
                    runs[other] += 1
        steps.append(Compute(op_id, 0, reads(op_id)))
    return Schedule(tuple(steps), count)


def assignment(span: SpanProgram, carried: CarriedValues, schedule: Schedule) -> list[bool]:
    """The variables' values by their definitions in `memfit.bounds.program`."""
    graph = carried.graph
    count = graph.forward_count
    x = [False] * len(span.program.costs)
    starts = [1, *(end + 1 for end in span.ends[:-1])]
    span_of = {
        row: a
        for a, (start, end) in enumerate(zip(starts, span.ends, strict=True))
        for row in range(start, end + 1)
    }
    born: dict[tuple[int, int], int] = {}
    # For each copy, when it is read: rows, and whether by the row's backward op.
    read: dict[tuple[int, int], set[tuple[int, bool]]] = {}
    row = 0
    for index, step in enumerate(schedule.steps):
        if index == schedule.backward_start:
            row = 1
        op = graph.ops[step.op]
        for key in zip(op.inputs, step.reads, strict=True):
            read.setdefault(key, set()).add((row, step.op >= count))
        if step.op >= count:
            row += 1
            continue
        for v in op.outputs:
            born[v, step.copy] = row
        # A run of no use from there on is none of the program's: the rest is a schedule still.
        if max((carried.last_row[v] for v in op.outputs), default=0) < row:
            continue
        if row in span_of and step.op in span.runs[span_of[row]]:
            x[span.runs[span_of[row]][step.op]] = True
    for (v, copy), since in born.items():
        times = read.get((v, copy), set())
        last = max(times, default=(0, False))[0]
        for a, (start, end) in enumerate(zip(starts, span.ends, strict=True)):
            if since < start <= last:
                entering, through = span.carried_in[a].get(v), span.through[a].get(v)
                if isinstance(entering, int):
                    x[entering] = True
                if isinstance(through, int) and (last > end or (end, True) in times):
                    x[through] = True
    return x


def broken_rows(span: SpanProgram, x: list[bool]) -> list[object]:
    """The program's constraints that an assignment breaks."""
    broken: list[object] = []
    for row, low, high in span.program.rows:
        total = sum(c for i, c in row if x[i])
        if (low is not None and total < low) or (high is not None and total > high):
            broken.append((row, low, high, total))
    return broken
