"""The simulator: Schedule -> MemoryTimeline, every value freed right after its last use.

Memory model (docs/adr/0001): a value copy is allocated by the step that first writes it and freed
after the last step that touches it; a copy that nothing reads is freed after the step that wrote
it. Forward outputs and finished gradients stay to the end of the step. Resident values are alive
throughout, tangents from the start of the backward pass. While an op runs, its workspace is alive
beside its inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from memfit.graph.schedule import OpOrder, Schedule
from memfit.graph.training_graph import TrainingGraph, Value, ValueKind

__all__ = ["Category", "MemoryTimeline", "category_of", "peak_of_order", "simulate"]


class Category(StrEnum):
    """What live memory is there for."""

    PARAMETERS = "parameters"
    BUFFERS = "buffers"
    INPUTS = "inputs"
    OPTIMIZER = "optimizer_state"
    OUTPUTS = "outputs"
    KEPT = "kept_activations"
    TRANSIENT = "transient_activations"
    RECOMPUTED = "recomputed"
    PARAMETER_GRADIENTS = "parameter_gradients"
    ACTIVATION_GRADIENTS = "activation_gradients"
    WORKSPACE = "workspace"


CATEGORIES: tuple[Category, ...] = tuple(Category)
_INDEX = {category: i for i, category in enumerate(CATEGORIES)}
_RESIDENT = {
    ValueKind.PARAMETER: Category.PARAMETERS,
    ValueKind.BUFFER: Category.BUFFERS,
    ValueKind.INPUT: Category.INPUTS,
    ValueKind.OPTIMIZER: Category.OPTIMIZER,
    ValueKind.ACCUMULATED: Category.PARAMETER_GRADIENTS,
}


@dataclass(frozen=True)
class MemoryTimeline:
    """Live bytes while each step of a schedule runs.

    Attributes:
        parts_bytes: for each step, live bytes by category, in the order of `CATEGORIES`.
        backward_start: index of the first step of the backward pass.
        peak_step: index of the (first) step with the most live bytes; -1 for an empty schedule.
        live_at_peak: ids and copies of the values alive at the peak, resident ones left out.
        resident_bytes: bytes alive all through the step.
    """

    parts_bytes: tuple[tuple[int, ...], ...]
    backward_start: int
    peak_step: int
    live_at_peak: tuple[tuple[int, int], ...]
    resident_bytes: int

    @cached_property
    def live_bytes(self) -> tuple[int, ...]:
        """Live bytes while each step runs, its workspace and all resident values included."""
        return tuple(sum(parts) for parts in self.parts_bytes)

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at once, resident values included."""
        return self.live_bytes[self.peak_step] if self.parts_bytes else self.resident_bytes

    def peak_parts(self) -> dict[str, int]:
        """Live bytes at the peak, by category name; categories with no bytes included."""
        parts = self.parts_bytes[self.peak_step] if self.parts_bytes else (0,) * len(CATEGORIES)
        return {c.value: parts[i] for i, c in enumerate(CATEGORIES)}


def simulate(graph: TrainingGraph, schedule: Schedule) -> MemoryTimeline:
    """Play `schedule` and count live bytes.

    Every value copy is freed right after its last use (the liveness analysis of Kusumoto et al.
    2019, section 4.4, applied to the whole step).
    """
    steps, start = schedule.steps, schedule.backward_start
    ops, values = graph.ops, graph.values
    # A value copy is named by one number: its value's plus `count` for each copy before it.
    count = len(values)
    written: list[tuple[int, ...]] = []
    last_touch: dict[int, int] = {}
    for index, (op_id, copy, reads) in enumerate(steps):
        op = ops[op_id]
        outputs = tuple([value + copy * count for value in op.outputs]) if copy else op.outputs
        written.append(outputs)
        for value, read in zip(op.inputs, reads, strict=True):
            last_touch[value + read * count] = index
        for key in outputs:
            last_touch[key] = index
    dying: list[list[int]] = [[] for _ in steps]
    for key, index in last_touch.items():
        if not _outlives(values[key % count], key // count):
            dying[index].append(key)
    recomputed, work = _INDEX[Category.RECOMPUTED], _INDEX[Category.WORKSPACE]

    current = [0] * len(CATEGORIES)
    for v in values:
        if v.kind.resident:
            current[_INDEX[_RESIDENT[v.kind]]] += v.size_bytes
    total = sum(current)
    tangent_bytes = sum(v.size_bytes for v in values if v.kind is ValueKind.TANGENT)
    sizes = [v.size_bytes for v in values]
    # By value, the category of its copies.
    slots = [_INDEX[category_of(v)] for v in values]
    slots_kept = [_INDEX[category_of(v, kept=True)] for v in values]
    rows: list[tuple[int, ...]] = []
    live: dict[int, int] = {}
    born: dict[int, int] = {}
    peak = peak_step = -1
    for index, step in enumerate(steps):
        if index == start:
            current[_INDEX[Category.ACTIVATION_GRADIENTS]] += tangent_bytes
            total += tangent_bytes
        for key in written[index]:
            if key not in live:
                value = key % count
                kept = index < start <= last_touch[key]
                slot = recomputed if key >= count else (slots_kept if kept else slots)[value]
                live[key] = slot
                born[key] = index
                current[slot] += sizes[value]
                total += sizes[value]
        workspace = ops[step.op].workspace_bytes
        current[work] = workspace
        rows.append(tuple(current))
        if total + workspace > peak:
            peak, peak_step = total + workspace, index
        for key in dying[index]:
            if key in live:
                size = sizes[key % count]
                current[live.pop(key)] -= size
                total -= size
    live_at_peak = tuple(
        (key % count, key // count)
        for key, since in born.items()
        if since <= peak_step and (last_touch[key] >= peak_step or key in live)
    )
    return MemoryTimeline(tuple(rows), start, peak_step, live_at_peak, graph.resident_bytes)


def peak_of_order(graph: TrainingGraph, order: OpOrder) -> int:
    """Most bytes alive at once, resident values included, in the schedule of an order.

    What `simulate` finds, several times faster: planners judge many orders and keep one.
    """
    ops, values = graph.ops, graph.values
    count = graph.forward_count
    steps = [*order.forward, *order.backward]
    # For each value copy in the order of birth.
    sizes: list[int] = []
    births: list[int] = []
    deaths: list[int] = []
    newest: dict[int, int] = {}
    never = len(steps)
    outliving: list[int] = []
    for index, op_id in enumerate(steps):
        op = ops[op_id]
        for v in op.inputs:
            if v in newest:
                deaths[newest[v]] = index
        for v in op.outputs:
            known = v in newest
            if known and op_id >= count:  # a gradient, to which more is added
                deaths[newest[v]] = index
                continue
            if not known or v not in order.keep:
                newest[v] = len(sizes)
            if values[v].is_output and not known:
                outliving.append(len(sizes))
            sizes.append(values[v].size_bytes)
            births.append(index)
            deaths.append(index)
    for copy in outliving:
        deaths[copy] = never
    change = [0] * (never + 2)
    for size, birth, death in zip(sizes, births, deaths, strict=True):
        change[birth] += size
        change[death + 1] -= size
    change[len(order.forward)] += sum(v.size_bytes for v in values if v.kind is ValueKind.TANGENT)
    live = graph.resident_bytes
    peak = live if not steps else 0
    for op_id, more in zip(steps, change, strict=False):
        live += more
        peak = max(peak, live + ops[op_id].workspace_bytes)
    return peak


def category_of(value: Value, copy: int = 0, *, kept: bool = False) -> Category:
    """What a copy of a value that an op writes is there for.

    Args:
        value: the value.
        copy: 0 for the first one.
        kept: whether the first copy is kept from the forward to the backward pass.
    """
    if copy:
        return Category.RECOMPUTED
    if value.kind is ValueKind.GRADIENT:
        return Category.PARAMETER_GRADIENTS if value.is_output else Category.ACTIVATION_GRADIENTS
    if value.is_output:
        return Category.OUTPUTS
    return Category.KEPT if kept else Category.TRANSIENT


def _outlives(value: Value, copy: int) -> bool:
    return value.is_output and (copy == 0 or value.kind is ValueKind.GRADIENT)
