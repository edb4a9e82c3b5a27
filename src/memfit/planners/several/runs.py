"""What the graphs of one training step hold while another one of them runs.

Where Dynamo cannot trace on (a graph break), a step runs as several graphs, whose backward passes
run in the reverse order. While one graph runs, forward or backward, these are there beside it:

- parameters, buffers and what the caller gave to any of the graphs, each memory counted once;
- of the runs before it: what they were given, what they handed out, and what they keep for their
  backward passes, which are still to come;
- of the runs after it: finished gradients of parameters, and results that no other graph reads;
- of all others: the `.grad` of parameters, where gradients are accumulated.

Code outside of the graphs runs before the first one, between two of them and after the last one
(the loss). What it holds for its backward pass is there in all runs after it; where it runs itself,
it has a need of its own, which no plan changes but by what the graphs before it keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import accumulate

from memfit.graph.schedule import Schedule
from memfit.graph.training_graph import TrainingGraph, ValueKind

__all__ = [
    "EagerPart",
    "GraphRun",
    "Point",
    "beside",
    "kept_bytes",
    "needs",
    "outside_bytes",
    "together",
]


@dataclass(frozen=True, slots=True)
class GraphRun:
    """One run of a graph in a step. Memory is known by an identity; sizes are in bytes.

    Attributes:
        inputs: what it is given.
        lasting: those of its inputs that are there all through the step.
        outputs: what it hands out.
        gradients: what its backward pass leaves behind, by the identity of what it is for.
        accumulated: the same of gradients that are there all through the step, in `.grad`, and that
            its backward pass adds to.
    """

    inputs: Mapping[int, int]
    lasting: frozenset[int]
    outputs: Mapping[int, int]
    gradients: Mapping[int, int]
    accumulated: Mapping[int, int] = field(default_factory=dict)

    def accumulating(self) -> GraphRun:
        """The same run where all gradients are there from the start."""
        both = {**self.accumulated, **self.gradients}
        return replace(self, gradients={}, accumulated=both)


@dataclass(frozen=True, slots=True)
class EagerPart:
    """Code that ran outside of the graphs, between two runs.

    Attributes:
        run: its inputs are what it holds for its backward pass, parameters (lasting) among it.
        more_bytes: the memory that its backward pass takes beside that, where it is largest.
    """

    run: GraphRun
    more_bytes: int = 0

    @property
    def own_bytes(self) -> int:
        """What it holds for its backward pass, without parameters."""
        run = self.run
        return sum(size for i, size in run.inputs.items() if i not in run.lasting)

    @property
    def peak_bytes(self) -> int:
        """What is there of it at the peak of its backward pass."""
        return sum(self.run.inputs.values()) + self.more_bytes


@dataclass(frozen=True, slots=True)
class Point:
    """A time in a step at which no graph runs.

    Attributes:
        runs: how many runs came before it.
        bytes: what is there, without what these keep.
    """

    runs: int
    bytes: int


def kept_bytes(graph: TrainingGraph, schedule: Schedule) -> int:
    """Bytes that a schedule keeps from the forward to the backward pass, outputs left aside."""
    values = graph.values
    return sum(
        values[v].size_bytes
        for v in schedule.kept(graph)
        if values[v].kind is ValueKind.ACTIVATION and not values[v].is_output
    )


def beside(runs: Sequence[GraphRun]) -> list[int]:
    """For each run of a step, what the others hold meanwhile, kept values left aside."""
    return _beside(runs, {i for run in runs for i in run.inputs})


def together(
    runs: Sequence[GraphRun], eager: Sequence[EagerPart | None]
) -> tuple[list[int], list[Point]]:
    """What `beside` says, with the code outside of the graphs counted, and where that runs.

    Args:
        runs: the runs of the step.
        eager: what ran before each of them, and after the last one; None where nothing did. May be
            empty, where nothing is known of it.
    """
    if not any(eager):
        return beside(runs), []
    order: list[GraphRun] = []
    places: list[tuple[int, EagerPart | None]] = []
    for n, part in enumerate(eager):
        if part is not None:
            order.append(part.run)
            places.append((n, part))
        if n < len(runs):
            order.append(runs[n])
            places.append((n, None))
    # A result that only the loss reads is still the caller's.
    held = _beside(order, {i for run in runs for i in run.inputs})
    pairs = list(zip(places, held, strict=True))
    points = [Point(n, there + part.peak_bytes) for (n, part), there in pairs if part is not None]
    return [there for (_, part), there in pairs if part is None], points


def outside_bytes(runs: Sequence[GraphRun], eager: Sequence[EagerPart | None]) -> int:
    """What code outside of the graphs holds for its backward pass and no graph knows."""
    known = {i for run in runs for i in (*run.inputs, *run.outputs)}
    held = {
        i: size
        for part in eager
        if part is not None
        for i, size in part.run.inputs.items()
        if i not in part.run.lasting and i not in known
    }
    return sum(held.values())


def _beside(runs: Sequence[GraphRun], read: Set[int]) -> list[int]:
    after: list[dict[int, int]] = [{}]
    gradients: list[dict[int, int]] = [{}]
    for run in reversed(runs[1:]):
        results = {i: size for i, size in run.outputs.items() if i not in read}
        after.append({**after[-1], **results})
        gradients.append({**gradients[-1], **run.gradients})
    there = {i: size for run in runs for i, size in run.inputs.items() if i in run.lasting}
    accumulated = {i: size for run in runs for i, size in run.accumulated.items()}
    result = []
    for run, later, left in zip(runs, reversed(after), reversed(gradients), strict=True):
        others = {**there, **later}
        held = sum(size for i, size in others.items() if i not in run.inputs)
        added = sum(size for i, size in accumulated.items() if i not in run.accumulated)
        result.append(held + sum(left.values()) + added)
        there = {**there, **run.inputs, **run.outputs}
    return result


def needs(
    held: Sequence[int], peaks: Sequence[int], kept: Sequence[int], points: Sequence[Point] = ()
) -> list[int]:
    """For each run of a step, the memory of the whole step at the peak of that run.

    Args:
        held: for each run, what is there beside it (`beside`).
        peaks: for each run, the peak of its plan.
        kept: for each run, what it keeps (`kept_bytes`); it counts in the runs after it.
        points: times between runs; what is there then follows at the end of the list.
    """
    before = list(accumulate(kept, initial=0))
    runs = [h + p + k for h, p, k in zip(held, peaks, before, strict=False)]
    return [*runs, *(point.bytes + before[point.runs] for point in points)]
