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

from memfit.graph import TrainingGraph, ValueKind
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
    last_touch: dict[tuple[int, int], int] = {}
    kept: set[tuple[int, int]] = set()
    for index, step in enumerate(steps):
        op = graph.ops[step.op]
        for value, copy in zip(op.inputs, step.reads, strict=True):
            last_touch[value, copy] = index
        for value in op.outputs:
            last_touch[value, step.copy] = index
    forward_written = {(v, s.copy) for s in steps[:start] for v in graph.ops[s.op].outputs}
    for key, index in last_touch.items():
        if index >= start and key in forward_written:
            kept.add(key)

    def category(value: int, copy: int) -> int:
        v = graph.values[value]
        if v.kind is ValueKind.GRADIENT:
            c = Category.PARAMETER_GRADIENTS if v.is_output else Category.ACTIVATION_GRADIENTS
        elif copy:
            c = Category.RECOMPUTED
        elif v.is_output:
            c = Category.OUTPUTS
        else:
            c = Category.KEPT if (value, copy) in kept else Category.TRANSIENT
        return _INDEX[c]

    current = [0] * len(CATEGORIES)
    for v in graph.values:
        if v.kind.resident:
            current[_INDEX[_RESIDENT[v.kind]]] += v.size_bytes
    tangent_bytes = sum(v.size_bytes for v in graph.values if v.kind is ValueKind.TANGENT)
    work = _INDEX[Category.WORKSPACE]
    rows: list[tuple[int, ...]] = []
    live: dict[tuple[int, int], int] = {}
    lifetimes: dict[tuple[int, int], tuple[int, int]] = {}
    peak = peak_step = -1
    for index, step in enumerate(steps):
        op = graph.ops[step.op]
        if index == start:
            current[_INDEX[Category.ACTIVATION_GRADIENTS]] += tangent_bytes
        for value in op.outputs:
            key = (value, step.copy)
            if key not in live:
                live[key] = slot = category(*key)
                lifetimes[key] = index, len(steps)
                current[slot] += graph.values[value].size_bytes
        current[work] = op.workspace_bytes
        rows.append(tuple(current))
        current[work] = 0
        total = sum(rows[-1])
        if total > peak:
            peak, peak_step = total, index
        touched = [(v, step.copy) for v in op.outputs]
        touched += list(zip(op.inputs, step.reads, strict=True))
        for key in touched:
            if last_touch[key] == index and key in live and not _outlives(graph, *key):
                current[live.pop(key)] -= graph.values[key[0]].size_bytes
                lifetimes[key] = lifetimes[key][0], index
    live_at_peak = tuple(k for k, (since, to) in lifetimes.items() if since <= peak_step <= to)
    return MemoryTimeline(tuple(rows), start, peak_step, live_at_peak, graph.resident_bytes)


def _outlives(graph: TrainingGraph, value: int, copy: int) -> bool:
    v = graph.values[value]
    return v.is_output and (copy == 0 or v.kind is ValueKind.GRADIENT)
