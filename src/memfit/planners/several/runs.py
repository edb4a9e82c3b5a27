"""What the graphs of one training step hold while another one of them runs.

Where Dynamo cannot trace on (a graph break), a step runs as several graphs, whose backward passes
run in the reverse order. While one graph runs, forward or backward, these are there beside it:

- parameters, buffers and what the caller gave to any of the graphs, each memory counted once;
- of the runs before it: what they were given, what they handed out, and what they keep for their
  backward passes, which are still to come;
- of the runs after it: finished gradients of parameters, and results that no other graph reads;
- of all others: the `.grad` of parameters, where gradients are accumulated.

Values that the code between two graphs makes and keeps are not known here, and not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from memfit.graph.schedule import Schedule
from memfit.graph.training_graph import TrainingGraph, ValueKind

__all__ = ["GraphRun", "beside", "kept_bytes", "needs"]


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
    read = {i for run in runs for i in run.inputs}
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


def needs(held: Sequence[int], peaks: Sequence[int], kept: Sequence[int]) -> list[int]:
    """For each run of a step, the memory of the whole step at the peak of that run.

    Args:
        held: for each run, what is there beside it (`beside`).
        peaks: for each run, the peak of its plan.
        kept: for each run, what it keeps (`kept_bytes`); it counts in the runs after it.
    """
    before = accumulate(kept, initial=0)
    return [h + p + k for h, p, k in zip(held, peaks, before, strict=False)]
