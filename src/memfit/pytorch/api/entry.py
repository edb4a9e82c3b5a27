"""The library's front door: `fit` and `plan`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from torch import nn

from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph.plan import Plan
from memfit.planners.base import TradeOff
from memfit.planners.registry import get_curve
from memfit.pytorch.api.fitted import FittedModule
from memfit.pytorch.api.training_mode import as_it_trains
from memfit.pytorch.arguments import Fitted, check_callable, check_inputs, check_module
from memfit.pytorch.branches.notes import with_branches_noted
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.executors import MakeBackend
from memfit.pytorch.opaque.notes import is_opaque, with_units_noted
from memfit.pytorch.options import StepKeywords, StepOptions, step_options
from memfit.pytorch.planning.sizes import parse_shapes
from memfit.pytorch.ranks.replication import Parallel, is_sharded
from memfit.pytorch.step_call import StepModule, captured_graph

__all__ = [
    "LOSS",
    "WITHOUT",
    "capture",
    "captured",
    "check_model",
    "fit",
    "plan",
    "plan_step",
    "trade_off",
]

WITHOUT = ("plan", "executor", "overlap", "same_plan", "shapes", "max_shapes")
"""Options that make no sense where nothing is run."""

LOSS = "give a function of the model's result and the target, such as torch.nn.MSELoss()"


def fit(
    model: nn.Module,
    loss_fn: Callable[..., Any] | None = None,
    **options: Unpack[StepKeywords],
) -> FittedModule:
    """A module that trains like `model`, within a memory budget, with the same gradients.

    It is captured and planned at its first call in training mode, and again for each new input
    shape (docs/shapes.md).

    Args:
        model: the model; its parameters are shared, not copied.
        loss_fn: called as `loss_fn(model(*inputs), target)`; with it, the fitted module takes
            `(*inputs, target)` and returns the loss, and head and loss are inside the plan.

    Keyword Args:
        budget (str | int | Budget | None): peak of the whole step (parameters, gradients, optimizer
            state, inputs, activations, workspace): bytes (`"3GiB"`, `"800MB"`, an int), a share of
            the plain step's peak (`"60%"`), or `"auto"` (what the device has free).
        planner (str): a registered planner; `"auto"`, the default, is `liveness`, or `nested` where
            the budget asks for computing values more than once.
        mode (str): `time`, `memory` or `auto`, for the paper's planners.
        executor (str): `"eager-graph"` runs PyTorch's ordinary kernels, op by op, with eager's
            bits; `"inductor"` has Inductor generate code for the planned graphs, and holds its
            fusions and the order of its kernels to the budget.
        cost (str): `"measured"` (time and workspace of each op, measured once and cached on disk)
            or `"analytic"`.
        optimizer (torch.optim.Optimizer | None): counts its state into the budget.
        optimizer_bytes (str | int): the size of that state, where there is no optimizer to give.
        plan (Plan | str | os.PathLike[str] | None): a plan made before for this model and these
            shapes, or the path of its file, instead of `budget`.
        accumulate (bool): gradients are accumulated over several backward passes, or zeroed in
            place, so that the budget has to hold every `.grad` from the start of the step.
        loops (str): what becomes of `scan` and `while_loop` in the model: `"unroll"` plans every op
            of every step, `"roll"` plans the loop as a chain of equal steps and runs it as a loop,
            whatever its length; `"auto"` rolls the long ones.
        fullgraph (bool): refuse a model of which a part cannot be traced. By default the smallest
            module around that part runs as one op, whose saved tensors are kept or whose forward
            pass is run again, as the plan says; a warning names it (docs/any-model.md).
        overlap (bool | None): hand each parameter's gradient over as soon as it is final, instead
            of all at the end of the backward pass. By default where the fitted module is wrapped in
            `DistributedDataParallel`, which then reduces gradients while the backward pass runs.
        same_plan (bool | None): rank 0 plans and all ranks run its plan; ranks whose graphs differ
            raise `PlanMismatchError`, all of them. By default under `DistributedDataParallel`; with
            False each rank plans for itself.
        shapes (Sequence[Any] | None): inputs of calls to come, captured and planned at the first
            call in training mode, so that none of them has to wait later. Each entry holds what one
            call of the fitted module is given (with a loss, the target last): a tuple of tensors,
            or `(args, kwargs)`. Only shapes, strides and types of the tensors are read; those on
            device `meta` (`torch.empty(8, 128, device="meta")`) stand for the model's device and
            take no memory.
        max_shapes (int): number of different input shapes after which a new one is a
            `CaptureError`. At 16 that were not planned ahead there is a warning.
        time_limit_s (float | None): seconds after which the planner stops with the best plan so
            far, which says so in its notes; capture and measurement are not counted.
        progress (Progress | None): called with a label and the share done while capturing,
            measuring and planning.

    Raises:
        InvalidBudgetError, UnknownPlannerError, UsageError: at once, for wrong arguments.
    """
    check_callable("loss_fn", loss_fn, LOSS)
    asked = step_options("memfit.fit", options)
    check_model(model)
    run = asked.run
    examples = parse_shapes(run.shapes, run.max_shapes)
    parallel = Parallel(run.overlap, run.same_plan)
    return FittedModule(
        model, loss_fn, MakeBackend.of(model, asked), parallel, examples, asked.progress
    )


def capture(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[StepKeywords],
) -> CapturedStep:
    """The training step as a graph with costs, without running it.

    Arguments are those of `plan`, without what says how it is planned: `cost`, `optimizer`,
    `optimizer_bytes`, `accumulate`, `loops`, `fullgraph`, `progress`.
    """
    without = (*WITHOUT, "budget", "planner", "mode", "time_limit_s")
    asked = step_options("capture", options, without=without, budget=False)
    return captured(model, example_inputs, loss_fn, example_kwargs, asked)


def captured(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None,
    example_kwargs: Mapping[str, Any] | None,
    options: StepOptions,
    *,
    thrifty: bool = False,
) -> CapturedStep:
    """`capture`, of options that are checked; for `thrifty` see `step_call.compile_step`."""
    check_model(model)
    check_callable("loss_fn", loss_fn, LOSS)
    check_inputs(example_inputs, example_kwargs)
    with as_it_trains(model):
        step = StepModule(model, loss_fn)
        backend = MakeBackend.of(model, options)(model, decide=False)
        kwargs = dict(example_kwargs or {})
        return captured_graph(step, backend, tuple(example_inputs), kwargs, thrifty=thrifty)


def plan(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[StepKeywords],
) -> Plan:
    """The plan that `fit` would make, without training anything.

    Arguments that are not listed here are those of `fit`: `budget` (required), `planner`, `mode`,
    `cost`, `optimizer`, `optimizer_bytes`, `accumulate`, `loops`, `fullgraph`, `time_limit_s`,
    `progress`.

    Args:
        example_inputs: the positional arguments of one call of the fitted module: the model's
            inputs and, with a loss, the target.
        example_kwargs: keyword arguments of the model, if any.

    Raises:
        InfeasibleBudgetError: no plan fits; names the smallest feasible budget.
        CaptureError: the model cannot be captured.
        UsageError: an argument is wrong.
    """
    return plan_step(model, example_inputs, loss_fn, example_kwargs=example_kwargs, **options)[1]


def plan_step(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[StepKeywords],
) -> tuple[CapturedStep, Plan]:
    """The captured step beside the plan that `plan` makes of it; arguments and errors are its."""
    began = time.perf_counter()
    asked = step_options("memfit.plan", options, without=WITHOUT)
    step = captured(model, example_inputs, loss_fn, example_kwargs, asked)
    fresh = MakeBackend.of(model, asked).fresh
    if step.loops:
        step, made = fresh.plan_loops(step, step.loops)
    else:
        try:
            made = fresh.decide(step.graph)
        except InfeasibleBudgetError as error:
            if not is_opaque(step.graph):
                raise
            step = captured(model, example_inputs, loss_fn, example_kwargs, asked, thrifty=True)
            made = fresh.decide(step.graph, error.budget_bytes)
    made = with_branches_noted(with_units_noted(made, step), step.joint)
    seconds = {"seconds_with_capture": round(time.perf_counter() - began, 3)}
    return step, replace(made, provenance={**made.provenance, **seconds})


def trade_off(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[StepKeywords],
) -> TradeOff:
    """What every budget would cost, from one run, without training anything.

    Arguments that are not listed here are those of `plan`, without `budget` and `mode`. A loop that
    is rolled counts as it is where it repeats nothing.

    Keyword Args:
        planner (str): `"auto"` or a planner that has a trade-off: `liveness`, `nested`, `exact`,
            `approximate`.

    Raises:
        UnknownPlannerError, UsageError: for a planner without a trade-off.
        CaptureError: the model cannot be captured.
    """
    without = (*WITHOUT, "budget", "mode")
    asked = step_options("memfit.trade_off", options, without=without, budget=False)
    curve = get_curve(asked.planning.planner)
    step = captured(model, example_inputs, loss_fn, example_kwargs, asked)
    return curve(step.graph, asked.planning.of_planner(asked.progress))


def check_model(model: Any) -> None:
    """Refuse what is no module, or one that cannot be planned as a whole.

    Raises:
        UsageError: see there.
    """
    check_module(model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise UsageError(
            "model is wrapped in DistributedDataParallel already; fit the model and wrap the "
            "result: DistributedDataParallel(memfit.fit(model, ...))"
        )
    if is_sharded(model):
        raise UsageError(
            f"the {type(model).__name__} is sharded already; fit its blocks first, then shard "
            "them: for block in memfit.fit_blocks(model, blocks, budget=...): fully_shard(block)"
        )
    if any(isinstance(m, Fitted) for m in model.modules()):
        raise UsageError(
            f"the {type(model).__name__} is, or holds, a module that is fitted already, and plans "
            "do not nest; fit the plain model once, or its parts one by one"
        )
