"""What every planner reaches on one graph, and the paper's own plans beside ours.

The paper's plans are the time- and memory-centric strategies of the exact and of the approximate
dynamic program, for every nominal budget, each simulated with liveness analysis by memfit's one
simulator. `thorough` asks for every nominal budget at which a plan may change; otherwise budgets of
their formulas are a hundredth of the plain peak apart.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from memfit.analysis.peers import PeerPoint, chen_points, salimans_points, undominated
from memfit.cuts.functions import functions_of
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plain import store_all_order
from memfit.graph.plan import Plan
from memfit.graph.simulator import peak_of_order, simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_planner
from memfit.planners.liveness import planner as liveness_dp
from memfit.planners.nested import planner as nested_dp
from memfit.planners.paper.system import PaperTable, Strategy, build_table

__all__ = ["FAMILIES", "SHARES", "Ours", "describe", "plain_peak_bytes"]

FAMILIES = {"exact": "all", "approximate": "pruned"}
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_OPTIONS = PlannerOptions()
_FINEST = 1_000
_COARSE = 100

Say = Callable[[str], None]


def plain_peak_bytes(graph: TrainingGraph) -> int:
    """Simulated peak of the step that keeps everything, each value freed at its last use."""
    return peak_of_order(graph, store_all_order(graph))


@dataclass(frozen=True)
class Ours:
    """The searches behind `liveness` and `nested`, from which plans for any budget are read."""

    liveness: liveness_dp.LivenessTable
    nested: nested_dp.NestedPlans | None
    liveness_seconds: float
    nested_seconds: float

    @classmethod
    def of(cls, graph: TrainingGraph) -> Ours:
        """Search a graph."""
        began = time.perf_counter()
        table = liveness_dp.table_for(graph, _OPTIONS)
        middle = time.perf_counter()
        plans = nested_dp.nested_for(graph, _OPTIONS)
        return cls(table, plans, middle - began, time.perf_counter() - middle)

    def plan(self, name: str, budget_bytes: int) -> Plan:
        """The plan of `liveness` or `nested` for a budget, checked.

        Raises:
            InfeasibleBudgetError: none fits.
        """
        if name == "liveness":
            found = liveness_dp.plan_from_table(self.liveness, budget_bytes, 0.0)
        else:
            found = nested_dp.plan_from_tables(self.liveness, self.nested, budget_bytes, 0.0)
        graph = self.liveness.graph
        found.schedule.validate(graph)
        assert simulate(graph, found.schedule).peak_bytes == found.peak_bytes <= budget_bytes
        assert found.schedule.overhead(graph) == found.overhead
        return found

    def smallest(self, name: str) -> Plan:
        """The plan of the smallest budget that the planner can meet; one byte less is refused."""
        return _smallest(lambda budget: self.plan(name, budget))


def _smallest(plan: Callable[[int], Plan]) -> Plan:
    try:
        return plan(0)
    except InfeasibleBudgetError as error:
        least = error.minimum_bytes
    found = plan(least)
    assert found.peak_bytes <= least
    try:
        plan(least - 1)
    except InfeasibleBudgetError:
        return found
    raise AssertionError(f"a budget below the smallest one, {least}, was met")


def paper_strategies(table: PaperTable, plain_bytes: int, thorough: bool, say: Say) -> PaperPoints:
    """The paper's plans for all nominal budgets, simulated."""
    graph = table.graph
    known: dict[tuple[str, tuple[int, ...]], tuple[PeerPoint, Strategy]] = {}
    asked = 0

    def sets(budget: int, mode: str) -> tuple[int, ...]:
        nonlocal asked
        asked += 1
        strategy = table.strategy(budget, mode)
        assert strategy is not None, "a budget above the smallest one has a strategy"
        key = (mode, strategy.lower_sets)
        if key not in known:
            if len(known) % 50 == 0:
                say(f"{table.family}: {len(known)} plans simulated")
            overhead = strategy.schedule.overhead(graph)
            point = PeerPoint(mode, str(len(key[1])), strategy.peak_bytes, overhead)
            known[key] = point, strategy
        return key[1]

    def halve(mode: str, low: int, at_low: object, high: int, at_high: object) -> None:
        """Nominal budgets between two, until neighbours agree or are next to each other."""
        if at_low == at_high or high - low <= max(1, plain_bytes // _FINEST):
            return
        middle = (low + high) // 2
        at_middle = sets(middle, mode)
        halve(mode, low, at_low, middle, at_middle)
        halve(mode, middle, at_middle, high, at_high)

    for mode in ("time", "memory"):
        changes = sorted(budget for _, budget in table.stages.curve())
        if thorough:
            found = [(budget, sets(budget, mode)) for budget in changes]
            for (low, at_low), (high, at_high) in itertools.pairwise(found):
                halve(mode, low, at_low, high, at_high)
        else:
            step = max(1, plain_bytes // _COARSE)
            for budget in {*range(changes[0], changes[-1], step), changes[-1]}:
                sets(budget, mode)
    return PaperPoints(table, tuple(known.values()), asked)


@dataclass(frozen=True)
class PaperPoints:
    """The paper's plans of one family, simulated.

    Attributes:
        table: the trade-off by the formulas.
        found: the points, each with its strategy; `series` is the mode.
        asked: how many nominal budgets were asked for, both modes together.
    """

    table: PaperTable
    found: tuple[tuple[PeerPoint, Strategy], ...]
    asked: int

    def points(self, *modes: str) -> list[PeerPoint]:
        """The points of the modes."""
        return [point for point, _ in self.found if point.series in modes]


def describe(graph: TrainingGraph, *, thorough: bool, say: Say) -> dict[str, Any]:
    """All rows of a graph; asserts that plans are whole, within budget, and what they say."""
    plain = plain_peak_bytes(graph)
    say("liveness and nested")
    ours = Ours.of(graph)
    best = {name: ours.smallest(name) for name in ("liveness", "nested")}
    seconds = {"liveness": ours.liveness_seconds, "nested": ours.nested_seconds}
    result: dict[str, Any] = {
        "name": graph.name,
        "ops": len(graph.ops),
        "forward_ops": graph.forward_count,
        "nodes": len(functions_of(graph).heads),
        "cost_unit": graph.cost_unit,
        "total_cost": graph.total_cost,
        "forward_cost": graph.forward_cost,
        "resident_bytes": graph.resident_bytes,
        "plain_bytes": plain,
        "smallest": {
            name: {
                **_point(plan.peak_bytes, plan.overhead),
                "seconds": seconds[name],
                "notes": list(plan.notes),
                "most_recomputations": plan.most_recomputations,
            }
            for name, plan in best.items()
        },
        "at_share": {name: _ours_at(ours, name, plain) for name in best},
    }
    peers: dict[str, Sequence[PeerPoint]] = {}
    for name, make in (("chen", chen_points), ("salimans", salimans_points)):
        began = time.perf_counter()
        peers[name] = make(graph)
        seconds[name] = time.perf_counter() - began
    for name, family in FAMILIES.items():
        began = time.perf_counter()
        table = build_table(graph, family, _OPTIONS)
        least = table.strategy(table.minimum_bytes, "time")
        assert least is not None
        seconds[name] = time.perf_counter() - began
        found = paper_strategies(table, plain, thorough, say)
        for mode in ("time", "memory"):
            peers[f"{name}, {mode}"] = found.points(mode)
        peers[name] = found.points("time", "memory")
        result[name] = _compared(graph, ours, found, best, say) | {
            "family": table.family,
            "lower_sets": len(table.lower_sets),
            "notes": list(table.notes),
            "seconds": seconds[name],
            "nominal_budgets": found.asked,
            "plans": len(found.found),
            "formula_smallest_bytes": graph.resident_bytes + table.minimum_bytes,
        }
    for name, points in peers.items():
        if points:
            least_point = min(points, key=lambda p: (p.peak_bytes, p.overhead))
            result["smallest"][name] = {
                **_point(least_point.peak_bytes, least_point.overhead),
                "seconds": seconds.get(name),
            }
        result["at_share"][name] = [_peer_at(points, int(s * plain)) for s in SHARES]
    if points := peers["salimans"]:
        result["salimans"] = [[p.detail, p.peak_bytes, p.overhead] for p in points]
    return result


def _point(peak_bytes: int, overhead: int) -> dict[str, Any]:
    return {"peak_bytes": peak_bytes, "overhead": overhead}


def _ours_at(ours: Ours, name: str, plain: int) -> list[int | None]:
    found: list[int | None] = []
    for share in SHARES:
        try:
            found.append(ours.plan(name, int(share * plain)).overhead)
        except InfeasibleBudgetError:
            found.append(None)
    return found


def _peer_at(points: Iterable[PeerPoint], budget_bytes: int) -> int | None:
    return min((p.overhead for p in points if p.peak_bytes <= budget_bytes), default=None)


def _compared(
    graph: TrainingGraph,
    ours: Ours,
    paper: PaperPoints,
    best: dict[str, Plan],
    say: Say,
) -> dict[str, Any]:
    """Ours beside the paper's plans of one family: smallest peaks, overheads at equal peaks.

    `equal_peak` has for each of their plans that no other of them beats, and that computes
    something again, its peak, its overhead, and ours (the least of `liveness` and `nested`) with
    that peak as the budget.
    """
    strategies = dict(paper.found)
    rows = []
    for point in undominated(list(strategies)):
        strategies[point].schedule.validate(graph)
        if point.overhead == 0:
            continue
        if len(rows) % 50 == 0:
            say(f"{paper.table.family}: {len(rows)} plans compared at equal peak")
        # `nested` answers with the plan of `liveness` where that costs no more.
        within = best["nested"].smallest_feasible_budget_bytes <= point.peak_bytes
        mine = ours.plan("nested", point.peak_bytes).overhead if within else -1
        rows.append([point.peak_bytes, point.overhead, mine])
    low = min(p.peak_bytes for p in strategies)
    cuts = [1 - mine / theirs for _, theirs, mine in rows]
    assert all(mine >= 0 for _, _, mine in rows), "a peak of theirs is out of our reach"
    return {
        "smallest_peak_lower": {name: 1 - p.peak_bytes / low for name, p in best.items()},
        "overhead_lower": sum(cuts) / len(cuts) if cuts else None,
        "overhead_lower_least": min(cuts, default=None),
        "equal_peak": rows,
    }


def feasible(name: str, graph: TrainingGraph, budget_bytes: int) -> Plan | None:
    """The plan of a planner within a budget, None if there is none."""
    try:
        return get_planner(name)(graph, budget_bytes, _OPTIONS)
    except InfeasibleBudgetError:
        return None
