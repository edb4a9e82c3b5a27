"""What a bound says, and what it refuses."""

from __future__ import annotations

import dataclasses
import sys

import pytest

import memfit
from memfit.bounds import LowerBound, bound_graph, bound_plan, search
from memfit.bounds.highs import Solved
from memfit.errors import ExecutionError, PlanMismatchError, UsageError
from memfit.graph.plain import store_all_schedule
from memfit.graph.published import bare_graph
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners import PlannerOptions, get_planner
from memfit.strategies.carried import StepOrder


def chain(n: int, size: int = 10) -> TrainingGraph:
    """Ops in a row, of cost 1, 2, …, whose backward ops read all that they touch."""
    before = [[v - 1] if v else [] for v in range(n)]
    return bare_graph(
        before, [size] * n, list(range(1, n + 1)), [[*before[v], v] for v in range(n)]
    )


def plain_bytes(graph: TrainingGraph) -> int:
    return simulate(graph, store_all_schedule(graph)).peak_bytes


def test_a_chain() -> None:
    pytest.importorskip("highspy")
    # At the peak 8 values and 2 gradients are alive. One value less: the cheapest that does not
    # take another one along is the first, of cost 1.
    graph = chain(8)
    plain = plain_bytes(graph)
    bound = bound_graph(graph, plain - 10)
    assert (bound.overhead, bound.proven_optimum, bound.infeasible) == (1, True, False)
    assert bound.overhead_percent == 100 * 1 / 36
    assert bound.gap_percent(4) == 100 * 3 / 36
    assert bound.witness is not None
    assert bound.witness.recomputed_ops == (0,)
    assert simulate(graph, bound.witness).peak_bytes == plain - 10
    assert bound.method.startswith("integer program over ")
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound.overhead = 0  # type: ignore[misc]
    assert bound.to_dict(4)["gap_percent"] == bound.gap_percent(4)
    assert "gap_percent" not in bound.to_dict()


def test_enough_memory_and_too_little() -> None:
    pytest.importorskip("highspy")
    graph = chain(6)
    enough = bound_graph(graph, plain_bytes(graph))
    assert (enough.overhead, enough.proven_optimum) == (0, True)
    too_little = bound_graph(graph, 39)  # a backward op touches 2 values and 2 gradients
    assert (too_little.overhead, too_little.infeasible) == (None, True)
    assert (too_little.overhead_percent, too_little.gap_percent(3)) == (None, None)
    assert too_little.method == "memory that is alive in every schedule"
    assert not bound_graph(graph, 40).infeasible


def test_a_graph_without_a_backward_pass() -> None:
    pytest.importorskip("highspy")
    values = (Value("x", 5, ValueKind.INPUT), Value("y", 7, ValueKind.ACTIVATION, True))
    graph = TrainingGraph(values, (Op("f", "f", Phase.FORWARD, (0,), (1,), 3),))
    assert bound_graph(graph, 12).overhead == 0
    assert bound_graph(graph, 11).infeasible


def test_a_bound_within_no_time_is_none_and_says_so() -> None:
    pytest.importorskip("highspy")
    graph = chain(12)
    bound = bound_graph(graph, plain_bytes(graph) - 30, time_limit_s=0)
    assert bound.overhead == 0
    assert not bound.proven_optimum
    assert bound.notes == ("the time limit of 0 s was reached; more time may raise the bound",)


def test_an_optimal_plan_is_recognised() -> None:
    pytest.importorskip("highspy")
    graph = chain(8)
    plan = get_planner("liveness")(graph, plain_bytes(graph) - 10, PlannerOptions())
    with_gap, bound = bound_plan(graph, plan)
    assert bound.proven_optimum == (plan.overhead == 1)
    found = with_gap.provenance["bound"]
    assert found["gap_percent"] == bound.gap_percent(plan.overhead)
    assert memfit.Plan.from_json(with_gap.to_json()).provenance["bound"] == found
    with pytest.raises(PlanMismatchError):
        bound_plan(chain(9), plan)


def test_progress_is_reported() -> None:
    pytest.importorskip("highspy")
    said: list[tuple[str, float]] = []
    graph = bare_graph(
        [[v - 1] if v else [] for v in range(40)],
        [17 + 5 * (v * v % 13) for v in range(40)],
        [3 + v * 7 % 11 for v in range(40)],
        [[v] for v in range(40)],
    )
    bound_graph(
        graph,
        plain_bytes(graph) * 6 // 10,
        progress=lambda label, share: said.append((label, share)),
    )
    assert all(label == "bounding" and 0 <= share <= 1 for label, share in said)


def test_a_schedule_in_another_order_is_refused() -> None:
    pytest.importorskip("highspy")
    graph = bare_graph([[], [0], [0], [1, 2]], [9, 8, 7, 6], [1, 1, 1, 1], [[], [0], [0], [1]])
    order = StepOrder((0, 2, 1, 3), StepOrder.of_program(graph).backward)
    with pytest.raises(UsageError, match="another order"):
        bound_graph(graph, 100, order=order, known=store_all_schedule(graph))
    assert bound_graph(graph, 100, order=order).overhead == 0


def test_a_solver_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("highspy")
    wrong = Solved(1_000, True, None)
    monkeypatch.setattr(search, "solve", lambda *_, **__: wrong)
    graph = chain(8)
    budget = plain_bytes(graph) - 10
    plan = get_planner("liveness")(graph, budget, PlannerOptions())
    with pytest.raises(ExecutionError, match=r"claims that no schedule costs less than 1000 unit"):
        bound_graph(graph, budget, known=plan.schedule)


def test_memfit_bound_takes_a_graph() -> None:
    pytest.importorskip("highspy")
    graph = chain(8)
    bound = memfit.bound(graph, budget=plain_bytes(graph) - 10)
    assert isinstance(bound, memfit.LowerBound)
    assert memfit.LowerBound is LowerBound
    assert bound.overhead == 1
    assert memfit.bound(graph, budget="100%").overhead == 0
    with pytest.raises(UsageError, match='budget "auto" needs a device'):
        memfit.bound(graph, budget="auto")
    with pytest.raises(UsageError, match="beside a graph"):
        memfit.bound(graph, (1,), budget="50%")


def test_without_highspy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    message = (
        "a bound needs the solver HiGHS, and highspy is not installed; "
        'install it with: pip install "memfit[ilp]"'
    )
    graph = chain(3)
    with pytest.raises(UsageError) as caught:
        memfit.bound(graph, budget="50%")
    assert str(caught.value) == message
    with pytest.raises(UsageError) as caught:
        bound_graph(graph, plain_bytes(graph) - 1)
    assert str(caught.value) == message
