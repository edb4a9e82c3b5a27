"""What Dynamo calls for one of its graphs: code that follows a plan, which may be exchanged.

The graph is compiled by AOTAutograd for one plan. Another plan takes its place by compiling the
graph again at a later call; Dynamo and its guards see nothing of it. A backward pass that is still
to come has its own code in its autograd node, and is not touched.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.multiprocessing.reductions import StorageWeakRef

from memfit.errors import CaptureError, InfeasibleBudgetError, MemfitError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.planners.several.runs import GraphRun
from memfit.pytorch.capture.cuda_workspace import kept_workspace_bytes
from memfit.pytorch.capture.stored_outputs import stored_in
from memfit.pytorch.compat.autograd import compiled_nodes, number_of
from memfit.pytorch.compat.dynamo import is_meant_for_dynamo
from memfit.pytorch.compat.fake import FakeTensor
from memfit.pytorch.compat.remedies import remedy_for_op
from memfit.pytorch.compiled.runs import StepRuns
from memfit.pytorch.compiled.specialise import key_of_sizes, specialised
from memfit.pytorch.compiled.storages import storages
from memfit.pytorch.compiled.unplanned import Unplanned
from memfit.pytorch.compiled.warnings import BudgetWarning
from memfit.pytorch.executors import backend_for
from memfit.pytorch.failures.explain import no_code
from memfit.pytorch.failures.second_use import on_backward
from memfit.pytorch.failures.told import first_line, out_of_memory, own_fault
from memfit.pytorch.options import MAX_SHAPES
from memfit.pytorch.planning.protocol import Draft, Occasion, PlannedStep
from memfit.pytorch.prepare.tracing import trace_settings
from memfit.pytorch.step_call import no_leaf_warnings

__all__ = ["PlannedGraph", "SymbolicGraph"]

NAME = "the compiled graph"
_REMEDY = (
    "fit the model with memfit.fit, or keep that part (nested tensors, for one) out of what is "
    "compiled"
)
MAX_EXCHANGES = 4  # of one graph's plan: steps that differ each time must not compile for ever
MANY_SHAPES = 16  # from here on, a warning
_MOST_MET = 4096  # combinations that are counted
FEW_SHAPES = 4  # so many are planned at once; others have to come back first


@dataclass(frozen=True)
class _Decided:
    """A `Planning` of a part of a step: its plan is made for what the other parts leave it."""

    decide: Callable[[TrainingGraph], Plan]

    def plan(self, draft: Draft[Any], occasion: Occasion) -> PlannedStep[Any]:
        """See `Planning`."""
        step = draft.priced()
        return PlannedStep(step, self.decide(step.graph))


class PlannedGraph:
    """A graph of fixed sizes, compiled; a `memfit.pytorch.compiled.runs.Part` of its step.

    Args:
        step: the step that it is a part of.
        module: Dynamo's graph.
        example_inputs: what it is given.
        line: source line of the graph break that ends it, None where it ends without one.
        unread_bytes: what was given beside that, and no graph reads.
        call: of `torch.compile`, kept alive.

    Raises:
        MemfitError: it cannot be captured, planned or compiled.
    """

    def __init__(
        self,
        step: StepRuns,
        module: fx.GraphModule,
        example_inputs: Sequence[Any],
        line: str | None,
        unread_bytes: int = 0,
        call: object = None,
    ) -> None:
        self.graph: TrainingGraph | None = None
        self.plan: Plan | None = None
        self.line = line
        self.provisional = False
        self._wanted: Plan | None = None  # from the next run on
        self._exchanges = 0
        self.held_peak_bytes = 0
        self.stored = stored_in(module)
        self._call = call  # which lives as long as its graphs
        self._step = step
        self._module = module
        self._unread_bytes = unread_bytes
        self._static = [i for i, x in enumerate(example_inputs) if _is_static(x)]
        self._others = [i for i in range(len(example_inputs)) if i not in set(self._static)]
        self._static_ids: list[int] = []
        self._trained: list[int] = []
        self._static_sizes: dict[int, int] = {}
        self._static_gradients: dict[int, int] = {}
        inputs, _ = self._read(example_inputs)

        def first_plan(graph: TrainingGraph) -> Plan:
            decided = step.decide(line, graph, inputs)
            self.provisional = decided.provisional
            return decided.plan

        self._compile(example_inputs, first_plan)

    def __call__(self, *args: Any) -> Any:
        """Run the graph."""
        if self.plan is None or not torch.is_grad_enabled():
            return self._run(*args)
        if any(isinstance(x, FakeTensor) for x in args):  # Dynamo asks for the outputs' strides
            return self._run(*args)
        step = self._step
        step.begin()
        if self.stored is not None and self.stored.used and stored_in(self._module):
            self.stored.put_together()
            self._wanted = self._wanted or self.plan
        if self._wanted is not None or self._backend.layouts_differ:
            self._exchange(args)
        inputs, references = self._read(args)
        result = self._run(*args)
        made = storages(result)
        outputs = {s.cdata: size for s, size in made if s.cdata not in inputs.inputs}
        references.extend(s for s, _ in made)
        found = any(args[i].grad is not None for i in self._trained)
        run = replace(inputs, outputs=outputs)
        began = step.add(self, run, references, _number(result, args), gradients_found=found)
        on_backward(result, args, began)
        return result

    def settle(self, plan: Plan) -> None:
        """See `Part`."""
        self.provisional = False
        followed = self._wanted or self.plan
        same = followed is not None and plan.schedule == followed.schedule
        if not same and self._exchanges < MAX_EXCHANGES:
            self._wanted = plan
            self._exchanges += 1

    def _exchange(self, args: Sequence[Any]) -> None:
        plan, self._wanted = self._wanted or self.plan, None
        assert plan is not None
        others = self._backend.layouts_differ

        def decide(graph: TrainingGraph) -> Plan:
            if graph.fingerprint == plan.graph_fingerprint and not others:
                return plan
            fresh = self._step.fresh
            try:
                return fresh.within(graph, plan.budget_bytes)
            except InfeasibleBudgetError as error:
                if fresh.budget.share is None or not others:
                    raise
                # A share of what the step was thought to take, without the copies.
                return fresh.within(graph, error.minimum_bytes)

        self._compile(args, decide, plan.budget_bytes)

    def _compile(
        self, args: Sequence[Any], decide: Callable[[TrainingGraph], Plan], budget_bytes: int = 0
    ) -> None:
        step = self._step
        first = next((x for x in args if isinstance(x, torch.Tensor)), None)
        if first is not None:
            step.runs_on(first.device)
        fresh = step.fresh
        kept = kept_workspace_bytes(fresh.device) if fresh.device else 0
        optimizer_bytes = fresh.optimizer_bytes
        self._backend = backend = backend_for(
            fresh,
            _Decided(decide),
            resident={
                ValueKind.OPTIMIZER: optimizer_bytes + kept,
                ValueKind.INPUT: self._unread_bytes,
            },
            name=NAME,
            optimizer_bytes=optimizer_bytes,
            held=budget_bytes,
        )
        try:
            with trace_settings(), no_leaf_warnings(*args):
                self._run = backend(self._module, args)
        except Exception as error:
            known = backend.error
            if isinstance(known, MemfitError):
                raise known from None
            if out_of_memory(error):
                raise
            cause = no_code(NAME, error)  # Inductor's errors are Dynamo's, too
            if cause is None and is_meant_for_dynamo(error):
                raise
            cause = cause or own_fault(NAME, known or error)
            said = first_line(known or error)
            raise cause or CaptureError(
                f"{NAME} cannot be planned: {said}; {remedy_for_op(said, _REMEDY)}"
            ) from error
        if backend.compiled:
            made = backend.compiled[-1]
            self.graph, self.plan = made.graph, made.plan
            self.held_peak_bytes = made.held_peak_bytes

    def _read(self, args: Sequence[Any]) -> tuple[GraphRun, list[StorageWeakRef]]:
        """What a run is given. Parameters and buffers are looked at again where they are others."""
        ids = [id(args[i]) for i in self._static]
        if ids != self._static_ids:
            self._static_ids = ids
            static = [args[i] for i in self._static]
            self._static_sizes = {s.cdata: size for s, size in storages(static)}
            self._trained = [i for i in self._static if args[i].requires_grad]
            trained = storages(args[i] for i in self._trained)
            self._static_gradients = {s.cdata: size for s, size in trained}
        others = [args[i] for i in self._others if isinstance(args[i], torch.Tensor)]
        inputs, lasting = dict(self._static_sizes), set(self._static_sizes)
        if self._unread_bytes:
            inputs[-id(self)] = self._unread_bytes  # other tensors in each step: no identity
            lasting.add(-id(self))
        gradients, accumulated = dict(self._static_gradients), {}
        if self._step.fresh.options.capture.accumulate:
            gradients, accumulated = {}, gradients
        references = []
        for x in others:
            for storage, size in storages([x]):
                references.append(storage)
                inputs[storage.cdata] = size
                if x.is_leaf:
                    lasting.add(storage.cdata)
                if x.is_leaf and x.requires_grad:
                    gradients[storage.cdata] = size
        return GraphRun(inputs, frozenset(lasting), {}, gradients, accumulated), references


def _number(results: Sequence[Any], args: Sequence[Any]) -> int | None:
    """The number of the autograd node of a run; None where it has none."""
    given = {id(x) for x in args}
    nodes = compiled_nodes([x for x in results if id(x) not in given])
    return max(map(number_of, nodes), default=None)


def _is_static(value: Any) -> bool:
    """Whether an input is a parameter or a buffer, the same one in each step."""
    return isinstance(value, torch.Tensor) and (
        isinstance(value, nn.Parameter) or bool(getattr(value, "_dynamo_static_input_type", None))
    )


class SymbolicGraph:
    """A Dynamo graph of symbolic sizes: for each combination of sizes, a planned graph of its own.

    The first few are compiled at the first call with these sizes. Where sizes are others in each
    step (tokens that are routed to an expert) that would go on for ever; so a further one is
    planned once it was met often enough, the more often the more there are: sizes that come from
    a few buckets soon have plans, and others hardly ever. From the 65th on there are none.
    """

    def __init__(
        self,
        step: StepRuns,
        module: fx.GraphModule,
        line: str | None,
        unread_bytes: int = 0,
        call: object = None,
    ) -> None:
        self.variants: dict[Hashable, PlannedGraph] = {}
        self._take: dict[Hashable, Callable[[Sequence[Any]], list[Any]]] = {}
        self._call = call  # which lives as long as its graphs
        self._key = key_of_sizes(module)
        self._step = step
        self._module = module
        self._line = line
        self._unread_bytes = unread_bytes
        self._full = False
        self._unplanned = Unplanned(module)
        self._met: Counter[Hashable] = Counter()

    def __call__(self, *args: Any) -> Any:
        """Run the graph for the sizes of these arguments."""
        trains = any(isinstance(x, torch.Tensor) and x.requires_grad for x in args)
        if not (trains and torch.is_grad_enabled()):
            return self._module(*args)
        key = self._key(args)
        if key not in self.variants and not self._make(key, args):
            plans = [v.plan for v in self.variants.values() if v.plan is not None]
            again = self._step.tight or any(plan.overhead for plan in plans)
            self._step.computes_again |= again
            return self._unplanned(args, again=again)
        planned, taken = self.variants[key], self._take[key](args)
        return self._unplanned.watch(args, lambda: planned(*taken))

    def _is_met_often(self, key: Hashable) -> bool:
        more = len(self.variants) - FEW_SHAPES
        if more < 0:
            return True
        if len(self._met) > _MOST_MET:
            self._met.clear()
        self._met[key] += 1
        return self._met[key] > (more + 1) ** 2

    def _make(self, key: Hashable, args: Sequence[Any]) -> bool:
        count = len(self.variants)
        if not self._is_met_often(key):
            return False
        remedy = "pad the inputs to a few sizes"
        if count >= MAX_SHAPES:
            if not self._full:
                self._full = True
                warnings.warn(
                    f"a graph was planned for {count} combinations of input sizes, the most there "
                    f"may be; others run without a plan and may be over the budget; {remedy}",
                    BudgetWarning,
                    stacklevel=2,
                )
            return False
        if count == MANY_SHAPES - 1:
            warnings.warn(
                f"a graph is compiled and planned for {count + 1} combinations of input sizes; "
                f"each takes its time, and there may be {MAX_SHAPES}; {remedy}",
                BudgetWarning,
                stacklevel=2,
            )
        self._step.begin()
        module, take = specialised(self._module, args)
        self.variants[key] = PlannedGraph(
            self._step, module, take(args), self._line, self._unread_bytes
        )
        self._take[key] = take
        return True
