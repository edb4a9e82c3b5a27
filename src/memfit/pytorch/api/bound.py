"""`memfit.bound`: what no schedule of a model's training step can do better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from memfit.bounds import DEFAULT_TIME_LIMIT_S, LowerBound, bound_graph, highs_version
from memfit.budget import Budget, parse_budget
from memfit.errors import UsageError
from memfit.graph.plain import store_all_schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import Progress
from memfit.pytorch.api.entry import capture
from memfit.pytorch.arguments import check_callable, check_time_limit
from memfit.pytorch.executors import settings_for

__all__ = ["bound"]


def bound(
    model: nn.Module | TrainingGraph,
    example_inputs: Sequence[Any] | None = None,
    loss_fn: Callable[..., Any] | None = None,
    *,
    budget: str | int | Budget,
    cost: str = "measured",
    optimizer: torch.optim.Optimizer | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    accumulate: bool = False,
    time_limit_s: float | None = DEFAULT_TIME_LIMIT_S,
    progress: Progress | None = None,
) -> LowerBound:
    """A lower bound on the overhead of every schedule that fits a budget, in program order.

    See `LowerBound` for what it covers. Needs HiGHS: `pip install "memfit[ilp]"`.

    Args:
        model: the model, or a training graph (`memfit.graph.graph_file.read_graph`) and nothing
            else about it.
        example_inputs: as for `plan`.
        loss_fn: as for `plan`.
        budget: as for `plan`.
        cost: as for `plan`.
        optimizer: as for `plan`.
        example_kwargs: as for `plan`.
        accumulate: as for `plan`.
        time_limit_s: seconds after which the best bound so far is taken, None for the default;
            capture is not counted.
        progress: called with a label and the share done.

    Raises:
        UsageError: highspy is not installed; inputs are missing, or given beside a graph.
        CaptureError: the model cannot be captured.
    """
    highs_version()
    check_time_limit(time_limit_s)
    check_callable("progress", progress, "give a function of a label and the share done, or None")
    if isinstance(model, TrainingGraph):
        if example_inputs is not None or loss_fn is not None:
            raise UsageError("example_inputs or loss_fn are given beside a graph; leave them out")
        parsed = parse_budget(budget)
        if parsed.auto:
            raise UsageError(
                'budget "auto" needs a device; give bytes ("3GiB") or a share of the plain step\'s '
                'peak ("60%")'
            )
        graph = model
        plain = simulate(graph, store_all_schedule(graph)).peak_bytes
        budget_bytes = parsed.resolve(plain_peak_bytes=plain, free_bytes=0)
    else:
        if example_inputs is None:
            raise UsageError("example_inputs are missing; give the arguments of one call")
        settings = settings_for(
            model,
            budget=budget,
            planner="auto",
            mode="auto",
            executor="eager-graph",
            cost=cost,
            optimizer=optimizer,
            prepared=None,
            progress=progress,
            accumulate=accumulate,
        )
        graph = capture(
            model,
            example_inputs,
            loss_fn,
            example_kwargs=example_kwargs,
            cost=cost,
            optimizer=optimizer,
            accumulate=accumulate,
            loops="unroll",
            progress=progress,
        ).graph
        budget_bytes = settings.resolve(graph)
    limit_s = DEFAULT_TIME_LIMIT_S if time_limit_s is None else time_limit_s
    return bound_graph(graph, budget_bytes, time_limit_s=limit_s, progress=progress)
