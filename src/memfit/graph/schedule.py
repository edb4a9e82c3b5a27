"""Schedule: the exact order of computations of one training step.

Every planner ends in a Schedule; simulator and executors read nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from memfit.errors import GraphError
from memfit.graph.training_graph import Phase, TrainingGraph

__all__ = ["Compute", "OpOrder", "Schedule", "make_schedule"]


class OpOrder(NamedTuple):
    """What a Schedule is made of (`make_schedule`).

    Attributes:
        forward: ids of the forward ops, each once.
        backward: ids of the backward ops and, for recomputations, of forward ops.
        keep: ids of the forward values that are kept from the forward pass on.
    """

    forward: Sequence[int]
    backward: Sequence[int]
    keep: Set[int]


class Compute(NamedTuple):
    """One run of one op.

    Attributes:
        op: id of the op.
        copy: 0 for its first run, 1, 2, … for recomputations. It writes this copy of its outputs
            (an output whose copy is never read is freed at once).
        reads: for each of the op's inputs, the copy that is read.
    """

    op: int
    copy: int
    reads: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """An ordered list of computations.

    Attributes:
        steps: the computations in the order in which they run.
        backward_start: index of the first step that runs in the backward pass. A value copy
            written before it and read from it on is *kept* between the passes.
    """

    steps: tuple[Compute, ...]
    backward_start: int

    def kept(self, graph: TrainingGraph) -> frozenset[int]:
        """Ids of the forward values that are kept from the forward to the backward pass."""
        kept: set[int] = set()
        forward = {
            (v, s.copy) for s in self.steps[: self.backward_start] for v in graph.ops[s.op].outputs
        }
        for step in self.steps[self.backward_start :]:
            for value, copy in zip(graph.ops[step.op].inputs, step.reads, strict=True):
                if (value, copy) in forward:
                    kept.add(value)
        return frozenset(kept)

    @cached_property
    def recomputed_ops(self) -> tuple[int, ...]:
        """Ids of the ops that run again, once for each time, in order."""
        return tuple(s.op for s in self.steps if s.copy > 0)

    @cached_property
    def most_recomputations(self) -> int:
        """How often the op that runs again most often does so; 0 where nothing is recomputed."""
        return max((s.copy for s in self.steps), default=0)

    def overhead(self, graph: TrainingGraph) -> int:
        """Cost of all recomputations, in the graph's cost unit."""
        return sum(graph.ops[op].cost for op in self.recomputed_ops)

    def validate(self, graph: TrainingGraph) -> None:
        """Check that the schedule computes the whole step of `graph`.

        Raises:
            GraphError: an op is missing, runs before what it reads, or runs twice though it must
                not; a copy is read that nothing wrote.
        """
        written: set[tuple[int, int]] = set()
        ran: set[tuple[int, int]] = set()
        pending = [0] * len(graph.values)
        for op in graph.backward_ops:
            for v in op.outputs:
                pending[v] += 1
        for index, step in enumerate(self.steps):
            op = graph.ops[step.op]
            if (step.op, step.copy) in ran:
                raise GraphError(f"step {index}: copy {step.copy} of op {op.name!r} runs twice")
            if step.copy and (not op.recomputable or op.phase is Phase.BACKWARD):
                raise GraphError(f"step {index}: op {op.name!r} must not run again")
            if (op.phase is Phase.BACKWARD or step.copy) and index < self.backward_start:
                raise GraphError(f"step {index}: op {op.name!r} runs in the forward pass")
            ran.add((step.op, step.copy))
            for value, copy in zip(op.inputs, step.reads, strict=True):
                if graph.producer[value] is None:
                    continue
                if (value, copy) not in written or pending[value]:
                    raise GraphError(
                        f"step {index}: op {op.name!r} reads copy {copy} of value "
                        f"{graph.values[value].name!r} before it is written"
                    )
            for value in op.outputs:
                written.add((value, step.copy))
                if op.phase is Phase.BACKWARD:
                    pending[value] -= 1
        missing = [op.name for i, op in enumerate(graph.ops) if (i, 0) not in ran]
        if missing:
            raise GraphError(f"the schedule leaves out {len(missing)} ops, first {missing[0]!r}")


def make_schedule(
    graph: TrainingGraph,
    forward: Iterable[int],
    backward: Iterable[int],
    keep: Set[int] = frozenset(),
) -> Schedule:
    """A Schedule from op ids in the order of execution.

    A step reads copy 0 of a value in `keep`, and the newest copy of any other.

    Args:
        graph: the graph.
        forward: forward op ids, each once.
        backward: backward op ids and, for recomputations, forward op ids.
        keep: ids of forward values that are kept from the forward pass on.
    """
    runs = [0] * len(graph.ops)
    newest = [0] * len(graph.values)
    count = graph.forward_count
    steps: list[Compute] = []

    def add(op_id: int) -> None:
        op = graph.ops[op_id]
        reads = tuple([newest[v] for v in op.inputs])
        copy = runs[op_id] if op_id < count else 0
        steps.append(Compute(op_id, copy, reads))
        runs[op_id] += 1
        for v in op.outputs:
            if v not in keep:
                newest[v] = copy

    for op_id in forward:
        add(op_id)
    start = len(steps)
    for op_id in backward:
        add(op_id)
    return Schedule(tuple(steps), start)
