"""Stages of a joint graph: which backward ops belong to which cut, and stages as schedules."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from memfit._core.problem import Cut, PieceCost, StageStep, bits, piece_keep
from memfit._core.reference.stage import simulate_piece
from memfit.blocks import Blocks
from memfit.graph.plain import store_all_order
from memfit.graph.plan import Stage
from memfit.graph.schedule import OpOrder, Schedule, make_schedule
from memfit.graph.training_graph import Op, TrainingGraph, ValueKind

__all__ = ["BackwardStages", "Piece", "StagePath", "StageSpace"]


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
class StagePath:
    """Consecutive stages from the empty set to V over the cuts of a graph's blocks.

    Attributes:
        space: the blocks and cuts.
        steps: the stages.
    """

    space: StageSpace
    steps: Sequence[StageStep]

    def order(self) -> OpOrder:
        """The stages as an order of computations; without forward ops, that of the program."""
        if not self.steps:
            return store_all_order(self.space.blocks.graph)
        forward: list[int] = []
        keep: set[int] = set()
        back: list[list[int]] = []
        for step in self.steps:
            pieces = self.space.pieces(step)
            for piece in pieces:
                forward.extend(piece.forward)
                keep |= piece.keep
            back.append(_way_back(pieces))
        backward = [op for order in reversed(back) for op in order]
        return OpOrder(forward, backward, keep)

    def schedule(self) -> Schedule:
        """The stages as a schedule."""
        return make_schedule(self.space.blocks.graph, *self.order())

    def stages(self) -> tuple[Stage, ...]:
        """The stages, for people."""
        result = []
        ops = self.space.blocks.graph.ops
        for step in self.steps:
            pieces = self.space.pieces(step)
            result.append(
                Stage(
                    forward_ops=sum(len(piece.forward) for piece in pieces),
                    first_op=ops[pieces[0].forward[0]].name,
                    last_op=ops[pieces[-1].forward[-1]].name,
                    kept_bytes=sum(piece.cost.cached_bytes for piece in pieces),
                    recompute_cost=sum(piece.cost.cost for piece in pieces),
                )
            )
        return tuple(result)


@dataclass(frozen=True)
class StageSpace:
    """What stages are made of.

    Attributes:
        blocks: the graph, cut into blocks.
        cuts: for each block its cuts, both ends included.
    """

    blocks: Blocks
    cuts: Sequence[Sequence[Cut]]
    _known: dict[tuple[int, ...], Piece] = field(default_factory=dict, repr=False, compare=False)

    def pieces(self, step: StageStep) -> list[Piece]:
        """The pieces of a stage, from the lowest to the top one, with what each is asked for."""
        i, a, j, b, variant = step
        found: list[Piece] = []
        passed = False
        for k in range(j, i - 1, -1):
            lower = a if k == i else 0
            upper = b if k == j else len(self.cuts[k]) - 1
            key = (k, lower, upper, variant, k > i, k < j, passed)
            piece = self._known.get(key)
            if piece is None:
                piece = self._known[key] = self._piece(
                    k, lower, upper, variant, open_below=k > i, open_above=k < j, passed=passed
                )
            passed = piece.cost.asks
            found.append(piece)
        return found[::-1]

    def _piece(
        self,
        k: int,
        lower: int,
        upper: int,
        variant: int,
        *,
        open_below: bool,
        open_above: bool,
        passed: bool,
    ) -> Piece:
        block = self.blocks.blocks[k]
        low, high = self.cuts[k][lower], self.cuts[k][upper]
        way_back: tuple[list[int], list[int], list[int]] = ([], [], [])

        def emit(op: int, again: bool, when: int) -> None:
            way_back[when].append(block.forward.start + op if again else block.backward[op])

        cost = simulate_piece(
            block.problem,
            low,
            high,
            variant,
            open_below=open_below,
            open_above=open_above,
            passed=passed,
            emit=emit,
        )
        keep = piece_keep(block.problem, low, high, variant, open_above)
        return Piece(
            cost=cost,
            forward=block.ids(high.lower & ~low.lower),
            keep=frozenset(block.values[s] for s in keep),
            way_back=way_back,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a stage.

    Attributes:
        cost: what it costs.
        forward: ids of its forward ops.
        keep: ids of the values that it keeps.
        way_back: ids of its ops on the way back: those for the pieces above; its own before the
            pieces below provide their interface, and after.
    """

    cost: PieceCost
    forward: list[int]
    keep: frozenset[int]
    way_back: tuple[list[int], list[int], list[int]]


def _way_back(pieces: Sequence[Piece]) -> list[int]:
    """The ops of a stage on the way back, of its pieces from the lowest to the top one."""
    order: list[int] = []
    for k in range(len(pieces) - 1, -1, -1):
        _, before, after = pieces[k].way_back
        order += before
        if pieces[k].cost.asks and not pieces[k].cost.joins:
            # The group below, from the lowest piece that joins in.
            low = k
            while low > 0 and pieces[low - 1].cost.passed and (low == k or pieces[low].cost.joins):
                low -= 1
            for piece in pieces[low:k]:
                order += piece.way_back[0]
        order += after
    return order
