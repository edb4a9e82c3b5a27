"""One capture of a program, run by many plans.

Capturing takes most of the time of a trial. Here a fitted module is captured once, by `memfit.fit`
as users call it, and the graphs that another plan is lowered to take the place of the first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch import executors as settings_module
from memfit.pytorch.backend import StepBackend
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.compat.eager import aot_backend, boxed_nop
from memfit.pytorch.execute.lower import lower
from memfit.pytorch.planning.protocol import Draft, Occasion, PlannedStep, Planning

__all__ = ["Capture", "Recorder", "recording"]

Run = Callable[[list[Any]], Any]
Modules = tuple[fx.GraphModule, fx.GraphModule]


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


class Recorder(StepBackend):
    """The ordinary backend, which remembers what it captures."""

    def __init__(self, planning: Planning, **arguments: Any) -> None:
        self.captures: list[Capture] = []
        super().__init__(_Watched(planning, self.captures), **arguments)
        self._aot = aot_backend(
            self._partition, lambda module, x: self.captures[-1].backward_of(module, x)
        )

    def _partition(self, joint: fx.GraphModule, joint_inputs: Any, **options: Any) -> Any:
        capture = Capture()
        self.captures.append(capture)
        modules = super()._partition(joint, joint_inputs, **options)
        modules[0].forward = capture.forward_of(modules[0])
        return modules

    def _handing_over(self, modules: Modules, *given: Any) -> Modules:
        hand_over = super()._handing_over
        self.captures[-1].finish = lambda made: hand_over(made, *given)
        return hand_over(modules, *given)


@contextmanager
def recording() -> Iterator[Callable[[nn.Module], list[Capture]]]:
    """Inside, fitted modules can be asked for what they captured."""
    before = settings_module.StepBackend
    settings_module.StepBackend = Recorder  # type: ignore[misc]

    def captures(fitted: nn.Module) -> list[Capture]:
        backend = fitted.__dict__["_backend"]
        made: Mapping[str, Any] = backend.__dict__
        return [c for c in made["captures"] if c.step is not None and c.finish is not None]

    try:
        yield captures
    finally:
        settings_module.StepBackend = before  # type: ignore[misc]
