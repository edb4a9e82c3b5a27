"""Schedules said by what is carried: after each backward op, which forward values stay.

Whatever a backward op or a carried set asks for and is not there is computed again right before
that op, with what it needs in turn. So sets of carried values are all that there is to decide, and
a change to one of them is a change to the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from memfit._core.problem import bits, needed_ops
from memfit.graph.schedule import Compute, Schedule
from memfit.graph.training_graph import TrainingGraph, ValueKind

__all__ = ["CarriedValues", "Row", "StepOrder"]


class Row(NamedTuple):
    """What runs again between two backward ops.

    Attributes:
        ops: ids of the forward ops, in order.
        made: for each of them, the values that it writes and that were not there (a bitmask); of
            those that were, nothing reads the new copy.
    """

    ops: list[int]
    made: list[int]


@dataclass(frozen=True, slots=True)
class StepOrder:
    """The order in which ops run for the first time.

    Attributes:
        forward: ids of the forward ops, each once.
        backward: ids of the backward ops, each once.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]

    @classmethod
    def of_program(cls, graph: TrainingGraph) -> StepOrder:
        """Program order."""
        count = graph.forward_count
        return cls(tuple(range(count)), tuple(range(count, len(graph.ops))))

    @classmethod
    def of_schedule(cls, graph: TrainingGraph, schedule: Schedule) -> StepOrder:
        """The order of a schedule whose forward pass runs every forward op once."""
        count = graph.forward_count
        first = [step.op for step in schedule.steps if step.copy == 0]
        return cls(
            tuple(op for op in first if op < count), tuple(op for op in first if op >= count)
        )


@dataclass(frozen=True)
class CarriedValues:
    """What every choice of carried values of a graph in an order has in common.

    A set of values is a bitmask over value ids. Row t, from 1 on, is what runs after the (t-1)-th
    backward op up to the t-th; what is carried into row 1 is kept from the forward pass.

    Attributes:
        graph: the graph.
        order: the order of first runs.
    """

    graph: TrainingGraph
    order: StepOrder

    @cached_property
    def row_count(self) -> int:
        """Number of backward ops."""
        return len(self.order.backward)

    @cached_property
    def made(self) -> int:
        """Values that forward ops write, outputs of the pass left out."""
        values = self.graph.values
        return sum(
            1 << v
            for v, value in enumerate(values)
            if value.kind is ValueKind.ACTIVATION and not value.is_output
        )

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """For each op, those of `made` that it reads."""
        return tuple(sum(1 << v for v in op.inputs) & self.made for op in self.graph.ops)

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """For each op, the values that it writes."""
        return tuple(sum(1 << v for v in op.outputs) for op in self.graph.ops)

    @cached_property
    def place(self) -> tuple[int, ...]:
        """For each forward op, its place in the order."""
        place = [0] * self.graph.forward_count
        for at, op in enumerate(self.order.forward):
            place[op] = at
        return tuple(place)

    @cached_property
    def last_row(self) -> tuple[int, ...]:
        """For each value, the last row in which it can be of use, itself or to compute others.

        0 for a value that the backward pass has no use for.
        """
        graph = self.graph
        last = [0] * len(graph.values)
        for row, op in enumerate(self.order.backward, 1):
            for v in graph.ops[op].inputs:
                last[v] = row
        for op in reversed(self.order.forward):
            if graph.ops[op].recomputable:
                row = max((last[v] for v in graph.ops[op].outputs), default=0)
                for v in graph.ops[op].inputs:
                    last[v] = max(last[v], row)
        return tuple(last)

    @cached_property
    def useful(self) -> tuple[int, ...]:
        """For each row, from 0 on, those of `made` that a later row can have a use for."""
        ending = [0] * (self.row_count + 1)
        for v in bits(self.made):
            ending[self.last_row[v]] |= 1 << v
        useful = [0] * (self.row_count + 1)
        for row in range(self.row_count, 0, -1):
            useful[row - 1] = useful[row] | ending[row]
        return tuple(useful)

    @cached_property
    def always(self) -> int:
        """Values that are there as long as something reads them: of no bytes, or made only once."""
        values, producer, ops = self.graph.values, self.graph.producer, self.graph.ops
        return sum(
            1 << v
            for v in bits(self.made)
            if values[v].size_bytes == 0 or not ops[producer[v] or 0].recomputable
        )

    def runs(self, want: int, have: int) -> list[int]:
        """The ops that have to run for `want` where `have` is there, in the order of the pass."""
        missing = want & ~have
        if not missing:
            return []
        ops, producer = self.graph.ops, self.graph.producer
        there = have | ~self.made
        todo = needed_ops(
            bits(missing),
            lambda value: None if there >> value & 1 else producer[value],
            lambda op: ops[op].inputs,
        )
        return sorted(todo, key=self.place.__getitem__)

    def rows(self, carried: Mapping[int, int]) -> list[Row]:
        """For each backward op, what runs right before it.

        Args:
            carried: for rows by number, what is there after it, 0 for the forward pass; after other
                rows everything stays that is there.
        """
        have = carried[0] & self.made | self.always
        found = []
        for row, op in enumerate(self.order.backward, 1):
            stays = carried.get(row)
            wanted = self.inputs[op]
            if stays is not None:
                wanted |= stays & self.useful[row]
            again = self.runs(wanted, have)
            made = []
            for forward_op in again:
                made.append(self.outputs[forward_op] & self.made & ~have)
                have |= made[-1]
            if stays is not None:
                have &= stays | self.always
            found.append(Row(again, made))
        return found

    def cost(self, carried: Mapping[int, int]) -> int:
        """Cost of all recomputations, in the graph's cost unit."""
        ops = self.graph.ops
        return sum(ops[op].cost for row in self.rows(carried) for op in row.ops)

    def schedule(self, carried: Mapping[int, int]) -> Schedule:
        """The schedule; arguments as for `rows`."""
        ops = self.graph.ops
        steps = [Compute(op, 0, (0,) * len(ops[op].inputs)) for op in self.order.forward]
        start = len(steps)
        copy = [0] * len(self.graph.values)
        count = [1] * self.graph.forward_count
        for op, row in zip(self.order.backward, self.rows(carried), strict=True):
            for forward_op, made in zip(row.ops, row.made, strict=True):
                reads = tuple([copy[v] for v in ops[forward_op].inputs])
                steps.append(Compute(forward_op, count[forward_op], reads))
                for v in bits(made):
                    copy[v] = count[forward_op]
                count[forward_op] += 1
            steps.append(Compute(op, 0, tuple([copy[v] for v in ops[op].inputs])))
        return Schedule(tuple(steps), start)

    def of_schedule(self, schedule: Schedule) -> dict[int, int]:
        """What is carried over each row of a schedule in this order, 0 for the forward pass."""
        graph = self.graph
        born: dict[tuple[int, int], int] = {}
        carried = dict.fromkeys(range(self.row_count + 1), 0)
        row = 0
        for index, step in enumerate(schedule.steps):
            if index >= schedule.backward_start and row == 0:
                row = 1
            op = graph.ops[step.op]
            for key in zip(op.inputs, step.reads, strict=True):
                if self.made >> key[0] & 1:
                    for between in range(born[key], row):
                        carried[between] |= 1 << key[0]
                    born[key] = max(born[key], row)
            if step.op < graph.forward_count:
                for v in op.outputs:
                    born[v, step.copy] = row
            else:
                row += 1
        return carried
