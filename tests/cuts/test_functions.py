"""Ops that keep the books of others, and planners that see through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from memfit.cuts.articulations import articulation_cuts
from memfit.cuts.functions import functions_of
from memfit.cuts.lower_sets import is_lower_set
from memfit.graph.published import bare_graph
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners import PlannerOptions, get_planner
from memfit.planners.paper.system import build_table


def chain(n: int) -> TrainingGraph:
    before = [[v - 1] if v else [] for v in range(n)]
    return bare_graph(before, [1000] * n, [1] * n, [[*before[v], v] for v in range(n)])


def with_updates(graph: TrainingGraph, size: int = 8) -> TrainingGraph:
    """Each op makes a statistic too, which an op at the end of the forward pass stores away; one
    more counts steps."""
    values = list(graph.values)
    forward, updates = [], []
    for op in graph.forward_ops:
        values.append(Value(f"statistic of {op.name}", size, ValueKind.ACTIVATION))
        forward.append(replace(op, outputs=(*op.outputs, len(values) - 1)))
        values.append(Value(f"stored by {op.name}", 0, ValueKind.ACTIVATION))
        reads, writes = (len(values) - 2,), (len(values) - 1,)
        name = f"store {op.name}"
        updates.append(Op(name, "copy_", Phase.FORWARD, reads, writes, 7, recomputable=False))
    values.append(Value("counter", size, ValueKind.BUFFER))
    values.append(Value("counted", size, ValueKind.ACTIVATION))
    counter = len(values) - 2
    reads, writes = (counter,), (counter + 1,)
    updates.append(Op("count", "add", Phase.FORWARD, reads, writes, 7, recomputable=False))
    return TrainingGraph(tuple(values), (*forward, *updates, *graph.backward_ops), "unit")


def test_updates_belong_to_what_they_store() -> None:
    n = 6
    graph = with_updates(chain(n))
    functions = functions_of(graph)
    assert functions.heads == tuple(range(n))
    last = 1 << n - 1 | 1 << 2 * n - 1 | 1 << 2 * n  # the op, its update, and the counter
    assert functions.masks == (*(1 << v | 1 << n + v for v in range(n - 1)), last)
    assert functions.predecessors == chain(n).forward_predecessors
    assert not functions.trivial
    assert functions.added([1] * graph.forward_count) == [2] * (n - 1) + [3]
    for end in range(n + 1):
        assert is_lower_set(graph, functions.widened((1 << end) - 1))


def test_a_graph_without_bookkeeping_is_its_functions() -> None:
    graph = chain(5)
    functions = functions_of(graph)
    assert functions.trivial
    assert functions.masks == (1, 2, 4, 8, 16)
    assert functions.predecessors == graph.forward_predecessors


def test_what_is_read_or_handed_out_is_no_bookkeeping() -> None:
    graph = with_updates(chain(4))
    stored = graph.ops[4].outputs[0]
    handed_out = replace(
        graph,
        values=tuple(
            replace(v, is_output=True) if i == stored else v for i, v in enumerate(graph.values)
        ),
    )
    assert 4 in functions_of(handed_out).heads
    read = replace(
        graph,
        ops=tuple(
            replace(op, inputs=(*op.inputs, stored)) if i == len(graph.ops) - 1 else op
            for i, op in enumerate(graph.ops)
        ),
    )
    assert 4 in functions_of(read).heads
    again = replace(
        graph,
        ops=tuple(
            replace(op, recomputable=True) if i == 4 else op for i, op in enumerate(graph.ops)
        ),
    )
    assert 4 in functions_of(again).heads


def test_an_update_of_two_ops_belongs_to_the_one_that_depends_on_the_other() -> None:
    for linked in (True, False):
        graph = chain(3) if linked else bare_graph([[], [], [0, 1]], [1] * 3, [1] * 3, [[]] * 3)
        values = (*graph.values, Value("both", 8, ValueKind.ACTIVATION))
        reads = (graph.ops[0].outputs[0], graph.ops[1].outputs[0])
        update = Op("u", "u", Phase.FORWARD, reads, (len(values) - 1,), 1, recomputable=False)
        ops = (*graph.forward_ops, update, *graph.backward_ops)
        functions = functions_of(TrainingGraph(values, ops, "unit"))
        assert functions.heads == ((0, 1, 2) if linked else (0, 1, 2, 3))


def test_updates_change_no_plan_of_the_papers_planners_nor_of_chens() -> None:
    plain, updated = chain(16), with_updates(chain(16), size=0)
    assert len(articulation_cuts(updated)) == len(articulation_cuts(plain))
    for family in ("all", "pruned"):
        one, other = (build_table(g, family, PlannerOptions()) for g in (plain, updated))
        assert len(one.lower_sets) == len(other.lower_sets)
        assert one.stages.curve() == other.stages.curve()
    for name in ("exact", "approximate", "chen", "salimans-memory"):
        budget = 12_000
        found = get_planner(name)(plain, budget, PlannerOptions())
        beside = get_planner(name)(updated, budget, PlannerOptions())
        beside.schedule.validate(updated)
        assert (beside.overhead, beside.peak_bytes) == (found.overhead, found.peak_bytes), name


def test_widened_lower_sets_are_lower_sets(
    full_graph: Callable[[Random, int], TrainingGraph],
) -> None:
    random = Random(5)
    for _ in range(30):
        graph = full_graph(random, 9)
        functions = functions_of(graph)
        table = build_table(graph, "all", PlannerOptions())
        assert all(is_lower_set(graph, mask) for mask in table.lower_sets)
        assert sum(mask.bit_count() for mask in functions.masks) == graph.forward_count
        for mode in ("time", "memory"):
            for cost, budget in table.stages.curve():
                strategy = table.strategy(budget, mode)
                assert strategy is not None, cost
                strategy.schedule.validate(graph)
