"""Laws of bounds, of schedules said by what is carried, and of the local search."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memfit.bounds import bound_graph, bound_plan
from memfit.bounds.program import build_program
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan
from memfit.graph.schedule import Schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_planner
from memfit.planners.refined import local_search
from memfit.planners.refined.local_search import improve
from memfit.strategies.carried import CarriedValues, StepOrder
from memfit.strategies.row_memory import RowMemory
from support.any_schedule import assignment, broken_rows, random_schedule

seeds = st.integers(0, 10**9)
PLANNERS = ["exact", "approximate", "liveness", "nested", "refined", "chen"]


def some_plan(graph: TrainingGraph, name: str, random: Random) -> Plan:
    """A plan between the planner's smallest budget and the plain peak."""
    with pytest.raises(InfeasibleBudgetError) as caught:
        get_planner(name)(graph, 0, PlannerOptions())
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes
    least = caught.value.minimum_bytes
    budget = random.randint(least, max(least, plain))
    return get_planner(name)(graph, budget, PlannerOptions())


def holds(graph: TrainingGraph, schedule: Schedule, random: Random) -> None:
    """The program of a bound admits a schedule at its own peak, whatever its spans."""
    carried = CarriedValues(graph, StepOrder.of_schedule(graph, schedule))
    memory = RowMemory(carried)
    peak = simulate(graph, schedule).peak_bytes
    assert memory.floor_bytes <= peak
    last = carried.row_count
    if last == 0:
        return
    for chosen in ([], range(1, last), random.sample(range(1, last), min(2, last - 1))):
        span = build_program(memory, [*sorted(chosen), last], peak)
        assert not span.program.contradiction
        x = assignment(span, carried, schedule)
        assert broken_rows(span, x) == []
        cost = sum(c for c, chosen in zip(span.program.costs, x, strict=True) if chosen)
        assert cost * span.cost_grain <= schedule.overhead(graph)


@given(seeds)
@example(seed=798982774)  # runs an op of no use in a span in which an earlier run would be of use
def test_programs_admit_every_schedule(joint_graph: Any, seed: int) -> None:
    random = Random(seed)
    graph = joint_graph(random, random.randint(1, 8))
    schedule = random_schedule(graph, random)
    schedule.validate(graph)
    holds(graph, schedule, random)


@given(seeds, st.sampled_from(PLANNERS))
@settings(max_examples=80)
def test_programs_admit_the_plans_of_every_planner(
    joint_graph: Any, seed: int, planner: str
) -> None:
    random = Random(seed)
    graph = joint_graph(random, random.randint(2, 9))
    plan = some_plan(graph, planner, random)
    holds(graph, plan.schedule, random)


@given(seeds, st.sampled_from(PLANNERS))
@settings(max_examples=40)
def test_no_plan_is_below_the_bound(joint_graph: Any, seed: int, planner: str) -> None:
    pytest.importorskip("highspy")
    random = Random(seed)
    graph = joint_graph(random, random.randint(2, 7))
    plan = some_plan(graph, planner, random)
    # The bound must not profit from knowing the plan.
    order = StepOrder.of_schedule(graph, plan.schedule)
    bound = bound_graph(graph, plan.budget_bytes, order=order)
    assert bound.overhead is not None
    assert bound.overhead <= plan.overhead
    with_gap, known = bound_plan(graph, plan)
    assert known.overhead is not None
    assert known.overhead <= plan.overhead
    assert with_gap.provenance["bound"]["overhead"] == known.overhead
    if bound.proven_optimum and known.proven_optimum:
        assert bound.overhead == known.overhead


@given(seeds)
@settings(max_examples=30)
def test_bounds_never_rise_with_the_budget(joint_graph: Any, seed: int) -> None:
    pytest.importorskip("highspy")
    random = Random(seed)
    graph = joint_graph(random, random.randint(2, 6))
    carried = CarriedValues(graph, StepOrder.of_program(graph))
    floor = RowMemory(carried).floor_bytes
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes
    smaller, larger = sorted(random.randint(floor, plain) for _ in range(2))
    less, more = bound_graph(graph, smaller), bound_graph(graph, larger)
    if less.proven_optimum and more.overhead is not None:
        assert less.overhead is not None
        assert more.overhead <= less.overhead
    if more.infeasible:
        assert not less.proven_optimum
    assert bound_graph(graph, plain).overhead == 0


@given(seeds)
def test_carried_values_say_the_schedule(joint_graph: Any, seed: int) -> None:
    random = Random(seed)
    graph = joint_graph(random, random.randint(1, 8))
    carried = CarriedValues(graph, StepOrder.of_program(graph))
    memory = RowMemory(carried)
    wanted = [random.getrandbits(len(graph.values)) for _ in range(carried.row_count + 1)]
    schedule = carried.schedule(dict(enumerate(wanted)))
    schedule.validate(graph)
    assert schedule.overhead(graph) == carried.cost(dict(enumerate(wanted)))
    # Read back, it says the same schedule, with nothing carried in vain.
    back = carried.of_schedule(schedule)
    again = carried.schedule(back)
    assert again.overhead(graph) <= schedule.overhead(graph)
    rows = carried.rows(back)
    alive = [memory.forward_bytes(back[0])]
    alive += [memory.row_bytes(n, row, back[n]) for n, row in enumerate(rows, 1)]
    if again == schedule:
        assert max(alive) == simulate(graph, schedule).peak_bytes


@given(seeds, st.sampled_from(["liveness", "nested", "exact", "chen"]))
@settings(max_examples=40)
def test_local_search_only_improves(joint_graph: Any, seed: int, planner: str) -> None:
    random = Random(seed)
    graph = joint_graph(random, random.randint(2, 9))
    plan = some_plan(graph, planner, random)
    better = improve(graph, plan.schedule, plan.budget_bytes, most_rows=3_000)
    better.validate(graph)
    assert better.overhead(graph) <= plan.overhead
    assert simulate(graph, better).peak_bytes <= max(plan.budget_bytes, plan.peak_bytes)
    assert better == improve(graph, plan.schedule, plan.budget_bytes, most_rows=3_000)
    assert StepOrder.of_schedule(graph, better) == StepOrder.of_schedule(graph, plan.schedule)


@given(seeds)
@settings(max_examples=60)
def test_the_search_reckons_as_the_simulator_does(joint_graph: Any, seed: int) -> None:
    random = Random(seed)
    graph = joint_graph(random, random.randint(1, 8))
    carried = CarriedValues(graph, StepOrder.of_program(graph))
    wanted = [random.getrandbits(len(graph.values)) for _ in range(carried.row_count + 1)]
    choice = local_search.Search(carried, 0, 10**6, lambda *_: None).choice(wanted)
    schedule = carried.schedule(dict(enumerate(choice.carried)))
    schedule.validate(graph)
    assert schedule.overhead(graph) == choice.overhead
    assert max(graph.resident_bytes, choice.peak_bytes) == simulate(graph, schedule).peak_bytes
