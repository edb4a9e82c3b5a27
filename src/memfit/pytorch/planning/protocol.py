"""One protocol for all that makes a plan of a captured step: `plan(draft, occasion)`.

`Fresh` asks a planner, `ByShape` looks first at what is known of other input shapes, `Shared` lets
rank 0 plan for all; each may stand around the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch.cost.op_calls import OpCall
from memfit.pytorch.loops.run import LoopProgram

__all__ = ["Costed", "Draft", "Occasion", "PlannedStep", "Planning", "S"]


class Costed(Protocol):
    """A captured step, fused or not."""

    @property
    def graph(self) -> TrainingGraph: ...

    def with_costs(self, costs: Sequence[tuple[int, int]]) -> Self: ...


S = TypeVar("S", bound=Costed)


@dataclass(frozen=True)
class Draft(Generic[S]):
    """A captured step before its ops have costs.

    Attributes:
        step: as captured.
        price: gives it costs; given estimated times, it measures workspaces only.
        calls: what each op of its graph calls.
        kept_by: further calls that costs depend on.
        programs: its rolled loops.
    """

    step: S
    price: Callable[[S, Mapping[int, int] | None], S]
    calls: Callable[[], Sequence[OpCall]]
    kept_by: Callable[[], Sequence[OpCall]] = tuple
    programs: Sequence[LoopProgram] = ()

    def priced(self, times: Mapping[int, int] | None = None) -> S:
        """The step with costs."""
        return self.price(self.step, times)


@dataclass(frozen=True)
class PlannedStep(Generic[S]):
    """A step with costs, and its plan."""

    step: S
    plan: Plan


@dataclass(frozen=True)
class Occasion:
    """When and for what a plan is made.

    Attributes:
        inputs: the inputs' shapes, for people.
        capture_s: seconds that capturing the step took.
        ahead: nobody waits for it: there is no time limit but the user's.
        step_s: seconds that a training step takes; None where none has run yet.
        budget_bytes: the budget, where it is known; else the step's graph decides.
    """

    inputs: str = ""
    capture_s: float = 0.0
    ahead: bool = False
    step_s: float | None = None
    budget_bytes: int | None = None


class Planning(Protocol):
    """What makes a plan of a captured step."""

    def plan(self, draft: Draft[Any], occasion: Occasion) -> PlannedStep[Any]:
        """The step with costs, and its plan.

        Raises:
            InfeasibleBudgetError: no plan fits.
        """
        ...
