"""Nested strategies as schedules: stretches of a graph that are swept and reversed recursively.

The order of computations follows `memfit._core.reference.nested`: the first pass keeps what its
stages say; on the way back a stage runs its backward ops, or is swept again and reversed in parts.
Each copy of a value is read until it is given up; then the next copy takes its place.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from memfit._core.problem import (
    Cut,
    TopStage,
    Tree,
    always_kept,
    bits,
    needed_ops,
    piece_keep,
)
from memfit.cuts.blocks import Block
from memfit.graph.plan import Stage
from memfit.graph.schedule import Compute, Schedule
from memfit.graph.training_graph import TrainingGraph, ValueKind

__all__ = ["CutLine", "NestedPath"]


@dataclass(frozen=True)
class CutLine:
    """The cuts of a graph in one increasing row, 0 to n, over blocks that follow each other.

    Attributes:
        graph: the graph.
        blocks: the blocks, in forward order.
        cuts: for each block its cuts, both ends included.
    """

    graph: TrainingGraph
    blocks: Sequence[Block]
    cuts: Sequence[Sequence[Cut]]
    _kept: dict[tuple[int, int, int], frozenset[int]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def starts(self) -> list[int]:
        """For each block, the number of its lower end; at last that of the last cut."""
        starts = [0]
        for cuts in self.cuts:
            starts.append(starts[-1] + len(cuts) - 1)
        return starts

    @cached_property
    def forward(self) -> list[list[int]]:
        """For each cut but the last, ids of the forward ops between it and the next."""
        return [
            block.ids(b.lower & ~a.lower)
            for block, cuts in zip(self.blocks, self.cuts, strict=True)
            for a, b in pairwise(cuts)
        ]

    @cached_property
    def backward(self) -> list[list[int]]:
        """For each cut but the last, ids of the backward ops that run between the next and it."""
        return [
            [block.backward[b] for b in bits(a.finished & ~b.finished)]
            for block, cuts in zip(self.blocks, self.cuts, strict=True)
            for a, b in pairwise(cuts)
        ]

    @cached_property
    def place(self) -> list[int]:
        """For each op, the number of the cut below it; for a backward op, below which it runs."""
        place = [0] * len(self.graph.ops)
        for rows in (self.forward, self.backward):
            for at, row in enumerate(rows):
                for op in row:
                    place[op] = at
        return place

    @cached_property
    def always(self) -> frozenset[int]:
        """Ids of the values that every strategy keeps from their first computation on."""
        return frozenset(
            block.values[s]
            for block in self.blocks
            for s, kept in enumerate(always_kept(block.problem))
            if kept
        )

    @cached_property
    def readers(self) -> list[tuple[list[int], list[int]]]:
        """For each value, the places of its forward readers and of its backward ones, ascending."""
        count = self.graph.forward_count
        place = self.place
        return [
            (
                sorted({place[r] for r in readers if r < count}),
                sorted({place[r] for r in readers if r >= count}),
            )
            for readers in self.graph.consumers
        ]

    @cached_property
    def edges(self) -> list[list[int]]:
        """For each cut, ids of the values in its boundary that are not always kept."""
        edges: list[list[int]] = [[]]
        for block, cuts in zip(self.blocks, self.cuts, strict=True):
            for cut in cuts[1:]:
                ids = (block.values[s] for s in sorted(cut.boundary))
                edges.append([v for v in ids if v not in self.always])
        return edges

    def _local(self, cut: int) -> tuple[int, int]:
        """(block, cut of it) of a cut that is its block's lower end or inside."""
        at = bisect_left(self.starts, cut + 1) - 1
        return at, cut - self.starts[at]

    def kept(self, i: int, k: int, variant: int) -> frozenset[int]:
        """Ids of the values that a stage of a variant keeps between two cuts of a block."""
        block, a = self._local(i)
        b = k - self.starts[block]
        # Alike blocks share their problems' answers, but not their values.
        key = (i, k, variant)
        if key not in self._kept:
            lower, upper = self.cuts[block][a], self.cuts[block][b]
            found = piece_keep(self.blocks[block].problem, lower, upper, variant)
            values = self.blocks[block].values
            self._kept[key] = frozenset(values[s] for s in found)
        return self._kept[key]

    def held(self, i: int, k: int) -> list[int]:
        """Ids of the values made between two cuts that the upper one holds, not always kept."""
        producer, place = self.graph.producer, self.place
        return [v for v in self.edges[k] if place[producer[v] or 0] >= i]

    def wanted(self, values: Iterable[int], i: int, j: int) -> list[int]:
        """Those of `values` that an op between two cuts reads, on either way."""
        return [v for v in values if any(_any_between(places, i, j) for places in self.readers[v])]


def _any_between(places: Sequence[int], low: int, high: int) -> bool:
    at = bisect_left(places, low)
    return at < len(places) and places[at] < high


class _Writer:
    """Writes the steps of a schedule, with which copy of each value is there."""

    def __init__(self, line: CutLine) -> None:
        graph = line.graph
        self.line, self.graph = line, graph
        self.count = graph.forward_count
        self.steps: list[Compute] = []
        self.have: set[int] = set()
        self._copy = [0] * len(graph.values)
        self._runs = [0] * self.count
        self._made = [v.kind is ValueKind.ACTIVATION for v in graph.values]

    def first_pass(self, keep: set[int]) -> None:
        """The forward pass; the values in `keep` are there from now on."""
        for row in self.line.forward:
            for op in row:
                self.steps.append(Compute(op, 0, (0,) * len(self.graph.ops[op].inputs)))
                self._runs[op] = 1
        self.have = keep

    def run(self, op_id: int) -> None:
        op = self.graph.ops[op_id]
        reads = tuple([self._copy[v] for v in op.inputs])
        copy = 0
        if op_id < self.count:
            copy = self._runs[op_id]
            self._runs[op_id] += 1
            for v in op.outputs:
                if v not in self.have:
                    self._copy[v] = copy
                    self.have.add(v)
        self.steps.append(Compute(op_id, copy, reads))

    def provide(self, values: Iterable[int]) -> list[int]:
        """Compute again what is missing of `values`; returns the values that this made."""
        made, have = self._made, self.have
        missing = [v for v in values if made[v] and v not in have]
        if not missing:
            return []
        producer, ops = self.graph.producer, self.graph.ops
        todo = needed_ops(
            missing,
            lambda v: producer[v] if made[v] and v not in have else None,
            lambda op_id: ops[op_id].inputs,
        )
        new = [v for op_id in todo for v in ops[op_id].outputs if v not in have]
        for op_id in sorted(todo):
            self.run(op_id)
        return new

    def sweep(self, targets: Sequence[int]) -> None:
        """Compute `targets` again and give up all else that this makes."""
        self.have.difference_update(set(self.provide(targets)).difference(targets))

    def leaf(self, i: int, j: int, held: Iterable[int] = ()) -> None:
        """The backward ops between two cuts, what they need computed again right before."""
        rows = self.line.backward[i:j]
        new: list[int] = []
        for b in sorted(op for row in rows for op in row) if len(rows) > 1 else rows[0]:
            new += self.provide(self.graph.ops[b].inputs)
            self.run(b)
        self.have.difference_update(new)
        self.have.difference_update(v for v in held if v not in self.line.always)

    def reverse(self, tree: Tree) -> None:
        """The way back through a tree."""
        line = self.line
        todo: list[tuple[Tree | None, tuple[int, int, int | Tree, list[int]] | None]]
        todo = [(tree, None)]
        while todo:
            part, swept = todo.pop()
            if swept is not None:
                i, k, how, targets = swept
                if isinstance(how, int):
                    self.leaf(i, k, targets)
                else:
                    self.have.difference_update(targets)
                    todo.append((how, None))
            elif part is not None:
                i, k, j, how, rest = part
                if rest is None:
                    self.leaf(i, j)
                    continue
                if isinstance(how, int):
                    kept = line.kept(i, k, how) - line.always
                    targets = line.wanted(sorted(kept), i, j)
                else:
                    targets = line.wanted(line.held(i, k), k, j)
                self.sweep(targets)
                todo.append((None, (i, k, how, targets)))
                todo.append((rest, None))


@dataclass(frozen=True)
class NestedPath:
    """A nested strategy.

    Attributes:
        line: the cuts.
        top: the stages of the first pass, from cut 0 to the last, numbered over all blocks.
    """

    line: CutLine
    top: Sequence[TopStage]

    @cached_property
    def _keeps(self) -> list[frozenset[int]]:
        """What the first pass keeps in each stage beyond what is always kept."""
        line = self.line
        return [
            line.kept(i, k, how) if isinstance(how, int) else frozenset(line.held(i, k))
            for i, k, how in self.top
        ]

    @cached_property
    def schedule(self) -> Schedule:
        """The strategy as a schedule."""
        writer = _Writer(self.line)
        writer.first_pass(set(self.line.always).union(*self._keeps))
        start = len(writer.steps)
        for (i, k, how), keep in zip(reversed(self.top), reversed(self._keeps), strict=True):
            if isinstance(how, int):
                writer.leaf(i, k, keep)
            else:
                writer.have.difference_update(keep)
                writer.reverse(how)
        return Schedule(tuple(writer.steps), start)

    def stages(self) -> tuple[Stage, ...]:
        """The stages of the first pass, for people."""
        line, ops, values = self.line, self.line.graph.ops, self.line.graph.values
        again = [0] * len(ops)
        for op in self.schedule.recomputed_ops:
            again[op] += ops[op].cost
        result = []
        for (i, k, _), keep in zip(self.top, self._keeps, strict=True):
            inside = [op for row in line.forward[i:k] for op in row]
            made = {v for op in inside for v in ops[op].outputs}
            kept = made & (keep | line.always)
            result.append(
                Stage(
                    forward_ops=len(inside),
                    first_op=ops[min(inside)].name,
                    last_op=ops[max(inside)].name,
                    kept_bytes=sum(values[v].size_bytes for v in kept),
                    recompute_cost=sum(again[op] for op in inside),
                )
            )
        return tuple(result)
