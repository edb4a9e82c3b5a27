"""The trade-off of a graph for a report page, and the plans of some of its points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, search_all
from memfit.planners.base import TradeOff

__all__ = ["CurveSample", "pick_points", "sample_curve"]


@dataclass(frozen=True)
class CurveSample:
    """A trade-off with plans.

    Attributes:
        curve: the trade-off, every point of it.
        plans: by number of the point, the plan for its budget.
    """

    curve: TradeOff
    plans: Mapping[int, Plan]


def pick_points(curve: TradeOff, most: int) -> list[int]:
    """Numbers of at most `most` points that lie about evenly on the curve, both ends included.

    Points are taken by their distance along the curve, with either axis scaled to its range: the
    steep part counts as much as the flat one.
    """
    points = curve.points
    if len(points) <= most:
        return list(range(len(points)))
    wide = max(1, points[-1].budget_bytes - points[0].budget_bytes)
    high = max(1, points[0].overhead - points[-1].overhead)
    along = [
        (p.budget_bytes - points[0].budget_bytes) / wide + (points[0].overhead - p.overhead) / high
        for p in points
    ]
    wanted = [along[-1] * i / max(1, most - 1) for i in range(most)]
    return sorted({min(range(len(points)), key=lambda n: abs(along[n] - w)) for w in wanted})


def sample_curve(
    graph: TrainingGraph, planner: str, options: PlannerOptions, most: int
) -> CurveSample:
    """The trade-off of a planner, and the plans of at most `most` of its points.

    Raises:
        UsageError: the planner has no trade-off.
    """
    found = search_all(planner, graph, options)
    curve = found.trade_off
    plans: dict[int, Plan] = {}
    picked = pick_points(curve, most)
    for done, number in enumerate(picked):
        if options.progress is not None:
            options.progress("plans along the curve", done / len(picked))
        # A search that a time limit stops may miss a budget which the curve's own search has met.
        try:
            plans[number] = found.plan(curve.points[number].budget_bytes)
        except InfeasibleBudgetError:
            continue
    return CurveSample(curve, plans)
