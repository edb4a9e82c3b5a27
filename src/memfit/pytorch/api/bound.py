"""`memfit.bound`: what no schedule of a model's training step can do better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from torch import nn

from memfit.bounds import DEFAULT_TIME_LIMIT_S, LowerBound, bound_graph, highs_version
from memfit.errors import UsageError
from memfit.graph.plain import plain_peak_bytes
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch.api.entry import WITHOUT, captured
from memfit.pytorch.executors import MakeBackend
from memfit.pytorch.options import StepKeywords, step_options

__all__ = ["bound"]


def bound(
    model: nn.Module | TrainingGraph,
    example_inputs: Sequence[Any] | None = None,
    loss_fn: Callable[..., Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[StepKeywords],
) -> LowerBound:
    """A lower bound on the overhead of every schedule that fits a budget, in program order.

    See `LowerBound` for what it covers. Needs HiGHS: `pip install "memfit[ilp]"`.

    Args:
        model: the model, or a training graph (`memfit.graph.graph_file.read_graph`) and nothing
            else about it.
        example_inputs: as for `plan`.
        loss_fn: as for `plan`.
        example_kwargs: as for `plan`.
        options: as for `plan`: `budget` (required), `cost`, `optimizer`, `optimizer_bytes`,
            `accumulate`, `progress`; and `time_limit_s`, seconds after which the best bound so far
            is taken, a minute by default; capture is not counted.

    Raises:
        UsageError: highspy is not installed; inputs are missing, or given beside a graph.
        CaptureError: the model cannot be captured.
    """
    highs_version()
    without = (*WITHOUT, "planner", "mode", "loops")
    asked = step_options("memfit.bound", options, without=without)
    capture = replace(asked.capture, loops="unroll")
    asked = replace(asked, capture=capture)
    budget = asked.planning.budget
    assert budget is not None, "step_options asks for it"
    if isinstance(model, TrainingGraph):
        if example_inputs is not None or loss_fn is not None:
            raise UsageError("example_inputs or loss_fn are given beside a graph; leave them out")
        if budget.auto:
            raise UsageError(
                'budget "auto" needs a device; give bytes ("3GiB") or a share of the plain step\'s '
                'peak ("60%")'
            )
        graph = model
        plain = plain_peak_bytes(graph)
        budget_bytes = budget.resolve(plain_peak_bytes=plain, free_bytes=0)
    else:
        if example_inputs is None:
            raise UsageError("example_inputs are missing; give the arguments of one call")
        graph = captured(model, example_inputs, loss_fn, example_kwargs, asked).graph
        budget_bytes = MakeBackend.of(model, asked).fresh.resolve(graph)
    given = asked.planning.time_limit_s
    limit_s = DEFAULT_TIME_LIMIT_S if given is None else given
    return bound_graph(graph, budget_bytes, time_limit_s=limit_s, progress=asked.progress)
