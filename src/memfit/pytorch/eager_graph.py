"""Executor "eager-graph": PyTorch's own kernels, op by op, in the order of the schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from memfit.graph.plan import Plan
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import ValueKind
from memfit.pytorch.branches.notes import with_branches_noted
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.capture.missing import leave_out, outputs_behind
from memfit.pytorch.compat.eager import aot_backend
from memfit.pytorch.compat.whole_ops import whole_ops
from memfit.pytorch.cost.cost_step import call_of
from memfit.pytorch.execute.accumulate import accumulate_when_ready, hold_gradients, used_inside
from memfit.pytorch.execute.lower import lower
from memfit.pytorch.layouts.as_traced import believed
from memfit.pytorch.loops.opaque import with_opaque_notes
from memfit.pytorch.opaque.notes import keep_calls, with_units_noted
from memfit.pytorch.opaque.sparse_gradients import settle_sparse_gradients
from memfit.pytorch.pipeline import (
    Made,
    Modules,
    Partition,
    Setting,
    Traced,
    parameters_of,
    priced,
    read_step,
)
from memfit.pytorch.planning.protocol import Draft, Occasion, Planning
from memfit.pytorch.prepare.for_kernels import prepare_for_kernels
from memfit.pytorch.ranks.replication import hand_over_gradients

__all__ = ["EagerGraph"]


class EagerGraph:
    """Runs the lowered graphs as they are; an `Executor`.

    Args:
        setting: of the step.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._overlap = setting.replication.overlapper()
        self._compile_backward = self._overlap.compile_backward if self._overlap else None

    def capture(self, joint: fx.GraphModule, forward_outputs: int, traced: Traced) -> CapturedStep:
        """See `Executor`."""
        prepare_for_kernels(joint)
        keep_calls(joint)
        settle_sparse_gradients(joint)
        step = read_step(joint, forward_outputs, traced, self._setting)
        if self._setting.replication.bucket_view:
            step = hand_over_gradients(step, parameters_of(joint, traced))
        return self._holding(step, traced) if self._setting.accumulate else step

    def make(
        self, step: CapturedStep, traced: Traced, planning: Planning, occasion: Occasion
    ) -> Made:
        """See `Executor`."""
        nodes = step.node_of
        draft = Draft(
            step,
            lambda step, times: priced(step, self._setting, times),
            lambda: [call_of(node) for node in nodes],
            programs=traced.programs,
        )
        planned = planning.plan(draft, occasion)
        step, plan = planned.step, planned.plan
        plan.check_graph(step.graph)
        plan = with_units_noted(with_opaque_notes(plan, step.node_of), step)
        plan = with_branches_noted(plan, step.joint)
        made = Made(
            step.graph,
            plan,
            lower(step, plan.schedule),
            held_peak_bytes=self._held_peak_bytes(step, plan, traced),
            behind=outputs_behind(step.joint, step.forward_outputs),
            believed=frozenset(believed(step.node_of)),
        )
        for module in made.modules:  # a graph that has loops keeps them alive
            module.meta["memfit_loops"] = traced.programs
        return replace(made, modules=self._hand_over(made, step, traced))

    def _hand_over(self, made: Made, step: CapturedStep, traced: Traced) -> Modules:
        """The lowered graphs, with what becomes of each gradient once it is final."""
        forward, backward = made.modules
        joint, outputs = step.joint, step.forward_outputs
        if self._overlap is None and not self._setting.replication.reduced:
            inside = used_inside(joint, outputs, parameters_of(joint, traced))
            accumulate_when_ready(backward, joint, inside, made.behind)
        leave_out(backward, joint, made.behind)
        if self._overlap is not None:
            return self._overlap.mark(forward, backward, outputs, J.positions(joint))
        return forward, backward

    def _held_peak_bytes(self, step: CapturedStep, plan: Plan, traced: Traced) -> int:
        if self._setting.accumulate:
            return plan.peak_bytes
        return simulate(self._holding(step, traced).graph, plan.schedule).peak_bytes

    def _holding(self, step: CapturedStep, traced: Traced) -> CapturedStep:
        return hold_gradients(
            step,
            parameters_of(step.joint, traced),
            held_bytes=self._setting.resident.get(ValueKind.ACCUMULATED, 0),
            at_end=self._overlap is None and self._setting.replication.reduced,
        )

    def compile(
        self, module: fx.GraphModule, example_inputs: Sequence[Any], partition: Partition
    ) -> Callable[..., Any]:
        """See `Executor`."""
        if self._overlap is not None:
            self._overlap.begin(example_inputs)
        aot = aot_backend(partition, self._compile_backward)
        with whole_ops():
            compiled: Callable[..., Any] = aot(module, example_inputs)
        return compiled if self._overlap is None else self._overlap.wrap(compiled)

    def told(self, plan: Plan) -> Plan:
        """See `Executor`."""
        return plan
