"""The one simulator: Schedule -> MemoryTimeline, every value freed right after its last use.

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

from memfit.graph import TrainingGraph, Value, ValueKind
from memfit.schedule import Schedule

__all__ = ["Category", "MemoryTimeline", "simulate"]


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
    last_touch: dict[tuple[int, int], int] = {}
    for index, step in enumerate(steps):
        op, copy = ops[step.op], step.copy
        for key in zip(op.inputs, step.reads, strict=True):
            last_touch[key] = index
        for value in op.outputs:
            last_touch[value, copy] = index
    written = {(v, s.copy) for s in steps[:start] for v in ops[s.op].outputs}
    kept = {key for key in written if last_touch[key] >= start}
    sizes = [v.size_bytes for v in values]
    # By value, the category of its first copy unless it is kept, and of later ones.
    first = [_INDEX[_category(v, copy=0)] for v in values]
    later = [_INDEX[_category(v, copy=1)] for v in values]
    kept_slot, work = _INDEX[Category.KEPT], _INDEX[Category.WORKSPACE]
    transient = _INDEX[Category.TRANSIENT]

    current = [0] * len(CATEGORIES)
    for v in values:
        if v.kind.resident:
            current[_INDEX[_RESIDENT[v.kind]]] += v.size_bytes
    total = sum(current)
    tangent_bytes = sum(v.size_bytes for v in values if v.kind is ValueKind.TANGENT)
    rows: list[tuple[int, ...]] = []
    live: dict[tuple[int, int], int] = {}
    born: dict[tuple[int, int], int] = {}
    peak = peak_step = -1
    for index, step in enumerate(steps):
        op, copy = ops[step.op], step.copy
        if index == start:
            current[_INDEX[Category.ACTIVATION_GRADIENTS]] += tangent_bytes
            total += tangent_bytes
        for value in op.outputs:
            key = (value, copy)
            if key not in live:
                slot = later[value] if copy else first[value]
                if slot == transient and key in kept:
                    slot = kept_slot
                live[key] = slot
                born[key] = index
                current[slot] += sizes[value]
                total += sizes[value]
        current[work] = op.workspace_bytes
        rows.append(tuple(current))
        current[work] = 0
        if total + op.workspace_bytes > peak:
            peak, peak_step = total + op.workspace_bytes, index
        for key in (*((v, copy) for v in op.outputs), *zip(op.inputs, step.reads, strict=True)):
            if last_touch[key] == index and key in live and not _outlives(graph, *key):
                size = sizes[key[0]]
                current[live.pop(key)] -= size
                total -= size
    live_at_peak = tuple(
        key
        for key, since in born.items()
        if since <= peak_step and (last_touch[key] >= peak_step or key in live)
    )
    return MemoryTimeline(tuple(rows), start, peak_step, live_at_peak, graph.resident_bytes)


def _category(value: Value, *, copy: int) -> Category:
    if value.kind is ValueKind.GRADIENT:
        return Category.PARAMETER_GRADIENTS if value.is_output else Category.ACTIVATION_GRADIENTS
    if copy:
        return Category.RECOMPUTED
    return Category.OUTPUTS if value.is_output else Category.TRANSIENT


def _outlives(graph: TrainingGraph, value: int, copy: int) -> bool:
    v = graph.values[value]
    return v.is_output and (copy == 0 or v.kind is ValueKind.GRADIENT)
