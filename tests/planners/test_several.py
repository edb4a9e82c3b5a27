"""Plans for several graphs of one step: the pause between passes, the division, what they need."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners.base import PlannerOptions
from memfit.planners.liveness import planner as liveness_dp
from memfit.planners.several.divide import Level, divide
from memfit.planners.several.pause import paused, resumed
from memfit.planners.several.replan import GraphPlans, StepOfGraphs, replan
from memfit.planners.several.runs import (
    EagerPart,
    GraphRun,
    Point,
    beside,
    kept_bytes,
    needs,
    outside_bytes,
    together,
)

MakeGraph = Callable[[Random, int], TrainingGraph]
OPTIONS = PlannerOptions()


def _within(graph: TrainingGraph) -> Callable[[int], Plan]:
    table = liveness_dp.table_for(graph, OPTIONS)
    return lambda budget: liveness_dp.plan_from_table(table, budget, 0.0)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), share=st.floats(0.0, 3.0))
def test_a_plan_with_a_pause_keeps_within_the_budget_beside_it(
    joint_graph: MakeGraph, seed: int, share: float
) -> None:
    graph = joint_graph(Random(seed), 8)
    plans = GraphPlans(graph, _within)
    pause = int(share * plans.plain_peak_bytes) + 1
    budget, plan = plans.smallest(pause)
    plan.schedule.validate(graph)
    plan.check_graph(graph)
    assert plan.peak_bytes <= budget
    assert kept_bytes(graph, plan.schedule) + plans.waiting_bytes + pause <= budget
    with pytest.raises(InfeasibleBudgetError):
        plans.plan(budget - 1, pause)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_a_pause_takes_two_ops_more_and_no_memory(joint_graph: MakeGraph, seed: int) -> None:
    graph = joint_graph(Random(seed), 8)
    more = paused(graph, 10)
    assert len(more.ops) == len(graph.ops) + 2
    assert sum(v.size_bytes for v in more.values) == sum(v.size_bytes for v in graph.values)
    plain = _within(more)(10**12)
    assert resumed(plain, graph).overhead == 0
    assert resumed(plain, graph).peak_bytes == _within(graph)(10**12).peak_bytes


@given(seed=st.integers(0, 10**6))
def test_the_division_fits_where_the_smallest_plans_fit(seed: int) -> None:
    """Against every combination of levels, whose best one is never worse than what is found."""
    random = Random(seed)
    count, top = random.randint(1, 3), 3
    order = [*range(count), *(random.randrange(count) for _ in range(random.randint(0, 3)))]
    held = [random.randint(0, 20) for _ in order]
    points = [
        Point(random.randint(0, len(order)), random.randint(20, 60))
        for _ in range(random.randint(0, 2))
    ]
    table = []
    for _ in range(count):
        kept = sorted(random.randint(0, 20) for _ in range(top + 1))
        cost = sorted((random.randint(0, 9) for _ in range(top)), reverse=True)
        peaks = sorted(random.randint(20, 50) for _ in range(top + 1))
        rows = zip(peaks, kept, [*cost, 0], strict=True)
        table.append([Level(*row) for row in rows])
    budget = random.randint(30, 160)

    def most(levels: tuple[int, ...] | list[int]) -> int:
        taken = [table[g][levels[g]] for g in order]
        peaks, kept = [t.peak_bytes for t in taken], [t.kept_bytes for t in taken]
        return max(needs(held, peaks, kept, points))

    def cost_of(levels: tuple[int, ...] | list[int]) -> int:
        return sum(table[g][levels[g]].overhead for g in order)

    found = divide(order, held, budget, top, lambda g, level: table[g][level], points)
    fitting = [c for c in product(range(top + 1), repeat=count) if most(c) <= budget]
    if most([0] * count) > budget:
        assert found == [0] * count
        return
    assert most(found) <= budget
    assert min(cost_of(c) for c in fitting) <= cost_of(found) <= cost_of([0] * count)
    for g in range(count):  # no graph alone can be given more
        for up in range(found[g] + 1, top + 1):
            levels = [*found[:g], up, *found[g + 1 :]]
            assert most(levels) > budget or cost_of(levels) >= cost_of(found)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), share=st.floats(0.2, 1.2))
def test_planned_together_a_step_fits_or_says_what_it_takes(
    joint_graph: MakeGraph, seed: int, share: float
) -> None:
    random = Random(seed)
    graphs = [joint_graph(random, 6) for _ in range(random.randint(1, 3))]
    order = [*range(len(graphs)), *(random.randrange(len(graphs)) for _ in range(2))]
    held = [random.randint(0, 100) for _ in order]
    points = [
        Point(random.randint(0, len(order)), random.randint(0, 200))
        for _ in range(random.randint(0, 2))
    ]
    step = StepOfGraphs(graphs, order, held, points)
    plain = [GraphPlans(g, _within).plan(10**12) for g in graphs]
    budget = max(1, int(share * max(step.needs(plain))))
    plans, enough = replan(step, budget, _within)
    for plan, graph in zip(plans, graphs, strict=True):
        plan.check_graph(graph)
        plan.schedule.validate(graph)
    assert max(step.needs(plans)) <= enough
    assert enough >= budget
    if enough > budget:  # the budget that is asked for does
        assert replan(step, enough, _within)[1] == enough
    if max(step.needs(plain)) <= budget:
        assert step.overhead(plans) == 0


def _chain(length: int, size: int) -> TrainingGraph:
    """A chain of ops that each keep their output, of one size, for the backward pass."""
    values = [Value("x", size, ValueKind.INPUT), Value("t", size, ValueKind.TANGENT)]
    ops = []
    for i in range(length):
        last = i == length - 1
        values.append(Value(f"a{i}", size, ValueKind.ACTIVATION, is_output=last))
        before = len(values) - 2 if i else 0
        ops.append(Op(f"f{i}", "f", Phase.FORWARD, (before,), (len(values) - 1,), cost=1))
    gradient = 1
    for i in reversed(range(length)):
        values.append(Value(f"g{i}", size, ValueKind.GRADIENT, is_output=i == 0))
        op = Op(f"b{i}", "b", Phase.BACKWARD, (gradient, 2 + i), (len(values) - 1,), cost=1)
        ops.append(op)
        gradient = len(values) - 1
    return TrainingGraph(tuple(values), tuple(ops))


def test_what_a_graph_keeps_while_others_run_is_cut_down_for_them() -> None:
    """By peak alone the first graph would keep everything, as its own peak allows it to."""
    graph = _chain(8, 100)
    step = StepOfGraphs([graph, graph], [0, 1], [0, 0])
    plain = [GraphPlans(graph, _within).plan(10**9)] * 2
    whole = max(step.needs(plain))
    budget = plain[0].peak_bytes + 300
    assert budget < whole
    plans, enough = replan(step, budget, _within)
    assert enough == budget
    assert max(step.needs(plans)) <= budget
    assert kept_bytes(graph, plans[0].schedule) <= 300
    assert plans[1].overhead < plans[0].overhead


def test_memory_that_several_graphs_read_counts_once() -> None:
    weight, x, y, z, target = 1, 2, 3, 4, 5
    first = GraphRun({weight: 10, x: 3}, frozenset({weight, x}), {y: 4}, {weight: 10})
    second = GraphRun(
        {weight: 10, y: 4, target: 7}, frozenset({weight, target}), {z: 5}, {weight: 10}
    )
    # Beside the first: the target, the result z, which nobody reads, and the second's gradient.
    # Beside the second: x.
    assert beside([first, second]) == [7 + 5 + 10, 3]
    assert beside([first]) == [0]
    # A third run that only reads z: z is then gone when the first one runs backward.
    third = GraphRun({z: 5}, frozenset(), {}, {})
    assert beside([first, second, third])[0] == 7 + 10
    assert beside([first, second, third])[2] == 10 + 3 + 4 + 7


def test_what_is_kept_counts_in_the_runs_after_it() -> None:
    assert needs([1, 2, 3], [10, 20, 30], [5, 6, 7]) == [11, 27, 44]


def _random_step(random: Random) -> tuple[list[GraphRun], list[EagerPart | None]]:
    """Runs that hand values on, and code around them that holds some of these and its own."""
    size = {i: random.randint(1, 9) for i in range(60)}
    names = iter(range(10, 60))
    weights, alive = [0, 1, 2], [3, 4]
    runs: list[GraphRun] = []
    eager: list[EagerPart | None] = []
    count = random.randint(1, 4)
    for n in range(count + 1):
        part = None
        if random.random() < 0.7:
            held = {*random.sample(alive, random.randint(0, 2)), *(next(names) for _ in range(2))}
            trained = frozenset(random.sample(weights, random.randint(0, 2)))
            inputs = {i: size[i] for i in (*held, *trained)}
            run = GraphRun(inputs, trained, {}, {i: size[i] for i in trained})
            part = EagerPart(run, random.randint(0, 9))
            alive += held
        eager.append(part)
        if n < count:
            lasting = frozenset({random.choice(weights), 3})
            inputs = {i: size[i] for i in (*lasting, random.choice(alive))}
            made = next(names)
            gradients = {i: size[i] for i in lasting if i in weights}
            runs.append(GraphRun(inputs, lasting, {made: 5}, gradients))
            alive.append(made)
    return runs, eager


@given(seed=st.integers(0, 10**6))
def test_code_outside_of_the_graphs_counts_as_a_set_of_memory_would(seed: int) -> None:
    """At each time of a step: all that was given, made or held before, each memory once."""
    runs, eager = _random_step(Random(seed))
    held, points = together(runs, eager)
    sequence: list[tuple[GraphRun, EagerPart | None]] = []
    for n, part in enumerate(eager):
        if part is not None:
            sequence.append((part.run, part))
        if n < len(runs):
            sequence.append((runs[n], None))
    read = {i for run in runs for i in run.inputs}
    everywhere = {i: b for run, _ in sequence for i, b in run.inputs.items() if i in run.lasting}
    graphs, others = [], []
    for at, (run, part) in enumerate(sequence):
        there = dict(everywhere)
        for before, _ in sequence[:at]:
            there |= {**before.inputs, **before.outputs}
        left: dict[int, int] = {}
        for after, _ in sequence[at + 1 :]:
            there |= {i: b for i, b in after.outputs.items() if i not in read}
            left |= after.gradients
        beside_it = sum(b for i, b in there.items() if i not in run.inputs) + sum(left.values())
        if part is None:
            graphs.append(beside_it)
        else:
            own = sum(run.inputs.values()) + part.more_bytes
            others.append(Point(len(graphs), beside_it + own))
    assert held == graphs
    assert points == others


def test_values_outside_of_the_graphs_are_there_in_all_runs_after_them() -> None:
    weight, x, y, z, mid, scale = range(1, 7)
    first = GraphRun({weight: 10, x: 3}, frozenset({weight, x}), {y: 4}, {weight: 10})
    second = GraphRun({z: 5}, frozenset(), {}, {})
    between = EagerPart(
        GraphRun({y: 4, mid: 7, z: 5, scale: 2}, frozenset({scale}), {}, {scale: 2}), 20
    )
    held, points = together([first, second], [None, between, None])
    # Beside the first: scale and its gradient, and y, which no graph reads, is its own.
    assert held == [2 + 2, 10 + 3 + 4 + 7 + 2]
    assert points == [Point(1, 10 + 3 + 4 + 7 + 5 + 2 + 20)]
    assert needs(held, [100, 50], [30, 1], points) == [104, 26 + 50 + 30, 51 + 30]
    assert outside_bytes([first, second], [None, between, None]) == 7
    assert together([first, second], []) == (beside([first, second]), [])


def test_what_the_last_graph_keeps_is_cut_down_for_the_code_after_it() -> None:
    graph = _chain(8, 100)
    plain = GraphPlans(graph, _within).plan(10**9)
    kept = kept_bytes(graph, plain.schedule)
    budget = plain.peak_bytes
    step = StepOfGraphs([graph], [0], [0], [Point(1, budget - kept + 200)])
    assert max(step.needs([plain])) == budget + 200
    plans, enough = replan(step, budget, _within)
    assert enough == budget
    assert kept_bytes(graph, plans[0].schedule) <= kept - 200
