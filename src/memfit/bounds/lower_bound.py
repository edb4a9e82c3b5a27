"""LowerBound: no schedule of an order within a budget has a smaller overhead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memfit.graph.schedule import Schedule

__all__ = ["CLOSE", "LowerBound"]

CLOSE = 10_000
"""A schedule attains a bound up to this part of a forward pass (no part where that is below 1)."""


@dataclass(frozen=True, slots=True)
class LowerBound:
    """What no schedule can do better, whatever its planner.

    It holds for every schedule whose forward pass runs each forward op once, whose backward ops run
    once each, both in the given order, and which fits the budget by the simulator; forward ops may
    run again any number of times, anywhere between the backward ops. A bound is not a plan: there
    need not be a schedule that attains it.

    Attributes:
        overhead: no such schedule recomputes for less, in the graph's cost unit; None where it is
            proven that no such schedule fits the budget at all.
        proven_optimum: a schedule is known that fits the budget and has this overhead, up to a
            ten-thousandth of a forward pass where costs are as fine as that.
        witness: that schedule.
        budget_bytes: the budget, peak of the whole step.
        cost_unit: unit of the overhead.
        forward_cost: cost of one forward pass, in that unit.
        method: how the bound was found, for people.
        seconds: time it took.
        notes: what a reader should know, such as a time limit that was reached.
    """

    overhead: int | None
    proven_optimum: bool
    witness: Schedule | None
    budget_bytes: int
    cost_unit: str
    forward_cost: int
    method: str
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def infeasible(self) -> bool:
        """No schedule of the order fits the budget; this is proven."""
        return self.overhead is None

    @property
    def overhead_percent(self) -> float | None:
        """The bound in percent of one forward pass; None where nothing fits."""
        if self.overhead is None:
            return None
        return 100.0 * self.overhead / self.forward_cost if self.forward_cost else 0.0

    def gap_percent(self, overhead: int) -> float | None:
        """How far an overhead is above the bound at most, in percent of one forward pass.

        None where nothing fits.
        """
        if self.overhead is None:
            return None
        return 100.0 * (overhead - self.overhead) / self.forward_cost if self.forward_cost else 0.0

    def to_dict(self, overhead: int | None = None) -> dict[str, Any]:
        """For JSON, without the witness; with an overhead, its gap too."""
        found: dict[str, Any] = {
            "overhead": self.overhead,
            "overhead_percent": self.overhead_percent,
            "infeasible": self.infeasible,
            "proven_optimum": self.proven_optimum,
            "budget_bytes": self.budget_bytes,
            "cost_unit": self.cost_unit,
            "method": self.method,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }
        if overhead is not None:
            found["gap_percent"] = self.gap_percent(overhead)
        return found
