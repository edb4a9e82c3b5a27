"""Both cores make the same plans."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from memfit import _core
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan
from memfit.graph.published import bare_graph
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_planner
from memfit.planners.liveness import planner as liveness_dp
from memfit.planners.liveness import table as liveness_table
from memfit.planners.liveness.table import Effort, build_table

if TYPE_CHECKING:
    from memfit._core import native
else:
    try:
        from memfit._core import native
    except ImportError:
        native = None

needs_native = pytest.mark.skipif(native is None, reason="native core is not built")


def random_graph(seed: int) -> TrainingGraph:
    """Up to 10 ops, in a chain, in some branches or apart."""
    random = Random(seed)
    n = random.randint(1, 10)
    before = [
        sorted({p for p in (v - 1, random.randrange(v)) if random.random() < 0.7}) if v else []
        for v in range(n)
    ]
    largest = random.choice([2, 100, 10**9])
    sizes, costs = ([random.randint(0, largest) for _ in range(n)] for _ in range(2))
    reads = [sorted(s for s in {*before[v], v} if random.random() < 0.7) for v in range(n)]
    return bare_graph(before, sizes, costs, reads)


def data_of(plan: Plan) -> dict[str, Any]:
    """The plan as JSON data, but for the seconds and the core."""
    data: dict[str, Any] = json.loads(plan.to_json())
    del data["seconds"]
    assert data["provenance"].pop("core") == _core.core_name()
    return data


def answer_of(planner: str, graph: TrainingGraph, budget: int, options: PlannerOptions) -> Any:
    """The plan as JSON data; or why there is none."""
    try:
        plan = get_planner(planner)(graph, budget, options)
    except InfeasibleBudgetError as error:
        return str(error)
    return data_of(plan)


def planned(seed: int) -> list[Any]:
    """What the paper's planners say of a random graph at a random budget, in each mode."""
    graph = random_graph(seed)
    random = Random(seed)
    total = sum(value.size_bytes for value in graph.values)
    budget = int(total * random.random() * 2)
    limit = 100 if seed % 5 == 0 else None
    return [
        answer_of(planner, graph, budget, PlannerOptions(mode=mode, max_lower_sets=limit))
        for planner in ("exact", "approximate")
        for mode in ("time", "memory")
    ]


A_THOUSAND = pytest.mark.parametrize(
    "seeds", [range(300), pytest.param(range(300, 1000), marks=pytest.mark.slow)], ids=str
)


def with_both_cores(
    patch: pytest.MonkeyPatch, seeds: range, ask: Callable[[int], list[Any]]
) -> list[list[Any]]:
    """The answers for some seeds, which are the same from both cores."""
    found = []
    for core in (native, None):
        patch.setattr(_core, "_fast", core)
        patch.setattr(_core, "_told", True)
        found.append([ask(seed) for seed in seeds])
    for seed, ours, reference in zip(seeds, *found, strict=True):
        assert ours == reference, seed
    return found[0]


@needs_native
@A_THOUSAND
def test_both_cores_give_the_same_plans_of_a_thousand_graphs(
    monkeypatch: pytest.MonkeyPatch, seeds: range
) -> None:
    answers = [answer for some in with_both_cores(monkeypatch, seeds, planned) for answer in some]
    infeasible = sum(isinstance(answer, str) for answer in answers)
    assert 0.4 < infeasible / len(seeds) < 2
    assert any(plan["notes"] for plan in answers if isinstance(plan, dict))


@needs_native
@A_THOUSAND
def test_both_cores_give_the_same_default_plans_of_a_thousand_graphs(
    monkeypatch: pytest.MonkeyPatch,
    joint_graph: Callable[[Random, int], TrainingGraph],
    seeds: range,
) -> None:
    # By default each core takes on as much as it can do in a few seconds.
    same = Effort(cuts=12, steps=10_000, states=40)
    for module in (liveness_table, liveness_dp):
        monkeypatch.setattr(module, "FULL", {"native": same, "python": same})

    def ask(seed: int) -> list[Any]:
        random = Random(seed)
        graph = joint_graph(random, random.randint(1, 9))
        table = liveness_dp.table_for(graph, PlannerOptions())
        plain = simulate(graph, store_all_schedule(graph)).peak_bytes
        least = liveness_dp.plan_from_table(table, plain, 0.0).smallest_feasible_budget_bytes
        plans = [
            data_of(liveness_dp.plan_from_table(table, budget, 0.0))
            for budget in {least, random.randint(least, plain)}
        ]
        return [table.stages.curve(), table.cut_count, table.family, *plans]

    answers = with_both_cores(monkeypatch, seeds, ask)
    plans = [plan for _, _, _, *some in answers for plan in some]
    assert sum(plan["overhead"] > 0 for plan in plans) > 0.5 * len(seeds)
    assert sum(plan["notes"] != [] for plan in plans) > 0.05 * len(seeds)
    assert {family for _, _, family, *_ in answers} == {"all", "pruned+prefix"}


@pytest.mark.slow
@needs_native
def test_both_cores_agree_on_stages_over_very_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Little is saved by every op, and the head peaks high whatever is done below.
    random = Random(3)
    n = 105
    before = [[v - 1] if v else [] for v in range(n)]
    sizes = [random.randint(900, 1100) for _ in range(n - 2)] + [400_000, 400_000]
    graph = bare_graph(before, sizes, [1] * n, [[*b, v] for v, b in enumerate(before)])
    same = Effort(cuts=12, steps=100_000, states=400)
    found = []
    for core in (native, None):
        monkeypatch.setattr(_core, "_fast", core)
        monkeypatch.setattr(_core, "_told", True)
        table = build_table(graph, family="all", max_lower_sets=None, effort=same, progress=None)
        curve = table.stages.curve()
        paths = [table.stages.path(need) for _, need in curve[:: -max(1, len(curve) // 8)]]
        found.append((curve, [[tuple(step) for step in path or ()] for path in paths]))
    assert found[0] == found[1]
    steps = [step for path in found[0][1] for step in path]
    far = [(i, a, j) for i, a, j, *_ in steps if j > i + 64]
    assert far
    assert all(a == 0 and i % 8 == 0 and (j + 1) % 8 == 0 for i, a, j in far)
