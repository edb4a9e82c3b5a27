"""What is alive at a step's peak."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from memfit.graph.plain import store_all_schedule
from memfit.graph.schedule import Schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import Op, TrainingGraph, ValueKind

__all__ = ["LiveValue", "ModuleMemory", "StepMemory", "op_text", "step_memory"]


_NO_MODULE = "(outside of modules)"


_ROWS = 10


@dataclass(frozen=True, slots=True)
class LiveValue:
    """A value alive at the peak.

    Attributes:
        name: of the value.
        size_bytes: bytes that the allocator hands out.
        kind: what it is.
        made_by: the op that writes it, and its source line; None for what is there from the start.
    """

    name: str
    size_bytes: int
    kind: str
    made_by: str | None


@dataclass(frozen=True, slots=True)
class ModuleMemory:
    """A module's share of what the forward pass keeps for the backward pass.

    Attributes:
        path: of the module.
        kept_bytes: bytes of the values that its ops write and the backward pass reads.
        ops: number of its forward ops.
    """

    path: str
    kept_bytes: int
    ops: int


@dataclass(frozen=True)
class StepMemory:
    """Where the memory of a step goes.

    Attributes:
        name: of the graph.
        peak_bytes: most bytes alive at once.
        resident_bytes: of these, what is alive all through the step.
        parts: bytes alive at the peak, by category.
        at: the op that runs at the peak, with its source line; None for a step without ops.
        phase: `forward` or `backward`.
        live: values alive at the peak beside the resident ones, largest first.
        live_left_out: number of smaller values left out of `live`.
        modules: those that keep most, largest first.
        ops: number of ops.
        end_bytes: what is alive when the step ends: resident values, gradients, outputs.
    """

    name: str
    peak_bytes: int
    resident_bytes: int
    parts: dict[str, int]
    at: str | None
    phase: str | None
    live: tuple[LiveValue, ...]
    live_left_out: int
    modules: tuple[ModuleMemory, ...]
    ops: int
    end_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return asdict(self)


def op_text(op: Op) -> str:
    """An op for people: name, what it computes, source line."""
    where = f" at {op.source}" if op.source else ""
    return f"{op.name} ({op.target}){where}"


def step_memory(
    graph: TrainingGraph, schedule: Schedule | None = None, rows: int = _ROWS
) -> StepMemory:
    """Where the memory of a schedule goes; of the step that keeps everything if None."""
    schedule = schedule or store_all_schedule(graph)
    timeline = simulate(graph, schedule)
    at = graph.ops[schedule.steps[timeline.peak_step].op] if timeline.parts_bytes else None
    live = []
    for value, copy in timeline.live_at_peak:
        found = graph.values[value]
        producer = graph.producer[value]
        made_by = op_text(graph.ops[producer]) if producer is not None else None
        kind = "recomputed" if copy else _kind_text(found.kind, found.is_output)
        live.append(LiveValue(found.name, found.size_bytes, kind, made_by))
    live = sorted((v for v in live if v.size_bytes), key=lambda v: -v.size_bytes)
    return StepMemory(
        name=graph.name,
        peak_bytes=timeline.peak_bytes,
        resident_bytes=graph.resident_bytes,
        parts={name: size for name, size in timeline.peak_parts().items() if size},
        at=op_text(at) if at else None,
        phase=at.phase.value if at else None,
        live=tuple(live[:rows]),
        live_left_out=max(0, len(live) - rows),
        modules=_modules(graph, schedule)[:rows],
        ops=len(graph.ops),
        end_bytes=graph.resident_bytes + sum(v.size_bytes for v in graph.values if v.is_output),
    )


def _kind_text(kind: ValueKind, is_output: bool) -> str:
    if kind is ValueKind.GRADIENT:
        return "parameter gradient" if is_output else "activation gradient"
    return "output" if is_output else kind.value


def _modules(graph: TrainingGraph, schedule: Schedule) -> tuple[ModuleMemory, ...]:
    """Kept bytes by module path."""
    kept = schedule.kept(graph)
    sizes: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    for op in graph.forward_ops:
        module = op.source.module if op.source else ""
        path = module.removeprefix("model.") if module else _NO_MODULE
        counts[path] += 1
        sizes[path] += sum(graph.values[v].size_bytes for v in op.outputs if v in kept)
    found = [ModuleMemory(path, sizes[path], counts[path]) for path in counts if sizes[path]]
    return tuple(sorted(found, key=lambda m: -m.kept_bytes))
