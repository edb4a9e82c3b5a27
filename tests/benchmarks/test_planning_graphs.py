"""The random series-parallel graphs of benchmarks/planning are what they say they are."""

from __future__ import annotations

import math
from types import ModuleType

import pytest

from memfit import _core
from memfit.graph.training_graph import Phase, TrainingGraph
from support.benchmarks import benchmark_module


@pytest.fixture(scope="module")
def graphs() -> ModuleType:
    return benchmark_module("planning.graphs")


def reduces_to_one_edge(graph: TrainingGraph) -> bool:
    """Whether series and parallel reductions shrink the graph to a single edge.

    Valdes, Tarjan and Lawler 1982: so they do if and only if it is two-terminal series-parallel.
    """
    after = [set(s) for s in graph.forward_successors]
    before = [set(p) for p in graph.forward_predecessors]
    waiting = list(range(graph.forward_count))
    left = set(waiting)
    while waiting:
        v = waiting.pop()
        if v not in left or len(before[v]) != 1 or len(after[v]) != 1:
            continue
        (p,), (s,) = before[v], after[v]
        left.discard(v)
        after[p].discard(v)
        before[s].discard(v)
        after[p].add(s)  # sets merge parallel edges
        before[s].add(p)
        waiting += [p, s]
    return len(left) == 2


@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 40, 200])
@pytest.mark.parametrize("seed", range(5))
def test_they_are_series_parallel_and_of_the_size_asked_for(
    graphs: ModuleType, nodes: int, seed: int
) -> None:
    made = graphs.series_parallel(nodes, seed)
    graph = made.graph
    assert graph.forward_count == nodes == sum(made.blocks)
    assert sum(not before for before in graph.forward_predecessors) == 1
    assert sum(not after for after in graph.forward_successors) == 1
    if nodes > 1:
        assert reduces_to_one_edge(graph)


def test_the_reduction_refuses_what_is_not_series_parallel(graphs: ModuleType) -> None:
    #   0 -> 1 -> 3 -> 5, 0 -> 2 -> 4 -> 5 and the bridge 1 -> 4
    before = [(), (0,), (0,), (1,), (1, 2), (3, 4)]
    graph = graphs.bare_graph(before, [1] * 6, [1] * 6, [()] * 6)
    assert not reduces_to_one_edge(graph)


@pytest.mark.parametrize("seed", range(20))
def test_their_number_of_lower_sets_is_known_by_construction(graphs: ModuleType, seed: int) -> None:
    made = graphs.series_parallel(60, seed)
    found = _core.enumerate_lower_sets(made.graph.forward_predecessors, made.lower_sets)
    assert len(found) == made.lower_sets


def test_the_same_seed_gives_the_same_graph_and_another_seed_another(graphs: ModuleType) -> None:
    first, again, other = (graphs.series_parallel(300, seed).graph for seed in (1, 1, 2))
    assert first == again
    assert first.fingerprint == again.fingerprint
    assert first.forward_predecessors != other.forward_predecessors


def test_their_values_and_costs_span_orders_of_magnitude(graphs: ModuleType) -> None:
    graph = graphs.series_parallel(3_000, 7).graph
    sizes = [graph.values[op.outputs[0]].size_bytes for op in graph.forward_ops]
    costs = [op.cost for op in graph.forward_ops]
    assert 1_000 <= min(sizes) < 2_000
    assert 32_000_000 < max(sizes) <= 64_000_000
    # Log-uniform: half of them below the geometric mean of the ends.
    below = sum(size < math.sqrt(1_000 * 64_000_000) for size in sizes)
    assert 0.45 < below / len(sizes) < 0.55
    assert min(costs) == 1
    assert max(costs) == 100


def test_every_forward_op_has_a_backward_op(graphs: ModuleType) -> None:
    graph = graphs.series_parallel(500, 3).graph
    paired = [op.forward_op for op in graph.backward_ops if op.target != "seed"]
    assert sorted(f for f in paired if f is not None) == list(range(500))
    assert all(op.phase is Phase.BACKWARD for op in graph.backward_ops)


def test_cases_are_named_once_and_the_quick_ones_need_no_torch(graphs: ModuleType) -> None:
    quick = [case for case in graphs.CASES.values() if case.quick]
    assert {case.kind for case in quick} == {"published", "series-parallel"}
    assert [c.nodes for c in quick if c.nodes] == [1_000, 5_000]
    graph, facts = graphs.CASES["sp-1000"].load()
    assert graph.forward_count == 1_000
    assert facts["blocks"] > 50
