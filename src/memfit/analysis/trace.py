"""A schedule's memory over time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from memfit.errors import UsageError
from memfit.graph.schedule import Schedule
from memfit.graph.simulator import MemoryTimeline, simulate
from memfit.graph.training_graph import TrainingGraph

__all__ = ["Trace", "trace_of"]


@dataclass(frozen=True)
class Trace:
    """Memory over the time of one step.

    Attributes:
        edges: when each step of the schedule starts, and when the last one ends, in units of cost.
        timeline: live bytes while each step runs.
    """

    edges: tuple[int, ...]
    timeline: MemoryTimeline

    @property
    def total(self) -> int:
        """Time of the whole step, recomputations included."""
        return self.edges[-1]

    @property
    def backward_start(self) -> int:
        """When the backward pass starts."""
        return self.edges[self.timeline.backward_start]

    @property
    def peak_time(self) -> float:
        """Middle of the step of the schedule that reaches the peak."""
        step = self.timeline.peak_step
        return (self.edges[step] + self.edges[step + 1]) / 2


def trace_of(graph: TrainingGraph, schedule: Schedule) -> Trace:
    """Simulated memory of a schedule over the cumulated cost of its ops.

    Ops that cost nothing get one unit in ten thousand of the whole, so that their memory shows.

    Raises:
        UsageError: the schedule is empty.
    """
    costs = [graph.ops[step.op].cost for step in schedule.steps]
    if not costs:
        raise UsageError("the schedule has no steps; there is no memory over time to draw")
    least = max(1, sum(costs) // 10_000)
    edges = accumulate((max(cost, least) for cost in costs), initial=0)
    return Trace(tuple(edges), simulate(graph, schedule))
