"""Dynamo's callback: what it hands over goes through the pipeline, and what comes back is run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

from memfit.errors import MemfitError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch.branches.notes import is_checked
from memfit.pytorch.capture.given import Given
from memfit.pytorch.capture.missing import note_missing
from memfit.pytorch.capture.progress import CAPTURING, TRACING
from memfit.pytorch.capture.stored_outputs import StoredOutputs, stored_in
from memfit.pytorch.compat.dynamo import traced_code, with_fixed_scalars
from memfit.pytorch.compat.whole_ops import whole_ops
from memfit.pytorch.execute.accumulate import gradients_held
from memfit.pytorch.failures.told import failing, guard_backward
from memfit.pytorch.layouts.as_traced import lies
from memfit.pytorch.pipeline import (
    Executor,
    Made,
    Modules,
    Setting,
    Traced,
    prepare_module,
    traced_inputs,
)
from memfit.pytorch.planning.capture_only import CaptureEnds
from memfit.pytorch.planning.protocol import Occasion, Planning
from memfit.pytorch.planning.shared import Shared
from memfit.pytorch.planning.sizes import PlannedAhead, ShapeCount, shapes_text
from memfit.pytorch.prepare.handed_back import hand_back, take_out_inputs
from memfit.pytorch.ranks.replication import accumulates_outside_of_buckets, check_plain
from memfit.units import format_bytes

__all__ = ["Compiled", "StepBackend"]

logger = logging.getLogger("memfit")


@dataclass(frozen=True)
class Compiled:
    """What one compilation decided.

    Attributes:
        graph: the graph.
        plan: its plan.
        held_peak_bytes: simulated peak of the step while `.grad` is there from the start.
        given_bytes: bytes of the tensors that the call gave (`Given.plain_bytes`).
    """

    graph: TrainingGraph
    plan: Plan
    held_peak_bytes: int = 0
    given_bytes: int = 0


class StepBackend:
    """A Dynamo backend for one step.

    Attributes:
        compiled: the graph and plan of every compilation so far (one for each input shape).
        current: those of the newest call.
        count: of input shapes.
        given: to the present call.
        error: what ended the last compilation in memfit's own code; Dynamo wraps it.
        traced: the Python code that was traced so far.
        sample: arguments that the step can run with, where it is called with some that only have
            the right shapes.
        takes_apart: whether what forward stores is planned without a gradient.
        executor: runs the plans.
        checked: some step may end because a branch on data goes another way than it was traced.
        budget_bytes: the budget, where it is known in bytes; None where the graph decides.

    Args:
        planning: makes the plans.
        executor: runs them.
        setting: of the step.
        count: of input shapes.
    """

    def __init__(
        self,
        planning: Planning,
        executor: Executor,
        setting: Setting,
        count: ShapeCount | None = None,
    ) -> None:
        self.executor = executor
        self.count = count or ShapeCount(setting.name)
        self.given = Given()
        self.compiled: list[Compiled] = []
        self.current: Compiled | None = None
        self.error: Exception | None = None
        self.traced: set[CodeType] = set()
        self.sample: tuple[Sequence[Any], Mapping[str, Any]] | None = None
        self.takes_apart = True
        self.budget_bytes: int | None = None
        self.checked = False
        self._planning = planning
        self._setting = setting
        self._all_stored: list[StoredOutputs] = []
        self._believed: set[Any] = set()
        self._asked = False  # for a plan, in the present call
        self._told = self._told_inputs = False

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        """Dynamo's entry."""
        if self._setting.progress is not None:
            self._setting.progress(CAPTURING, 1.0)
        self.traced.update(traced_code())
        try:
            traced, shapes = self._trace(module, example_inputs)
        except Exception as error:
            self.error = error
            raise
        taken_out = take_out_inputs(module)
        traced = replace(traced, stored=stored_in(module))
        if traced.stored is not None:
            self._all_stored.append(traced.stored)
        made: list[Made] = []
        partition = partial(self._partition, traced, shapes, made)
        try:
            compiled = with_fixed_scalars(
                lambda: self.executor.compile(module, example_inputs, partition)
            )
        except MemfitError as error:
            self.error = self.error or error
            raise
        newest = made[-1] if made else None
        self.current = record = self._recorded(newest) if newest else None
        several = bool(newest and newest.behind)
        guarded = False

        def run(*args: Any) -> Any:
            nonlocal guarded
            if self.count.ahead:
                raise PlannedAhead
            self.current = record
            again = traced.stored.begin(args) if traced.stored is not None else None
            with failing(self._setting.name, "forward"):
                results = compiled(*args)
            guarded = guarded or guard_backward(self._setting.name, results)
            if several:
                note_missing(results, args)
            if taken_out:
                results = hand_back(results, args, taken_out)
            return results if again is None else again.attach(results)

        return run

    def _trace(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> tuple[Traced, str]:
        """What is known of Dynamo's graph, made ready for AOTAutograd; and its inputs' shapes."""
        kinds, leaves = traced_inputs(example_inputs)
        given = [x for i, x in enumerate(example_inputs) if i not in kinds]
        shapes = shapes_text([x for x in given if isinstance(x, torch.Tensor)])
        check_plain(self._setting.name, example_inputs)
        input_bytes = self.given.input_bytes(example_inputs, kinds)
        self.count.compilation(shapes)
        with whole_ops():
            programs = prepare_module(module, self._setting)
        return Traced(kinds, leaves, input_bytes, programs), shapes

    def _partition(
        self,
        traced: Traced,
        shapes: str,
        made: list[Made],
        joint: fx.GraphModule,
        joint_inputs: Any,
        *,
        num_fwd_outputs: int,
        **_: Any,
    ) -> Modules:
        """What AOTAutograd calls with the joint graph."""
        if self._setting.progress is not None:
            self._setting.progress(TRACING, 1.0)
        count = self.count
        try:
            step = self.executor.capture(joint, num_fwd_outputs, traced)
            self.checked |= is_checked(joint)
            count.captured()
            self._asked = True
            occasion = Occasion(
                shapes, count.capture_s, count.ahead, count.step_s, self.budget_bytes
            )
            made.append(self.executor.make(step, traced, self._planning, occasion))
        except CaptureEnds:
            raise
        except Exception as error:
            self.error = error
            raise
        return made[-1].modules

    def _recorded(self, made: Made) -> Compiled:
        self._believed |= made.believed
        plan = self.executor.told(made.plan)
        record = Compiled(made.graph, plan, made.held_peak_bytes, self.given.plain_bytes)
        self.compiled.append(record)
        return record

    @property
    def fullgraph(self) -> bool:
        """Whether what cannot be traced is an error.

        It is where ranks share a plan: what an opaque module keeps may differ from rank to rank.
        """
        return self._setting.fullgraph or self._setting.replication.share

    @property
    def branches(self) -> bool:
        """Whether branches on data are traced as they went.

        Not where ranks share a plan: they may go another way on each rank.
        """
        return self._setting.branches and not self._setting.replication.share

    @property
    def stored_were_used(self) -> bool:
        """Whether a loss has read what forward stores and the plans have no gradient of."""
        return any(stored.used for stored in self._all_stored)

    @property
    def layouts_differ(self) -> bool:
        """Whether results turned out to be copied that the plans do not count."""
        return any(map(lies, self._believed))

    def check_accumulation(self, model: nn.Module) -> None:
        """Say so, once, when gradients are accumulated that the budget has no room for."""
        last = self.current
        if self._told or last is None or last.held_peak_bytes <= last.plan.budget_bytes:
            return
        # Gradients in buckets are there in any case; without reduction they stay out of them.
        in_buckets = self._setting.replication.bucket_view
        if not (accumulates_outside_of_buckets() if in_buckets else gradients_held(model)):
            return
        self._told = True
        logger.warning(
            "gradients of an earlier backward pass are still there; beside them the step of %s "
            "peaks at %s, over its budget of %s; call memfit.fit(..., accumulate=True), which "
            "counts them, or zero_grad(set_to_none=True) before the forward pass",
            self._setting.name,
            format_bytes(last.held_peak_bytes),
            format_bytes(last.plan.budget_bytes),
        )

    def compiling(self, given: Given) -> None:
        """A call begins, which may compile."""
        self.error = None
        self.given = given
        self._asked = False
        self.count.call()
        if self._setting.progress is not None and not self.compiled:
            self._setting.progress(CAPTURING, 0.0)  # Dynamo does not say how far it is

    def called(self, given: Given) -> None:
        """A step has run. Say so, once, where its inputs took more than the plan made room for.

        Dynamo compiles nothing anew where only an input has grown that the step does not read, or
        the memory of which an input is a part.
        """
        last = self.current
        if self._told_inputs or last is None:
            return
        more = given.plain_bytes - last.given_bytes
        peak = last.plan.peak_bytes + more
        if more <= 0 or peak <= last.plan.budget_bytes:
            return
        self._told_inputs = True
        logger.warning(
            "inputs that %s does not read, or memory of which its inputs are parts, take %s more "
            "than when it was planned; with them the step peaks at %s, over its budget of %s; "
            "leave out what is not read, and clone what is a part",
            self._setting.name,
            format_bytes(more),
            format_bytes(peak),
            format_bytes(last.plan.budget_bytes),
        )

    def failed(self, error: Exception) -> None:
        """A compilation ended in an error: ranks that wait for this one's graph learn of it."""
        if isinstance(self._planning, Shared) and not self._asked:
            self._planning.fail(error)
