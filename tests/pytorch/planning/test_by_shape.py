"""Plans of one structure at several sizes, on graphs made up: taken over, estimated, on disk."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions
from memfit.planners.registry import get_planner
from memfit.pytorch.cost import on_disk as cost_cache
from memfit.pytorch.cost.op_calls import OpCall, TensorSpec
from memfit.pytorch.options import CaptureOptions, StepOptions
from memfit.pytorch.planning.by_shape import ByShape, structure_of
from memfit.pytorch.planning.fresh import Fresh
from memfit.pytorch.planning.on_disk import (
    FORMAT_VERSION,
    CachedPlan,
    PlanCache,
    plan_key,
)
from memfit.pytorch.planning.protocol import Draft, Occasion
from memfit.pytorch.planning.shape_times import estimated_times

MakeGraph = Callable[[Random, int], TrainingGraph]
CALL = OpCall(
    torch.ops.aten.neg.default, (TensorSpec((4,), (1,), torch.float32, torch.device("cpu")),)
)


@dataclass(frozen=True)
class Step:
    """A captured step that is its graph."""

    graph: TrainingGraph

    def with_costs(self, costs: Sequence[tuple[int, int]]) -> Step:
        return Step(self.graph.with_costs(costs))


class Rules(Fresh):
    """Plans with the default planner, says how long it took, and remembers limits."""

    def __init__(self, budget_bytes: int, took_s: float = 0.0, cost: str = "analytic") -> None:
        super().__init__(StepOptions(CaptureOptions(cost=cost)))
        self.__dict__.update(budget_bytes=budget_bytes, took_s=took_s, limits=[])
        self.__dict__["fails_within_limit"] = False

    def resolve(self, graph: TrainingGraph) -> int:
        return self.budget_bytes

    def within(
        self, graph: TrainingGraph, budget_bytes: int, time_limit_s: float | None = None
    ) -> Plan:
        self.limits.append(time_limit_s)
        if self.fails_within_limit and time_limit_s is not None:
            raise InfeasibleBudgetError(
                budget_bytes=budget_bytes, minimum_bytes=budget_bytes + 1, binding_op=None
            )
        made = get_planner("auto")(graph, budget_bytes, PlannerOptions())
        return replace(made, seconds=self.took_s)


def scaled(graph: TrainingGraph, share: float, workspace: int = 0) -> TrainingGraph:
    """The same structure at another size."""
    values = tuple(replace(v, size_bytes=int(v.size_bytes * share)) for v in graph.values)
    ops = tuple(replace(op, workspace_bytes=int(op.workspace_bytes * share)) for op in graph.ops)
    first = replace(ops[0], workspace_bytes=ops[0].workspace_bytes + workspace)
    return replace(graph, values=values, ops=(first, *ops[1:]))


def example_graph(joint_graph: MakeGraph) -> tuple[TrainingGraph, int]:
    """A graph and a budget at which some of it has to be recomputed."""
    for seed in range(100):
        graph = joint_graph(Random(seed), 14)
        made = get_planner("auto")(graph, 2**50, PlannerOptions())
        low, high = made.smallest_feasible_budget_bytes, made.plain_peak_bytes
        if high > 1.3 * low and high > 10_000:
            budget = (low + high) // 2
            if get_planner("auto")(graph, budget, PlannerOptions()).overhead > 0:
                return graph, budget
    raise AssertionError("no graph of a hundred has anything to recompute")


def draft(graph: TrainingGraph, cost: Callable[..., Step] = lambda step, _: step) -> Draft[Step]:
    return Draft(Step(graph), cost, lambda: [CALL] * len(graph.ops))


def make(plans: ByShape, graph: TrainingGraph, occasion: Occasion | None = None) -> Plan:
    made = plans.plan(draft(graph), occasion or Occasion())
    step, plan = made.step, made.plan
    plan.check_graph(step.graph)
    assert simulate(step.graph, plan.schedule).peak_bytes == plan.peak_bytes <= plan.budget_bytes
    return plan


def test_where_planning_is_slow_the_larger_shapes_plan_is_taken_over(
    joint_graph: MakeGraph,
) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget, took_s=3.0)
    plans = ByShape(rules, None)
    large = make(plans, graph, Occasion(inputs="8x128"))
    smaller = make(plans, scaled(graph, 0.97), Occasion(step_s=0.01))
    assert smaller.schedule == large.schedule
    assert smaller.provenance["shape"]["how"] == "taken over"
    assert "taken over from a plan for inputs of 8x128" in smaller.notes[0]
    assert rules.limits == [None]
    assert smaller.peak_bytes < large.peak_bytes


def test_a_step_that_takes_long_leaves_time_to_plan(joint_graph: MakeGraph) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget, took_s=3.0)
    plans = ByShape(rules, None)
    make(plans, graph)
    made = make(plans, scaled(graph, 0.97), Occasion(step_s=5.0))
    assert rules.limits == [None, 5.0]
    assert made.provenance["shape"]["how"] in ("planned", "taken over")
    quick = Rules(budget, took_s=0.05)
    plans = ByShape(quick, None)
    make(plans, graph)
    make(plans, scaled(graph, 0.97), Occasion(step_s=0.001))
    assert quick.limits == [None, 0.1]


def test_a_schedule_whose_simulated_peak_is_too_high_is_not_taken_over(
    joint_graph: MakeGraph,
) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget, took_s=100.0)
    plans = ByShape(rules, None)
    large = make(plans, graph)
    # A smaller step, one op of which needs much more workspace: the old schedule peaks there.
    hungry = scaled(graph, 0.97)
    spare = budget - simulate(hungry, large.schedule).live_bytes[0]
    hungry = scaled(graph, 0.97, workspace=spare + 1)
    assert structure_of(hungry) == structure_of(graph)
    assert simulate(hungry, large.schedule).peak_bytes > budget
    try:
        made = make(plans, hungry, Occasion(step_s=0.01))
        assert made.provenance["shape"]["how"] == "planned"
    except InfeasibleBudgetError:
        pass
    assert rules.limits[:2] == [None, 0.1]


def test_nothing_fits_within_the_limit_and_planning_goes_on_without_one(
    joint_graph: MakeGraph,
) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget)
    plans = ByShape(rules, None)
    make(plans, scaled(graph, 0.5))
    rules.__dict__["fails_within_limit"] = True
    made = make(plans, graph, Occasion(step_s=0.01))
    assert rules.limits == [None, 0.1, None]
    assert made.provenance["shape"]["how"] == "planned"
    rules.__dict__["budget_bytes"] = 10
    with pytest.raises(InfeasibleBudgetError):
        make(plans, scaled(graph, 0.9), Occasion(step_s=0.01))


def test_where_everything_fits_nothing_is_searched(joint_graph: MakeGraph) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget)
    plans = ByShape(rules, None)
    make(plans, graph)
    small = make(plans, scaled(graph, 0.1))
    assert small.overhead == 0
    assert small.planner == "store-all"
    assert rules.limits == [None]
    other = joint_graph(Random(5), 9)
    rules.budget_bytes = 2**40
    make(plans, other)
    assert len(rules.limits) == 2


def test_times_are_estimated_between_two_measured_shapes(joint_graph: MakeGraph) -> None:
    graph, budget = example_graph(joint_graph)
    plans = ByShape(Rules(2 * budget, cost="measured"), None)
    given: list[Mapping[int, int] | None] = []

    def cost(step: Step, times: Mapping[int, int] | None) -> Step:
        given.append(times)
        return step

    for share, ahead in ((1.0, True), (0.1, True), (0.5, True), (0.6, False)):
        one = scaled(graph, share)
        plans.plan(draft(one, cost), Occasion(ahead=ahead))
    assert given[:2] == [None, None]
    assert given[2] is not None
    assert set(given[2]) == set(range(len(graph.ops)))
    assert given[3] is not None
    met = ByShape(Rules(2 * budget, cost="measured"), None)
    given.clear()
    for share in (1.0, 0.6):
        one = scaled(graph, share)
        met.plan(draft(one, cost), Occasion())
    assert [times is None for times in given] == [True, False]


def test_estimated_times() -> None:
    low, high = ([10, 10, 0], [100, 7, 0]), ([30, 10, 0], [500, 9, 0])
    assert estimated_times([low, high], [20, 10, 0]) == [300, 8, 0]
    assert estimated_times([low, high], [30, 10, 5]) == [500, 8, 0]
    assert estimated_times([low, high], [60, 20, 5]) == [1000, 18, 0]
    assert estimated_times([low], [5, 5, 0]) == [50, 3, 0]


@pytest.fixture
def kept(
    tmp_path: Path, joint_graph: MakeGraph
) -> tuple[PlanCache, Path, TrainingGraph, CachedPlan]:
    graph, budget = example_graph(joint_graph)
    plan = get_planner("auto")(graph, budget, PlannerOptions())
    made = CachedPlan(plan, [(op.cost, op.workspace_bytes) for op in graph.ops], True)
    cache = PlanCache(tmp_path / "plans")
    cache.put("key", made)
    return cache, tmp_path / "plans" / "key.json", graph, made


def test_a_kept_plan_is_found_again(
    kept: tuple[PlanCache, Path, TrainingGraph, CachedPlan],
) -> None:
    cache, _, graph, made = kept
    found = cache.get("key", graph.with_costs([(0, 0)] * len(graph.ops)))
    assert found is not None
    assert found.plan.schedule == made.plan.schedule
    assert list(found.costs) == list(made.costs)
    assert cache.get("other", graph) is None


@pytest.mark.parametrize("complete", [True, False])
def test_plans_are_kept_where_the_search_was_whole_whatever_their_notes_say(
    joint_graph: MakeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("MEMFIT_CACHE", "1")
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget)
    note = "a time limit of another kind" if complete else "cut short"
    told = replace(rules.within(graph, budget), notes=(note,), complete=complete)
    monkeypatch.setattr(Rules, "within", lambda *_: told)
    made = make(ByShape(rules, "digest"), graph)
    assert made.notes == (note,)
    assert bool(list((tmp_path / "plans").glob("*.json"))) == complete


def _less(data: dict[str, Any]) -> None:
    data["costs"] = data["costs"][:-1]


def _negative(data: dict[str, Any]) -> None:
    data["costs"][0] = [-1, 0]


def _hungry(data: dict[str, Any]) -> None:
    data["costs"][0] = [1, 2**40]


def _reads_too_early(data: dict[str, Any]) -> None:
    plan = json.loads(data["plan"])
    plan["schedule"]["steps"].reverse()
    data["plan"] = json.dumps(plan)


def _unknown_op(data: dict[str, Any]) -> None:
    plan = json.loads(data["plan"])
    plan["schedule"]["steps"][0][0] = 10**6
    data["plan"] = json.dumps(plan)


def _other_graph(data: dict[str, Any]) -> None:
    data["plan"] = data["plan"].replace('"graph_fingerprint": "', '"graph_fingerprint": "0')


def _other_version(data: dict[str, Any]) -> None:
    data["format_version"] = FORMAT_VERSION + 1


DAMAGE = (_less, _negative, _hungry, _reads_too_early, _unknown_op, _other_graph, _other_version)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_plan_is_ignored_with_a_warning(
    kept: tuple[PlanCache, Path, TrainingGraph, CachedPlan],
    damage: Callable[[dict[str, Any]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache, path, graph, made = kept
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with caplog.at_level(logging.WARNING):
        assert cache.get("key", graph) is None
    assert str(path) in caplog.text
    cache.put("key", made)
    assert cache.get("key", graph) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"format_version": 1}'])
def test_a_file_that_is_no_plan_is_ignored_with_a_warning(
    kept: tuple[PlanCache, Path, TrainingGraph, CachedPlan],
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache, path, graph, _ = kept
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert cache.get("key", graph) is None
    assert str(path) in caplog.text


def test_the_oldest_plans_go_and_a_folder_that_cannot_be_made_is_only_logged(
    kept: tuple[PlanCache, Path, TrainingGraph, CachedPlan],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache, path, _, made = kept
    monkeypatch.setattr("memfit.pytorch.planning.on_disk.MOST_FILES", 2)
    for age, name in enumerate(("a", "b", "c")):
        cache.put(name, made)
        for file in path.parent.iterdir():
            if file.name == f"{name}.json":
                os.utime(file, (10**9 + age, 10**9 + age))
    os.utime(path, (10**9 + 9, 10**9 + 9)) if path.exists() else None
    assert len(list(path.parent.iterdir())) == 2
    assert (path.parent / "c.json").exists()
    broken = PlanCache(path / "inside")
    with caplog.at_level(logging.WARNING):
        broken.put("key", made)
    assert "was not kept" in caplog.text


def test_plans_of_other_code_have_other_keys(
    joint_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = joint_graph(Random(0), 4)
    before = plan_key(graph, [CALL], "d")
    monkeypatch.setattr(cost_cache, "_own_code", lambda: "another checkout")
    assert plan_key(graph, [CALL], "d") != before


def test_calls_without_a_stable_name_have_no_key(joint_graph: MakeGraph) -> None:
    graph = joint_graph(Random(1), 5)
    assert plan_key(graph, [CALL], "d") != plan_key(graph, [CALL], "e")
    assert plan_key(graph, [CALL], "d") == plan_key(graph, [CALL], "d")
    assert plan_key(graph, [CALL, replace(CALL, target=lambda x: x)], "d") is None
    assert plan_key(graph, [], "d") is None
