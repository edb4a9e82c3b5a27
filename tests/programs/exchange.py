"""One capture of a program, run by many plans.

Capturing takes most of the time of a trial. Here a fitted module is captured once, by `memfit.fit`
as users call it, and the graphs that another plan is lowered to take the place of the first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import fx, nn

from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch import executors
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.compat.eager import boxed_nop
from memfit.pytorch.eager_graph import EagerGraph
from memfit.pytorch.execute.lower import lower
from memfit.pytorch.pipeline import Made, Modules, Setting, Traced
from memfit.pytorch.planning.protocol import Draft, Occasion, PlannedStep, Planning

__all__ = ["Capture", "Recorder", "recording"]

Run = Callable[[list[Any]], Any]


class Capture:
    """A captured step and the two graphs that run for it."""

    def __init__(self) -> None:
        self.step: CapturedStep | None = None
        self.finish: Callable[[Modules], Modules] | None = None
        self.runs: list[Run | None] = [None, None]

    @property
    def graph(self) -> TrainingGraph:
        """The graph, with costs."""
        assert self.step is not None
        return self.step.graph

    def forward_of(self, module: fx.GraphModule) -> Run:
        """What runs the forward pass: that of the first plan, or of the one in its place."""

        def run(args: list[Any]) -> Any:
            chosen = self.runs[0]
            return type(module).forward(module, args) if chosen is None else chosen(args)

        return run

    def backward_of(self, module: fx.GraphModule, examples: Any) -> Run:
        """The same for the backward pass, which AOTAutograd has copied."""
        first: Run = boxed_nop(module, examples)

        def run(args: list[Any]) -> Any:
            return (self.runs[1] or first)(args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def exchange(self, plan: Plan) -> None:
        """Run another plan from now on."""
        assert self.step is not None
        assert self.finish is not None
        forward, backward = self.finish(lower(self.step, plan.schedule))
        self.runs = [boxed_nop(forward, []), boxed_nop(backward, [])]


class _Watched:
    """A `Planning` that remembers the step that the newest capture is planned as."""

    def __init__(self, inner: Planning, captures: list[Capture]) -> None:
        self._inner = inner
        self._captures = captures

    def plan(self, draft: Draft[Any], occasion: Occasion) -> PlannedStep[Any]:
        made = self._inner.plan(draft, occasion)
        self._captures[-1].step = made.step
        return made


class Recorder(EagerGraph):
    """The ordinary executor, which remembers what it captures."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.captures: list[Capture] = []
        self._compile_backward = lambda module, x: self.captures[-1].backward_of(module, x)

    def capture(self, joint: fx.GraphModule, forward_outputs: int, traced: Traced) -> CapturedStep:
        self.captures.append(Capture())
        return super().capture(joint, forward_outputs, traced)

    def make(
        self, step: CapturedStep, traced: Traced, planning: Planning, occasion: Occasion
    ) -> Made:
        made = super().make(step, traced, _Watched(planning, self.captures), occasion)
        made.modules[0].forward = self.captures[-1].forward_of(made.modules[0])
        return made

    def _hand_over(self, made: Made, step: CapturedStep, traced: Traced) -> Modules:
        hand_over = super()._hand_over
        self.captures[-1].finish = lambda modules: hand_over(
            replace(made, modules=modules), step, traced
        )
        return hand_over(made, step, traced)


@contextmanager
def recording() -> Iterator[Callable[[nn.Module], list[Capture]]]:
    """Inside, fitted modules can be asked for what they captured."""
    before = executors.EagerGraph
    executors.EagerGraph = Recorder  # type: ignore[misc]

    def captures(fitted: nn.Module) -> list[Capture]:
        made: list[Capture] = fitted.__dict__["_backend"].executor.captures
        return [c for c in made if c.step is not None and c.finish is not None]

    try:
        yield captures
    finally:
        executors.EagerGraph = before  # type: ignore[misc]
