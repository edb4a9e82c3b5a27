"""Blocks of a joint graph: where it falls apart into parts that can be analysed one by one.

See `memfit.cuts.choose` for where it is cut: into blocks of forward ops, with the backward ops that
belong to them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from memfit._core.problem import Cut, StageProblem, bits, needed_ops, piece_keep
from memfit.cuts.backward import BackwardRanks, rank_backward
from memfit.cuts.choose import choose_cuts
from memfit.graph.training_graph import TrainingGraph, ValueKind

__all__ = ["Block", "Blocks", "blocks_at", "cut_graph"]


@dataclass(frozen=True)
class Block:
    """A block: a run of forward ops, and the backward ops that run between its ends.

    Attributes:
        graph: the graph.
        forward: ids of its forward ops, consecutive and ascending.
        backward: ids of its backward ops, ascending.
        values: ids of the values that its ops touch, ascending; their positions are the value
            numbers of `problem`.
        problem: the block, flattened.
        constant: for each of its backward ops, whether it depends on no tangent.
        paired: whether each backward op goes with one forward op.
    """

    graph: TrainingGraph
    forward: range
    backward: tuple[int, ...]
    values: tuple[int, ...]
    problem: StageProblem
    constant: tuple[bool, ...]
    paired: bool

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each forward op, those of the block that it reads from; numbered in the block."""
        first = self.forward.start
        return tuple(
            tuple(p - first for p in self.graph.forward_predecessors[v] if p >= first)
            for v in self.forward
        )

    @cached_property
    def _order(self) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        """For each backward op, those of the block that must run before it, and those after it."""
        problem = self.problem
        before: list[set[int]] = [set() for _ in self.backward]
        after: list[set[int]] = [set() for _ in self.backward]
        for s, writers in enumerate(problem.backward_writers):
            for w in writers:
                for r in problem.backward_readers[s]:
                    if w != r:
                        before[r].add(w)
                        after[w].add(r)
        return tuple(tuple(sorted(b)) for b in before), tuple(tuple(sorted(a)) for a in after)

    def finished(self, lower: int) -> int:
        """The backward ops of the block in R(L), as a bitmask; `lower` is L within the block."""
        count = len(self.forward)
        everything = (1 << len(self.backward)) - 1
        if lower == 0:
            return everything
        if lower == (1 << count) - 1:
            return 0
        if self.paired:
            first = self.forward.start
            ops = self.graph.ops
            return sum(
                1 << b
                for b, op in enumerate(self.backward)
                if not lower >> ((ops[op].forward_op or 0) - first) & 1
            )
        problem = self.problem
        before, after = self._order
        gone = [
            (problem.from_below[s] or (producer >= 0 and bool(lower >> producer & 1)))
            and not problem.read_above[s]
            and not any(not lower >> r & 1 for r in problem.forward_readers[s])
            for s, producer in enumerate(problem.forward_producer)
        ]
        done = [False] * len(self.backward)
        # Constants read only constants and forward values; what they read, their readers need.
        blocked = [any(gone[s] for s in inputs) for inputs in problem.backward_inputs]
        for b in range(len(done)):
            blocked[b] |= any(self.constant[p] and blocked[p] for p in before[b])
        for b in range(len(done)):
            if not self.constant[b]:
                done[b] = not blocked[b] and all(done[p] for p in before[b] if not self.constant[p])
        for b in range(len(done) - 1, -1, -1):
            if self.constant[b]:
                done[b] = any(done[a] for a in after[b])
        return sum(1 << b for b, d in enumerate(done) if d)

    @cached_property
    def signature(self) -> str:
        """Equal for blocks that are alike: same ops, sizes, costs and surroundings."""
        ops = self.graph.ops
        first = self.forward.start
        pairs = [(ops[b].forward_op or 0) - first for b in self.backward] if self.paired else []
        text = repr((self.problem, self.constant, pairs))
        return hashlib.sha256(text.encode()).hexdigest()

    def cut(self, lower: int) -> Cut:
        """The cut of a lower set, which is given as a bitmask over the block's forward ops."""
        return Cut.of(self.problem, lower, self.finished(lower))

    def closure(self, ops: Sequence[int]) -> int:
        """Forward ops of the block (numbered in it) with all that they need in it."""
        return sum(1 << v for v in needed_ops(ops, int, self.predecessors.__getitem__))

    def ids(self, lower: int) -> list[int]:
        """Ids of the forward ops of a lower set of the block."""
        return [self.forward.start + v for v in bits(lower)]


@dataclass(frozen=True)
class Blocks:
    """A graph, cut into blocks.

    Attributes:
        graph: the graph.
        blocks: the blocks, in forward order; none for a graph without forward ops.
        base_bytes: for each block, bytes alive at its upper end on the way back beyond the cache.
        partial_ends: number of block ends that some lower sets neither hold nor are held by.
    """

    graph: TrainingGraph
    blocks: tuple[Block, ...]
    base_bytes: tuple[int, ...]
    partial_ends: int = 0


def cut_graph(
    graph: TrainingGraph,
    useful: Sequence[bool],
    links: Sequence[bool],
    keep_flags: Sequence[Sequence[bool]],
    negligible_bytes: int,
    *,
    paired: bool,
    constant: tuple[bool, ...],
) -> Blocks:
    """Cut a graph into blocks.

    Args:
        graph: the graph.
        useful: for each forward op, whether a cut after it may help.
        links: for each forward op, whether a cut after the next one is no worse.
        keep_flags: for each variant, which values a stage keeps when a backward op reads them.
        negligible_bytes: values of at most this size are kept whenever a backward op reads them,
            and where they cross the end of a block.
        paired: whether every backward op names its forward op and reads only what that leaves it.
        constant: for each backward op, whether it depends on no tangent.
    """
    backward = rank_backward(graph, paired, constant)
    chosen = choose_cuts(graph, useful, links, backward, negligible_bytes)
    return blocks_at(
        graph, chosen.cuts, keep_flags, negligible_bytes, backward, chosen.passing, chosen.partial
    )


def blocks_at(
    graph: TrainingGraph,
    cuts: Sequence[int],
    keep_flags: Sequence[Sequence[bool]],
    negligible_bytes: int,
    backward: BackwardRanks,
    small: Sequence[bool],
    partial_ends: int = 0,
) -> Blocks:
    """The blocks of a graph between given cuts.

    Args:
        graph: the graph.
        cuts: the last op of each block but the last, ascending. No value but those in `small`
            may cross two of them.
        keep_flags, negligible_bytes: see `cut_graph`.
        backward: which backward ops belong where.
        small: for each value, whether it is kept where it crosses the end of a block.
        partial_ends: see `Blocks`.
    """
    ends = [*cuts, graph.forward_count - 1] if graph.forward_count else []
    members: list[list[int]] = [[] for _ in ends]
    for b, rank in enumerate(backward.rank):
        if ends:
            members[bisect_left(ends, rank)].append(graph.forward_count + b)
    flattener = _Flattener(graph, backward, keep_flags, negligible_bytes, small)
    blocks: list[Block] = []
    cached: list[frozenset[int]] = [frozenset() for _ in keep_flags]
    start = 0
    for end, backward_ids in zip(ends, members, strict=True):
        block = flattener.block(range(start, end + 1), tuple(backward_ids), cached)
        blocks.append(block)
        lowest, highest = block.cut(0), block.cut((1 << len(block.forward)) - 1)
        cached = [
            frozenset(
                block.values[s]
                for s in piece_keep(block.problem, lowest, highest, variant, open_above=True)
            )
            for variant in range(len(keep_flags))
        ]
        start = end + 1
    base = 0
    bases = []
    for block in reversed(blocks):
        bases.append(base)
        base += block.cut(0).base_bytes
    return Blocks(graph, tuple(blocks), tuple(reversed(bases)), partial_ends)


class _Flattener:
    """Flattens blocks, with what their ends need to know of the rest of the graph."""

    def __init__(
        self,
        graph: TrainingGraph,
        backward: BackwardRanks,
        keep_flags: Sequence[Sequence[bool]],
        negligible_bytes: int,
        small: Sequence[bool],
    ) -> None:
        self.graph, self.backward, self.keep_flags = graph, backward, keep_flags
        self.negligible_bytes, self.small = negligible_bytes, small
        self.planned = [v.kind in (ValueKind.ACTIVATION, ValueKind.GRADIENT) for v in graph.values]
        count = graph.forward_count
        # Where forward and backward ops touch each value: (least, largest) position or rank.
        self.first_reader = [count] * len(graph.values)
        self.last_reader = [-1] * len(graph.values)
        for v, op in enumerate(graph.forward_ops):
            for s in op.inputs:
                self.first_reader[s] = min(self.first_reader[s], v)
                self.last_reader[s] = v
        self.lowest_rank = [count] * len(graph.values)
        self.highest_writer = [-1] * len(graph.values)
        for rank, op in zip(backward.rank, graph.backward_ops, strict=True):
            for s in (*op.inputs, *op.outputs):
                self.lowest_rank[s] = min(self.lowest_rank[s], rank)
            for s in op.outputs:
                self.highest_writer[s] = max(self.highest_writer[s], rank)

    def block(
        self,
        forward: range,
        backward: tuple[int, ...],
        cached: Sequence[frozenset[int]],
    ) -> Block:
        """The block of these ops; `cached` are, for each variant, the values that open stages keep
        in the block below."""
        graph = self.graph
        ops = graph.ops
        start, end = forward.start, forward.stop - 1
        touched = sorted(
            {
                s
                for op_id in (*forward, *backward)
                for s in (*ops[op_id].inputs, *ops[op_id].outputs)
                if self.planned[s]
            }
        )
        number = {s: i for i, s in enumerate(touched)}

        def local(ids: Sequence[int]) -> list[int]:
            return [number[s] for s in ids if self.planned[s]]

        is_forward = [graph.values[s].kind is ValueKind.ACTIVATION for s in touched]
        producer = [graph.producer[s] for s in touched]
        from_below = [
            f and p is not None and p < start for f, p in zip(is_forward, producer, strict=True)
        ]
        read_above = [
            f and self.last_reader[s] > end for f, s in zip(is_forward, touched, strict=True)
        ]
        used_below = []
        for s, forward_value, below in zip(touched, is_forward, from_below, strict=True):
            used = self.lowest_rank[s] < start
            used_below.append(
                (below and (used or self.first_reader[s] < start)) if forward_value else used
            )
        # Forward values that cross an end of the block.
        crossing = [b or r for b, r in zip(from_below, read_above, strict=True)]
        always = [c and self.small[s] for c, s in zip(crossing, touched, strict=True)]
        interface_below = [
            i for i, (b, a) in enumerate(zip(from_below, always, strict=True)) if b and not a
        ]
        problem = StageProblem(
            value_bytes=[graph.values[s].size_bytes for s in touched],
            outlives=[graph.values[s].is_output for s in touched],
            forward_inputs=[local(ops[v].inputs) for v in forward],
            forward_outputs=[local(ops[v].outputs) for v in forward],
            forward_cost=[ops[v].cost for v in forward],
            forward_workspace=[ops[v].workspace_bytes for v in forward],
            forward_recomputable=[ops[v].recomputable for v in forward],
            backward_inputs=[local(ops[b].inputs) for b in backward],
            backward_outputs=[local(ops[b].outputs) for b in backward],
            backward_workspace=[ops[b].workspace_bytes for b in backward],
            keep_flags=[[flags[s] for s in touched] for flags in self.keep_flags],
            always_keep_bytes=self.negligible_bytes,
            from_below=from_below,
            read_above=read_above,
            used_below=used_below,
            begun_above=[
                not f and self.highest_writer[s] > end
                for f, s in zip(is_forward, touched, strict=True)
            ],
            always_keep=always,
            interface_below=interface_below,
            interface_above=[
                i
                for i, (b, r, a) in enumerate(zip(from_below, read_above, always, strict=True))
                if r and not b and not a
            ],
            cached_below=[[i for i in interface_below if touched[i] in kept] for kept in cached],
        )
        first = graph.forward_count
        return Block(
            graph=graph,
            forward=forward,
            backward=backward,
            values=tuple(touched),
            problem=problem,
            constant=tuple(self.backward.constant[b - first] for b in backward),
            paired=self.backward.paired,
        )
