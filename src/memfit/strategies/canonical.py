"""Canonical strategies: an increasing sequence of lower sets as a Schedule, and its formulas.

After Kusumoto et al. 2019, section 3. For L_1 < L_2 < … < L_k = V, with V_i = L_i minus L_{i-1}:
forward, compute V_i and keep the boundary of L_i; backward, for i = k … 1, compute V_i again from
what is kept and run its backward ops. M of an op are the bytes of its outputs, T is its cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

from memfit._core.problem import bits, needed_ops
from memfit.cuts.backward import BackwardStages
from memfit.errors import GraphError
from memfit.graph.plan import Stage
from memfit.graph.schedule import OpOrder, Schedule, make_schedule
from memfit.graph.training_graph import TrainingGraph

__all__ = [
    "canonical_order",
    "canonical_schedule",
    "canonical_stages",
    "chain_pairs",
    "missing_ops",
]


def canonical_order(
    graph: TrainingGraph,
    lower_sets: Sequence[int],
    *,
    recompute: Literal["whole", "needed"] = "whole",
    backward_stages: BackwardStages | None = None,
) -> OpOrder:
    """The order of computations of a canonical strategy, of which `make_schedule` makes a schedule.

    Kept are the values of each L_i that an op outside it reads, with other outputs of the same op
    that are no larger, forward outputs, outputs of ops that must not run again, and all of the last
    stage, whose backward comes right after it. Stage i
    runs the backward ops R(L_{i-1}) minus R(L_i), in program order (`BackwardStages`). A forward
    value that a backward op reads though its stage is still to come is computed again right there.

    Args:
        graph: the graph.
        lower_sets: bitmasks, strictly increasing; the empty set may come first, V comes last.
        recompute: `whole`: every op of V_i that is not kept runs again, before the stage's backward
            ops (the paper's way). `needed`: only those that these need.
        backward_stages: those of the graph, where they are at hand.

    Raises:
        GraphError: the sequence is no increasing sequence of lower sets that ends in V.
    """
    pairs = chain_pairs(graph, lower_sets)
    keep = _kept_values(graph, pairs)
    stages = backward_stages or BackwardStages(graph)
    between = stages.between([0, *(upper for _, upper in pairs)])
    count = graph.forward_count
    available = {v for v, p in enumerate(graph.producer) if v in keep or p is None or p >= count}
    backward: list[int] = []

    def run_again(op_id: int) -> None:
        backward.append(op_id)
        available.update(graph.ops[op_id].outputs)

    def provide(values: Sequence[int]) -> None:
        if not available.issuperset(values):
            for op_id in missing_ops(graph, values, available):
                run_again(op_id)

    for i in range(len(pairs), 0, -1):
        lower, upper = pairs[i - 1]
        ops = _backward_order(graph, stages, between[i - 1])
        if recompute == "whole":
            for op_id in bits(upper & ~lower):
                op = graph.ops[op_id]
                if op.recomputable and any(v not in keep for v in op.outputs):
                    run_again(op_id)
        else:
            provide([v for b in ops for v in graph.ops[b].inputs])
        for b in ops:
            provide(graph.ops[b].inputs)
            backward.append(b)
    if not pairs:
        backward = list(range(len(graph.ops)))
    forward = [op_id for lower, upper in pairs for op_id in bits(upper & ~lower)]
    return OpOrder(forward, backward, keep)


def canonical_schedule(
    graph: TrainingGraph,
    lower_sets: Sequence[int],
    *,
    recompute: Literal["whole", "needed"] = "whole",
) -> Schedule:
    """The schedule of a canonical strategy; see `canonical_order`.

    Raises:
        GraphError: the sequence is no increasing sequence of lower sets that ends in V.
    """
    return make_schedule(graph, *canonical_order(graph, lower_sets, recompute=recompute))


def canonical_stages(
    graph: TrainingGraph, lower_sets: Sequence[int], schedule: Schedule
) -> tuple[Stage, ...]:
    """The stages of a canonical strategy with what `schedule` keeps and computes again in each."""
    kept = schedule.kept(graph)
    again = [0] * graph.forward_count  # cost, by op
    for op_id in schedule.recomputed_ops:
        again[op_id] += graph.ops[op_id].cost
    stages = []
    for lower, upper in chain_pairs(graph, lower_sets):
        ops = bits(upper & ~lower)
        stages.append(
            Stage(
                forward_ops=len(ops),
                first_op=graph.ops[ops[0]].name,
                last_op=graph.ops[ops[-1]].name,
                kept_bytes=sum(
                    graph.values[v].size_bytes
                    for op_id in ops
                    for v in graph.ops[op_id].outputs
                    if v in kept
                ),
                recompute_cost=sum(again[op_id] for op_id in ops),
            )
        )
    return tuple(stages)


def chain_pairs(graph: TrainingGraph, lower_sets: Sequence[int]) -> list[tuple[int, int]]:
    """(L_{i-1}, L_i) for each stage, checked."""
    whole = (1 << graph.forward_count) - 1
    sets = [0, *(lower_sets[1:] if lower_sets and lower_sets[0] == 0 else lower_sets)]
    if sets[-1] != whole:
        raise GraphError("the lower sets do not end in the whole graph; add it as the last one")
    for lower, upper in itertools.pairwise(sets):
        if lower & ~upper or lower == upper or upper & ~whole:
            raise GraphError("the lower sets do not increase; each must hold the one before it")
        # What lies in `lower` has been looked at before.
        if any(graph.predecessor_masks[v] & ~upper for v in bits(upper & ~lower)):
            raise GraphError(
                f"{upper:#x} is no lower set of {graph.name}: an op in it reads one outside it"
            )
    return list(itertools.pairwise(sets))


def _kept_values(graph: TrainingGraph, pairs: Sequence[tuple[int, int]]) -> set[int]:
    keep: set[int] = set()
    after, values, consumers = graph.successor_masks, graph.values, graph.consumers
    count = graph.forward_count
    last = len(pairs) - 1
    for i, (lower, upper) in enumerate(pairs):
        outside = ~upper
        for op_id in bits(upper & ~lower):
            op = graph.ops[op_id]
            if i == last or not op.recomputable:
                keep.update(op.outputs)
                continue
            leaves = after[op_id] & outside
            found = [
                v
                for v in op.outputs
                if values[v].is_output
                or (leaves and any(c < count and outside >> c & 1 for c in consumers[v]))
            ]
            # Its other outputs (a mask, statistics) too: without them it would run again. Not
            # those that are larger (indices of a pooling).
            most = max((values[v].size_bytes for v in found), default=-1)
            keep.update(v for v in op.outputs if values[v].size_bytes <= most)
    return keep


def missing_ops(graph: TrainingGraph, values: Iterable[int], available: set[int]) -> list[int]:
    """Forward ops to run again, in program order, so that `values` are there.

    `available` holds all values that no forward op makes.
    """
    producer, ops = graph.producer, graph.ops
    return sorted(
        needed_ops(
            values,
            lambda v: None if v in available else producer[v],
            lambda op_id: ops[op_id].inputs,
        )
    )


def _backward_order(graph: TrainingGraph, stages: BackwardStages, mask: int) -> list[int]:
    """Op ids of a stage's backward ops: program order, constants right before their first use."""
    start = graph.forward_count
    backward = bits(mask)
    waiting = {b for b in backward if stages.constant[b]}
    if not waiting:
        return [start + b for b in backward]
    writers: dict[int, list[int]] = {}
    for b in sorted(waiting):
        for v in graph.ops[start + b].outputs:
            writers.setdefault(v, []).append(b)
    order: list[int] = []

    def add(b: int) -> None:
        for v in graph.ops[start + b].inputs:
            for w in writers.get(v, ()):
                if w in waiting and w != b:
                    waiting.discard(w)
                    add(w)
        order.append(start + b)

    for b in backward:
        if not stages.constant[b]:
            add(b)
    for b in sorted(waiting):
        if b in waiting:
            waiting.discard(b)
            add(b)
    return order
