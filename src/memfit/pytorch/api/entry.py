"""The library's front door: `fit` and `plan`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from memfit.budget import Budget
from memfit.errors import UsageError
from memfit.graph.plan import Plan
from memfit.planners.base import PlannerOptions, Progress, TradeOff
from memfit.planners.registry import get_curve
from memfit.pytorch.api.fitted import FittedModule
from memfit.pytorch.api.training_mode import as_it_trains
from memfit.pytorch.arguments import (
    check_callable,
    check_flag,
    check_inputs,
    check_time_limit,
    prepared_plan,
)
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.executors import settings_for
from memfit.pytorch.planning.sizes import DEFAULT_MAX_SHAPES, parse_shapes
from memfit.pytorch.ranks.replication import Parallel
from memfit.pytorch.step_call import StepModule, captured_graph

__all__ = ["LOSS", "capture", "fit", "plan", "plan_step", "trade_off"]

LOSS = "give a function of the model's result and the target, such as torch.nn.MSELoss()"


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
    plan: Plan | str | os.PathLike[str] | None = None,
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
        plan: a plan made before for this model and these shapes, or the path of its file, instead
            of `budget`.
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
    check_callable("loss_fn", loss_fn, LOSS)
    check_flag("overlap", overlap, optional=True)
    check_flag("same_plan", same_plan, optional=True)
    settings = settings_for(
        model,
        budget=budget,
        planner=planner,
        mode=mode,
        executor=executor,
        cost=cost,
        optimizer=optimizer,
        prepared=prepared_plan(plan),
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
    settings = settings_for(
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
    check_callable("loss_fn", loss_fn, LOSS)
    check_inputs(example_inputs, example_kwargs)
    with as_it_trains(model):
        step = StepModule(model, loss_fn)
        backend = settings.backend(model, decide=False)
        return captured_graph(step, backend, tuple(example_inputs), dict(example_kwargs or {}))


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

    Arguments that are not listed here are those of `fit`.

    Args:
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
    settings = settings_for(
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

    Arguments that are not listed here are those of `plan`.

    Args:
        planner: `"auto"` or a planner that has a trade-off: `liveness`, `nested`, `exact`,
            `approximate`.

    Raises:
        UnknownPlannerError, UsageError: for a planner without a trade-off.
        CaptureError: the model cannot be captured.
    """
    curve = get_curve(planner)
    check_time_limit(time_limit_s)
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
