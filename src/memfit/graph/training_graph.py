"""TrainingGraph: the forward and backward ops of one training step, and the memory they use.

A *value* is a piece of memory (in PyTorch: a storage, so that views cost nothing and pin their
base). An *op* reads values and writes values. Forward ops come first, in program order, then
backward ops, in program order. An op's id is its position in `ops`, a value's id its position in
`values`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from memfit.errors import GraphError

__all__ = ["Estimate", "Op", "Phase", "Source", "TrainingGraph", "Value", "ValueKind"]

_LIMIT = 2**59


class Phase(StrEnum):
    """Which pass an op belongs to when nothing is recomputed."""

    FORWARD = "forward"
    BACKWARD = "backward"


class ValueKind(StrEnum):
    """Where a value comes from, and so who decides how long it lives.

    PARAMETER, BUFFER, INPUT, OPTIMIZER and ACCUMULATED (gradients of earlier backward passes) are
    *resident*: allocated before the step and alive all through it. TANGENT values are given to the
    backward pass and live until the step ends. ACTIVATION values are written by forward ops;
    GRADIENT values by backward ops.
    """

    PARAMETER = "parameter"
    BUFFER = "buffer"
    INPUT = "input"
    OPTIMIZER = "optimizer"
    ACCUMULATED = "accumulated"
    TANGENT = "tangent"
    ACTIVATION = "activation"
    GRADIENT = "gradient"

    @property
    def resident(self) -> bool:
        """Allocated before the step, alive all through it."""
        return self in _RESIDENT


class Estimate(StrEnum):
    """Why the workspace of an op is an upper bound, and neither measured nor known of its kernel.

    ANALYTIC: nothing was to be measured. PROFILER: a PyTorch profiler was running, which is what
    would have measured it. FAILED: the op could not be run by itself.
    """

    ANALYTIC = "analytic"
    PROFILER = "profiler"
    FAILED = "failed"


_RESIDENT = frozenset(
    {
        ValueKind.PARAMETER,
        ValueKind.BUFFER,
        ValueKind.INPUT,
        ValueKind.OPTIMIZER,
        ValueKind.ACCUMULATED,
    }
)


@dataclass(frozen=True, slots=True)
class Value:
    """A piece of memory.

    Attributes:
        name: for people.
        size_bytes: bytes the allocator hands out for it.
        kind: where it comes from.
        is_output: it outlives its pass. An ACTIVATION output is handed to the caller (the loss, the
            model's outputs); a GRADIENT output is handed back at the end (parameter gradients).
            Either is alive until the step ends.
    """

    name: str
    size_bytes: int
    kind: ValueKind
    is_output: bool = False


_IN_MODULE = re.compile(r"(?P<module>[^()\s:]+) \((?P<where>[^()]*)\)")
_LINE = re.compile(r"(?P<file>.*):(?P<line>[1-9]\d*)")
_MODULE = re.compile(r"[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class Source:
    """Where in a model an op comes from; as text `layer1.0.conv1 (resnet.py:41)`.

    Attributes:
        module: path of the module that runs it; empty where unknown.
        file: name of the file of the line that calls it; empty where unknown.
        line: that line's number; 0 where unknown.
    """

    module: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{self.module} ({where})" if self.module and where else self.module or where

    @classmethod
    def of_text(cls, text: str) -> Source:
        """The source whose text that is; a text of another form is the name of a file."""
        found = _IN_MODULE.fullmatch(text)
        module, where = (found["module"], found["where"]) if found else ("", text)
        line = _LINE.fullmatch(where)
        if line:
            return cls(module, line["file"], int(line["line"]))
        return cls(text) if _MODULE.fullmatch(text) else cls(module, where)


@dataclass(frozen=True, slots=True)
class Op:
    """One computation.

    Attributes:
        name: unique in its graph.
        target: what it computes, for people and for cost models (`aten.convolution.default`).
        phase: forward or backward.
        inputs: ids of the values it reads, without repeats.
        outputs: ids of the values it writes, without repeats. Several backward ops may write one
            GRADIENT value: the first allocates it, the others accumulate into it.
        cost: time in the graph's `cost_unit`.
        workspace_bytes: memory it needs while it runs, beyond its inputs and outputs.
        recomputable: running it again gives the same values and has no other effect.
        forward_op: for a backward op, the forward op that it differentiates, where known.
        source: where in the model it comes from.
        workspace_estimate: why `workspace_bytes` is an upper bound; None where it was measured or
            is known.
    """

    name: str
    target: str
    phase: Phase
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    cost: int
    workspace_bytes: int = 0
    recomputable: bool = True
    forward_op: int | None = None
    source: Source | None = None
    workspace_estimate: Estimate | None = None


@dataclass(frozen=True)
class TrainingGraph:
    """The ops and values of one training step; validated when made.

    Attributes:
        values: the values, by id.
        ops: the ops, by id: forward ops in program order, then backward ops in program order.
        cost_unit: unit of `Op.cost`: `"ns"`, or `"unit"` for the paper's cost model.
        name: for people.

    Raises:
        GraphError: an id is out of range, a value is read before it is written (which is also how a
            cycle shows), a size or cost is negative, or the totals overflow 59 bits.
    """

    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    cost_unit: str = "ns"
    name: str = "graph"

    def __post_init__(self) -> None:
        _validate(self)

    def with_costs(
        self,
        costs: Sequence[tuple[int, int]],
        estimates: Mapping[int, Estimate] | None = None,
    ) -> TrainingGraph:
        """The same graph with other costs.

        Args:
            costs: cost and bytes of workspace of each op.
            estimates: ids of the ops whose workspace is an upper bound, and why.
        """
        why = estimates or {}
        ops = tuple(
            replace(op, cost=cost, workspace_bytes=workspace, workspace_estimate=why.get(i))
            for i, (op, (cost, workspace)) in enumerate(zip(self.ops, costs, strict=True))
        )
        return replace(self, ops=ops)

    @cached_property
    def forward_count(self) -> int:
        """Number of forward ops; they have ids 0 … forward_count - 1."""
        return sum(op.phase is Phase.FORWARD for op in self.ops)

    @cached_property
    def forward_ops(self) -> Sequence[Op]:
        """Forward ops in program order."""
        return self.ops[: self.forward_count]

    @cached_property
    def backward_ops(self) -> Sequence[Op]:
        """Backward ops in program order."""
        return self.ops[self.forward_count :]

    @cached_property
    def producer(self) -> tuple[int | None, ...]:
        """For each value, the id of the op that writes it (first writer), None if there is none."""
        first: list[int | None] = [None] * len(self.values)
        for op_id, op in enumerate(self.ops):
            for value in op.outputs:
                if first[value] is None:
                    first[value] = op_id
        return tuple(first)

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each value, the ids of the ops that read it, ascending."""
        readers: list[list[int]] = [[] for _ in self.values]
        for op_id, op in enumerate(self.ops):
            for value in op.inputs:
                readers[value].append(op_id)
        return tuple(tuple(r) for r in readers)

    @cached_property
    def forward_predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each forward op, the forward ops whose outputs it reads, ascending (delta minus)."""
        result = []
        for op in self.forward_ops:
            before = {self.producer[v] for v in op.inputs}
            result.append(tuple(sorted(p for p in before if p is not None)))
        return tuple(result)

    @cached_property
    def forward_successors(self) -> tuple[tuple[int, ...], ...]:
        """For each forward op, the forward ops that read its outputs, ascending (delta plus)."""
        after: list[list[int]] = [[] for _ in range(self.forward_count)]
        for op_id, before in enumerate(self.forward_predecessors):
            for p in before:
                after[p].append(op_id)
        return tuple(tuple(s) for s in after)

    @cached_property
    def predecessor_masks(self) -> tuple[int, ...]:
        """`forward_predecessors` as bitmasks over forward ops."""
        return tuple(sum(1 << p for p in before) for before in self.forward_predecessors)

    @cached_property
    def successor_masks(self) -> tuple[int, ...]:
        """`forward_successors` as bitmasks over forward ops."""
        return tuple(sum(1 << s for s in after) for after in self.forward_successors)

    @cached_property
    def resident_bytes(self) -> int:
        """Bytes alive all through the step whatever the plan: parameters, buffers, inputs, …"""
        return sum(v.size_bytes for v in self.values if v.kind.resident)

    @cached_property
    def forward_cost(self) -> int:
        """Cost of one forward pass."""
        return sum(op.cost for op in self.forward_ops)

    @cached_property
    def total_cost(self) -> int:
        """Cost of one step without recomputation."""
        return sum(op.cost for op in self.ops)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of structure and sizes (not of costs, which differ from run to run)."""
        payload = [
            [[v.size_bytes, v.kind.value, v.is_output] for v in self.values],
            [
                [op.target, op.phase.value, op.inputs, op.outputs, op.recomputable]
                for op in self.ops
            ],
        ]
        digest = hashlib.sha256(json.dumps(payload, separators=(",", ":")).encode())
        return digest.hexdigest()[:32]


def _validate(graph: TrainingGraph) -> None:
    count = len(graph.values)
    for value in graph.values:
        if value.size_bytes < 0:
            raise GraphError(
                f"value {value.name!r} has size {value.size_bytes} bytes; sizes must be 0 or more"
            )
    total = sum(v.size_bytes for v in graph.values) + sum(op.workspace_bytes for op in graph.ops)
    if total >= _LIMIT or sum(op.cost for op in graph.ops) >= _LIMIT:
        raise GraphError("the graph's sizes or costs add up to 2**59 or more; use smaller units")
    written = [v.kind.resident or v.kind is ValueKind.TANGENT for v in graph.values]
    names: set[str] = set()
    in_backward = False
    for op in graph.ops:
        in_backward |= op.phase is Phase.BACKWARD
        if in_backward and op.phase is Phase.FORWARD:
            raise GraphError(f"forward op {op.name!r} stands after a backward op; list it before")
        if op.name in names:
            raise GraphError(f"op name {op.name!r} occurs twice; op names must be unique")
        names.add(op.name)
        if op.cost < 0 or op.workspace_bytes < 0:
            raise GraphError(
                f"op {op.name!r} has cost {op.cost} and workspace {op.workspace_bytes}; "
                "both must be 0 or more"
            )
        for v in (*op.inputs, *op.outputs):
            if not 0 <= v < count:
                raise GraphError(f"op {op.name!r} names value {v}; there are {count} values")
        if len(set(op.inputs)) != len(op.inputs) or len(set(op.outputs)) != len(op.outputs):
            raise GraphError(f"op {op.name!r} lists a value twice; list each value once")
        for v in op.inputs:
            if not written[v]:
                raise GraphError(
                    f"op {op.name!r} reads value {v} ({graph.values[v].name!r}) before any op "
                    "writes it; the ops must be in a topological order (is there a cycle?)"
                )
        for v in op.outputs:
            kind = graph.values[v].kind
            wanted = ValueKind.ACTIVATION if op.phase is Phase.FORWARD else ValueKind.GRADIENT
            if kind is not wanted:
                raise GraphError(
                    f"{op.phase.value} op {op.name!r} writes {kind.value} value {v}; "
                    f"{op.phase.value} ops write {wanted.value} values"
                )
            if written[v] and op.phase is Phase.FORWARD:
                raise GraphError(
                    f"value {v} ({graph.values[v].name!r}) is written twice, the second time by "
                    f"{op.name!r}; a forward value has one producer"
                )
            written[v] = True
