"""Checkpoints at bottlenecks, at costly ops and at named ops (Salimans and Bulatov 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.analysis.peers import salimans_points
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph.plain import store_all_order, store_all_schedule
from memfit.graph.published import bare_graph
from memfit.graph.schedule import make_schedule
from memfit.graph.simulator import peak_of_order, simulate
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners import PlannerOptions, get_planner
from memfit.planners.salimans.checkpoints import checkpoint_order
from memfit.planners.salimans.memory import spaced_bottlenecks
from memfit.planners.salimans.speed import costly_ops, is_costly

NAMES = ("salimans-memory", "salimans-speed", "salimans-collection")


def chain(n: int, targets: dict[int, str] | None = None) -> TrainingGraph:
    before = [[v - 1] if v else [] for v in range(n)]
    graph = bare_graph(before, [10] * n, [1] * n, [[*before[v], v] for v in range(n)], name="chain")
    wanted = targets or {}
    ops = tuple(
        replace(op, target=wanted[v]) if v in wanted else op for v, op in enumerate(graph.ops)
    )
    return replace(graph, ops=ops)


def test_bottlenecks_of_a_chain_are_a_square_root_apart() -> None:
    assert spaced_bottlenecks(chain(16)) == [3, 7, 11]
    assert spaced_bottlenecks(chain(10)) == [2, 5, 8]
    assert spaced_bottlenecks(chain(1)) == []


#     1 - 2
#   /       \
# 0 - - 3 - - 4 - 5 - 6 - 7 - 8
def test_no_bottleneck_lies_beside_another_path() -> None:
    before = [[], [0], [1], [0], [2, 3], [4], [5], [6], [7]]
    graph = bare_graph(before, [10] * 9, [1] * 9, [list(b) for b in before])
    # Every third op would be 2 and 5; while 2 is alive, so is 0 or 3.
    assert spaced_bottlenecks(graph) == [4, 7]


# 0 - 1 - 2 - 3 - 4 - 5
#  \ - - - - - - - - /
def test_a_graph_without_bottlenecks_is_left_as_it_is() -> None:
    before = [[], [0], [1], [2], [3], [0, 4]]
    graph = bare_graph(before, [10] * 6, [1] * 6, [list(b) for b in before])
    plan = get_planner("salimans-memory")(graph, 1000, PlannerOptions())
    assert plan.schedule == store_all_schedule(graph)
    assert plan.notes == ("the graph has no bottleneck; nothing is computed again",)
    assert [p.detail for p in salimans_points(graph)] == []


@pytest.mark.parametrize(
    ("target", "costly"),
    [
        ("aten.convolution.default", True),
        ("aten.addmm.default", True),
        ("aten.bmm.default", True),
        ("Convolution2DFunction", True),
        ("Deconvolution2DFunction", True),
        ("LinearFunction", True),
        ("aten.upsample_bilinear2d.vec", False),
        ("aten.relu.default", False),
        ("BatchNormalization", False),
        ("aten.mul.Tensor", False),
    ],
)
def test_what_is_costly(target: str, costly: bool) -> None:
    op = Op("x", target, Phase.FORWARD, (), (), 1)
    assert is_costly(op) is costly


def test_costly_ops_never_run_again() -> None:
    graph = chain(9, dict.fromkeys((0, 3, 6), "aten.convolution.default"))
    assert costly_ops(graph) == [0, 3, 6]
    plan = get_planner("salimans-speed")(graph, 1000, PlannerOptions())
    # Beside them, what comes after the last one is kept, and 5's output, as 6's backward reads it,
    # is computed again together with 4's.
    assert sorted(plan.schedule.recomputed_ops) == [1, 2, 4, 5]
    assert plan.schedule.kept(graph) == {plan_value(graph, v) for v in (0, 3, 6, 7, 8)}
    assert plan.peak_bytes < plan.plain_peak_bytes
    assert [stage.recompute_cost for stage in plan.stages] == [0, 2, 2, 0]


def plan_value(graph: TrainingGraph, v: int) -> int:
    return graph.ops[v].outputs[0]


def test_a_collection_is_named_by_op_or_value() -> None:
    graph = chain(8)
    names = (graph.ops[2].name, graph.values[plan_value(graph, 5)].name)
    plan = get_planner("salimans-collection")(graph, 1000, PlannerOptions(checkpoints=names))
    assert sorted(plan.schedule.recomputed_ops) == [0, 1, 3, 4]
    with pytest.raises(UsageError, match="checkpoint 'nowhere' is no forward op of chain"):
        get_planner("salimans-collection")(graph, 1000, PlannerOptions(checkpoints=("nowhere",)))
    plain = get_planner("salimans-collection")(graph, 1000, PlannerOptions())
    assert plain.overhead == 0
    assert plain.notes == ("no checkpoints were named; nothing is computed again",)


def test_ops_that_must_not_run_again_are_kept() -> None:
    graph = chain(9)
    ops = tuple(replace(op, recomputable=v != 4) for v, op in enumerate(graph.ops))
    graph = replace(graph, ops=ops)
    plan = get_planner("salimans-memory")(graph, 1000, PlannerOptions())
    assert 4 not in plan.schedule.recomputed_ops
    assert plan_value(graph, 4) in plan.schedule.kept(graph)


@given(st.integers(0, 2**32 - 1))
def test_any_checkpoints_give_a_whole_schedule(seed: int) -> None:
    random = Random(seed)
    n = random.randint(1, 10)
    before = [sorted(random.sample(range(v), random.randint(0, min(v, 2)))) for v in range(n)]
    reads = [sorted(s for s in {*before[v], v} if random.random() < 0.7) for v in range(n)]
    graph = bare_graph(before, [random.randint(0, 9) for _ in range(n)], [1] * n, reads)
    chosen = [v for v in range(n) if random.random() < 0.4]
    order = checkpoint_order(graph, chosen)
    schedule = make_schedule(graph, *order)
    schedule.validate(graph)
    assert schedule.most_recomputations <= 1
    assert not set(schedule.recomputed_ops) & set(chosen)
    assert simulate(graph, schedule).peak_bytes == peak_of_order(graph, order)
    # Nothing is computed again that no backward op needs, directly or for another.
    needed: set[int] = set()
    for op_id in reversed(range(len(graph.ops))):
        if op_id >= n or op_id in needed:
            needed |= {p for v in graph.ops[op_id].inputs if (p := graph.producer[v]) is not None}
    assert set(schedule.recomputed_ops) <= needed
    if not chosen:
        assert peak_of_order(graph, order) == peak_of_order(graph, store_all_order(graph))


@pytest.mark.parametrize("name", NAMES)
def test_one_plan_whatever_the_budget(
    full_graph: Callable[[Random, int], TrainingGraph], name: str
) -> None:
    random = Random(11)
    for _ in range(8):
        graph = full_graph(random, 9)
        options = PlannerOptions(checkpoints=(graph.ops[3].name,))
        with pytest.raises(InfeasibleBudgetError, match=f"{name} has one plan") as caught:
            get_planner(name)(graph, 0, options)
        least = caught.value.minimum_bytes
        plan = get_planner(name)(graph, least, options)
        plan.schedule.validate(graph)
        assert plan.peak_bytes == least == plan.smallest_feasible_budget_bytes
        assert get_planner(name)(graph, 10**15, options).schedule == plan.schedule
        with pytest.raises(InfeasibleBudgetError):
            get_planner(name)(graph, least - 1, options)
        assert sum(stage.forward_ops for stage in plan.stages) == graph.forward_count


def test_the_points_of_a_chain() -> None:
    graph = chain(16, dict.fromkeys(range(0, 16, 2), "mm"))
    found = {p.detail: (p.peak_bytes, p.overhead) for p in salimans_points(graph)}
    plans = {
        "memory: 3 bottlenecks": get_planner("salimans-memory")(graph, 1000, PlannerOptions()),
        "speed: 8 costly ops": get_planner("salimans-speed")(graph, 1000, PlannerOptions()),
    }
    assert found == {k: (p.peak_bytes, p.overhead) for k, p in plans.items()}
    assert {p.series for p in salimans_points(graph)} == {"salimans"}
    # The last segment is not computed again, nor are checkpoints.
    assert plans["memory: 3 bottlenecks"].overhead == 3 * 3


def test_values_that_have_no_forward_op_are_not_needed() -> None:
    """A backward op that reads parameters and inputs alone calls for nothing."""
    values = (
        Value("p", 5, ValueKind.PARAMETER),
        Value("x", 5, ValueKind.ACTIVATION),
        Value("y", 5, ValueKind.ACTIVATION, True),
        Value("g", 5, ValueKind.GRADIENT, True),
    )
    ops = (
        Op("a", "mm", Phase.FORWARD, (0,), (1,), 1),
        Op("b", "relu", Phase.FORWARD, (1,), (2,), 1),
        Op("c", "d", Phase.BACKWARD, (0,), (3,), 1),
    )
    graph = TrainingGraph(values, ops, "unit")
    assert get_planner("salimans-speed")(graph, 1000, PlannerOptions()).overhead == 0
