"""Every planner names its smallest budget exactly: it is accepted, and nothing below it is.

On small graphs the overhead never rises with the budget either, in the modes that say so.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph.plan import Plan
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PLANNERS, PlannerOptions, get_curve, get_planner
from memfit.planners.paper.system import build_table

MakeGraph = Callable[[Random, int], TrainingGraph]

CASES = [
    (planner, mode)
    for planner in ("auto", *PLANNERS)
    for mode in (("auto", "time", "memory") if planner in {"exact", "approximate"} else ("auto",))
]


def by_formula(planner: str, mode: str) -> bool:
    """Whether budgets are those of the paper's formulas, whatever the simulated peak."""
    return planner in {"exact", "approximate"} and mode != "auto"


class Asked:
    """A planner in a mode on one graph."""

    def __init__(self, planner: str, mode: str, graph: TrainingGraph) -> None:
        self.planner, self.mode, self.graph = planner, mode, graph
        self.formula = by_formula(planner, mode)
        with pytest.raises(InfeasibleBudgetError) as caught:
            self.plan(-1)
        self.named: int = caught.value.minimum_bytes

    def plan(self, budget: int) -> Plan:
        return get_planner(self.planner)(self.graph, budget, PlannerOptions(mode=self.mode))

    def refuses(self, budget: int) -> None:
        with pytest.raises(InfeasibleBudgetError) as caught:
            self.plan(budget)
        assert caught.value.minimum_bytes == self.named

    def overhead(self, budget: int) -> int:
        """Of the plan for a budget, which is checked; by the formula, where that decides."""
        plan = self.plan(budget)
        plan.schedule.validate(self.graph)
        assert plan.peak_bytes == simulate(self.graph, plan.schedule).peak_bytes
        if self.formula:
            assert plan.formula_overhead is not None
            return plan.formula_overhead
        assert plan.peak_bytes <= budget
        return plan.overhead


def check(asked: Asked, random: Random, tries: int) -> None:
    """The laws, at so many random budgets on either side of the smallest one."""
    low, named = asked.graph.resident_bytes, asked.named
    asked.refuses(named - 1)
    for _ in range(tries if low < named else 0):
        asked.refuses(random.randint(low, named - 1))
    plain = get_planner("store-all")(asked.graph, 1 << 60, PlannerOptions()).peak_bytes
    top = 5 * max(named, plain) // 4
    budgets = {named, plain, top, *(random.randint(named, top) for _ in range(tries))}
    overheads = [asked.overhead(b) for b in sorted(budgets) if b >= named]
    if asked.planner != "refined" and asked.mode != "memory":
        assert overheads == sorted(overheads, reverse=True)


@pytest.mark.parametrize(("planner", "mode"), CASES)
def test_the_named_budget_is_the_smallest(
    core: str, joint_graph: MakeGraph, full_graph: MakeGraph, planner: str, mode: str
) -> None:
    random = Random(11)
    tried = 0
    while tried < 4:
        graph = random.choice([joint_graph, joint_graph, full_graph])(random, random.randint(1, 8))
        try:
            asked = Asked(planner, mode, graph)
        except UsageError:  # revolve is for chains
            continue
        check(asked, random, 4)
        tried += 1


# What plans take for the smallest budget of the formulas, and what a plan for another one takes.
@pytest.mark.parametrize("planner", ["exact", "approximate"])
@pytest.mark.parametrize(
    ("seed", "first", "least"),
    [
        (52, 15_015, 14_015),
        (191, 110_000_015, 100_000_015),
        (322, 152_023, 125_015),
    ],
)
def test_where_the_formula_promises_too_little_larger_nominal_budgets_count(
    core: str, joint_graph: MakeGraph, planner: str, seed: int, first: int, least: int
) -> None:
    random = Random(seed)
    graph = joint_graph(random, random.randint(1, 8))
    table = build_table(graph, "all" if planner == "exact" else "pruned", PlannerOptions())
    strategies = [table.strategy(table.minimum_bytes, mode) for mode in ("time", "memory")]
    assert min(s.peak_bytes for s in strategies if s is not None) == first
    assert graph.resident_bytes + table.minimum_bytes < first
    asked = Asked(planner, "auto", graph)
    assert asked.named <= least
    check(asked, random, 12)


@pytest.mark.parametrize("planner", ["liveness", "nested", "auto"])
def test_no_budget_of_the_trade_off_is_below_the_smallest_one(
    core: str, joint_graph: MakeGraph, planner: str
) -> None:
    random = Random(5)
    for _ in range(6):
        asked = Asked(planner, "auto", joint_graph(random, random.randint(1, 8)))
        for point in get_curve(planner)(asked.graph, PlannerOptions()).points:
            assert point.budget_bytes >= asked.named
            assert asked.overhead(point.budget_bytes) <= point.overhead
