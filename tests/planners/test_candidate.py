"""Candidates: what an order says equals what its schedule says, and the plan says the same."""

from __future__ import annotations

import time
from random import Random

import pytest

from conftest import MakeGraph
from memfit.graph.plain import plain_peak_bytes, store_all_schedule
from memfit.graph.plan import Plan
from memfit.graph.simulator import simulate
from memfit.planners import PlannerOptions, get_curve, get_planner
from memfit.planners.candidate import Candidate, infeasible, plain_candidate
from memfit.planners.salimans.checkpoints import checkpoint_order


@pytest.mark.parametrize("seed", range(20))
def test_an_order_and_its_schedule_say_the_same(joint_graph: MakeGraph, seed: int) -> None:
    random = Random(seed)
    graph = joint_graph(random, random.randint(1, 12))
    kept = [op for op in range(graph.forward_count) if random.random() < 0.4]
    of_order = Candidate(graph, lambda: checkpoint_order(graph, kept))
    of_schedule = Candidate(graph, lambda: of_order.schedule)
    for name in ("peak_bytes", "overhead", "binding_op", "stages", "timeline"):
        assert getattr(of_order, name) == getattr(of_schedule, name), name
    plan = of_order.plan(
        1 << 40,
        planner="test",
        family="none",
        smallest_bytes=of_order.peak_bytes,
        lower_sets=1,
        began=time.perf_counter(),
    )
    assert (plan.peak_bytes, plan.overhead) == (of_schedule.peak_bytes, of_schedule.overhead)
    assert plan.plain_peak_bytes == plain_candidate(graph).peak_bytes
    assert plan.plain_peak_bytes == simulate(graph, store_all_schedule(graph)).peak_bytes
    (stage,) = plan.stages
    assert stage.kept_bytes == plan.cached_bytes
    assert stage.recompute_cost == plan.overhead


def test_the_plain_peak_is_found_once(
    joint_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = joint_graph(Random(0), 5)
    found = plain_peak_bytes(graph)
    monkeypatch.setattr("memfit.graph.plain.peak_of_order", lambda *_: pytest.fail("again"))
    assert plain_peak_bytes(graph) == found


def test_a_budget_that_cannot_be_met_names_the_peak_and_its_op(joint_graph: MakeGraph) -> None:
    plain = plain_candidate(joint_graph(Random(1), 5))
    error = infeasible(plain, plain.peak_bytes - 1, detail="why")
    assert (error.minimum_bytes, error.binding_op) == (plain.peak_bytes, plain.binding_op)
    assert "(why)" in str(error)
    assert infeasible(plain, 1, minimum_bytes=2).minimum_bytes == 2


@pytest.mark.parametrize("name", ["auto", "liveness", "nested", "refined", "exact"])
def test_whether_time_ran_out_is_told(joint_graph: MakeGraph, core: str, name: str) -> None:
    random = Random(2)
    graph = next(
        made
        for made in (joint_graph(random, 12) for _ in range(100))
        if get_planner("auto")(made, plain_peak_bytes(made) - 1, PlannerOptions()).overhead
    )
    budget = plain_peak_bytes(graph)
    assert get_planner(name)(graph, budget, PlannerOptions()).complete
    none = PlannerOptions(time_limit_s=0.0)
    plan = get_planner(name)(graph, budget, none)
    assert not plan.complete
    assert not Plan.from_json(plan.to_json()).complete
    if name != "refined":
        assert get_curve(name)(graph, PlannerOptions()).complete
        assert not get_curve(name)(graph, none).complete


def test_the_pruned_family_is_searched_whole_without_time(joint_graph: MakeGraph) -> None:
    graph = joint_graph(Random(3), 8)
    plan = get_planner("approximate")(graph, 1 << 40, PlannerOptions(time_limit_s=0.0))
    assert any("time limit" in note for note in plan.notes)
    assert plan.complete
