"""The plain step: everything is kept, ops run in program order."""

from __future__ import annotations

import weakref

from memfit.graph.schedule import OpOrder, Schedule, make_schedule
from memfit.graph.simulator import peak_of_order
from memfit.graph.training_graph import TrainingGraph, ValueKind

__all__ = ["plain_peak_bytes", "store_all_order", "store_all_schedule"]

_peaks: dict[int, int] = {}  # by the identity of graphs that are alive


def store_all_order(graph: TrainingGraph) -> OpOrder:
    """The plain step: program order, everything that the backward pass reads is kept."""
    keep = {i for i, v in enumerate(graph.values) if v.kind is ValueKind.ACTIVATION}
    count = graph.forward_count
    return OpOrder(range(count), range(count, len(graph.ops)), keep)


def store_all_schedule(graph: TrainingGraph) -> Schedule:
    """The schedule of the plain step."""
    return make_schedule(graph, *store_all_order(graph))


def plain_peak_bytes(graph: TrainingGraph) -> int:
    """Simulated peak of the plain step; found once for each graph."""
    key = id(graph)
    if key not in _peaks:
        _peaks[key] = peak_of_order(graph, store_all_order(graph))
        weakref.finalize(graph, _peaks.pop, key, None).atexit = False
    return _peaks[key]
