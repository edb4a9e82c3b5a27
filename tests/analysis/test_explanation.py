"""What `memfit explain` says is so: floor, binding op, bytes in the sentences."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from memfit.analysis.explanation import explain_budget, floor_of_any_plan, sentences
from memfit.analysis.step_memory import step_memory
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plain import store_all_schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_planner
from memfit.units import format_bytes

MakeGraph = Callable[[Random, int], TrainingGraph]


def smallest(graph: TrainingGraph) -> int:
    with pytest.raises(InfeasibleBudgetError) as caught:
        get_planner("nested")(graph, 1, PlannerOptions())
    return caught.value.minimum_bytes


@pytest.mark.parametrize("seed", range(12))
def test_no_plan_goes_below_the_floor(joint_graph: MakeGraph, seed: int) -> None:
    graph = joint_graph(Random(seed), 8)
    floor, _ = floor_of_any_plan(graph)
    assert graph.resident_bytes < floor <= smallest(graph)


@pytest.mark.parametrize("seed", range(6))
def test_an_infeasible_budget(joint_graph: MakeGraph, seed: int) -> None:
    graph = joint_graph(Random(100 + seed), 8)
    least = smallest(graph)
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes
    found = explain_budget(graph, least - 1, get_planner("nested"), PlannerOptions(), plain)
    assert not found.feasible
    assert found.smallest_feasible_budget == least
    assert found.memory.peak_bytes == least
    assert sum(found.memory.parts.values()) == least
    assert str(least) in found.why[0]
    assert found.at is not None
    assert found.at in found.why[1]
    for name, size in found.memory.parts.items():
        assert f"{format_bytes(size)} {name.replace('_', ' ')}" in found.why[1]
    text = "\n".join(sentences(found))
    assert "What would lower it" in text
    again = explain_budget(graph, least, get_planner("nested"), PlannerOptions(), plain)
    assert again.feasible
    assert "What would lower it" not in "\n".join(sentences(again))


@pytest.mark.parametrize("seed", range(6))
def test_memory_of_the_plain_step(joint_graph: MakeGraph, seed: int) -> None:
    graph = joint_graph(Random(200 + seed), 10)
    memory = step_memory(graph, rows=3)
    assert memory.peak_bytes == simulate(graph, store_all_schedule(graph)).peak_bytes
    assert len(memory.live) <= 3
    whole = step_memory(graph, rows=10_000)
    assert whole.live_left_out == 0
    alive = sum(v.size_bytes for v in whole.live)
    workspace = memory.parts.get("workspace", 0)
    tangents = memory.peak_bytes - graph.resident_bytes - workspace - alive
    assert 0 <= tangents <= sum(v.size_bytes for v in graph.values if v.kind.value == "tangent")
    kept = store_all_schedule(graph).kept(graph)
    assert sum(m.kept_bytes for m in whole.modules) == sum(graph.values[v].size_bytes for v in kept)
