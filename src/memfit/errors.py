"""One exception family; every message names the value, the limit and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from memfit.units import format_bytes

__all__ = [
    "CaptureError",
    "ExecutionError",
    "GraphError",
    "GraphFileError",
    "InfeasibleBudgetError",
    "InvalidBudgetError",
    "MemfitError",
    "PlanMismatchError",
    "TooManyLowerSetsError",
    "UnknownPlannerError",
    "UnsupportedTorchError",
    "UsageError",
]


class MemfitError(Exception):
    """Base class of every error that memfit raises on purpose."""


class UsageError(MemfitError):
    """An argument, file or target is wrong; the message says which and what to write instead."""


class InvalidBudgetError(UsageError):
    """A budget that cannot be read, or that is not a positive number of bytes."""


class UnknownPlannerError(UsageError):
    """A planner name that is not registered."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        self.name = name
        self.known = known
        super().__init__(f"unknown planner {name!r}; known planners: {', '.join(known)}")


class GraphError(UsageError):
    """A training graph that breaks a rule of `memfit.graph`."""


class GraphFileError(GraphError):
    """A graph file that cannot be read; the message names the file, the place and the rule."""


class PlanMismatchError(UsageError):
    """A plan of another graph or of another schema version."""


class CaptureError(UsageError):
    """A model that cannot be captured as one forward and backward graph.

    Attributes:
        frames: file and line of each function that led there, the innermost last; empty where that
            is not known.
        module: path of the innermost module there, likewise "".
    """

    frames: Sequence[tuple[str, int]] = ()
    module: str = ""


class UnsupportedTorchError(UsageError):
    """A PyTorch version that memfit was not written against."""


class ExecutionError(MemfitError):
    """A use of a planned module that its executor does not support."""


class TooManyLowerSetsError(MemfitError):
    """The enumeration of lower sets was stopped at its limit.

    Planners catch it and go on with the next smaller family.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"the graph has more than {limit} lower sets; use a smaller family or raise the limit"
        )


class InfeasibleBudgetError(MemfitError):
    """No plan of the planner's family fits the budget.

    Attributes:
        budget_bytes: the budget asked for.
        minimum_bytes: the smallest budget for which the same planner finds a plan.
        binding_op: name of the op at which the smallest plan reaches its peak, if known.
        detail: what else is to be known of the smallest budget.
        remedy: what to do beside raising the budget.
    """

    def __init__(
        self,
        *,
        budget_bytes: int,
        minimum_bytes: int,
        binding_op: str | None,
        detail: str = "",
        remedy: str = "make the batch smaller",
    ) -> None:
        self.budget_bytes = budget_bytes
        self.minimum_bytes = minimum_bytes
        self.binding_op = binding_op
        self.detail = detail
        self.remedy = remedy
        where = f", reached at {binding_op}" if binding_op else ""
        extra = f" ({detail})" if detail else ""
        share = f'; a share is written "{budget_bytes}%"' if 0 < budget_bytes <= 100 else ""
        super().__init__(
            f"budget {format_bytes(budget_bytes)} ({budget_bytes} bytes) is below the smallest "
            f"feasible budget {format_bytes(minimum_bytes)} ({minimum_bytes} bytes){where}{extra}; "
            f"raise the budget to at least {minimum_bytes} bytes or {remedy}{share}"
        )
