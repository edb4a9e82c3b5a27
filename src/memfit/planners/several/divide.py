"""One budget divided over the graphs of a step, by what each gains from a larger share.

A graph may follow one of several plans, from the one with the smallest peak (level 0) to the one
that keeps everything (the top level). What a run keeps counts in all runs after it. The search
starts with every graph at level 0 and takes, one at a time, the step up that saves the most time
for each byte that it makes later runs hold, as long as every run of the step fits. It is greedy:
feasible wherever level 0 is, least overhead not proven.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memfit.planners.several.runs import Point, needs

__all__ = ["Level", "divide"]


@dataclass(frozen=True, slots=True)
class Level:
    """What a graph takes under one of its plans.

    Attributes:
        peak_bytes: the peak of the plan.
        kept_bytes: what it keeps between its passes.
        overhead: cost of its recomputations.
    """

    peak_bytes: int
    kept_bytes: int
    overhead: int


def divide(
    order: Sequence[int],
    held: Sequence[int],
    budget_bytes: int,
    top: int,
    level: Callable[[int, int], Level],
    points: Sequence[Point] = (),
) -> list[int]:
    """The level of each graph.

    Args:
        order: the graph of each run of the step, 0 … n - 1; a graph may run more than once.
        held: for each run, what is there beside it, kept values left aside.
        budget_bytes: the budget of the whole step.
        top: the highest level.
        level: what a graph takes at a level.
        points: times between the runs of graphs that must fit, too.

    Returns:
        For each graph its level; all 0 where even that does not fit.
    """

    def fits(levels: Sequence[int]) -> bool:
        taken = [level(g, levels[g]) for g in order]
        peaks, kept = [t.peak_bytes for t in taken], [t.kept_bytes for t in taken]
        return max(needs(held, peaks, kept, points)) <= budget_bytes

    count = max(order) + 1
    if fits([top] * count):
        return [top] * count
    levels = [0] * count
    runs = [order.count(g) for g in range(count)]
    last = max([len(order) - 1, *(point.runs for point in points)])
    held_by = [list(order[:last]).count(g) for g in range(count)]  # runs that others come after
    while True:
        best: tuple[float, int, int] | None = None
        for g in range(count):
            now = level(g, levels[g])
            for up in range(levels[g] + 1, top + 1):
                then = level(g, up)
                saved = runs[g] * (now.overhead - then.overhead)
                more = held_by[g] * max(0, then.kept_bytes - now.kept_bytes)
                worth = saved / max(1, more)
                if saved <= 0 or (best is not None and worth <= best[0]):
                    continue
                if fits([*levels[:g], up, *levels[g + 1 :]]):
                    best = (worth, g, up)
        if best is None:
            return levels
        levels[best[1]] = best[2]
