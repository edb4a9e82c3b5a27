"""Plans for all graphs of a step together, within one budget.

What a graph keeps between its passes is in the way of the graphs after it, and what these take at
their peaks is in its way while it waits. So a graph has two limits: its own peak, and what it keeps
(`pause` makes of both one budget of one graph). The budget is first divided by the trade-offs of
the graphs (`divide`); then each graph, the last one first, is planned once more for exactly the
room that the plans of the others leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate

from memfit.errors import InfeasibleBudgetError
from memfit.graph.plain import plain_peak_bytes
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.planners.several.divide import Level, divide
from memfit.planners.several.pause import paused, resumed
from memfit.planners.several.runs import Point, kept_bytes, needs

__all__ = ["GraphPlans", "StepOfGraphs", "Within", "replan"]

Within = Callable[[TrainingGraph], Callable[[int], Plan]]
"""For a graph, its plan for any budget."""

TOP = 8  # plans of a graph to choose from when the budget is divided, beside the smallest
_SWEEPS = 2
_TRIES = 8


@dataclass(frozen=True)
class GraphPlans:
    """The plans of one graph.

    Attributes:
        graph: the graph.
        within: as for `replan`.
    """

    graph: TrainingGraph
    within: Within
    _known: dict[int, Callable[[int], Plan]] = field(default_factory=dict, repr=False)

    def plan(self, budget_bytes: int, pause_bytes: int = 0) -> Plan:
        """The plan whose peak fits a budget, also in the pause, in which others take so much.

        Raises:
            InfeasibleBudgetError: there is none; names the smallest budget.
        """
        if pause_bytes not in self._known:
            graph = paused(self.graph, pause_bytes) if pause_bytes else self.graph
            self._known[pause_bytes] = self.within(graph)
        made = self._known[pause_bytes](budget_bytes)
        return resumed(made, self.graph) if pause_bytes else made

    def smallest(self, pause_bytes: int = 0) -> tuple[int, Plan]:
        """The smallest budget that there is a plan for, and the plan."""
        budget = 1
        for _ in range(_TRIES):
            try:
                return budget, self.plan(budget, pause_bytes)
            except InfeasibleBudgetError as error:
                budget = max(budget + 1, error.minimum_bytes)
        return budget, self.plan(budget, pause_bytes)

    def modest(self) -> Plan:
        """A plan for a graph that others may follow: small peak, and little kept beside it.

        The others are taken to need half of what the graph itself does if it keeps everything.
        """
        return self.smallest(max(1, (self.plain_peak_bytes - self.graph.resident_bytes) // 2))[1]

    @property
    def plain_peak_bytes(self) -> int:
        """The peak of the graph that keeps everything."""
        return plain_peak_bytes(self.graph)

    @property
    def waiting_bytes(self) -> int:
        """What is there of the graph between its passes beside what it keeps."""
        handed_out = sum(
            v.size_bytes
            for v in self.graph.values
            if v.kind is ValueKind.ACTIVATION and v.is_output
        )
        return self.graph.resident_bytes + handed_out


@dataclass(frozen=True)
class StepOfGraphs:
    """A step of several graphs.

    Attributes:
        graphs: the graphs.
        order: the graph of each run, by its number; a graph may run more than once.
        held: for each run, what is there beside it (`memfit.planners.several.runs.beside`).
        points: times between the runs, at which there is code outside of the graphs to run.
    """

    graphs: Sequence[TrainingGraph]
    order: Sequence[int]
    held: Sequence[int]
    points: Sequence[Point] = ()

    def needs(self, plans: Sequence[Plan]) -> list[int]:
        """For each run, the memory of the whole step at its peak; then for each point."""
        kept = self._kept(plans)
        peaks = [plans[g].peak_bytes for g in self.order]
        return needs(self.held, peaks, [kept[g] for g in self.order], self.points)

    def overhead(self, plans: Sequence[Plan]) -> int:
        """Cost of all recomputations of a step."""
        return sum(plans[g].overhead for g in self.order)

    def room(self, graph: int, plans: Sequence[Plan], budget_bytes: int) -> tuple[int, int | None]:
        """What the plans of the others leave to a graph: for its peak, and for what it keeps.

        The second is None where nothing runs after it.
        """
        kept = self._kept(plans)
        others = list(accumulate((0 if g == graph else kept[g] for g in self.order), initial=0))
        own = list(accumulate((g == graph for g in self.order), initial=0))
        left = [budget_bytes - h - o for h, o in zip(self.held, others, strict=False)]
        keeps = [
            (room - plans[g].peak_bytes) // count
            for room, g, count in zip(left, self.order, own, strict=False)
            if count
        ]
        keeps += [
            (budget_bytes - point.bytes - others[point.runs]) // own[point.runs]
            for point in self.points
            if own[point.runs]
        ]
        keep = min(keeps) if keeps else None
        peak = min(
            room - count * max(0, keep or 0)
            for room, g, count in zip(left, self.order, own, strict=False)
            if g == graph
        )
        return peak, keep

    def _kept(self, plans: Sequence[Plan]) -> list[int]:
        return [kept_bytes(g, p.schedule) for g, p in zip(self.graphs, plans, strict=True)]


def replan(step: StepOfGraphs, budget_bytes: int, within: Within) -> tuple[list[Plan], int]:
    """A plan for each graph of a step.

    Args:
        step: the graphs, and how they run.
        budget_bytes: the budget of the whole step.
        within: the plans of a graph.

    Returns:
        The plans, and the budget that they are for: `budget_bytes`, or a larger one where no plans
        were found for that.
    """
    graphs = [GraphPlans(graph, within) for graph in step.graphs]
    start = [g.modest() for g in graphs]
    plans = _improved(step, graphs, _divided(step, graphs, start, budget_bytes), budget_bytes)
    if max(step.needs(plans)) <= budget_bytes:
        return plans, budget_bytes
    # The smallest plans, found whatever the budget is: what they take is enough.
    small = _improved(step, graphs, start, 1)
    enough = max(budget_bytes, *step.needs(small))
    return _improved(step, graphs, _divided(step, graphs, small, enough), enough), enough


def _rank(step: StepOfGraphs, plans: Sequence[Plan], budget_bytes: int) -> tuple[int, int]:
    """Smaller is better: bytes over the budget first, of all runs, then time."""
    return sum(max(0, n - budget_bytes) for n in step.needs(plans)), step.overhead(plans)


def _pause(plans: GraphPlans, peak_bytes: int, keep_bytes: int | None) -> int:
    """Memory to take in the pause so that within a budget for the peak only so much is kept."""
    if keep_bytes is None:
        return 0
    return max(0, peak_bytes - keep_bytes - plans.waiting_bytes)


def _divided(
    step: StepOfGraphs, graphs: Sequence[GraphPlans], start: Sequence[Plan], budget_bytes: int
) -> list[Plan]:
    pauses = [_pause(g, *step.room(n, start, budget_bytes)) for n, g in enumerate(graphs)]
    smallest = cache(lambda n: graphs[n].smallest(pauses[n]))

    @cache
    def planned(n: int, level: int) -> Plan:
        plain = graphs[n].plain_peak_bytes
        if level == TOP:
            return graphs[n].plan(plain)
        least, plan = smallest(n)
        more = max(0, max(plain, least) - least + pauses[n]) * level // TOP
        return graphs[n].plan(least + more, pauses[n]) if more else plan

    @cache
    def taken(n: int, level: int) -> Level:
        plan = planned(n, level)
        return Level(plan.peak_bytes, kept_bytes(step.graphs[n], plan.schedule), plan.overhead)

    levels = divide(step.order, step.held, budget_bytes, TOP, taken, step.points)
    plans = [planned(n, level) for n, level in enumerate(levels)]
    return min(list(start), plans, key=lambda p: _rank(step, p, budget_bytes))


def _improved(
    step: StepOfGraphs, graphs: Sequence[GraphPlans], plans: Sequence[Plan], budget_bytes: int
) -> list[Plan]:
    """Each graph planned anew for the room that the others leave, where that is better."""
    best = list(plans)
    for n in [*reversed(range(len(graphs)))] * _SWEEPS:
        over, _ = rank = _rank(step, best, budget_bytes)
        if not over and not best[n].overhead:
            continue
        peak, keep = step.room(n, best, budget_bytes)
        pause = _pause(graphs[n], peak, keep)
        try:
            new = graphs[n].plan(max(1, peak), pause)
        except InfeasibleBudgetError:
            new = graphs[n].smallest(pause)[1]
        more = [*best[:n], new, *best[n + 1 :]]
        if _rank(step, more, budget_bytes) < rank:
            best = more
    return [replace(p, budget_bytes=max(p.peak_bytes, p.budget_bytes)) for p in best]
