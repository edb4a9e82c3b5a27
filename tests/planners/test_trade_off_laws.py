"""Laws of the trade-off between peak and overhead under the paper's formulas, with either core."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memfit import _core
from memfit.cuts.lower_sets import FAMILIES, lower_sets
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import PlanStatus
from memfit.graph.published import bare_graph
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_curve, get_planner
from memfit.planners.paper import system as paper_dp
from memfit.strategies.formulas import (
    cached_bytes,
    formula_overhead,
    formula_peak_bytes,
    node_bytes,
    node_costs,
)

randoms = st.randoms(use_true_random=False)

# The fixture `core` chooses the core once for all examples, as it should.
with_core = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_graph(random: Random, most: int = 7) -> TrainingGraph:
    """Any number of edges, none among them; sizes and costs full of ties and zeros, or not."""
    n = random.randint(1, most)
    degree = random.choice([0, 1, 2, 2, 3])
    before = [sorted(random.sample(range(v), random.randint(0, min(v, degree)))) for v in range(n)]

    def amounts() -> list[int]:
        largest = random.choice([0, 1, 3, 30, 10**10])
        return [random.choice([0, random.randint(0, largest), largest]) for _ in range(n)]

    return bare_graph(before, amounts(), amounts(), [[v] for v in range(n)])


class Strategies:
    """The stages between lower sets of one family."""

    def __init__(self, graph: TrainingGraph, family: str, connected: bool) -> None:
        self.graph = graph
        self.sets = lower_sets(graph.forward_predecessors, family, 1 << graph.forward_count)
        self.table = _core.canonical_table(
            graph.forward_predecessors, node_bytes(graph), node_costs(graph), self.sets, connected
        )

    def best(self, budget: int, longest: bool = False) -> tuple[int, int] | None:
        """Overhead and cached bytes of the best path, by the formulas; None if none fits."""
        path = self.table.shortest(budget, longest)
        if path is None:
            return None
        sequence = [self.sets[state] for state in path]
        assert formula_peak_bytes(self.graph, sequence) <= budget
        return formula_overhead(self.graph, sequence), cached_bytes(self.graph, sequence)

    def budgets(self, random: Random) -> list[int]:
        """Those of the curve, their neighbours, and some between and beyond."""
        curve = [budget for _, budget in self.table.curve()]
        near = {b + d for b in curve for d in (-1, 0, 1)}
        between = {random.randint(low, high) for high, low in pairwise(curve)}
        return sorted(near | between | {curve[0] * 2 + 10, 2**60})


@with_core
@given(randoms)
def test_connected_stages_lose_nothing(core: str, random: Random) -> None:
    graph = random_graph(random)
    nested, connected = (Strategies(graph, "all", only) for only in (False, True))
    assert connected.table.curve() == nested.table.curve()
    assert connected.table.smallest_budget() == nested.table.smallest_budget()
    for budget in nested.budgets(random):
        for longest in (False, True):
            assert connected.best(budget, longest) == nested.best(budget, longest)


@with_core
@given(randoms, st.sampled_from(FAMILIES))
def test_the_curve_tells_what_every_budget_costs(core: str, random: Random, family: str) -> None:
    found = Strategies(random_graph(random), family, connected=family == "all")
    curve = found.table.curve()
    for (cost, budget), (next_cost, next_budget) in pairwise(curve):
        assert cost < next_cost
        assert budget > next_budget
    assert curve[-1][1] == found.table.smallest_budget() >= 0
    assert found.table.shortest(curve[-1][1] - 1) is None
    for budget in found.budgets(random):
        best = found.best(budget)
        wanted = min((cost for cost, least in curve if least <= budget), default=None)
        assert (None if best is None else best[0]) == wanted


@with_core
@given(randoms)
def test_the_curve_is_that_of_all_sequences(core: str, random: Random) -> None:
    graph = random_graph(random, most=5)
    for family in ("all", "pruned", "prefix"):
        found = Strategies(graph, family, connected=family == "all")
        points = sorted(
            (formula_overhead(graph, s), formula_peak_bytes(graph, s))
            for s in sequences(found.sets)
        )
        front: list[tuple[int, int]] = []
        for cost, peak in points:
            if not front or peak < front[-1][1]:
                front.append((cost, peak))
        assert found.table.curve() == front


def sequences(sets: list[int]) -> list[list[int]]:
    """Every increasing sequence from the empty set, left out, to the last one."""
    found: list[list[list[int]]] = [[[]]]
    for i, upper in enumerate(sets[1:], 1):
        found.append(
            [[*s, upper] for j in range(i) if sets[j] & upper == sets[j] for s in found[j]]
        )
    return found[-1]


@with_core
@given(randoms, st.sampled_from(["exact", "approximate"]), st.sampled_from(["auto", *FAMILIES]))
def test_plans_agree_with_the_trade_off(
    core: str, random: Random, planner: str, family: str
) -> None:
    graph = random_graph(random)
    options = PlannerOptions(mode="time", family=family)
    plan = get_planner(planner)
    trade_off = get_curve(planner)(graph, options)
    own = {"exact": "all", "approximate": "pruned"}[planner]
    assert (trade_off.planner, trade_off.status) == (planner, PlanStatus.OPTIMAL_IN_FAMILY)
    assert trade_off.family == (own if family == "auto" else family)
    assert (trade_off.total_cost, trade_off.cost_unit) == (graph.total_cost, graph.cost_unit)
    for here, after in pairwise(trade_off.points):
        assert here.budget_bytes < after.budget_bytes
        assert here.overhead > after.overhead
    smallest = trade_off.points[0].budget_bytes
    assert trade_off.overhead_at(smallest - 1) is None
    with pytest.raises(InfeasibleBudgetError) as caught:
        plan(graph, smallest - 1, options)
    assert caught.value.minimum_bytes == smallest
    for i, point in enumerate(trade_off.points):
        found = plan(graph, point.budget_bytes, options)
        assert found.formula_overhead == point.overhead
        assert found.formula_peak_bytes == point.budget_bytes
        assert found.smallest_feasible_budget_bytes == smallest
        assert found.lower_sets == trade_off.lower_sets
        assert trade_off.overhead_at(point.budget_bytes) == point.overhead
        if i > 0:
            before = trade_off.points[i - 1].overhead
            assert trade_off.overhead_at(point.budget_bytes - 1) == before
            assert plan(graph, point.budget_bytes - 1, options).formula_overhead == before
    last = trade_off.points[-1]
    assert trade_off.overhead_at(2**62) == last.overhead
    assert plan(graph, last.budget_bytes * 2 + 10, options).formula_overhead == last.overhead


@with_core
@given(randoms, st.integers(8, 64))
def test_rounded_costs_stay_within_a_step_for_each_op(
    core: str, random: Random, steps: int
) -> None:
    """The budget always holds; the overhead is at most a step for each op above the least one."""
    graph = random_graph(random)
    exact = get_curve("exact")(graph, PlannerOptions())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_dp, "_FEW_LOWER_SETS", 1)
        patch.setattr(paper_dp, "_COST_STEPS", steps * exact.lower_sets)
        patch.setattr(paper_dp, "_FINEST_SHARE", 0)  # however coarse
        table = paper_dp.build_table(graph, "all", PlannerOptions())
        rounded = get_curve("exact")(graph, PlannerOptions())
        allowed = graph.forward_count * (table.quantum - 1)
        assert rounded.points[0].budget_bytes == exact.points[0].budget_bytes
        assert (rounded.status is PlanStatus.FEASIBLE) == (table.quantum > 1)
        for point in exact.points:
            found = get_planner("exact")(graph, point.budget_bytes, PlannerOptions(mode="time"))
            promised = rounded.overhead_at(point.budget_bytes)
            assert found.status is rounded.status
            assert found.formula_peak_bytes is not None
            assert found.formula_overhead is not None
            assert promised is not None
            assert found.formula_peak_bytes <= point.budget_bytes
            assert point.overhead <= found.formula_overhead <= promised
            assert promised <= point.overhead + allowed


def test_a_smaller_family_rather_than_coarse_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten sources side by side and a sink: 1,025 lower sets, of which 22 are prefixes or L^v.
    predecessors = [[] for _ in range(10)] + [list(range(10))]
    graph = bare_graph(predecessors, [1] * 11, [700] * 11, predecessors)
    assert get_curve("exact")(graph, PlannerOptions()).family == "all"
    monkeypatch.setattr(paper_dp, "_COST_STEPS", 1 << 15)
    assert get_curve("exact")(graph, PlannerOptions()).family == "all"  # 31 of 700 is fine enough
    monkeypatch.setattr(paper_dp, "_FINEST_SHARE", 100)
    found = get_curve("exact")(graph, PlannerOptions())
    assert found.family == "pruned+prefix"
    assert any("too many for costs as fine as these" in note for note in found.notes)


@given(st.integers(1, 10**6), st.integers(0, 5000), st.integers(0, 2**60 - 1))
def test_rounded_costs_bound_the_memory_of_the_search(
    lower_sets: int, ops: int, total_cost: int
) -> None:
    quantum = paper_dp._cost_quantum(lower_sets, ops, total_cost)
    assert quantum >= 1
    # Rounding up each op's cost, the worst way.
    most = total_cost // quantum + ops if quantum > 1 else total_cost
    steps = paper_dp._COST_STEPS // lower_sets
    few = lower_sets <= paper_dp._FEW_LOWER_SETS
    assert few or most < max(steps, paper_dp._FEW_LOWER_SETS + ops + 1)
