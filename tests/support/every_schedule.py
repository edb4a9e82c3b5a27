"""The cheapest of all schedules of a small graph in program order, by going through all of them."""

from __future__ import annotations

import heapq
from itertools import count

from memfit.graph.schedule import Compute, Schedule
from memfit.graph.training_graph import TrainingGraph, ValueKind

__all__ = ["cheapest_schedule"]


class _Step:
    """Memory of one step, written down anew from docs/adr/0001."""

    def __init__(self, graph: TrainingGraph) -> None:
        self.graph = graph
        self.forward = graph.forward_count
        self.rows = len(graph.ops) - self.forward
        self.made = [
            v
            for v, value in enumerate(graph.values)
            if value.kind is ValueKind.ACTIVATION and not value.is_output
        ]

    def size(self, values: object) -> int:
        return sum(self.graph.values[v].size_bytes for v in values)  # type: ignore[attr-defined]

    def gradients(self, row: int, *, running: bool) -> int:
        """Gradients alive while backward op `row` runs, or from the one before until it starts."""
        total = 0
        for v, value in enumerate(self.graph.values):
            touching = [
                r
                for r, op in enumerate(self.graph.ops[self.forward :])
                if v in op.inputs or v in op.outputs
            ]
            if value.kind is ValueKind.GRADIENT and touching:
                first = touching[0]
                last = self.rows if value.is_output else touching[-1]
                if first <= (row if running else row - 1) and row <= last:
                    total += value.size_bytes
        return total

    def base(self) -> int:
        return self.size(
            v
            for v, value in enumerate(self.graph.values)
            if value.kind is ValueKind.TANGENT
            or value.kind.resident
            or (value.kind is ValueKind.ACTIVATION and value.is_output)
        )

    def forward_fits(self, kept: frozenset[int], budget: int) -> bool:
        graph = self.graph
        for at in range(self.forward):
            alive = set()
            for v in range(len(graph.values)):
                producer = graph.producer[v]
                if graph.values[v].kind is ValueKind.ACTIVATION and producer is not None:
                    readers = [r for r in graph.consumers[v] if r < self.forward]
                    last = max([producer, *readers])
                    stays = v in kept or graph.values[v].is_output
                    if producer <= at and (at <= last or stays):
                        alive.add(v)
            used = graph.resident_bytes + self.size(alive) + graph.ops[at].workspace_bytes
            if used > budget:
                return False
        return True


def _subsets(items: list[int]) -> list[frozenset[int]]:
    found = [frozenset[int]()]
    for item in items:
        found += [subset | {item} for subset in found]
    return found


def cheapest_schedule(graph: TrainingGraph, budget_bytes: int) -> Schedule | None:
    """A schedule of least overhead within the budget; None if there is none.

    States are (next backward op, values that are there); moves give up a value, run a forward op
    again, or run the backward op. Dijkstra's algorithm.
    """
    step = _Step(graph)
    base = step.base()
    before = [base + step.gradients(r, running=False) for r in range(step.rows)]
    during = [base + step.gradients(r, running=True) for r in range(step.rows)]
    made = set(step.made)
    State = tuple[int, frozenset[int]]
    came: dict[State, tuple[State, int] | None] = {}
    best: dict[State, int] = {}
    order = count()
    heap: list[tuple[int, int, State, tuple[State, int] | None]] = [
        (0, next(order), (0, kept), None)
        for kept in _subsets(step.made)
        if step.forward_fits(kept, budget_bytes)
    ]
    while heap:
        cost, _, state, origin = heapq.heappop(heap)
        if state in came:
            continue
        came[state] = origin
        row, alive = state
        if row == step.rows:
            return _schedule(step, came, state)
        moves: list[tuple[int, State, int]] = [(0, (row, alive - {v}), -1) for v in alive]
        size = step.size(alive)
        for op_id, op in enumerate(graph.ops[: step.forward]):
            need = made.intersection(op.inputs)
            used = before[row] + size + step.size(op.outputs) + op.workspace_bytes
            if op.recomputable and need <= alive and used <= budget_bytes:
                moves.append((op.cost, (row, alive | made.intersection(op.outputs)), op_id))
        op = graph.ops[step.forward + row]
        if (
            made.intersection(op.inputs) <= alive
            and during[row] + size + op.workspace_bytes <= budget_bytes
        ):
            moves.append((0, (row + 1, alive), step.forward + row))
        for more, state_after, what in moves:
            if state_after not in came and cost + more < best.get(state_after, cost + more + 1):
                best[state_after] = cost + more
                heapq.heappush(heap, (cost + more, next(order), state_after, (state, what)))
    return None


def _schedule(
    step: _Step,
    came: dict[tuple[int, frozenset[int]], tuple[tuple[int, frozenset[int]], int] | None],
    state: tuple[int, frozenset[int]],
) -> Schedule:
    moves: list[tuple[frozenset[int], int]] = []
    while (origin := came[state]) is not None:
        state, what = origin
        moves.append((state[1], what))
    ops = step.graph.ops
    steps = [Compute(i, 0, (0,) * len(ops[i].inputs)) for i in range(step.forward)]
    copy = [0] * len(step.graph.values)
    runs = [1] * step.forward
    for alive, what in reversed(moves):
        if what < 0:
            continue
        reads = tuple(copy[v] for v in ops[what].inputs)
        if what >= step.forward:
            steps.append(Compute(what, 0, reads))
            continue
        steps.append(Compute(what, runs[what], reads))
        for v in ops[what].outputs:
            if v not in alive and not step.graph.values[v].is_output:
                copy[v] = runs[what]
        runs[what] += 1
    return Schedule(tuple(steps), step.forward)
