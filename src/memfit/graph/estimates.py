"""What a reader of a plan should know of workspaces that were estimated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from memfit.errors import InfeasibleBudgetError
from memfit.graph.training_graph import Estimate, TrainingGraph

__all__ = ["UPPER_BOUND", "estimate_note", "noting_estimates"]

UPPER_BOUND = "the smallest feasible budget is an upper bound"

_NAMED = 3
_CURES: Mapping[Estimate, str] = {
    Estimate.ANALYTIC: 'measure it with cost="measured" (--cost measured)',
    Estimate.PROFILER: "plan while no PyTorch profiler is running",
}


def estimate_note(
    graph: TrainingGraph, consequence: str = UPPER_BOUND, remedy: str | None = None
) -> str | None:
    """One line on workspaces that were neither measured nor are known of the kernels.

    Args:
        graph: with costs.
        consequence: what that means for what is told.
        remedy: what to do; by default what has them measured.

    Returns:
        None where there are none.
    """
    ops = _estimated_ops(graph)
    if not ops:
        return None
    told = remedy or _cure(graph)
    return f"{consequence}: {ops}, not measured{f'; {told}' if told else ''}"


def noting_estimates(error: InfeasibleBudgetError, graph: TrainingGraph) -> InfeasibleBudgetError:
    """The error, saying where its smallest budget comes of estimated workspaces."""
    ops = _estimated_ops(graph)
    if not ops:
        return error
    detail = f"an upper bound: {ops}, not measured"
    cure = _cure(graph)
    return InfeasibleBudgetError(
        budget_bytes=error.budget_bytes,
        minimum_bytes=error.minimum_bytes,
        binding_op=error.binding_op,
        detail=f"{error.detail}; {detail}" if error.detail else detail,
        remedy=f"{cure}, or {error.remedy}" if cure else error.remedy,
    )


def _estimated_ops(graph: TrainingGraph) -> str:
    """How many ops have an estimated workspace and what they compute; empty where none has."""
    found = Counter(
        _name(op.target)
        for op in graph.ops
        if op.workspace_estimate is not None and op.workspace_bytes
    )
    if not found:
        return ""
    names = [name for name, _ in found.most_common()]
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    count = found.total()
    listed = ", ".join([*names[:_NAMED], *more])
    return f"the workspace of {count} op{'s' if count > 1 else ''} ({listed}) was estimated"


def _name(target: str) -> str:
    """`convolution` for `aten.convolution.default`."""
    return target.split(".")[1] if target.startswith("aten.") else target


def _cure(graph: TrainingGraph) -> str:
    """What to do to have estimated workspaces measured; empty where nothing helps."""
    reasons = {op.workspace_estimate for op in graph.ops if op.workspace_bytes}
    return next((text for reason, text in _CURES.items() if reason in reasons), "")
