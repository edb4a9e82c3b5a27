"""What Inductor fuses away, taken out of a training graph before planning.

A captured graph has one op for each ATen op, and one value for each tensor. Inductor computes
pointwise ops inside the loops that read them, so many of these tensors are never in memory, and to
compute them again costs next to nothing: the loop runs anyway. `fuse` makes the graph that a
planner should see. A *virtual* value is one that is only ever computed inside the loops of its
readers. In the fused graph it does not occur: each reader reads instead the *sources* that the
virtual value is computed from. Whether a value is virtual is decided once, for both passes:

- its op is pointwise, may run again, and writes nothing else;
- all its readers are loops, no output is, and none reads it by strides;
- it has one reader, in its own pass; or its sources, less what is in memory throughout (parameters,
  inputs), are no larger than itself, so that to hold them instead never costs memory, and to
  compute it in each reader takes little more time than to read it. What takes longer (random
  numbers, masks that all layers share) is kept or computed again as the plan decides.

A forward value may have to be in memory for the forward pass alone (a matrix product or an output
reads it), while in the backward pass only loops do, which could compute it from its sources again.
It is then *virtual in the backward pass*: kept are the sources, by the same rule.

`FusedStep.expand` turns a schedule of the fused graph into one of the captured graph: in front of
each op that reads a virtual value it puts the ops that compute it, a new copy for each reader,
since Inductor would otherwise give a value with several readers memory of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import fx

from memfit.graph.schedule import Compute, Schedule
from memfit.graph.training_graph import Estimate, Op, Phase, TrainingGraph, Value
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.inductor.fusible_ops import element_ns, fuses, is_pointwise, needs_layout

__all__ = ["FusedStep", "fuse"]

_MOST_OPS = 40  # Inductor gives a value memory when its loop body has more
_MOST_SOURCES = 10  # or reads from more places
_INLINED = 1 << 20  # first copy of a value inside of a loop; smaller ones are in memory
_BYTES_PER_NS = 10  # memory bandwidth of a CPU, about
_LITTLE_MORE = 3
_NEGLIGIBLE_SHARE = 16  # sources this many times smaller than the value do not count


@dataclass(frozen=True)
class FusedStep:
    """A captured step as Inductor runs it.

    Attributes:
        step: the step, every op and value by itself.
        graph: ops that write to memory only; without the costs of loops until `with_costs`.
        ops: for each op of `graph`, its id in `step.graph`.
        values: for each value of `graph`, its id in `step.graph`.
        loops: for each op of `graph`, the ops of `step.graph` in its kernel, itself last.
    """

    step: CapturedStep
    graph: TrainingGraph
    ops: tuple[int, ...]
    values: tuple[int, ...]
    loops: tuple[tuple[int, ...], ...]

    def with_costs(
        self,
        costs: Sequence[tuple[int, int]],
        estimates: Mapping[int, Estimate] | None = None,
    ) -> FusedStep:
        """The same with (time_ns, workspace_bytes) for each op of `graph`.

        Args:
            costs: of each op of `graph`.
            estimates: ids of the ops whose workspace is an upper bound, and why.
        """
        return replace(self, graph=self.graph.with_costs(costs, estimates))

    def expand(self, schedule: Schedule) -> Schedule:
        """The schedule of `graph` as one of the captured graph.

        Virtual ops run several times, in either pass, so that the result is a list of what to emit
        rather than a schedule that `Schedule.validate` would accept.
        """
        expander = _Expander(self)
        for compute in schedule.steps[: schedule.backward_start]:
            expander.add(compute)
        start = len(expander.steps)
        for compute in schedule.steps[schedule.backward_start :]:
            expander.add(compute)
        return Schedule(tuple(expander.steps), start)


class _Expander:
    def __init__(self, fused: FusedStep) -> None:
        self.fused = fused
        self.steps: list[Compute] = []
        self.runs: dict[int, int] = {}
        self.producer = fused.step.graph.producer
        self.real = frozenset(fused.ops)

    def add(self, compute: Compute) -> None:
        """One step of the fused schedule, with the virtual ops that it needs before it."""
        fused = self.fused
        op_id = fused.ops[compute.op]
        read = fused.graph.ops[compute.op].inputs
        copies = {fused.values[v]: c for v, c in zip(read, compute.reads, strict=True)}
        made: dict[int, int] = {}
        for inner in fused.loops[compute.op][:-1]:
            made[inner] = self.runs.get(inner, _INLINED if inner in self.real else 0)
            self.runs[inner] = made[inner] + 1
            self.steps.append(Compute(inner, made[inner], self._reads(inner, copies, made)))
        self.steps.append(Compute(op_id, compute.copy, self._reads(op_id, copies, made)))

    def _reads(
        self, op_id: int, copies: Mapping[int, int], made: Mapping[int, int]
    ) -> tuple[int, ...]:
        reads = []
        for v in self.fused.step.graph.ops[op_id].inputs:
            maker = self.producer[v]
            reads.append(copies.get(v, 0) if maker is None else made.get(maker, copies.get(v, 0)))
        return tuple(reads)


def fuse(step: CapturedStep) -> FusedStep:
    """The graph of what Inductor writes to memory.

    Args:
        step: as captured; random ops must not be replayed from states (`read_joint(replay=False)`).
    """
    graph = step.graph
    virtual, sources, chains = _virtual_ops(step)
    kept_values = [
        v
        for v in range(len(graph.values))
        if graph.producer[v] is None or not virtual[graph.producer[v] or 0]
    ]
    number = {v: i for i, v in enumerate(kept_values)}
    ops: list[Op] = []
    ids: list[int] = []
    loops: list[tuple[int, ...]] = []
    for i, op in enumerate(graph.ops):
        if virtual[i]:
            continue
        reads = sorted(number[v] for v in sources[i])
        ops.append(
            replace(op, inputs=tuple(reads), outputs=tuple(sorted(number[v] for v in op.outputs)))
        )
        ids.append(i)
        loops.append((*chains[i], i))
    values: tuple[Value, ...] = tuple(graph.values[v] for v in kept_values)
    return FusedStep(
        step=step,
        graph=TrainingGraph(values, tuple(ops), graph.cost_unit, graph.name),
        ops=tuple(ids),
        values=tuple(kept_values),
        loops=tuple(loops),
    )


def _virtual_ops(
    step: CapturedStep,
) -> tuple[list[bool], list[frozenset[int]], list[tuple[int, ...]]]:
    """Which ops are virtual; for each op, the values in memory that it reads, directly or through
    virtual ops; and those virtual ops, in order."""
    graph = step.graph
    forward, backward = _Inside(graph), _Inside(graph)
    for i, op in enumerate(graph.ops):
        forward.read(i)
        backward.read(i)
        own = backward if op.phase is Phase.BACKWARD else forward
        cheap = _cheap_inside(step, i, own.chains[i])
        virtual = (
            _inlinable(step, i)
            and own.fits(i)
            and (_has_one_reader(graph, op) or (cheap and _no_larger(graph, op, own.sources[i])))
        )
        again = (
            cheap
            and _inlinable_again(step, i)
            and backward.fits(i)
            and _no_larger(graph, op, backward.sources[i])
        )
        forward.virtual.append(virtual)
        backward.virtual.append(virtual or again)
    phases = [backward if op.phase is Phase.BACKWARD else forward for op in graph.ops]
    return (
        forward.virtual,
        [inside.sources[i] for i, inside in enumerate(phases)],
        [inside.chains[i] for i, inside in enumerate(phases)],
    )


class _Inside:
    """What loops of one pass compute inside.

    Attributes:
        virtual: for each op so far, whether its readers in this pass compute it.
        sources: for each op, the values in memory that it reads, directly or through virtual ops.
        chains: for each op, these virtual ops, in order.
    """

    def __init__(self, graph: TrainingGraph) -> None:
        self._graph = graph
        self.virtual: list[bool] = []
        self.sources: list[frozenset[int]] = []
        self.chains: list[tuple[int, ...]] = []

    def read(self, op_id: int) -> None:
        """Find what the next op reads."""
        found: set[int] = set()
        chain: set[int] = set()
        for v in self._graph.ops[op_id].inputs:
            maker = self._graph.producer[v]
            if maker is not None and self.virtual[maker]:
                found |= self.sources[maker]
                chain |= {*self.chains[maker], maker}
            else:
                found.add(v)
        self.sources.append(frozenset(found))
        self.chains.append(tuple(sorted(chain)))

    def fits(self, op_id: int) -> bool:
        """Whether Inductor makes one loop of the op and what it computes inside."""
        return len(self.chains[op_id]) < _MOST_OPS and len(self.sources[op_id]) <= _MOST_SOURCES


def _inlinable_again(step: CapturedStep, op_id: int) -> bool:
    """Whether every reader in the backward pass could compute the forward op's value by itself."""
    graph, node = step.graph, step.node_of[op_id]
    op = graph.ops[op_id]
    if op.phase is Phase.BACKWARD or not op.recomputable or not _computes_one_value(step, op_id):
        return False
    readers = [r for r in graph.consumers[op.outputs[0]] if graph.ops[r].phase is Phase.BACKWARD]
    return (
        bool(readers)
        and all(fuses(step.node_of[r]) for r in readers)
        and not _read_by_strides(node)
    )


def _inlinable(step: CapturedStep, op_id: int) -> bool:
    """Whether every reader of the op's value could compute it by itself."""
    graph, node = step.graph, step.node_of[op_id]
    op = graph.ops[op_id]
    if not _computes_one_value(step, op_id):
        return False
    if op.phase is Phase.FORWARD and not op.recomputable:
        return False
    (value,) = op.outputs
    readers = graph.consumers[value]
    if not readers or graph.values[value].is_output:
        return False
    return all(fuses(step.node_of[r]) for r in readers) and not _read_by_strides(node)


def _computes_one_value(step: CapturedStep, op_id: int) -> bool:
    """Whether the op is pointwise and writes nothing but one value."""
    one = len(step.graph.ops[op_id].outputs) == 1 and op_id not in step.state_ops
    return one and is_pointwise(step.node_of[op_id])


def _read_by_strides(node: fx.Node) -> bool:
    """Whether a view of the node's tensor is taken by strides."""
    stack = list(node.users)
    storages = J.storages(node).keys()
    while stack:
        user = stack.pop()
        if user.op == "call_function" and J.storages(user).keys() & storages:
            if needs_layout(user):
                return True
            stack.extend(user.users)
    return False


def _cheap_inside(step: CapturedStep, op_id: int, chain: Sequence[int]) -> bool:
    """Whether all readers together compute the op's value in little more time than they read it."""
    graph = step.graph
    found = J.tensors(step.node_of[op_id])
    if not found or found[0].device.type != "cpu" or not graph.ops[op_id].outputs:
        return True
    own = found[0].numel()
    readers = graph.consumers[graph.ops[op_id].outputs[0]]
    loops = [max([own, *(t.numel() for t in J.tensors(step.node_of[r]))]) for r in readers]
    each_ns = sum(
        element_ns(node) * min(1.0, t.numel() / max(1, own))
        for node in (step.node_of[k] for k in (*chain, op_id))
        for t in J.tensors(node)[:1]
    )
    compute_ns = sum(loops) * each_ns / max(1, torch.get_num_threads())
    traffic_ns = (1 + len(readers)) * found[0].nbytes / _BYTES_PER_NS
    return compute_ns <= _LITTLE_MORE * traffic_ns


def _has_one_reader(graph: TrainingGraph, op: Op) -> bool:
    """Whether one op of the same pass is all that reads the op's value."""
    readers = graph.consumers[op.outputs[0]]
    return len(readers) == 1 and graph.ops[readers[0]].phase is op.phase


def _no_larger(graph: TrainingGraph, op: Op, sources: Set[int]) -> bool:
    """Whether to hold the op's sources takes no more memory than to hold its value."""
    size = graph.values[op.outputs[0]].size_bytes
    held = sum(
        graph.values[s].size_bytes
        for s in sources
        if not graph.values[s].kind.resident
        and graph.values[s].size_bytes * _NEGLIGIBLE_SHARE > size
    )
    return held <= size
