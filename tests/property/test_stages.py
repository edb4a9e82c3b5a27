"""Stages: the simulated peak of a stage bounds the schedule's, and the DP equals brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit import _core
from memfit._core import python_stage
from memfit._core.python_pareto import EdgeTable as PythonEdgeTable
from memfit._core.python_stage import Cut, StageProblem, simulate_stage
from memfit.errors import InfeasibleBudgetError
from memfit.graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.liveness import simulate
from memfit.lower_sets import lower_sets
from memfit.planners.base import PlannerOptions
from memfit.planners.liveness_dp import (
    build_table,
    keep_variants,
    plan,
    plan_from_table,
    useful_ops,
)
from memfit.stages import (
    BackwardStages,
    path_schedule,
    stage_problem,
    store_all_schedule,
)


@st.composite
def joint_graphs(draw: st.DrawFn, most_ops: int = 6) -> TrainingGraph:
    """Forward ops with several outputs, effects and workspace; a backward pass op by op."""
    count = draw(st.integers(1, most_ops))
    size = st.integers(1, 40)
    values = [Value("tangent", 1, ValueKind.TANGENT), Value("weight", 7, ValueKind.PARAMETER)]
    forward: list[Op] = []
    made: list[list[int]] = []
    for i in range(count):
        before = draw(st.sets(st.integers(0, i - 1), min_size=min(i, 1), max_size=2)) if i else ()
        inputs = sorted({draw(st.sampled_from(made[p])) for p in before} | {1})
        outputs = []
        for j in range(draw(st.integers(1, 2))):
            outputs.append(len(values))
            last = i == count - 1 and j == 0
            values.append(
                Value(f"v{i}.{j}", draw(size) * 1100, ValueKind.ACTIVATION, is_output=last)
            )
        made.append(outputs)
        forward.append(
            Op(
                f"f{i}",
                "f",
                Phase.FORWARD,
                tuple(inputs),
                tuple(outputs),
                draw(st.integers(1, 9)),
                draw(st.integers(0, 3000)),
                recomputable=draw(st.integers(0, 5)) > 0,
            )
        )
    gradient: dict[int, int] = {}
    backward: list[Op] = []
    for i in reversed(range(count)):
        reads = {0} if i == count - 1 else {gradient[i]} if i in gradient else set()
        if not reads:
            continue
        for v in (*forward[i].inputs, *forward[i].outputs):
            if v > 1 and draw(st.booleans()):
                reads.add(v)
        writes = []
        for v in forward[i].inputs:
            p = next((k for k, outs in enumerate(made) if v in outs), None)
            if p is None:
                writes.append(len(values))
                values.append(Value(f"w{i}", draw(size) * 300, ValueKind.GRADIENT, is_output=True))
            else:
                if p not in gradient:
                    gradient[p] = len(values)
                    values.append(Value(f"g{p}", draw(size) * 1100, ValueKind.GRADIENT))
                if gradient[p] not in writes:
                    writes.append(gradient[p])
        backward.append(
            Op(
                f"b{i}",
                "b",
                Phase.BACKWARD,
                tuple(sorted(reads)),
                tuple(writes),
                draw(st.integers(1, 9)),
                draw(st.integers(0, 3000)),
                recomputable=False,
            )
        )
    return TrainingGraph(tuple(values), (*forward, *backward))


def _cuts(graph: TrainingGraph, problem: StageProblem, family: str = "all") -> list[Cut]:
    backward = BackwardStages(graph)
    masks = lower_sets(graph, family, 10_000)
    return [Cut.of(problem, m, backward.finished(m)) for m in masks]


def _stages(cuts: list[Cut]) -> Iterator[tuple[Cut, Cut]]:
    for lower, upper in itertools.permutations(cuts, 2):
        if lower.lower != upper.lower and not lower.lower & ~upper.lower:
            yield lower, upper


def _paths(cuts: list[Cut], variants: int) -> Iterator[list[tuple[Cut, Cut, int]]]:
    """Every sequence of nested lower sets from the empty set to V, with every choice to keep."""
    inner = cuts[1:-1]
    chains = [[cuts[0]]]
    for cut in inner:
        chains += [[*c, cut] for c in chains if not c[-1].lower & ~cut.lower]
    for chain in chains:
        nodes = [*chain, cuts[-1]]
        pairs = list(itertools.pairwise(nodes))
        if any(b.finished & ~a.finished for a, b in pairs):
            continue
        for choice in itertools.product(range(variants), repeat=len(pairs)):
            yield [(a, b, v) for (a, b), v in zip(pairs, choice, strict=True)]


def _nominal(problem: StageProblem, path: list[tuple[Cut, Cut, int]]) -> tuple[int, int]:
    """Peak and cost of a path, stage by stage."""
    peak = cost = cached = 0
    for lower, upper, variant in path:
        stage = simulate_stage(problem, lower, upper, variant)
        peak = max(peak, cached + stage.peak_bytes)
        cached += stage.cached_bytes
        cost += stage.cost
    return peak, cost


@settings(deadline=None, max_examples=150)
@given(joint_graphs(), st.data())
def test_any_path_is_a_valid_schedule_within_its_simulated_stages(
    graph: TrainingGraph, data: st.DataObject
) -> None:
    problem = stage_problem(graph, keep_variants(graph))
    cuts = _cuts(graph, problem)
    variants = len(problem.keep_flags)
    paths = list(itertools.islice(_paths(cuts, variants), 400))
    path = data.draw(st.sampled_from(paths))
    schedule = path_schedule(graph, problem, path)
    schedule.validate(graph)
    peak, cost = _nominal(problem, path)
    fixed = graph.resident_bytes + 1  # the tangent
    assert simulate(graph, schedule).peak_bytes <= peak + fixed
    assert schedule.overhead(graph) == cost


@settings(deadline=None, max_examples=60)
@given(joint_graphs(most_ops=5), st.data())
def test_the_dp_equals_brute_force_over_simulated_stages(
    graph: TrainingGraph, data: st.DataObject
) -> None:
    flags = keep_variants(graph)
    problem = stage_problem(graph, [flags[0], flags[-1]])
    cuts = _cuts(graph, problem)
    table = _core.stage_edges(problem, cuts)
    every = [_nominal(problem, path) for path in _paths(cuts, 2)]
    smallest = min(peak for peak, _ in every)
    assert table.smallest_budget()[0] == smallest
    assert table.shortest(smallest - 1) is None
    budget = data.draw(st.sampled_from(sorted({peak for peak, _ in every})))
    found = table.shortest(budget)
    assert found is not None
    best = min(cost for peak, cost in every if peak <= budget)
    assert sum(table.edge(e)[3] for e in found) == best
    if all(useful_ops(graph)):
        # The planner searches more choices of what to keep, and judges by the whole schedule.
        fixed = graph.resident_bytes + 1  # the tangent
        assert plan(graph, budget + fixed, PlannerOptions()).overhead <= best


@settings(deadline=None, max_examples=60)
@given(joint_graphs(most_ops=5))
def test_both_cores_simulate_the_same_stages(graph: TrainingGraph) -> None:
    if _core.core_name() != "native":
        pytest.skip("the native core is not built")
    problem = stage_problem(graph, keep_variants(graph))
    cuts = _cuts(graph, problem)
    ours, reference = _core.stage_edges(problem, cuts), python_stage.stage_edges(problem, cuts)
    assert isinstance(reference, PythonEdgeTable)
    assert [ours.edge(i) for i in range(len(ours))] == [
        reference.edge(i) for i in range(len(reference))
    ]


@settings(deadline=None, max_examples=60)
@given(joint_graphs(most_ops=7), st.floats(0.0, 1.0))
def test_plans_fit_their_budget_and_cost_no_more_with_more_memory(
    graph: TrainingGraph, share: float
) -> None:
    table = build_table(graph, PlannerOptions())
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes
    smallest = plan_from_table(table, 2**50, 0.0).smallest_feasible_budget_bytes
    low = smallest + int(share * max(0, plain - smallest))
    tight, loose = plan_from_table(table, low, 0.0), plan_from_table(table, low + plain // 5, 0.0)
    for made in (tight, loose):
        made.schedule.validate(graph)
        assert made.peak_bytes <= made.budget_bytes
    assert loose.overhead <= tight.overhead
    assert plan_from_table(table, max(plain, smallest), 0.0).overhead == 0 or plain < smallest
    assert plan(graph, smallest, PlannerOptions()).peak_bytes <= smallest
    with pytest.raises(InfeasibleBudgetError) as caught:
        plan(graph, smallest - 1, PlannerOptions())
    assert caught.value.minimum_bytes == smallest


def test_stages_are_nested_pairs() -> None:
    values = tuple(Value(f"v{i}", 10, ValueKind.ACTIVATION) for i in range(3))
    ops = tuple(Op(f"f{i}", "f", Phase.FORWARD, (i - 1,) if i else (), (i,), 1) for i in range(3))
    graph = TrainingGraph(values, ops)
    problem = stage_problem(graph, keep_variants(graph))
    assert len(list(_stages(_cuts(graph, problem)))) == 6
