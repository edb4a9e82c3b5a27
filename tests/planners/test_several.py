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
from memfit.planners.several.runs import GraphRun, beside, kept_bytes, needs

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
        return max(needs(held, [t.peak_bytes for t in taken], [t.kept_bytes for t in taken]))

    def cost_of(levels: tuple[int, ...] | list[int]) -> int:
        return sum(table[g][levels[g]].overhead for g in order)

    found = divide(order, held, budget, top, lambda g, level: table[g][level])
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
    step = StepOfGraphs(graphs, order, held)
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
