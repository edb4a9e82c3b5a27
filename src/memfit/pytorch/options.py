"""What callers may ask for, checked once: three groups of options, and one set of keywords.

Every door (`fit`, `plan`, `trade_off`, `verify`, `bound`, `torch.compile`, the adapters, the
command line) takes keywords of `StepKeywords`, as far as they make sense there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

import torch

from memfit.budget import Budget, parse_budget, parse_bytes
from memfit.errors import InvalidBudgetError, UsageError
from memfit.graph.plan import Plan
from memfit.planners.base import MODES, PlannerOptions, Progress
from memfit.planners.registry import get_planner
from memfit.pytorch.arguments import (
    check_callable,
    check_choice,
    check_flag,
    check_optimizer,
    check_time_limit,
    prepared_plan,
    short,
)

__all__ = [
    "COSTS",
    "EXECUTORS",
    "KEYWORDS",
    "LOOPS",
    "MAX_SHAPES",
    "CaptureOptions",
    "PlanningOptions",
    "RunOptions",
    "StepKeywords",
    "StepOptions",
    "step_options",
]

EXECUTORS = ("eager-graph", "inductor")
COSTS = ("measured", "analytic")
LOOPS = ("auto", "roll", "unroll")
"""What may become of loops."""

MAX_SHAPES = 64
"""Number of different input shapes after which a new one is an error."""


class StepKeywords(TypedDict, total=False):
    """Keywords of every door, told in `fit`; each door names those that it does not take."""

    budget: str | int | Budget | None
    planner: str
    mode: str
    plan: Plan | str | os.PathLike[str] | None
    time_limit_s: float | None
    cost: str
    optimizer: torch.optim.Optimizer | None
    optimizer_bytes: str | int
    accumulate: bool
    loops: str
    fullgraph: bool
    executor: str
    overlap: bool | None
    same_plan: bool | None
    shapes: Sequence[Any] | None
    max_shapes: int
    progress: Progress | None


@dataclass(frozen=True)
class CaptureOptions:
    """What is captured: the step's graph, what its ops cost, and what is alive all through it.

    Attributes:
        cost: `measured` or `analytic`.
        optimizer: counts its state into the budget.
        optimizer_bytes: size of that state, where no optimizer is given.
        accumulate: every `.grad` is there from the start of the step.
        loops: what becomes of `scan` and `while_loop`.
        fullgraph: what cannot be traced is an error; else modules that cannot be run as one op.

    Raises:
        UsageError: one of them is wrong, or both optimizer and its size are given.
    """

    cost: str = "measured"
    optimizer: torch.optim.Optimizer | None = None
    optimizer_bytes: int = 0
    accumulate: bool = False
    loops: str = "auto"
    fullgraph: bool = False

    def __post_init__(self) -> None:
        check_choice("cost", self.cost, COSTS)
        check_optimizer(self.optimizer)
        object.__setattr__(self, "optimizer_bytes", _size(self.optimizer_bytes))
        check_flag("accumulate", self.accumulate)
        check_flag("fullgraph", self.fullgraph)
        if not isinstance(self.loops, str) or self.loops not in LOOPS:
            raise UsageError(f"unknown loops {short(self.loops)}; write one of {', '.join(LOOPS)}")
        if self.optimizer is not None and self.optimizer_bytes:
            raise UsageError("optimizer and optimizer_bytes are both given; leave one out")


@dataclass(frozen=True)
class PlanningOptions:
    """What is planned.

    Attributes:
        budget: of the whole step; None where a plan is given, or none is made.
        planner: a registered planner, or `auto`.
        mode: of the paper's planners.
        plan: made before, instead of a budget.
        time_limit_s: seconds after which the planner stops with the best plan so far.

    Raises:
        InvalidBudgetError, UnknownPlannerError, PlanMismatchError, UsageError: one of them is
            wrong.
    """

    budget: Budget | None = None
    planner: str = "auto"
    mode: str = "auto"
    plan: Plan | None = None
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", prepared_plan(self.plan))
        check_choice("mode", self.mode, MODES)
        check_time_limit(self.time_limit_s)
        get_planner(self.planner)
        if self.budget is not None:
            object.__setattr__(self, "budget", parse_budget(self.budget))

    def of_planner(self, progress: Progress | None = None) -> PlannerOptions:
        """What the planner itself reads."""
        return PlannerOptions(mode=self.mode, time_limit_s=self.time_limit_s, progress=progress)


@dataclass(frozen=True)
class RunOptions:
    """How it runs.

    Attributes:
        executor: `eager-graph` or `inductor`.
        overlap: hand each gradient over as soon as it is final.
        same_plan: all ranks run rank 0's plan.
        shapes: inputs of calls to come.
        max_shapes: number of input shapes after which a new one is an error.

    Raises:
        UsageError: one of them is wrong; `shapes` is looked at where it is used.
    """

    executor: str = "eager-graph"
    overlap: bool | None = None
    same_plan: bool | None = None
    shapes: Sequence[Any] | None = None
    max_shapes: int = MAX_SHAPES

    def __post_init__(self) -> None:
        check_choice("executor", self.executor, EXECUTORS)
        check_flag("overlap", self.overlap, optional=True)
        check_flag("same_plan", self.same_plan, optional=True)
        if type(self.max_shapes) is not int or self.max_shapes < 1:
            raise UsageError(
                f"max_shapes is {short(self.max_shapes)}; give the number of input shapes, 1 or "
                "more"
            )


@dataclass(frozen=True)
class StepOptions:
    """All options of a step.

    Raises:
        UsageError: some of them do not go together.
    """

    capture: CaptureOptions = field(default_factory=CaptureOptions)
    planning: PlanningOptions = field(default_factory=PlanningOptions)
    run: RunOptions = field(default_factory=RunOptions)
    progress: Progress | None = None

    def __post_init__(self) -> None:
        say = "give a function of a label and the share done, or None"
        check_callable("progress", self.progress, say)
        eager = 'use executor "eager-graph"'
        if self.run.executor == "inductor" and self.capture.accumulate:
            raise UsageError(f'accumulate=True is not supported by executor "inductor"; {eager}')
        if self.run.executor == "inductor" and self.capture.loops == "roll":
            raise UsageError(f'loops="roll" is not supported by executor "inductor"; {eager}')
        if self.run.shapes is not None and self.planning.plan is not None:
            raise UsageError(
                "shapes and plan are given; a plan is for one shape only, leave one out"
            )


_GROUPS: tuple[tuple[str, Any], ...] = (
    ("capture", CaptureOptions),
    ("planning", PlanningOptions),
    ("run", RunOptions),
)
KEYWORDS: tuple[str, ...] = tuple(StepKeywords.__annotations__)


def step_options(
    door: str, given: Mapping[str, Any], *, without: Sequence[str] = (), budget: bool = True
) -> StepOptions:
    """The options that a door was given.

    Args:
        door: its name, for messages.
        given: keywords of `StepKeywords`.
        without: those that the door does not take.
        budget: whether it needs a budget, or a plan where it takes one.

    Raises:
        UsageError: an option is unknown, does not apply there, is wrong, clashes with another one,
            or is missing.
        InvalidBudgetError, UnknownPlannerError, PlanMismatchError: see `PlanningOptions`.
    """
    known = [name for name in KEYWORDS if name not in without]
    for name in given:
        if name not in known:
            wrong = f"unknown option {short(name)} of {door}"
            if name in KEYWORDS:
                wrong = f"option {short(name)} makes no sense for {door}"
            raise UsageError(f"{wrong}; known options: {', '.join(known)}")
    groups = {
        group: kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given})
        for group, kind in _GROUPS
    }
    options = StepOptions(**groups, progress=given.get("progress"))
    if budget and options.planning.budget is None and options.planning.plan is None:
        or_plan = ", or a plan" if "plan" in known else ""
        raise UsageError(
            f'{door} has no budget; give budget="3GiB", a share such as "60%"{or_plan}'
        )
    return options


def _size(value: Any) -> int:
    if type(value) is int and value == 0:
        return 0
    try:
        return parse_bytes(value)
    except InvalidBudgetError:
        raise UsageError(
            f"optimizer_bytes is {short(value)}; give the size of the optimizer's state, 0, "
            '800_000_000 or "800MB"'
        ) from None
