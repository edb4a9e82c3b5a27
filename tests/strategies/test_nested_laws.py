"""Laws of nested strategies: plans fit, cost no more than single recomputations, or revolve."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memfit import _core
from memfit._core.problem import ChainUnit
from memfit._core.reference.chain import chain_table
from memfit.cuts.negligible import slight_bytes
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan
from memfit.graph.published import bare_graph
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners import PlannerOptions, get_curve, get_planner
from memfit.planners.nested.table import EFFORT, build_nested
from memfit.strategies.binomial import forward_steps

OPTIONS = PlannerOptions()
seeds = st.integers(0, 10**9)


def recurrence(steps: int, state: int = 1 << 20, recording: int = 8 << 20) -> TrainingGraph:
    """A chain of alike steps, each with a state and a recording that its backward reads."""
    values = [
        Value("x", state, ValueKind.INPUT),
        Value("tangent", 0, ValueKind.TANGENT),
    ]
    ops: list[Op] = []

    def value(name: str, size: int, kind: ValueKind, is_output: bool = False) -> int:
        values.append(Value(name, size, kind, is_output))
        return len(values) - 1

    states, recordings = [0], []
    for i in range(steps):
        recordings.append(value(f"r{i}", recording, ValueKind.ACTIVATION))
        made = value(f"x{i}", state, ValueKind.ACTIVATION)
        outputs = (recordings[-1], made)
        ops.append(Op(f"f{i}", "step", Phase.FORWARD, (states[-1],), outputs, 1))
        states.append(made)
    loss = value("loss", 4, ValueKind.ACTIVATION, True)
    ops.append(Op("loss", "loss", Phase.FORWARD, (states[-1],), (loss,), 0))
    gradient = value("g", state, ValueKind.GRADIENT)
    ops.append(
        Op("dloss", "dloss", Phase.BACKWARD, (1, states[-1]), (gradient,), 0, forward_op=steps)
    )
    for i in reversed(range(steps)):
        below = value(f"g{i}", state, ValueKind.GRADIENT)
        reads = (gradient, recordings[i], states[i])
        ops.append(Op(f"b{i}", "dstep", Phase.BACKWARD, reads, (below,), 2, forward_op=i))
        gradient = below
    return TrainingGraph(tuple(values), tuple(ops), "unit", f"recurrence of {steps} steps")


def check(graph: TrainingGraph, plan: Plan, budget: int) -> None:
    plan.schedule.validate(graph)
    assert simulate(graph, plan.schedule).peak_bytes == plan.peak_bytes <= budget
    assert plan.overhead == plan.schedule.overhead(graph)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds)
def test_plans_fit_and_cost_no_more_than_single_recomputations(seed: int, joint_graph: Any) -> None:
    random = Random(seed)
    graph = joint_graph(random, random.randint(1, 12))
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes
    single, nested = get_planner("liveness"), get_planner("nested")
    fixed = graph.resident_bytes
    for share in (1.0, 0.9, 0.75, 0.6, 0.45, 0.3):
        budget = fixed + int(share * (plain - fixed))
        try:
            known = single(graph, budget, OPTIONS)
        except InfeasibleBudgetError as error:
            known, least = None, error.minimum_bytes
        minimum = None
        try:
            plan = nested(graph, budget, OPTIONS)
        except InfeasibleBudgetError as error:
            minimum = error.minimum_bytes
        if minimum is not None:
            assert known is None
            assert budget < minimum <= least
            check(graph, nested(graph, minimum, OPTIONS), minimum)
            continue
        check(graph, plan, budget)
        if known is not None:
            assert plan.overhead <= known.overhead


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds)
def test_the_curve_is_met_by_plans(seed: int, joint_graph: Any) -> None:
    random = Random(seed)
    graph = joint_graph(random, random.randint(1, 10))
    curve = get_curve("auto")(graph, OPTIONS)
    single = get_curve("liveness")(graph, OPTIONS)
    assert curve.planner == "auto"
    assert curve.points[0].budget_bytes <= single.points[0].budget_bytes
    for point in curve.points:
        plan = get_planner("nested")(graph, point.budget_bytes, OPTIONS)
        check(graph, plan, point.budget_bytes)
        assert plan.overhead <= point.overhead
        least = single.overhead_at(point.budget_bytes)
        assert least is None or point.overhead <= least


@settings(max_examples=30)
@given(
    steps=st.integers(1, 300),
    checkpoints=st.integers(1, 40),
    cost=st.integers(1, 50),
    held=st.integers(1, 1000),
    leaf=st.integers(0, 5000),
)
def test_chains_take_the_proven_number_of_steps(
    steps: int, checkpoints: int, cost: int, held: int, leaf: int
) -> None:
    unit = ChainUnit(held, cost, leaf, leaf, leaf, ((cost,), (leaf,)))
    table = _core.chain_table(unit, steps, None, checkpoints + 1)
    assert table.reversal_cost(steps, checkpoints) == cost * forward_steps(steps, checkpoints)
    assert list(table.levels) == [leaf + s * held for s in range(checkpoints + 1)]


def test_the_reference_takes_the_proven_number_of_steps_too() -> None:
    table = chain_table(ChainUnit(1, 1, 0, 0, 0, ((1,), (0,))), 400, None, 12)
    for steps in (1, 2, 47, 48, 49, 50, 200, 399, 400):
        for s in range(1, 12):
            assert table.reversal_cost(steps, s) == forward_steps(steps, s)


@pytest.mark.sampled(2)
def test_unrolled_chains_cost_no_more_than_revolve(core: str) -> None:
    steps = 120 if core == "native" else 48
    graph = recurrence(steps)
    least = get_planner("revolve")(graph, 1 << 60, OPTIONS)
    for state_count in (14, 16, 20, 30):
        budget = (state_count << 20) + 64
        revolve = get_planner("revolve")(graph, budget, OPTIONS)
        plan = get_planner("nested")(graph, budget, OPTIONS)
        check(graph, revolve, budget)
        check(graph, plan, budget)
        slots = revolve.provenance["slots"]
        assert plan.overhead <= revolve.overhead
        assert plan.overhead <= forward_steps(steps, slots) - steps
        assert any("alike steps" in note for note in plan.notes)
    assert least.overhead <= steps


def test_a_long_chain_fits_in_a_fiftieth_at_less_than_four_times_the_work() -> None:
    if _core.core_name() != "native":
        pytest.skip("the Python core takes some seconds for it")
    steps = 600
    graph = recurrence(steps)
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes - graph.resident_bytes
    plan = get_planner("auto")(graph, graph.resident_bytes + plain // 50, OPTIONS)
    check(graph, plan, graph.resident_bytes + plain // 50)
    assert plan.planner == "nested"
    assert plan.most_recomputations > 1
    assert plan.overhead + steps <= 4 * steps
    assert plan.smallest_feasible_budget_bytes < plan.budget_bytes


def test_auto_leaves_roomy_budgets_to_single_recomputations() -> None:
    graph = recurrence(40)
    single = get_curve("liveness")(graph, OPTIONS).points
    for budget in (single[0].budget_bytes * 2, single[-1].budget_bytes):
        plan = get_planner("auto")(graph, budget, OPTIONS)
        known = get_planner("liveness")(graph, budget, OPTIONS)
        assert plan.planner == "liveness"
        assert plan.schedule == known.schedule
        assert plan.smallest_feasible_budget_bytes == known.smallest_feasible_budget_bytes


def test_an_impossible_budget_names_the_nested_minimum() -> None:
    graph = recurrence(60)
    single = get_curve("liveness")(graph, OPTIONS).points[0].budget_bytes
    with pytest.raises(InfeasibleBudgetError) as caught:
        get_planner("auto")(graph, graph.resident_bytes + 1, OPTIONS)
    minimum = caught.value.minimum_bytes
    assert minimum < single
    check(graph, get_planner("auto")(graph, minimum, OPTIONS), minimum)
    with pytest.raises(InfeasibleBudgetError):
        get_planner("auto")(graph, minimum - 1, OPTIONS)


def test_no_time_means_single_recomputations() -> None:
    graph = recurrence(60)
    options = PlannerOptions(time_limit_s=0.0)
    plan = get_planner("nested")(graph, 1 << 60, options)
    assert plan.planner == "liveness"


def test_revolve_is_for_chains() -> None:
    graph = bare_graph([[]], [4], [1], [[0]])
    with pytest.raises(UsageError, match="take planner nested"):
        get_planner("revolve")(graph, 1 << 40, OPTIONS)
    graph = recurrence(30)
    with pytest.raises(InfeasibleBudgetError, match="alike"):
        get_planner("revolve")(graph, graph.resident_bytes + 5, OPTIONS)


def test_plans_survive_json() -> None:
    graph = recurrence(50)
    plan = get_planner("nested")(graph, 17 << 20, OPTIONS)
    again = Plan.from_json(plan.to_json())
    assert again.schedule == plan.schedule
    assert again.most_recomputations == plan.most_recomputations > 1


def test_slight_values_are_few() -> None:
    # Equal values are all slight or none is, whatever they add up to.
    assert slight_bytes(bare_graph([[], [0]], [512, 512], [1, 1], [[0], [1]])) == 0
    large = bare_graph([[], [0], [1]], [10**6, 10**6, 512], [1] * 3, [[0], [1], [2]])
    assert slight_bytes(large) == 512


def test_a_graph_without_ops_has_a_plan() -> None:
    graph = TrainingGraph((Value("x", 3, ValueKind.INPUT),), ())
    assert build_nested(graph, EFFORT[_core.core_name()]).front == ((), ())  # nothing to nest
    assert get_planner("nested")(graph, 3, OPTIONS).overhead == 0
