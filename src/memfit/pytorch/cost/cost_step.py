"""Costs of a captured step: time and workspace of each op, measured or analytic."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping

from torch import fx

from memfit.graph.training_graph import Estimate
from memfit.planners.base import Progress
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.capture.effects import may_be_measured
from memfit.pytorch.compat.eager import plain_mode, profiler_active
from memfit.pytorch.cost.analytic import analytic_cost
from memfit.pytorch.cost.on_disk import open_cost_cache
from memfit.pytorch.cost.op_calls import OpCall
from memfit.pytorch.cost.profile import DEFAULT_TIME_BUDGET_S, profile_calls
from memfit.pytorch.layouts.as_traced import forms_of
from memfit.pytorch.python_ops import known_cost

__all__ = ["call_of", "cost_step"]

logger = logging.getLogger("memfit")


def cost_step(
    step: CapturedStep,
    cost: str,
    progress: Progress | None = None,
    skip: Container[int] = (),
    call: Callable[[fx.Node], OpCall] | None = None,
    times: Mapping[int, int] | None = None,
) -> CapturedStep:
    """The step with the time and the workspace of each op, and which workspaces are estimates.

    Args:
        step: as captured, without costs.
        cost: `measured` (on synthetic tensors, cached on disk; ops that may have effects are
            estimated) or `analytic`.
        progress: called with a label and the share done.
        skip: ids of ops that get no cost here.
        call: what to cost for a node; its own call if None.
        times: for each op an estimate of its time in ns. Ops are then run for their workspace only,
            which takes the time of about three steps, and their time is the estimate, unless it is
            cached.
    """
    ids = [i for i in range(len(step.graph.ops)) if i not in step.state_ops and i not in skip]
    calls = [(call or call_of)(step.node_of[i]) for i in ids]

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("measuring ops", done / max(1, total))

    if cost == "analytic":
        unmeasured = Estimate.ANALYTIC
    else:
        unmeasured = Estimate.PROFILER if profiler_active() else Estimate.FAILED
    with plain_mode():
        if cost == "analytic":
            found = [analytic_cost(one) for one in calls]
        else:
            quiet = [call for call in calls if may_be_measured(call.target)]
            profile = profile_calls(
                quiet,
                time_budget_s=DEFAULT_TIME_BUDGET_S if times is None else 0.0,
                cache=open_cost_cache(read_only=times is not None),
                progress=report,
            )
            for note in profile.notes:
                logger.info("cost of %s", note)
            measured = iter(profile.costs)
            found = [
                next(measured) if may_be_measured(call.target) else analytic_cost(call)
                for call in calls
            ]
    costs = [(0, 0)] * len(step.graph.ops)
    estimates: dict[int, Estimate] = {}
    for i, one in zip(ids, found, strict=True):
        known = known_cost(step.node_of[i])
        if known is not None:
            costs[i] = known
            continue
        if not one.workspace_known:
            estimates[i] = unmeasured
        planned = sum(step.graph.values[v].size_bytes for v in step.graph.ops[i].outputs)
        # What an op makes need not be what the graph counts as its outputs; an analytic cost knows
        # no storages that are larger than their tensors.
        made = one.output_bytes if one.source != "analytic" else max(one.output_bytes, planned)
        workspace = max(0, one.workspace_bytes + made - planned)
        if i in step.state_of:
            # A replay holds the generator's present state beside the one that it draws from.
            workspace += step.graph.values[step.state_of[i]].size_bytes
        time_ns = one.time_ns
        if times is not None and one.source == "measured":
            time_ns = times[i]
        costs[i] = (time_ns, workspace)
    return step.with_costs(costs, estimates)


def call_of(node: fx.Node) -> OpCall:
    """What a node calls, its arguments without data."""

    def value(n: fx.Node) -> object:
        return n.meta.get("val")

    args = fx.node.map_arg(node.args, value)
    kwargs = fx.node.map_arg(node.kwargs, value)
    return OpCall.of(node.target, args, kwargs, name=node.name, forms=forms_of(node))
