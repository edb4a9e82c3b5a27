"""Where the way back may be cut."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from memfit._core.problem import bits
from memfit.graph.training_graph import Op, TrainingGraph, ValueKind

__all__ = ["BackwardRanks", "BackwardStages", "barred_ends", "rank_backward"]


@dataclass(frozen=True)
class BackwardStages:
    """Which backward ops have run when the way back reaches a lower set.

    Where every backward op names its forward op, R(L) are the backward ops of V minus L. Otherwise
    R(L) is the largest predecessor-closed set of backward ops that read nothing of L except values
    of its boundary. Ops that depend on no tangent (constants) go with their first consumer.
    """

    graph: TrainingGraph

    @cached_property
    def paired(self) -> bool:
        """Whether every backward op names its forward op, and reads only what that op leaves it.

        Where the way back has come down to L, the backward of an op f outside L may read what f
        reads (the boundary) or what is made outside L whenever f is: by f and its descendants.
        """
        graph = self.graph
        before: list[int] = []
        for v, predecessors in enumerate(graph.forward_predecessors):
            mask = 1 << v
            for p in predecessors:
                mask |= before[p]
            before.append(mask)
        return all(self._fits(op, before) for op in graph.backward_ops)

    def _fits(self, op: Op, before: Sequence[int]) -> bool:
        graph, f = self.graph, op.forward_op
        if f is None:
            return False
        made_by = [
            graph.producer[v]
            for v in op.inputs
            if graph.values[v].kind is ValueKind.ACTIVATION and v not in graph.ops[f].inputs
        ]
        made_by += [
            graph.backward_ops[w].forward_op for v in op.inputs for w in self._writers.get(v, ())
        ]
        return all(maker is not None and before[maker] >> f & 1 for maker in made_by)

    @cached_property
    def _writers(self) -> dict[int, list[int]]:
        writers: dict[int, list[int]] = {}
        for b, op in enumerate(self.graph.backward_ops):
            for v in op.outputs:
                writers.setdefault(v, []).append(b)
        return writers

    @cached_property
    def constant(self) -> tuple[bool, ...]:
        """For each backward op, whether it depends on no tangent."""
        result: list[bool] = []
        kinds = [v.kind for v in self.graph.values]
        for op in self.graph.backward_ops:
            result.append(
                not any(
                    kinds[v] is ValueKind.TANGENT
                    or any(w < len(result) and not result[w] for w in self._writers.get(v, ()))
                    for v in op.inputs
                )
            )
        return tuple(result)

    @cached_property
    def _reads(self) -> tuple[int, ...]:
        """For each backward op, the forward values it reads, also through constants (a bitmask)."""
        kinds = [v.kind for v in self.graph.values]
        result: list[int] = []
        for op in self.graph.backward_ops:
            mask = 0
            for v in op.inputs:
                if kinds[v] is ValueKind.ACTIVATION:
                    mask |= 1 << v
                for w in self._writers.get(v, ()):
                    if w < len(result) and self.constant[w]:
                        mask |= result[w]
            result.append(mask)
        return tuple(result)

    @cached_property
    def _before(self) -> tuple[tuple[int, ...], ...]:
        """For each backward op, the backward ops that depend on a tangent and must run before."""
        return tuple(
            tuple(
                w
                for v in op.inputs
                for w in self._writers.get(v, ())
                if not self.constant[w] and w != b
            )
            for b, op in enumerate(self.graph.backward_ops)
        )

    @cached_property
    def _after(self) -> tuple[tuple[int, ...], ...]:
        after: list[list[int]] = [[] for _ in self._before]
        start = self.graph.forward_count
        for b, op in enumerate(self.graph.backward_ops):
            for v in op.outputs:
                after[b].extend(r - start for r in self.graph.consumers[v])
        return tuple(tuple(a) for a in after)

    @cached_property
    def _values_of(self) -> tuple[int, ...]:
        """For each forward op, its outputs as a bitmask."""
        return tuple(sum(1 << v for v in op.outputs) for op in self.graph.forward_ops)

    def finished(self, lower: int) -> int:
        """R(L) as a bitmask over backward ops (0 is the first backward op)."""
        graph = self.graph
        count = graph.forward_count
        if lower == (1 << count) - 1:
            return 0
        if self.paired:
            return sum(
                1 << b
                for b, op in enumerate(graph.backward_ops)
                if op.forward_op is not None and not lower >> op.forward_op & 1
            )
        gone = 0
        for f in bits(lower):
            gone |= self._values_of[f]
        for f in range(count):
            if not lower >> f & 1:
                for v in graph.ops[f].inputs:
                    gone &= ~(1 << v)
        done = [False] * len(self._reads)
        for b, reads in enumerate(self._reads):
            if not self.constant[b]:
                done[b] = not reads & gone and all(done[p] for p in self._before[b])
        for b in range(len(done) - 1, -1, -1):
            if self.constant[b]:
                done[b] = lower == 0 or any(done[a] for a in self._after[b])
        return sum(1 << b for b, d in enumerate(done) if d)

    def between(self, lower_sets: Sequence[int]) -> list[int]:
        """R(L) minus R(L') for each pair of neighbours in an increasing sequence, as bitmasks."""
        if not self.paired:
            finished = [self.finished(lower) for lower in lower_sets]
            return [a & ~b for a, b in itertools.pairwise(finished)]
        return [
            functools.reduce(operator.or_, (self._backward_of[f] for f in bits(upper & ~lower)), 0)
            for lower, upper in itertools.pairwise(lower_sets)
        ]

    @cached_property
    def _backward_of(self) -> tuple[int, ...]:
        """For each forward op, the backward ops that differentiate it (a bitmask)."""
        result = [0] * self.graph.forward_count
        for b, op in enumerate(self.graph.backward_ops):
            if op.forward_op is not None:
                result[op.forward_op] |= 1 << b
        return tuple(result)


@dataclass(frozen=True)
class BackwardRanks:
    """Which backward ops belong where.

    Attributes:
        constant: for each backward op, whether it depends on no tangent.
        rank: for each backward op, the position of a forward op; it has run when the way back
            reaches the forward ops up to v exactly where v < rank.
        paired: whether every backward op names its forward op and may run as soon as that one's
            turn has come.
    """

    constant: tuple[bool, ...]
    rank: tuple[int, ...]
    paired: bool


def rank_backward(graph: TrainingGraph, paired: bool, constant: tuple[bool, ...]) -> BackwardRanks:
    count = graph.forward_count
    if paired:
        rank = tuple(op.forward_op or 0 for op in graph.backward_ops)
        return BackwardRanks(constant, rank, True)
    # A forward value is there, on the way back, until its producer and all readers have gone.
    until = [-1] * len(graph.values)
    for v, op in enumerate(graph.forward_ops):
        for s in (*op.inputs, *op.outputs):
            if graph.values[s].kind is ValueKind.ACTIVATION:
                until[s] = v
    ranks = [count - 1] * len(graph.backward_ops)
    writers: list[list[int]] = [[] for _ in graph.values]
    for b, op in enumerate(graph.backward_ops):
        for s in op.inputs:
            if until[s] >= 0:
                ranks[b] = min(ranks[b], until[s])
            for w in writers[s]:
                ranks[b] = min(ranks[b], ranks[w])
        for s in op.outputs:
            writers[s].append(b)
    # Constants go with their first reader.
    for b in range(len(ranks) - 1, -1, -1):
        if constant[b]:
            readers = {c - count for s in graph.backward_ops[b].outputs for c in graph.consumers[s]}
            ranks[b] = max((ranks[r] for r in readers if r != b), default=0)
    return BackwardRanks(constant, tuple(ranks), False)


def barred_ends(graph: TrainingGraph, backward: BackwardRanks) -> list[bool]:
    """Where a backward op reads, below a cut, a forward value made above it."""
    change = [0] * (graph.forward_count + 1)
    for b, op in enumerate(graph.backward_ops):
        for s in op.inputs:
            producer = graph.producer[s]
            if graph.values[s].kind is not ValueKind.ACTIVATION or producer is None:
                continue
            if backward.rank[b] < producer:
                change[backward.rank[b]] += 1
                change[producer] -= 1
    return [total > 0 for total in itertools.accumulate(change[:-1])]
