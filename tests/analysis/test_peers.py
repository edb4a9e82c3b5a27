"""What peers reach on a graph, and how it stands beside the trade-off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from memfit.analysis.peers import PeerPoint, module_cuts, peer_points, sqrt_point, undominated
from memfit.graph.plain import store_all_schedule
from memfit.graph.published import bare_graph
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import Source, TrainingGraph
from memfit.planners import PlannerOptions, get_curve


def chain(n: int) -> TrainingGraph:
    before = [[v - 1] if v else [] for v in range(n)]
    return bare_graph(before, [10] * n, [1] * n, [[*before[v], v] for v in range(n)], name="chain")


def test_a_chain_of_equal_ops() -> None:
    graph = chain(16)
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes
    point = sqrt_point(graph)
    assert point.detail == "4 segments of 4 ops"
    assert point.peak_bytes < plain
    # All segments but the last run again, without the op whose value is kept.
    assert point.overhead == 3 * 3


def test_no_peer_beats_the_trade_off(full_graph: Callable[[Random, int], TrainingGraph]) -> None:
    random = Random(3)
    for _ in range(6):
        graph = full_graph(random, 9)
        found = get_curve("nested")(graph, PlannerOptions())
        budgets = [p.budget_bytes for p in found.points]
        for point in peer_points(graph, budgets):
            ours = found.overhead_at(point.peak_bytes)
            assert ours is not None
            assert ours <= point.overhead, point


def test_modules_are_cut_where_paths_change() -> None:
    graph = chain(6)
    paths = ["m.a.0 (f.py:1)", "m.a.0 (f.py:2)", "m.a.1 (f.py:1)", "f.py:9", "m.b (f.py:3)", None]
    sources = [Source.of_text(path) if path else None for path in paths]
    ops = [replace(op, source=source) for op, source in zip(graph.ops[:6], sources, strict=True)]
    graph = replace(graph, ops=(*ops, *graph.ops[6:]))
    assert list(module_cuts(graph)) == [
        (2, [0b001111, 0b111111]),
        (3, [0b000011, 0b001111, 0b111111]),
    ]
    series = [p.series for p in peer_points(graph, [])]
    assert series.count("per module") == 2


def test_a_graph_without_modules_has_no_module_points() -> None:
    points = peer_points(chain(9), [500])
    assert {p.series for p in points} == {
        "chen", "sqrt(n)", "paper, time", "paper, memory", "salimans",
    }  # fmt: skip


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_undominated(order: tuple[int, ...]) -> None:
    points = [PeerPoint("x", "", 10, 5), PeerPoint("x", "", 12, 5), PeerPoint("x", "", 20, 1)]
    assert undominated([points[i] for i in order]) == [points[0], points[2]]
