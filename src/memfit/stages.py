"""Stages of a joint graph: which backward ops belong to which cut, and stages as schedules."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from memfit._core.python_stage import Cut, StageProblem, bits, simulate_stage, stage_keep
from memfit.graph import Op, TrainingGraph, ValueKind
from memfit.plan import Stage
from memfit.schedule import Schedule, make_schedule

__all__ = ["BackwardStages", "path_schedule", "path_stages", "stage_problem", "store_all_schedule"]


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


def stage_problem(
    graph: TrainingGraph, keep_flags: Sequence[Sequence[bool]], always_keep_bytes: int = 0
) -> StageProblem:
    """The graph, flattened for the core. Value numbers stay those of the graph.

    Args:
        graph: the graph.
        keep_flags: for each variant, which values a stage keeps when a backward op reads them.
        always_keep_bytes: every variant keeps values of at most this size.
    """
    planned = [v.kind in (ValueKind.ACTIVATION, ValueKind.GRADIENT) for v in graph.values]

    def only_planned(ids: Sequence[int]) -> list[int]:
        return [v for v in ids if planned[v]]

    forward, backward = graph.forward_ops, graph.backward_ops
    return StageProblem(
        value_bytes=[v.size_bytes if p else 0 for v, p in zip(graph.values, planned, strict=True)],
        outlives=[v.is_output and p for v, p in zip(graph.values, planned, strict=True)],
        forward_inputs=[only_planned(op.inputs) for op in forward],
        forward_outputs=[list(op.outputs) for op in forward],
        forward_cost=[op.cost for op in forward],
        forward_workspace=[op.workspace_bytes for op in forward],
        forward_recomputable=[op.recomputable for op in forward],
        backward_inputs=[only_planned(op.inputs) for op in backward],
        backward_outputs=[list(op.outputs) for op in backward],
        backward_workspace=[op.workspace_bytes for op in backward],
        keep_flags=keep_flags,
        always_keep_bytes=always_keep_bytes,
    )


def path_schedule(
    graph: TrainingGraph, problem: StageProblem, path: Sequence[tuple[Cut, Cut, int]]
) -> Schedule:
    """The schedule of consecutive stages (L, L', variant) from the empty set to V."""
    forward: list[int] = []
    keep: set[int] = set()
    back: list[list[int]] = []
    for lower, upper, variant in path:
        forward.extend(bits(upper.lower & ~lower.lower))
        keep |= stage_keep(problem, lower, upper, variant)
        order: list[int] = []

        def emit(op: int, forward_op: bool, order: list[int] = order) -> None:
            order.append(op if forward_op else graph.forward_count + op)

        simulate_stage(problem, lower, upper, variant, emit)
        back.append(order)
    backward = [op for order in reversed(back) for op in order]
    return make_schedule(graph, forward, backward, keep)


def path_stages(
    graph: TrainingGraph, problem: StageProblem, path: Sequence[tuple[Cut, Cut, int]]
) -> tuple[Stage, ...]:
    """The stages of a path, for people."""
    stages = []
    for lower, upper, variant in path:
        ops = bits(upper.lower & ~lower.lower)
        cost = simulate_stage(problem, lower, upper, variant)
        stages.append(
            Stage(
                forward_ops=len(ops),
                first_op=graph.ops[ops[0]].name,
                last_op=graph.ops[ops[-1]].name,
                kept_bytes=cost.cached_bytes,
                recompute_cost=cost.cost,
            )
        )
    return tuple(stages)


def store_all_schedule(graph: TrainingGraph) -> Schedule:
    """The plain step: program order, everything that the backward pass reads is kept."""
    keep = {i for i, v in enumerate(graph.values) if v.kind is ValueKind.ACTIVATION}
    count = graph.forward_count
    return make_schedule(graph, range(count), range(count, len(graph.ops)), keep)
