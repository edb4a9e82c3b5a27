"""Nested strategies against all of them, on graphs with few cuts: every tree, played in full."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

import pytest

from memfit import _core
from memfit._core.problem import TopStage, Tree
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.nested.table import NestedEffort, NestedPlans, build_nested
from memfit.strategies.nested import CutLine, NestedPath

EFFORT = NestedEffort(10**9, 6, 1000, 1, ())
"""Few cuts, so that all strategies can be listed; two variants."""

Point = tuple[int, int]


def every_strategy(line: CutLine) -> Iterator[list[TopStage]]:
    """All stages of the first pass with all ways back."""
    last = line.starts[-1]
    variants = len(line.blocks[0].problem.keep_flags)

    @cache
    def trees(i: int, j: int) -> list[Tree]:
        found: list[Tree] = [Tree.leaf(i, j)]
        for k in range(i + 1, j):
            hows = [*range(variants), *trees(i, k)]
            found += [Tree(i, k, j, how, rest) for how in hows for rest in trees(k, j)]
        return found

    def passes(i: int) -> Iterator[list[TopStage]]:
        if i == last:
            yield []
        for k in range(i + 1, last + 1):
            for rest in passes(k):
                for how in (*range(variants), *trees(i, k)):
                    yield [TopStage(i, k, how), *rest]

    return passes(0)


def played(graph: TrainingGraph, path: NestedPath) -> Point:
    """(peak, overhead), by the simulator."""
    path.schedule.validate(graph)
    return simulate(graph, path.schedule).peak_bytes, path.schedule.overhead(graph)


def pareto(points: Iterator[Point]) -> list[Point]:
    best: list[Point] = []
    for point in sorted(set(points)):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def found(plans: NestedPlans) -> list[Point]:
    """(budget, overhead) of every label, by rising budget."""
    costs, needs = plans.front
    pairs = zip(costs, needs, strict=True)
    return [(plans.fixed_bytes + max(0, need), cost) for cost, need in pairs][::-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(30), pytest.param(range(30, 120), marks=pytest.mark.slow)], ids=str
)
def test_chains_are_solved_exactly(full_graph: Any, seeds: range) -> None:
    chains = deeper = 0
    for seed in seeds:
        random = Random(seed)
        graph = full_graph(random, random.randint(3, 6))
        if any(p != (v - 1,) for v, p in enumerate(graph.forward_predecessors) if v):
            continue
        plans = build_nested(graph, EFFORT)
        every = [NestedPath(plans.line, top) for top in every_strategy(plans.line)]
        best = pareto(played(graph, path) for path in every)
        assert found(plans) == best, seed
        chains += 1
        deeper += any(
            plans.path(k).schedule.most_recomputations > 1 for k in range(len(plans.front[0]))
        )
    assert chains > len(seeds) / 8
    assert deeper > len(seeds) / 20


@pytest.mark.slow
def test_no_strategy_beats_the_search_by_more_than_values_that_died_early(
    joint_graph: Any, core: str
) -> None:
    # The search reckons with some values a little longer than they live, so it may ask for more
    # memory than the best strategy needs; where it does not, it finds the best.
    equal = points = 0
    for seed in range(18):
        random = Random(seed)
        graph = joint_graph(random, random.randint(2, 5))
        plans = build_nested(graph, EFFORT)
        for label, (budget, cost) in enumerate(found(plans)[::-1]):
            peak, overhead = played(graph, plans.path(label))
            assert peak <= budget, seed
            assert overhead <= cost, seed
        ours = pareto(played(graph, plans.path(label)) for label in range(len(plans.front[0])))
        every = (NestedPath(plans.line, top) for top in every_strategy(plans.line))
        best = pareto(played(graph, path) for path in every)
        points += len(best)
        equal += sum(point in ours for point in best)
    assert _core.core_name() == core
    assert equal >= 0.8 * points
