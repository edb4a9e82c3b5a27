"""Bounds against the cheapest of all schedules, on graphs so small that all can be gone through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from memfit.bounds import bound_graph
from memfit.graph.plain import store_all_schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.strategies.carried import CarriedValues, StepOrder
from memfit.strategies.row_memory import RowMemory
from support.every_schedule import cheapest_schedule

pytest.importorskip("highspy")
_MOST_VALUES = 9
"""More values have too many subsets."""


@dataclass
class _Tally:
    feasible: int = 0
    proven: int = 0
    infeasible: int = 0
    proven_infeasible: int = 0


def budgets(graph: TrainingGraph) -> Iterator[int]:
    floor = RowMemory(CarriedValues(graph, StepOrder.of_program(graph))).floor_bytes
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes
    wanted = [floor + (plain - floor) * sixth // 6 for sixth in range(7)]
    yield from sorted({floor - 1, *wanted})


def compare(graph: TrainingGraph, tally: _Tally) -> None:
    made = [v for v in graph.values if v.kind is ValueKind.ACTIVATION and not v.is_output]
    if len(made) > _MOST_VALUES:
        return
    for budget in budgets(graph):
        best = cheapest_schedule(graph, budget)
        bound = bound_graph(graph, budget)
        if best is None:
            tally.infeasible += 1
            tally.proven_infeasible += bound.infeasible
            assert not bound.proven_optimum
            continue
        best.validate(graph)
        assert simulate(graph, best).peak_bytes <= budget
        optimum = best.overhead(graph)
        tally.feasible += 1
        assert bound.overhead is not None
        assert bound.overhead <= optimum
        if bound.proven_optimum:
            tally.proven += 1
            assert bound.overhead == optimum
            assert bound.witness is not None
            bound.witness.validate(graph)
            assert simulate(graph, bound.witness).peak_bytes <= budget
            assert bound.witness.overhead(graph) == optimum


def test_bounds_are_optima_of_random_graphs(joint_graph: Any, full_graph: Any) -> None:
    tally = _Tally()
    for seed in range(40):
        random = Random(seed)
        compare(joint_graph(random, random.randint(2, 5)), tally)
        compare(full_graph(random, random.randint(3, 6)), tally)
    assert tally.feasible > 150
    assert tally.proven >= 0.98 * tally.feasible
    assert tally.proven_infeasible >= 0.9 * tally.infeasible > 40


@pytest.mark.slow
def test_bounds_are_optima_of_many_random_graphs(joint_graph: Any, full_graph: Any) -> None:
    tally = _Tally()
    for seed in range(1_000, 1_600):
        random = Random(seed)
        compare(joint_graph(random, random.randint(2, 6)), tally)
        compare(full_graph(random, random.randint(3, 7)), tally)
    assert tally.feasible > 2_000
    assert tally.proven >= 0.95 * tally.feasible
