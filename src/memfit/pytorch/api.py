"""The library's front door: `fit` and `plan`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import memfit
from memfit._core import core_name
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph import TrainingGraph, ValueKind
from memfit.liveness import simulate
from memfit.plan import Plan
from memfit.planners.base import PlannerOptions, Progress, TradeOff
from memfit.planners.registry import get_curve, get_planner
from memfit.pytorch.accumulate import gradient_bytes
from memfit.pytorch.backend import StepBackend, StepModule, captured_graph, resident_values
from memfit.pytorch.capture import CapturedStep
from memfit.pytorch.compat import check_torch_version
from memfit.pytorch.costing import cost_step
from memfit.pytorch.distributed import Parallel, Replication
from memfit.pytorch.fitted import FittedModule
from memfit.pytorch.inductor import InductorBackend, digest_of
from memfit.pytorch.loop_choice import plan_loops
from memfit.pytorch.loop_graph import LOOPS
from memfit.pytorch.loop_run import LoopProgram
from memfit.pytorch.measure import free_bytes
from memfit.pytorch.optimizer import optimizer_state_bytes
from memfit.pytorch.shape_plans import ShapePlans
from memfit.pytorch.shapes import DEFAULT_MAX_SHAPES, ShapeCount, parse_shapes
from memfit.stages import store_all_schedule
from memfit.units import Budget, parse_budget

__all__ = ["EXECUTORS", "capture", "fit", "plan", "plan_step", "trade_off"]

EXECUTORS = ("eager-graph", "inductor")
COSTS = ("measured", "analytic")


@dataclass(frozen=True)
class Settings:
    """Everything that turns a captured step into a plan."""

    budget: Budget
    planner: str
    options: PlannerOptions
    cost: str
    optimizer: torch.optim.Optimizer | None
    prepared: Plan | None = None
    device: torch.device | None = None
    executor: str = "eager-graph"
    accumulate: bool = False
    optimizer_bytes: int = 0
    max_shapes: int = DEFAULT_MAX_SHAPES
    loops: str = "auto"

    def _optimizer_state_bytes(self) -> int:
        return optimizer_state_bytes(self.optimizer) if self.optimizer else self.optimizer_bytes

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files take the size of the optimizer's state along, not the optimizer."""
        return {
            **self.__dict__,
            "optimizer": None,
            "optimizer_bytes": self._optimizer_state_bytes(),
            "options": replace(self.options, progress=None),
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)

    def backend(
        self, model: nn.Module, replication: Replication | None = None, *, decide: bool = True
    ) -> StepBackend:
        """A Dynamo backend for one model."""
        optimizer_bytes = self._optimizer_state_bytes()
        resident = resident_values(model, optimizer_bytes)
        if replication is not None:
            resident[ValueKind.BUFFER] += replication.bucket_bytes
        if self.accumulate:
            resident[ValueKind.ACCUMULATED] = gradient_bytes(model)
        return self.backend_for(
            decide=self.decide if decide else None,
            resident=resident,
            name=type(model).__name__,
            optimizer_bytes=optimizer_bytes,
            replication=replication,
            plans=self.shape_plans(optimizer_bytes) if decide and self.prepared is None else None,
            loops=self.loops,
        )

    def shape_plans(self, optimizer_bytes: int) -> ShapePlans:
        """The plans of one model at several input shapes."""
        digest = digest_of(
            self.digest(optimizer_bytes), torch.__version__, self.executor, core_name()
        )
        return ShapePlans(
            self, None if self.budget.auto else digest, measures=self.cost == "measured"
        )

    def backend_for(
        self,
        *,
        decide: Callable[[TrainingGraph], Plan] | None,
        resident: Mapping[ValueKind, int],
        name: str,
        optimizer_bytes: int = 0,
        held: int = 0,
        replication: Replication | None = None,
        plans: ShapePlans | None = None,
        loops: str = "unroll",
    ) -> StepBackend:
        """A Dynamo backend of the executor asked for.

        Args:
            decide: the plan for a captured graph; None to capture only.
            resident: bytes alive all through the step, by kind, read by the graph or not.
            name: for messages.
            optimizer_bytes: size of the optimizer's state.
            held: bytes that other graphs of the same step hold.
            replication: how the module runs on several devices.
            plans: makes the plans instead of `decide`, each from what is known of other shapes.
            loops: what becomes of `scan` and `while_loop`, as for `fit`.
        """
        count = ShapeCount(name, self.max_shapes)
        if self.executor == "inductor":
            return InductorBackend(
                cost=self.cost,
                progress=self.options.progress,
                digest=self.digest(optimizer_bytes, held),
                replan=self.decide_within if self.prepared is None else None,
                decide=decide,
                resident=resident,
                name=name,
                plans=plans,
                count=count,
            )
        return StepBackend(
            costs=lambda step, times: cost_step(
                step, self.cost, self.options.progress, times=times
            ),
            decide=decide,
            resident=resident,
            name=name,
            accumulate=self.accumulate,
            replication=replication,
            plans=plans,
            count=count,
            loops=loops,
            progress=self.options.progress,
            plan_loops=self.plan_loops if loops != "unroll" else None,
        )

    def plan_loops(
        self, step: CapturedStep, programs: Sequence[LoopProgram]
    ) -> tuple[CapturedStep, Plan]:
        """A plan of a step with rolled loops, and the step as planned."""

        def decide(graph: TrainingGraph, whole: TrainingGraph) -> Plan:
            return self.decide_within(graph, self.resolve(whole))

        return plan_loops(step, programs, decide, self.prepared)

    def digest(self, optimizer_bytes: int, held: int = 0) -> str:
        """A digest of all that a plan depends on beyond the graph."""
        options = replace(self.options, progress=None)
        made = self.prepared.to_json() if self.prepared is not None else None
        sizes = (optimizer_bytes, held)
        return digest_of(
            memfit.__version__, self.budget, self.planner, options, self.cost, sizes, made
        )

    def decide(self, graph: TrainingGraph) -> Plan:
        """The plan for a captured graph."""
        if self.prepared is not None:
            self.prepared.check_graph(graph)
            return self.prepared
        return self.decide_within(graph, self.resolve(graph))

    def resolve(self, graph: TrainingGraph) -> int:
        """The budget in bytes, of a step that is this graph."""
        plain = simulate(graph, store_all_schedule(graph)).peak_bytes
        held = sum(
            v.size_bytes
            for v in graph.values
            if v.kind.resident and v.kind not in (ValueKind.OPTIMIZER, ValueKind.ACCUMULATED)
        )
        free = free_bytes(self.device or torch.device("cpu")) + held if self.budget.auto else 0
        return self.budget.resolve(plain_peak_bytes=plain, free_bytes=free)

    def decide_within(
        self, graph: TrainingGraph, budget_bytes: int, time_limit_s: float | None = None
    ) -> Plan:
        """The plan for a captured graph and a budget, within a time limit beside the user's."""
        limits = [s for s in (self.options.time_limit_s, time_limit_s) if s is not None]
        options = replace(self.options, time_limit_s=min(limits, default=None))
        made = get_planner(self.planner)(graph, budget_bytes, options)
        if made.peak_bytes > budget_bytes:
            raise InfeasibleBudgetError(
                budget_bytes=budget_bytes,
                minimum_bytes=made.peak_bytes,
                binding_op=None,
                detail=f"the simulated peak of planner {made.planner}, mode {made.mode}, whose "
                "formula leaves out gradients and workspace; mode auto and planner liveness count "
                "them",
            )
        return replace(made, provenance={**made.provenance, **self.origin(graph)})

    def origin(self, graph: TrainingGraph) -> dict[str, Any]:
        """What the provenance of every plan says."""
        return {
            "memfit": memfit.__version__,
            "torch": torch.__version__,
            "device": str(self.device or "cpu"),
            "cost": self.cost,
            "graph_name": graph.name,
        }


def _settings(
    model: nn.Module,
    *,
    budget: str | int | Budget | None,
    planner: str,
    mode: str,
    executor: str,
    cost: str,
    optimizer: torch.optim.Optimizer | None,
    prepared: Plan | None,
    progress: Progress | None,
    time_limit_s: float | None = None,
    accumulate: bool = False,
    max_shapes: int = DEFAULT_MAX_SHAPES,
    loops: str = "auto",
) -> Settings:
    check_torch_version()
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model is a {type(model).__name__}, not a torch.nn.Module; give the module itself"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise UsageError(
            "model is wrapped in DistributedDataParallel already; fit the model and wrap the "
            "result: DistributedDataParallel(memfit.fit(model, ...))"
        )
    if executor not in EXECUTORS:
        raise UsageError(f"unknown executor {executor!r}; known executors: {', '.join(EXECUTORS)}")
    if accumulate and executor == "inductor":
        raise UsageError(
            'accumulate=True is not supported by executor "inductor"; use executor "eager-graph"'
        )
    if cost not in COSTS:
        raise UsageError(f"unknown cost {cost!r}; known costs: {', '.join(COSTS)}")
    if loops not in LOOPS:
        raise UsageError(f"unknown loops {loops!r}; write one of {', '.join(LOOPS)}")
    if loops == "roll" and executor == "inductor":
        raise UsageError(
            'loops="roll" is not supported by executor "inductor"; use executor "eager-graph"'
        )
    if budget is None and prepared is None:
        raise UsageError('no budget; give budget="3GiB", a share such as "60%", or a plan')
    if time_limit_s is not None and not time_limit_s >= 0:
        raise UsageError(f"time_limit_s is {time_limit_s!r}; give seconds, 0 or more, or None")
    get_planner(planner)
    parsed = parse_budget(budget) if budget is not None else Budget(auto=True)
    first = next(iter(model.parameters()), None)
    return Settings(
        budget=parsed,
        planner=planner,
        options=PlannerOptions(mode=mode, time_limit_s=time_limit_s, progress=progress),
        cost=cost,
        optimizer=optimizer,
        prepared=prepared,
        device=first.device if first is not None else None,
        executor=executor,
        accumulate=accumulate,
        max_shapes=max_shapes,
        loops=loops,
    )


def fit(
    model: nn.Module,
    loss_fn: Callable[..., Any] | None = None,
    *,
    budget: str | int | Budget | None = None,
    planner: str = "auto",
    mode: str = "auto",
    executor: str = "eager-graph",
    cost: str = "measured",
    optimizer: torch.optim.Optimizer | None = None,
    plan: Plan | None = None,
    accumulate: bool = False,
    loops: str = "auto",
    overlap: bool | None = None,
    same_plan: bool | None = None,
    shapes: Sequence[Any] | None = None,
    max_shapes: int = DEFAULT_MAX_SHAPES,
    time_limit_s: float | None = None,
    progress: Progress | None = None,
) -> FittedModule:
    """A module that trains like `model`, within a memory budget, with the same gradients.

    It is captured and planned at its first call in training mode, and again for each new input
    shape (docs/shapes.md).

    Args:
        model: the model; its parameters are shared, not copied.
        loss_fn: called as `loss_fn(model(*inputs), target)`; with it, the fitted module takes
            `(*inputs, target)` and returns the loss, and head and loss are inside the plan.
        budget: peak of the whole step (parameters, gradients, optimizer state, inputs, activations,
            workspace): bytes (`"3GiB"`, `"800MB"`, an int), a share of the plain step's peak
            (`"60%"`), or `"auto"` (what the device has free).
        planner: a registered planner; `"auto"`, the default, is `liveness`, or `nested` where the
            budget asks for computing values more than once.
        mode: `time`, `memory` or `auto`, for the paper's planners.
        executor: `"eager-graph"` runs PyTorch's ordinary kernels, op by op, with eager's bits;
            `"inductor"` has Inductor generate code for the planned graphs, and holds its fusions
            and the order of its kernels to the budget.
        cost: `"measured"` (time and workspace of each op, measured once and cached on disk) or
            `"analytic"`.
        optimizer: counts its state into the budget.
        plan: a plan made before for this model and these shapes, instead of `budget`.
        accumulate: gradients are accumulated over several backward passes, or zeroed in place, so
            that the budget has to hold every `.grad` from the start of the step.
        loops: what becomes of `scan` and `while_loop` in the model: `"unroll"` plans every op of
            every step, `"roll"` plans the loop as a chain of equal steps and runs it as a loop,
            whatever its length; `"auto"` rolls the long ones.
        overlap: hand each parameter's gradient over as soon as it is final, instead of all at the
            end of the backward pass. By default where the fitted module is wrapped in
            `DistributedDataParallel`, which then reduces gradients while the backward pass runs.
        same_plan: rank 0 plans and all ranks run its plan; ranks whose graphs differ raise
            `PlanMismatchError`, all of them. By default under `DistributedDataParallel`; with
            False each rank plans for itself.
        shapes: inputs of calls to come, captured and planned at the first call in training mode, so
            that none of them has to wait later. Each entry holds what one call of the fitted module
            is given (with a loss, the target last): a tuple of tensors, or `(args, kwargs)`. Only
            shapes, strides and types of the tensors are read; those on device `meta`
            (`torch.empty(8, 128, device="meta")`) stand for the model's device and take no memory.
        max_shapes: number of different input shapes after which a new one is a `CaptureError`. At
            16 that were not planned ahead there is a warning.
        time_limit_s: seconds after which the planner stops with the best plan so far, which says so
            in its notes; capture and measurement are not counted.
        progress: called with a label and the share done while capturing, measuring and planning.

    Raises:
        InvalidBudgetError, UnknownPlannerError, UsageError: at once, for wrong arguments.
    """
    settings = _settings(
        model,
        budget=budget,
        planner=planner,
        mode=mode,
        executor=executor,
        cost=cost,
        optimizer=optimizer,
        prepared=plan,
        progress=progress,
        time_limit_s=time_limit_s,
        accumulate=accumulate,
        max_shapes=max_shapes,
        loops=loops,
    )
    examples = parse_shapes(shapes, max_shapes)
    if examples and plan is not None:
        raise UsageError("shapes and plan are given; a plan is for one shape only, leave one out")
    return FittedModule(
        model, loss_fn, settings.backend, Parallel(overlap, same_plan), examples, progress
    )


def capture(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    cost: str = "measured",
    optimizer: torch.optim.Optimizer | None = None,
    accumulate: bool = False,
    loops: str = "auto",
    progress: Progress | None = None,
) -> CapturedStep:
    """The training step as a graph with costs, without running it; arguments as for `plan`."""
    settings = _settings(
        model,
        budget="auto",
        planner="auto",
        mode="auto",
        executor="eager-graph",
        cost=cost,
        optimizer=optimizer,
        prepared=None,
        progress=progress,
        accumulate=accumulate,
        loops=loops,
    )
    was_training = model.training
    model.train()
    try:
        step = StepModule(model, loss_fn)
        backend = settings.backend(model, decide=False)
        return captured_graph(step, backend, tuple(example_inputs), dict(example_kwargs or {}))
    finally:
        if not was_training:
            model.eval()


def plan(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    budget: str | int | Budget,
    planner: str = "auto",
    mode: str = "auto",
    cost: str = "measured",
    optimizer: torch.optim.Optimizer | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    accumulate: bool = False,
    loops: str = "auto",
    time_limit_s: float | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan that `fit` would make, without training anything.

    Args:
        model, loss_fn, budget, planner, mode, cost, optimizer, accumulate, loops, time_limit_s,
            progress: as for `fit`.
        example_inputs: the positional arguments of one call of the fitted module: the model's
            inputs and, with a loss, the target.
        example_kwargs: keyword arguments of the model, if any.

    Raises:
        InfeasibleBudgetError: no plan fits; names the smallest feasible budget.
        CaptureError: the model cannot be captured.
    """
    return plan_step(
        model,
        example_inputs,
        loss_fn,
        budget=budget,
        planner=planner,
        mode=mode,
        cost=cost,
        optimizer=optimizer,
        example_kwargs=example_kwargs,
        accumulate=accumulate,
        loops=loops,
        time_limit_s=time_limit_s,
        progress=progress,
    )[1]


def plan_step(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    budget: str | int | Budget,
    planner: str = "auto",
    mode: str = "auto",
    cost: str = "measured",
    optimizer: torch.optim.Optimizer | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    accumulate: bool = False,
    loops: str = "auto",
    time_limit_s: float | None = None,
    progress: Progress | None = None,
) -> tuple[CapturedStep, Plan]:
    """The captured step beside the plan that `plan` makes of it; arguments and errors are its."""
    began = time.perf_counter()
    settings = _settings(
        model,
        budget=budget,
        planner=planner,
        mode=mode,
        executor="eager-graph",
        cost=cost,
        optimizer=optimizer,
        prepared=None,
        progress=progress,
        time_limit_s=time_limit_s,
        accumulate=accumulate,
        loops=loops,
    )
    step = capture(
        model,
        example_inputs,
        loss_fn,
        example_kwargs=example_kwargs,
        cost=cost,
        optimizer=optimizer,
        accumulate=accumulate,
        loops=loops,
        progress=progress,
    )
    if step.loops:
        step, made = settings.plan_loops(step, step.loops)
    else:
        made = settings.decide(step.graph)
    seconds = {"seconds_with_capture": round(time.perf_counter() - began, 3)}
    return step, replace(made, provenance={**made.provenance, **seconds})


def trade_off(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    planner: str = "auto",
    cost: str = "measured",
    optimizer: torch.optim.Optimizer | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    time_limit_s: float | None = None,
    progress: Progress | None = None,
) -> TradeOff:
    """What every budget would cost, from one run, without training anything.

    Args:
        model, loss_fn, cost, optimizer, time_limit_s, progress: as for `fit`.
        planner: `"auto"` or a planner that has a trade-off: `liveness`, `nested`, `exact`,
            `approximate`.
        example_inputs, example_kwargs: as for `plan`.

    Raises:
        UnknownPlannerError, UsageError: for a planner without a trade-off.
        CaptureError: the model cannot be captured.
    """
    curve = get_curve(planner)
    step = capture(
        model,
        example_inputs,
        loss_fn,
        example_kwargs=example_kwargs,
        cost=cost,
        optimizer=optimizer,
        progress=progress,
    )
    return curve(step.graph, PlannerOptions(time_limit_s=time_limit_s, progress=progress))
