"""Memory of the rows of a training step: what is alive in every schedule of an order, and the peak.

Rows are those of `memfit.strategies.carried`: what runs after one backward op up to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from memfit.graph.training_graph import ValueKind
from memfit.strategies.carried import CarriedValues, Row

__all__ = ["ForwardMemory", "RowMemory"]

_PART_BITS = 16
_PART = (1 << _PART_BITS) - 1


@dataclass(frozen=True, slots=True)
class ForwardMemory:
    """Memory while one forward op runs for the first time.

    Attributes:
        fixed_bytes: alive in every schedule.
        optional: ids of the values that are alive if they are kept for the backward pass.
    """

    fixed_bytes: int
    optional: tuple[int, ...]


@dataclass(frozen=True)
class RowMemory:
    """What is alive in every schedule, and what may be, in each row; rows as in `CarriedValues`.

    Attributes:
        carried: the graph and its order.
    """

    carried: CarriedValues
    _known: dict[tuple[int, int], int] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each value."""
        return tuple(v.size_bytes for v in self.carried.graph.values)

    @cached_property
    def reads(self) -> tuple[tuple[int, ...], ...]:
        """For each row from 1 on (0 is empty), ids of the forward values its backward op reads."""
        carried = self.carried
        made = carried.made
        ops = carried.graph.ops
        rows = [tuple(v for v in ops[b].inputs if made >> v & 1) for b in carried.order.backward]
        return ((), *rows)

    @cached_property
    def _base_bytes(self) -> int:
        """Alive all through the backward pass: residents, tangents, outputs of the forward pass."""
        graph = self.carried.graph
        return graph.resident_bytes + sum(
            v.size_bytes
            for v in graph.values
            if v.kind is ValueKind.TANGENT or (v.kind is ValueKind.ACTIVATION and v.is_output)
        )

    @cached_property
    def _gradient_rows(self) -> list[tuple[int, int, int]]:
        """For each gradient: its bytes, the row that writes it first, the last that touches it."""
        graph = self.carried.graph
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for row, b in enumerate(self.carried.order.backward, 1):
            for v in graph.ops[b].outputs:
                first.setdefault(v, row)
                last[v] = row
            for v in graph.ops[b].inputs:
                if v in first:
                    last[v] = row
        end = len(self.carried.order.backward) + 1
        values = graph.values
        return [
            (values[v].size_bytes, row, end if values[v].is_output else last[v])
            for v, row in first.items()
        ]

    @cached_property
    def at_backward(self) -> tuple[int, ...]:
        """For each row from 1 on, bytes while its backward op runs, whatever else is carried."""
        carried = self.carried
        found = [0] * (carried.row_count + 1)
        for row, b in enumerate(carried.order.backward, 1):
            found[row] = self._base_bytes + carried.graph.ops[b].workspace_bytes
            found[row] += sum(self.sizes[v] for v in self.reads[row])
        gradients = self._running(0)
        return tuple(size + gradients[row] for row, size in enumerate(found))

    @cached_property
    def before_backward(self) -> tuple[int, ...]:
        """For each row from 1 on, bytes alive from its begin until its backward op starts."""
        return tuple(self._base_bytes + size for size in self._running(1))

    def _running(self, later: int) -> list[int]:
        """By row, bytes of the gradients that are alive from so many rows after their first one."""
        count = self.carried.row_count
        change = [0] * (count + 3)
        for size, first, last in self._gradient_rows:
            begin, end = min(first + later, count + 1), min(last, count) + 1
            if begin < end:
                change[begin] += size
                change[end] -= size
        return list(accumulate(change[: count + 1]))

    @cached_property
    def forward(self) -> tuple[ForwardMemory, ...]:
        """For each forward op, in order."""
        carried, sizes = self.carried, self.sizes
        graph = carried.graph
        last: dict[int, int] = {}
        for at, op in enumerate(carried.order.forward):
            for v in (*graph.ops[op].inputs, *graph.ops[op].outputs):
                last[v] = at
        alive: list[int] = []
        found = []
        for at, op in enumerate(carried.order.forward):
            alive += graph.ops[op].outputs
            fixed = graph.resident_bytes + graph.ops[op].workspace_bytes
            optional = []
            for v in alive:
                if graph.values[v].is_output or last[v] >= at:
                    fixed += sizes[v]
                elif carried.last_row[v]:
                    optional.append(v)
            found.append(ForwardMemory(fixed, tuple(optional)))
        return tuple(found)

    def run_bytes(self, op: int) -> int:
        """Bytes that one more run of a forward op takes: its outputs, inputs and workspace."""
        made, graph = self.carried.made, self.carried.graph
        inputs = sum(self.sizes[v] for v in graph.ops[op].inputs if made >> v & 1)
        outputs = sum(self.sizes[v] for v in graph.ops[op].outputs)
        return inputs + outputs + graph.ops[op].workspace_bytes

    @cached_property
    def floor_bytes(self) -> int:
        """No schedule of the order has a smaller peak: what is alive in every one of them."""
        most = [f.fixed_bytes for f in self.forward]
        return max(most + list(self.at_backward[1:]), default=self.carried.graph.resident_bytes)

    def bytes_of(self, mask: int) -> int:
        """Bytes of a set of values, a bitmask over value ids."""
        known, at, total = self._known, 0, 0
        while mask:
            part = mask & _PART
            if part:
                size = known.get((at, part))
                if size is None:
                    first = at * _PART_BITS
                    size = sum(self.sizes[first + i] for i in range(_PART_BITS) if part >> i & 1)
                    known[at, part] = size
                total += size
            mask >>= _PART_BITS
            at += 1
        return total

    @cached_property
    def _run_fixed(self) -> tuple[int, ...]:
        """For each forward op, bytes of its workspace and of all that it writes."""
        return tuple(
            op.workspace_bytes + sum(self.sizes[v] for v in op.outputs)
            for op in self.carried.graph.forward_ops
        )

    def row_bytes(self, number: int, row: Row, stays: int) -> int:
        """Most bytes alive during a row.

        Args:
            number: number of the row.
            row: what runs again in it.
            stays: the values carried over it, all of use later, as a bitmask.
        """
        inputs = self.carried.inputs
        reads = inputs[self.carried.order.backward[number - 1]]
        most = self.at_backward[number] + self.bytes_of(stays & ~reads)
        alive = stays | reads
        for op, made in zip(reversed(row.ops), reversed(row.made), strict=True):
            alive = alive & ~made | inputs[op]
            here = self.before_backward[number] + self._run_fixed[op] + self.bytes_of(alive)
            most = max(most, here)
        return most

    def forward_bytes(self, kept: int) -> int:
        """Most bytes alive during the forward pass, where `kept` is kept for the backward pass."""
        return max(
            (step.fixed_bytes + self.bytes_of(kept & mask) for step, mask in self._forward_masks),
            default=0,
        )

    @cached_property
    def _forward_masks(self) -> tuple[tuple[ForwardMemory, int], ...]:
        return tuple((step, sum(1 << v for v in step.optional)) for step in self.forward)
