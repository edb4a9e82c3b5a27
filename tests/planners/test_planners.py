"""Planners by name, and what each gives on small graphs."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from memfit.cuts.articulations import articulation_cuts
from memfit.errors import InfeasibleBudgetError, UnknownPlannerError, UsageError
from memfit.graph.plan import Plan, PlanStatus
from memfit.graph.published import bare_graph
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners import (
    PLANNERS,
    PlannerOptions,
    TradeOff,
    TradeOffPoint,
    auto,
    get_curve,
    get_planner,
    search_all,
)
from memfit.planners.chen import segmentations
from memfit.planners.paper import system as paper_dp


def chain(n: int, size_bytes: int = 10) -> TrainingGraph:
    before = [[v - 1] if v else [] for v in range(n)]
    return bare_graph(before, [size_bytes] * n, [1] * n, [[*before[v], v] for v in range(n)])


def smallest(planner: str, graph: TrainingGraph, mode: str = "auto") -> int:
    with pytest.raises(InfeasibleBudgetError) as caught:
        get_planner(planner)(graph, 0, PlannerOptions(mode=mode))
    assert caught.value.budget_bytes == 0
    assert caught.value.binding_op in {op.name for op in graph.ops}
    return caught.value.minimum_bytes


def test_names() -> None:
    assert list(PLANNERS) == [
        "liveness",
        "exact",
        "approximate",
        "nested",
        "refined",
        "chen",
        "salimans-memory",
        "salimans-speed",
        "salimans-collection",
        "revolve",
        "store-all",
    ]
    assert inspect.unwrap(get_planner("auto")) is auto.plan
    with pytest.raises(UnknownPlannerError) as caught:
        get_planner("fastest")
    assert str(caught.value) == (
        "unknown planner 'fastest'; known planners: auto, liveness, exact, approximate, nested, "
        "refined, chen, salimans-memory, salimans-speed, salimans-collection, revolve, store-all"
    )


@pytest.mark.parametrize("name", list(PLANNERS))
def test_every_planner_meets_its_smallest_budget_and_no_less(name: str, core: str) -> None:
    graph = chain(9)
    least = smallest(name, graph)
    plan = get_planner(name)(graph, least, PlannerOptions())
    plan.schedule.validate(graph)
    assert plan.peak_bytes <= least == plan.smallest_feasible_budget_bytes
    assert (plan.planner, plan.budget_bytes) == (name, least)
    assert plan.plain_peak_bytes == smallest("store-all", graph)
    with pytest.raises(InfeasibleBudgetError):
        get_planner(name)(graph, least - 1, PlannerOptions())


@pytest.mark.parametrize("name", list(PLANNERS))
def test_every_plan_survives_json(name: str) -> None:
    graph = chain(5)
    plan = get_planner(name)(graph, 1000, PlannerOptions())
    again = Plan.from_json(plan.to_json())
    assert again == plan
    again.check_graph(graph)


def test_modes_of_the_papers_planners() -> None:
    graph = chain(9)
    plan = get_planner("exact")
    time = plan(graph, 120, PlannerOptions(mode="time"))
    memory = plan(graph, 120, PlannerOptions(mode="memory"))
    assert (time.mode, time.status) == ("time", PlanStatus.OPTIMAL_IN_FAMILY)
    assert (memory.mode, memory.status) == ("memory", PlanStatus.FEASIBLE)
    assert time.formula_overhead is not None
    assert memory.formula_overhead is not None
    assert time.formula_overhead < memory.formula_overhead
    assert memory.formula_cached_bytes < time.formula_cached_bytes <= 120
    with pytest.raises(UsageError, match="unknown mode 'space'; known modes: auto, time, memory"):
        plan(graph, 120, PlannerOptions(mode="space"))
    with pytest.raises(UsageError, match="unknown family 'some'"):
        plan(graph, 120, PlannerOptions(family="some"))


def test_auto_is_time_centric_where_that_fits_and_memory_centric_below() -> None:
    graph = chain(20)
    plan = get_planner("exact")
    modes = []
    peaks = []
    for budget in range(smallest("exact", graph), 400):
        found = plan(graph, budget, PlannerOptions(mode="auto"))
        assert found.peak_bytes <= budget
        assert found.provenance["requested_mode"] == "auto"
        modes.append(found.mode)
        peaks.append(found.peak_bytes)
    assert modes[-1] == "time"
    assert "memory" in modes
    assert modes == sorted(modes)


def test_budgets_include_resident_values() -> None:
    graph = chain(6)
    parameter = Value("parameter", 1000, ValueKind.PARAMETER)
    larger = TrainingGraph((*graph.values, parameter), graph.ops, "unit")
    for name in ("exact", "approximate", "chen", "store-all"):
        assert smallest(name, larger) == smallest(name, graph) + 1000
    for mode in ("time", "memory"):
        least = smallest("exact", larger, mode)
        assert least == smallest("exact", graph, mode) + 1000
        plan = get_planner("exact")(larger, least, PlannerOptions(mode=mode))
        assert plan.formula_peak_bytes == least


def test_a_family_that_was_reduced_is_said() -> None:
    n = 12
    graph = bare_graph([[] for _ in range(n)], [1] * n, [1] * n, [[] for _ in range(n)])
    plan = get_planner("exact")(graph, 100, PlannerOptions(max_lower_sets=100))
    assert plan.family == "pruned+prefix"
    assert plan.notes == (
        "family all has more than 100 lower sets; family pruned+prefix was searched instead",
    )
    assert plan.complete  # a limit on lower sets is none on time


def test_without_a_limit_each_core_searches_as_many_lower_sets_as_it_can_take(core: str) -> None:
    # 2**13 lower sets.
    n = 13
    graph = bare_graph([[] for _ in range(n)], [1] * n, [1] * n, [[] for _ in range(n)])
    plan = get_planner("exact")(graph, 100, PlannerOptions())
    if core == "native":
        assert (plan.family, plan.lower_sets, plan.notes) == ("all", 8192, ())
    else:
        assert (plan.family, plan.lower_sets) == ("pruned+prefix", 2 * n)
        assert plan.notes == (
            "family all has more than 4096 lower sets; family pruned+prefix was searched instead",
        )


def test_curves_by_name() -> None:
    with_curve = []
    without = []
    for name in PLANNERS:
        try:
            get_curve(name)
        except UsageError as error:
            without.append((name, str(error)))
        else:
            with_curve.append(name)
    assert {"exact", "approximate"} <= set(with_curve)
    assert [name for name, _ in without] == [
        "refined",
        "chen",
        "salimans-memory",
        "salimans-speed",
        "salimans-collection",
        "revolve",
        "store-all",
    ]
    for name, message in without:
        assert message == (
            f"planner '{name}' has no trade-off over budgets; these have: {', '.join(with_curve)}"
        )
    with pytest.raises(UnknownPlannerError, match="unknown planner 'fastest'; known planners"):
        get_curve("fastest")


def test_the_trade_off_of_a_chain(core: str) -> None:
    # Cut after each op: 10 more bytes are kept each time beside 2 * 10 + 10, at last 30 + 2 * 10;
    # only the last op is computed again. One cut in the middle needs 2 * 20 + 10 too.
    trade_off = get_curve("exact")(chain(4), PlannerOptions())
    points = [(point.budget_bytes, point.overhead) for point in trade_off.points]
    assert points == [(50, 1)]
    assert (trade_off.planner, trade_off.family, trade_off.lower_sets) == ("exact", "all", 5)
    assert (trade_off.total_cost, trade_off.cost_unit, trade_off.notes) == (8, "unit", ())
    assert trade_off.status is PlanStatus.OPTIMAL_IN_FAMILY
    assert trade_off.seconds > 0


def test_overhead_at_a_budget() -> None:
    points = (TradeOffPoint(10, 7), TradeOffPoint(20, 3), TradeOffPoint(21, 0))
    trade_off = TradeOff("exact", "all", PlanStatus.OPTIMAL_IN_FAMILY, "unit", 9, 5, points, 0.1)
    wanted = {9: None, 10: 7, 19: 7, 20: 3, 21: 0, 2**63: 0}
    assert {budget: trade_off.overhead_at(budget) for budget in wanted} == wanted


def test_a_trade_off_counts_resident_values_and_says_what_was_reduced(core: str) -> None:
    n = 8
    plain = bare_graph([[] for _ in range(n)], [1] * n, [1] * n, [[] for _ in range(n)])
    parameter = Value("parameter", 1000, ValueKind.PARAMETER)
    graph = TrainingGraph((*plain.values, parameter), plain.ops, "unit")
    trade_off = get_curve("exact")(graph, PlannerOptions(max_lower_sets=100))
    assert (trade_off.family, trade_off.lower_sets) == ("pruned+prefix", 2 * n)
    assert trade_off.notes == (
        "family all has more than 100 lower sets; family pruned+prefix was searched instead",
    )
    assert trade_off.points == (TradeOffPoint(1002, n),)
    with pytest.raises(UsageError, match="unknown family 'some'"):
        get_curve("exact")(graph, PlannerOptions(family="some"))


def test_costs_are_rounded_where_fronts_would_be_too_long(
    core: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs in nanoseconds are as good as all different; a plan then says how they were rounded."""
    n = 24
    before = [[v - 1] if v else [] for v in range(n)]
    costs = [10**6 + 7919 * v * v % 10**6 for v in range(n)]
    graph = bare_graph(before, [10 + v % 7 for v in range(n)], costs, [[v] for v in range(n)])
    exact = get_curve("exact")(graph, PlannerOptions())
    monkeypatch.setattr(paper_dp, "_FEW_LOWER_SETS", 4)
    monkeypatch.setattr(paper_dp, "_COST_STEPS", 200 * (n + 1))
    quantum = -(-sum(costs) // (200 - n - 1))
    note = f"costs were rounded up to multiples of {quantum} unit"

    rounded = get_curve("exact")(graph, PlannerOptions())
    assert (rounded.status, rounded.notes) == (PlanStatus.FEASIBLE, (note,))
    assert all(point.overhead % quantum == 0 for point in rounded.points)
    assert rounded.points[0].budget_bytes == exact.points[0].budget_bytes
    assert len(exact.points) > 5
    for point in exact.points:
        for mode in ("time", "memory"):
            plan = get_planner("exact")(graph, point.budget_bytes, PlannerOptions(mode=mode))
            plan.schedule.validate(graph)
            assert (plan.status, plan.family) == (PlanStatus.FEASIBLE, "all")
            assert note in plan.notes
            assert plan.formula_peak_bytes is not None
            assert plan.formula_overhead is not None
            assert plan.formula_peak_bytes <= point.budget_bytes
            assert plan.smallest_feasible_budget_bytes == exact.points[0].budget_bytes
            if mode == "time":
                promised = rounded.overhead_at(point.budget_bytes)
                assert promised is not None
                assert point.overhead <= plan.formula_overhead <= promised
                assert promised < point.overhead + n * quantum


def test_costs_are_not_rounded_where_few_steps_do() -> None:
    n = 300
    graph = bare_graph(
        [[v - 1] if v else [] for v in range(n)], [1] * n, [100] * n, [[v] for v in range(n)]
    )
    # 301 lower sets, and 2**25 / 301 steps of cost are more than its 30,000.
    plan = get_planner("exact")(graph, 10**6, PlannerOptions(mode="time"))
    assert (plan.status, plan.lower_sets) == (PlanStatus.OPTIMAL_IN_FAMILY, 301)
    assert plan.notes == ()


@pytest.mark.parametrize("name", ["exact", "approximate", "chen"])
def test_progress_is_reported(name: str) -> None:
    told: list[tuple[str, float]] = []

    def report(label: str, share: float) -> None:
        told.append((label, share))

    get_planner(name)(chain(9), 1000, PlannerOptions(progress=report))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert len(told) > 1
    assert shares[-1] <= 1
    assert all(label for label, _ in told)


#         1 - 2
#        /     \
#   0 --        4 -- 5 -- 6      with 3 on the other branch
#        \     /
#         -3---
BRANCHED = bare_graph(
    [[], [0], [1], [0], [2, 3], [4], [5]], [10] * 7, [1] * 7, [[v] for v in range(7)]
)


def test_chen_cuts_where_one_op_leads_on() -> None:
    # Nothing leads on from the whole graph, so it is no cut.
    assert articulation_cuts(BRANCHED) == [0b0000001, 0b0011111, 0b0111111]
    assert articulation_cuts(chain(4)) == [0b0001, 0b0011, 0b0111]


#   0 -- 1 -- 2 -- 3 -- 4      5 updates a running statistic with what 1 found; nothing reads it
#         \
#          ------------------5
def test_chen_cuts_although_a_statistic_is_updated_at_the_end() -> None:
    before = [[], [0], [1], [2], [3], [1]]
    graph = bare_graph(before, [10] * 6, [1] * 6, [[0], [1], [2], [3], [4], []])
    ops = list(graph.ops)
    ops[5] = replace(ops[5], recomputable=False)
    graph = replace(graph, ops=tuple(ops))
    assert articulation_cuts(graph) == [0b1, 0b100011, 0b100111, 0b101111]  # 5 goes with 1


#   0 -- 2 -- 3 -- 4 -- 5      1 is a mask that each of 2 to 5 reads
#       /    /    /    /
#   1 ------------------
def test_chen_cuts_although_all_layers_read_a_small_mask() -> None:
    before = [[], [], [0, 1], [2, 1], [3, 1], [4, 1]]
    reads = [[v] for v in range(6)]
    small = bare_graph(before, [100, 1, 100, 100, 100, 100], [1] * 6, reads)
    assert articulation_cuts(small) == [0b1, 0b11, 0b111, 0b1111, 0b11111]
    large = bare_graph(before, [100] * 6, [1] * 6, reads)
    assert articulation_cuts(large) == [0b1]


def test_chen_tries_segments_of_about_equal_bytes() -> None:
    found = segmentations(chain(9))
    assert found[0] == ((1 << 9) - 1,)
    assert (0b111, 0b111111, 0b111111111) in found
    assert all(sequence[-1] == (1 << 9) - 1 for sequence in found)


def test_chen_takes_the_least_recomputation_that_fits() -> None:
    graph = chain(16)
    options = PlannerOptions()
    least = smallest("chen", graph)
    plain = smallest("store-all", graph)
    assert least <= plain // 2
    overheads = [
        get_planner("chen")(graph, budget, options).overhead for budget in range(least, plain + 1)
    ]
    assert overheads == sorted(overheads, reverse=True)
    assert overheads[0] > overheads[-1] == 0


def test_no_forward_ops() -> None:
    values = (Value("t", 3, ValueKind.TANGENT), Value("g", 5, ValueKind.GRADIENT, True))
    graph = TrainingGraph(values, (Op("b", "b", Phase.BACKWARD, (0,), (1,), 1),))
    for name in ("exact", "approximate", "chen", "store-all"):
        assert smallest(name, graph) == 8
        plan = get_planner(name)(graph, 8, PlannerOptions())
        assert (plan.peak_bytes, plan.overhead, plan.stages) == (8, 0, ())


def test_a_plan_over_its_budget_says_so() -> None:
    """The paper's formula knows no gradients of parameters; mode time goes by the formula alone."""
    values = (
        Value("x", 10, ValueKind.ACTIVATION),
        Value("t", 0, ValueKind.TANGENT),
        Value("g", 500, ValueKind.GRADIENT, True),
    )
    ops = (
        Op("f", "f", Phase.FORWARD, (), (0,), 1),
        Op("b", "b", Phase.BACKWARD, (0, 1), (2,), 1),
    )
    graph = TrainingGraph(values, ops)
    plan = get_planner("exact")(graph, 100, PlannerOptions(mode="time"))
    assert plan.peak_bytes == 510
    assert "the simulated peak is 510 bytes, over the budget" in plan.notes[0]
    assert smallest("exact", graph) == 510


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["auto", "liveness", "nested", "exact", "approximate"])
def test_one_search_gives_the_plans_of_many(name: str, core: str) -> None:
    graph = chain(20 if core == "native" else 12)
    found = search_all(name, graph, PlannerOptions())
    assert replace(found.trade_off, seconds=0.0) == replace(
        get_curve(name)(graph, PlannerOptions()), seconds=0.0
    )
    # `auto` leaves nested strategies out where a budget is roomy; one search has them anyway.
    planner = get_planner("nested" if name == "auto" else name)
    for point in found.trade_off.points:
        once = found.plan(point.budget_bytes)
        alone = planner(graph, point.budget_bytes, PlannerOptions())
        assert replace(once, seconds=0.0) == replace(alone, seconds=0.0)
        assert once.peak_bytes <= point.budget_bytes
    with pytest.raises(InfeasibleBudgetError) as caught:
        found.plan(1)
    assert caught.value.minimum_bytes == smallest(name, graph)
