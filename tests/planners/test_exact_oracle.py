"""The dynamic programs against brute force over all sequences of lower sets, up to 8 ops."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from memfit.errors import InfeasibleBudgetError
from memfit.graph.published import bare_graph
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_curve, get_planner

Outcome = tuple[int, int, int]
"""Overhead, cached bytes and peak of a sequence."""

_MOST_LOWER_SETS = 40


class Oracle:
    """The paper's definitions, word by word, on sets of nodes."""

    def __init__(self, graph: TrainingGraph, pruned: bool) -> None:
        self.nodes = frozenset(range(graph.forward_count))
        self.before = [frozenset(p) for p in graph.forward_predecessors]
        self.after = [frozenset(s) for s in graph.forward_successors]
        self.size = [graph.values[op.outputs[0]].size_bytes for op in graph.forward_ops]
        self.time = [op.cost for op in graph.forward_ops]
        self.family = self._pruned() if pruned else self._all()

    def _all(self) -> set[frozenset[int]]:
        subsets = (
            frozenset(c)
            for size in range(len(self.nodes) + 1)
            for c in combinations(sorted(self.nodes), size)
        )
        return {s for s in subsets if all(self.before[v] <= s for v in s)}

    def _pruned(self) -> set[frozenset[int]]:
        result = {frozenset[int](), self.nodes}
        for v in self.nodes:
            reached = {v}
            while more := {p for w in reached for p in self.before[w]} - reached:
                reached |= more
            result.add(frozenset(reached))
        return result

    def _memory(self, nodes: frozenset[int]) -> int:
        return sum(self.size[v] for v in nodes)

    def _boundary(self, lower: frozenset[int]) -> frozenset[int]:
        return frozenset(v for v in lower if self.after[v] - lower)

    def outcomes(self) -> set[Outcome]:
        """What every sequence that ends in V comes to."""
        found: set[Outcome] = set()

        def extend(lower: frozenset[int], union: frozenset[int], overhead: int, peak: int) -> None:
            if lower == self.nodes:
                found.add((overhead, self._memory(union), peak))
                return
            for upper in self.family:
                if lower < upper:
                    stage = upper - lower
                    beyond = frozenset(s for v in upper for s in self.after[v]) - upper
                    partners = frozenset(p for v in beyond for p in self.before[v]) - upper
                    needed = self._memory(union) + 2 * self._memory(stage)
                    needed += self._memory(beyond) + self._memory(partners)
                    again = sum(self.time[v] for v in stage - self._boundary(upper))
                    extend(
                        upper, union | self._boundary(upper), overhead + again, max(peak, needed)
                    )

        extend(frozenset(), frozenset(), 0, 0)
        return found


def random_graph(seed: int) -> TrainingGraph:
    """A graph of 1 to 8 ops with few enough lower sets to try all sequences."""
    random = Random(seed)
    while True:
        n = random.randint(1, 8)
        before = [sorted(random.sample(range(v), random.randint(0, min(v, 2)))) for v in range(n)]
        graph = bare_graph(
            before,
            [random.choice([0, 1, 2, 3, random.randint(0, 100)]) for _ in range(n)],
            [random.choice([0, 1, 10]) for _ in range(n)],
            [before[v] if random.random() < 0.5 else [v] for v in range(n)],
        )
        if len(Oracle(graph, pruned=False).family) <= _MOST_LOWER_SETS:
            return graph


@pytest.mark.parametrize("planner", ["exact", "approximate"])
@pytest.mark.parametrize("seed", range(60))
def test_plans_equal_brute_force(seed: int, planner: str, core: str) -> None:
    graph = random_graph(seed)
    plan = get_planner(planner)
    outcomes = Oracle(graph, pruned=planner == "approximate").outcomes()
    peaks = sorted({peak for _, _, peak in outcomes})
    for budget in {peaks[0] - 1, *peaks[:: max(1, len(peaks) // 8)], peaks[-1]}:
        fitting = {(t, m) for t, m, peak in outcomes if peak <= budget}
        front = [
            (t, m)
            for t, m in fitting
            if not any(u <= t and k <= m and (u, k) != (t, m) for u, k in fitting)
        ]
        for mode, best in (("time", min), ("memory", max)):
            if not fitting:
                with pytest.raises(InfeasibleBudgetError) as caught:
                    plan(graph, budget, PlannerOptions(mode=mode))
                assert caught.value.minimum_bytes == peaks[0]
                continue
            found = plan(graph, budget, PlannerOptions(mode=mode))
            assert (found.formula_overhead, found.formula_cached_bytes) == best(front)
            assert found.formula_peak_bytes is not None
            assert found.formula_peak_bytes <= budget
            assert found.smallest_feasible_budget_bytes == peaks[0]


@pytest.mark.parametrize("planner", ["exact", "approximate"])
@pytest.mark.parametrize("seed", range(60))
def test_the_trade_off_equals_brute_force(seed: int, planner: str, core: str) -> None:
    graph = random_graph(seed)
    outcomes = Oracle(graph, pruned=planner == "approximate").outcomes()
    points = {(peak, t) for t, _, peak in outcomes}
    front = sorted(
        (peak, t)
        for peak, t in points
        if not any(p <= peak and u <= t and (p, u) != (peak, t) for p, u in points)
    )
    trade_off = get_curve(planner)(graph, PlannerOptions())
    assert [(point.budget_bytes, point.overhead) for point in trade_off.points] == front


def test_the_graphs_tried_are_of_all_sizes() -> None:
    graphs = [random_graph(seed) for seed in range(60)]
    assert {graph.forward_count for graph in graphs} == set(range(1, 9))
    assert max(len(Oracle(graph, pruned=False).family) for graph in graphs) > 25
