"""The compile-time side: a Dynamo backend that captures a step, has it planned, and lowers it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from types import CodeType
from typing import Any, NoReturn

import torch
from torch import fx, nn

from memfit.errors import CaptureError, UsageError
from memfit.graph.plan import Plan
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph, Value, ValueKind
from memfit.planners.base import Progress
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep, read_joint
from memfit.pytorch.capture.given import Given
from memfit.pytorch.capture.missing import leave_out, note_missing, outputs_behind
from memfit.pytorch.capture.progress import CAPTURING, TRACING, mark_progress
from memfit.pytorch.capture.stored_outputs import StoredOutputs, stored_in
from memfit.pytorch.compat.dynamo import traced_code, with_fixed_scalars
from memfit.pytorch.compat.eager import aot_backend
from memfit.pytorch.compat.whole_ops import whole_ops
from memfit.pytorch.cost.cost_step import call_of, cost_step
from memfit.pytorch.execute.accumulate import (
    accumulate_when_ready,
    gradients_held,
    hold_gradients,
    used_inside,
)
from memfit.pytorch.execute.lower import lower
from memfit.pytorch.failures.told import failing, guard_backward
from memfit.pytorch.layouts.as_traced import believed, lies
from memfit.pytorch.loops.choice import keeping_everything
from memfit.pytorch.loops.opaque import with_opaque_notes
from memfit.pytorch.loops.rewrite import rewrite_loops
from memfit.pytorch.loops.run import LoopProgram
from memfit.pytorch.planning.protocol import Draft, Occasion, Planning
from memfit.pytorch.planning.shared import Shared
from memfit.pytorch.planning.sizes import PlannedAhead, ShapeCount, shapes_text
from memfit.pytorch.prepare.for_kernels import prepare_for_kernels
from memfit.pytorch.prepare.foreach import write_views_one_by_one
from memfit.pytorch.prepare.handed_back import hand_back, take_out_inputs
from memfit.pytorch.prepare.unnamed_writes import name_writes
from memfit.pytorch.ranks.replication import (
    Replication,
    accumulates_outside_of_buckets,
    check_plain,
    hand_over_gradients,
)
from memfit.units import format_bytes

__all__ = ["CaptureEnds", "CaptureOnly", "Compiled", "StepBackend"]

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


class CaptureEnds(Exception):
    """Ends a compilation that is only there to capture.

    Args:
        step: what was captured, with costs.
    """

    def __init__(self, step: CapturedStep) -> None:
        super().__init__("captured")
        self.step = step


class CaptureOnly:
    """A `Planning` that ends where there would be a plan."""

    def plan(self, draft: Draft[CapturedStep], occasion: Occasion) -> NoReturn:
        """See `Planning`.

        Raises:
            CaptureEnds: always.
        """
        raise CaptureEnds(keeping_everything(draft.priced(), draft.programs))


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
        adds_gradients: whether its backward graphs may add gradients to `.grad` themselves.
        takes_apart: whether what forward stores is planned without a gradient.

    Args:
        planning: makes the plans.
        resident: bytes alive all through the step, by kind, read by the graph or not.
        name: for messages.
        count: of input shapes.
        cost: `measured` or `analytic`.
        progress: called with a label and the share done.
        accumulate: every `.grad` is there from the start.
        replication: how the module runs on several devices.
        loops: what becomes of `scan` and `while_loop`.
    """

    adds_gradients = True

    def __init__(
        self,
        planning: Planning,
        *,
        resident: Mapping[ValueKind, int],
        name: str,
        count: ShapeCount | None = None,
        cost: str = "measured",
        progress: Progress | None = None,
        accumulate: bool = False,
        replication: Replication | None = None,
        loops: str = "unroll",
    ) -> None:
        self._planning = planning
        self._report = progress
        self._loops = loops
        self.programs: list[LoopProgram] = []
        self._cost = cost
        self.count = count or ShapeCount(name)
        self._inputs = ""
        self._resident = resident
        self._name = name
        self._accumulate = accumulate
        self._told = self._told_inputs = False
        self.given = Given()
        self._input_bytes = 0
        self._kinds: dict[int, ValueKind] = {}
        self._leaves: set[int] = set()
        self._behind: Mapping[fx.Node, tuple[int, ...]] = {}
        self._replication = replication or Replication()
        self._overlap = self._replication.overlapper()
        compile_backward = self._overlap.compile_backward if self._overlap else None
        self._aot = aot_backend(self._partition, compile_backward)
        self.compiled: list[Compiled] = []
        self.current: Compiled | None = None
        self.error: Exception | None = None
        self.traced: set[CodeType] = set()
        self.sample: tuple[Sequence[Any], Mapping[str, Any]] | None = None
        self.takes_apart = True
        self._stored: StoredOutputs | None = None
        self._all_stored: list[StoredOutputs] = []
        self._asked = False  # for a plan, in the present call
        self._believed: set[Any] = set()

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        """Dynamo's entry."""
        static = {
            i for i, x in enumerate(example_inputs) if getattr(x, "_dynamo_static_input_type", None)
        }
        if self._report is not None:
            self._report(CAPTURING, 1.0)
        self.traced.update(traced_code())
        self._kinds = {}
        for i, example in enumerate(example_inputs):
            if isinstance(example, nn.Parameter):
                self._kinds[i] = ValueKind.PARAMETER
            elif isinstance(example, torch.Tensor) and i in static:
                self._kinds[i] = ValueKind.BUFFER
        self._leaves = {
            i
            for i, x in enumerate(example_inputs)
            if isinstance(x, torch.Tensor) and x.requires_grad and x.is_leaf
        }
        given = [x for i, x in enumerate(example_inputs) if i not in self._kinds]
        self._inputs = shapes_text([x for x in given if isinstance(x, torch.Tensor)])
        try:
            check_plain(self._name, example_inputs)
            self._input_bytes = self.given.input_bytes(example_inputs, self._kinds)
            self.count.compilation(self._inputs)
        except CaptureError as error:
            self.error = error
            raise
        with whole_ops():
            self._rewrite_loops(module)
        inputs = take_out_inputs(module)
        self._stored = stored = stored_in(module)
        if stored is not None:
            self._all_stored.append(stored)
        before = len(self.compiled)
        self._behind = {}
        compiled = with_fixed_scalars(lambda: self._compile(module, example_inputs))
        record = self.compiled[-1] if len(self.compiled) > before else None
        several = bool(self._behind)

        guarded = False

        def run(*args: Any) -> Any:
            nonlocal guarded
            if self.count.ahead:
                raise PlannedAhead
            self.current = record
            again = stored.begin(args) if stored is not None else None
            with failing(self._name, "forward"):
                results = compiled(*args)
            guarded = guarded or guard_backward(self._name, results)
            if several:
                note_missing(results, args)
            if inputs:
                results = hand_back(results, args, inputs)
            return results if again is None else again.attach(results)

        self.current = record
        return run

    @property
    def stored_were_used(self) -> bool:
        """Whether a loss has read what forward stores and the plans have no gradient of."""
        return any(stored.used for stored in self._all_stored)

    @property
    def layouts_differ(self) -> bool:
        """Whether results turned out to be copied that the plans do not count."""
        return any(map(lies, self._believed))

    # What executors do differently.

    def _compile(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        if self._overlap is None:
            with whole_ops():
                return self._aot(module, example_inputs)
        self._overlap.begin(example_inputs)
        with whole_ops():
            compiled = self._aot(module, example_inputs)
        return self._overlap.wrap(compiled)

    def _rewrite_loops(self, module: fx.GraphModule) -> None:
        try:
            how = self._loops
            if self._replication.share and how != "unroll":
                if how == "roll":
                    raise UsageError(
                        'loops="roll" makes plans that ranks do not share; add same_plan=False, '
                        'or use loops="unroll"'
                    )
                how = "unroll"
            write_views_one_by_one(module)
            name_writes(module)
            self.programs = rewrite_loops(module, how, lambda step: self._priced(step, None))
            if self._report is not None:
                mark_progress(module, self._report)
        except Exception as error:
            self.error = error
            raise

    def _prepare(self, joint: fx.GraphModule) -> None:
        prepare_for_kernels(joint)

    def _read_joint(
        self,
        joint: fx.GraphModule,
        forward_outputs: int,
        kinds: Mapping[fx.Node, ValueKind],
        extra: Sequence[Value] = (),
    ) -> CapturedStep:
        return read_joint(joint, forward_outputs, kinds, extra, name=self._name)

    def _planned(
        self, step: CapturedStep, parameters: Set[fx.Node]
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        nodes = step.node_of
        draft = Draft(
            step, self._priced, lambda: [call_of(n) for n in nodes], programs=self.programs
        )
        self._asked = True
        made = self._planning.plan(draft, self._occasion())
        step, plan = made.step, made.plan
        plan.check_graph(step.graph)
        plan = with_opaque_notes(plan, step.node_of)
        modules = lower(step, plan.schedule)
        self._believed |= believed(step.node_of)
        for module in modules:  # a graph that has loops keeps them alive
            module.meta["memfit_loops"] = self.programs
        self._record(step.graph, plan, self._held_peak(step, plan, parameters))
        return modules

    def _record(self, graph: TrainingGraph, plan: Plan, held_peak_bytes: int = 0) -> None:
        self.compiled.append(Compiled(graph, plan, held_peak_bytes, self.given.plain_bytes))

    def _partition(
        self,
        joint: fx.GraphModule,
        joint_inputs: Any,
        *,
        num_fwd_outputs: int,
        **_: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        if self._report is not None:
            self._report(TRACING, 1.0)
        try:
            self._prepare(joint)
            kinds = J.kinds_of(joint, self._kinds)
            parameters = {p for p, kind in kinds.items() if kind is ValueKind.PARAMETER}
            if self._stored is not None:
                self._stored.read(joint, num_fwd_outputs)
            places = zip(J.primals(joint), J.positions(joint), strict=True)
            leaves = {p for p, i in places if i in self._leaves}
            J.own_gradients(joint, num_fwd_outputs, parameters | leaves)
            step = self._read(joint, num_fwd_outputs, kinds)
            self.count.captured()
            if self._replication.bucket_view:
                step = hand_over_gradients(step, parameters)
            if self._accumulate:
                step = self._holding(step, parameters)
            modules = self._planned(step, parameters)
            return self._handing_over(modules, joint, num_fwd_outputs, parameters)
        except CaptureEnds:
            raise
        except Exception as error:
            self.error = error
            raise

    def _handing_over(
        self,
        modules: tuple[fx.GraphModule, fx.GraphModule],
        joint: fx.GraphModule,
        forward_outputs: int,
        parameters: Set[fx.Node],
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The lowered graphs, with what becomes of each gradient once it is final."""
        if not self.adds_gradients:
            return modules
        self._behind = outputs_behind(joint, forward_outputs)
        if self._overlap is None and not self._replication.reduced:
            inside = used_inside(joint, forward_outputs, parameters)
            accumulate_when_ready(modules[1], joint, inside, self._behind)
        leave_out(modules[1], joint, self._behind)
        if self._overlap is not None:
            return self._overlap.mark(*modules, forward_outputs, J.positions(joint))
        return modules

    def _held_peak(self, step: CapturedStep, plan: Plan, parameters: Set[fx.Node]) -> int:
        if self._accumulate:
            return plan.peak_bytes
        return simulate(self._holding(step, parameters).graph, plan.schedule).peak_bytes

    def _holding(self, step: CapturedStep, parameters: Set[fx.Node]) -> CapturedStep:
        at_end = self._overlap is None and self._replication.reduced
        held = self._resident.get(ValueKind.ACCUMULATED, 0)
        return hold_gradients(step, parameters, held_bytes=held, at_end=at_end)

    def check_accumulation(self, model: nn.Module) -> None:
        """Say so, once, when gradients are accumulated that the budget has no room for."""
        last = self.current
        if self._told or last is None or last.held_peak_bytes <= last.plan.budget_bytes:
            return
        # Gradients in buckets are there in any case; without reduction they stay out of them.
        in_buckets = self._replication.bucket_view
        if not (accumulates_outside_of_buckets() if in_buckets else gradients_held(model)):
            return
        self._told = True
        logger.warning(
            "gradients of an earlier backward pass are still there; beside them the step of %s "
            "peaks at %s, over its budget of %s; call memfit.fit(..., accumulate=True), which "
            "counts them, or zero_grad(set_to_none=True) before the forward pass",
            self._name,
            format_bytes(last.held_peak_bytes),
            format_bytes(last.plan.budget_bytes),
        )

    def _priced(self, step: CapturedStep, times: Mapping[int, int] | None) -> CapturedStep:
        return cost_step(step, self._cost, self._report, times=times)

    def _occasion(self) -> Occasion:
        count = self.count
        return Occasion(self._inputs, count.capture_s, count.ahead, count.step_s)

    def compiling(self, given: Given) -> None:
        """A call begins, which may compile."""
        self.error = None
        self.given = given
        self._asked = False
        self.count.call()
        if self._report is not None and not self.compiled:
            self._report(CAPTURING, 0.0)  # Dynamo does not say how far it is

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
            self._name,
            format_bytes(more),
            format_bytes(peak),
            format_bytes(last.plan.budget_bytes),
        )

    def failed(self, error: Exception) -> None:
        """A compilation ended in an error: ranks that wait for this one's graph learn of it."""
        if isinstance(self._planning, Shared) and not self._asked:
            self._planning.fail(error)

    def _read(
        self, joint: fx.GraphModule, forward_outputs: int, kinds: Mapping[fx.Node, ValueKind]
    ) -> CapturedStep:
        first = self._read_joint(joint, forward_outputs, kinds)
        extra = []
        inputs = self._input_bytes + self._resident.get(ValueKind.INPUT, 0)
        for kind, size in {**self._resident, ValueKind.INPUT: inputs}.items():
            seen = sum(v.size_bytes for v in first.graph.values if v.kind is kind)
            if size > seen and kind is not ValueKind.ACCUMULATED:
                extra.append(Value(f"other {kind.value}s", size - seen, kind))
        if not extra:
            return first
        return self._read_joint(joint, forward_outputs, kinds, extra)
