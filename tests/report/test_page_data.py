"""What a report page says is what graph, plan and simulation say."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from memfit.analysis.curve import pick_points, sample_curve
from memfit.analysis.trace import trace_of
from memfit.errors import PlanMismatchError
from memfit.graph.plain import store_all_schedule
from memfit.graph.simulator import CATEGORIES, simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_planner
from memfit.report.page.data import page_data
from memfit.report.page.html import render_page
from memfit.report.page.tree import MOST_CHILDREN, Group, fold, module_paths
from memfit.report.page.views import (
    activation_ids,
    hex_bits,
    plan_view,
    run_lengths,
    stage_of_ops,
    timeline_columns,
)
from support.report_graphs import BLOCK_OPS, network, segmented_plan


def unpacked(pairs: list[int]) -> list[int]:
    return [n for n, times in zip(pairs[::2], pairs[1::2], strict=True) for _ in range(times)]


def part(columns: dict[str, Any], category: str, i: int) -> int:
    found = columns["parts"].get(category, 0)
    return found if isinstance(found, int) else found[i]


def totals(columns: dict[str, Any]) -> list[int]:
    names = [c.value for c in CATEGORIES]
    return [sum(part(columns, n, i) for n in names) for i in range(len(columns["op"]))]


def test_a_short_step_is_drawn_op_by_op() -> None:
    graph = network(2)
    plan = segmented_plan(graph)
    timeline = simulate(graph, plan.schedule)
    columns = timeline_columns(trace_of(graph, plan.schedule), plan.schedule, 1000)
    assert columns["op"] == [s.op for s in plan.schedule.steps]
    assert columns["copy"] == [s.copy for s in plan.schedule.steps]
    assert totals(columns) == list(timeline.live_bytes)
    assert columns["peak"] == timeline.peak_step


@pytest.mark.parametrize("wanted", [1, 7, 50])
def test_a_long_step_keeps_its_peak_and_its_time(wanted: int) -> None:
    graph = network(20)
    schedule = segmented_plan(graph).schedule
    trace = trace_of(graph, schedule)
    columns = timeline_columns(trace, schedule, wanted)
    edges, heights = columns["edges"], totals(columns)
    assert 1 <= len(heights) <= wanted + 1
    assert (edges[0], edges[-1]) == (0, trace.total)
    assert edges == sorted(set(edges))
    assert max(heights) == heights[columns["peak"]] == trace.timeline.peak_bytes
    for (start, end), height in zip(itertools.pairwise(edges), heights, strict=True):
        inside = [i for i, at in enumerate(trace.edges[:-1]) if start <= at < end]
        assert height == max(trace.timeline.live_bytes[i] for i in inside)


@pytest.mark.parametrize("planner", ["chen", "liveness", "nested", "salimans-memory", "store-all"])
def test_a_view_is_its_plan(planner: str) -> None:
    graph = network(3)
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes
    budget = plain if planner == "store-all" else plain * 7 // 10
    plan = get_planner(planner)(graph, budget, PlannerOptions())
    view = plan_view(graph, plan, 2000)
    kept = plan.schedule.kept(graph)
    assert view["kept"] == hex_bits([v in kept for v in activation_ids(graph)])
    assert view["keptBytes"] == plan.cached_bytes
    assert view["peakBytes"] == plan.peak_bytes == sum(view["peakParts"].values())
    again = unpacked(view["again"])
    assert sum(n * graph.ops[op].cost for op, n in enumerate(again)) == plan.overhead
    assert unpacked(view["stageOf"]) == stage_of_ops(graph, plan)
    # All that is alive at the peak is in the list: what is not resident and no workspace.
    listed = sum(row[1] for row in view["live"]["rows"]) + view["live"]["moreBytes"]
    assert listed == plan.peak_bytes - graph.resident_bytes
    by_category: dict[str, int] = {}
    for _, size, category, _ in view["live"]["rows"]:
        by_category[category] = by_category.get(category, 0) + size
    parts = dict(view["peakParts"])
    parts.pop("parameters")
    assert by_category == parts


def test_the_rest_of_what_is_alive_is_summed_up() -> None:
    graph = network(3)
    plan = segmented_plan(graph)
    whole = plan_view(graph, plan, 100)["live"]
    some = plan_view(graph, plan, 100, live_rows=2)["live"]
    assert some["rows"] == whole["rows"][:2]
    assert some["more"] == len(whole["rows"]) - 2
    assert some["moreBytes"] == sum(row[1] for row in whole["rows"][2:])


def test_stages_are_those_of_the_plan() -> None:
    graph = network(4)
    plan = segmented_plan(graph)
    stages = stage_of_ops(graph, plan)
    assert [stages.count(n) for n in range(len(plan.stages))] == [
        s.forward_ops for s in plan.stages
    ]


def test_packing() -> None:
    assert hex_bits([True, False, False, True, True]) == "98"
    assert run_lengths([0, 0, 0, 2, 1, 1]) == [0, 3, 2, 1, 1, 2]
    assert hex_bits([]) == ""
    assert run_lengths([]) == []


def groups(group: Group) -> list[Group]:
    return [group, *(g for c in group.children if isinstance(c, Group) for g in groups(c))]


@pytest.mark.parametrize("modules", [True, False])
@pytest.mark.parametrize("blocks", [1, 5, 90])
def test_every_op_is_in_one_group(blocks: int, modules: bool) -> None:
    graph = network(blocks, modules=modules)
    root = fold(graph, stage_of_ops(graph, segmented_plan(graph)))
    assert root.ops() == list(range(graph.forward_count))
    assert all(1 <= len(g.children) <= MOST_CHILDREN for g in groups(root))


def test_equal_blocks_are_one_group() -> None:
    graph = network(12)
    found = {g.name: g for g in groups(fold(graph, [0] * graph.forward_count))}
    assert found["blocks.0 … 11"].repeats == 12
    assert len(found["blocks.0 … 11"].ops()) == 12 * BLOCK_OPS
    assert found["blocks.3"].repeats == 1
    assert found["blocks.3.attn"].ops() == list(range(2 + 3 * BLOCK_OPS, 9 + 3 * BLOCK_OPS))
    # Of many blocks, a run is so many equal ones, too.
    many = groups(fold(network(90), [0] * network(90).forward_count))
    whole = next(g for g in many if g.name == "blocks.0 … 89")
    assert whole.repeats == sum(c.repeats for c in whole.children if isinstance(c, Group)) == 90


def test_an_op_without_a_module_is_in_that_of_what_it_reads() -> None:
    graph = network(1)
    assert module_paths(graph)[:3] == ["embed", "blocks.0.norm1", "blocks.0.attn.q"]
    ops = [replace(op, source=None) if op.forward_op in (None, 2) else op for op in graph.ops]
    ops[0], ops[1] = graph.ops[0], graph.ops[1]
    nameless = TrainingGraph(graph.values, tuple(ops), "ns")
    # Those of the others come from their backward ops.
    assert module_paths(nameless)[:4] == [
        "embed",
        "blocks.0.norm1",
        "blocks.0.norm1",
        "blocks.0.attn.k",
    ]


def test_without_modules_a_graph_is_folded_by_stage() -> None:
    graph = network(4, modules=False)
    stages = [op * 4 // graph.forward_count for op in range(graph.forward_count)]
    names = {g.name for g in groups(fold(graph, stages))}
    assert {"stage 1", "stage 4"} <= names


def test_points_of_the_curve_have_plans_that_keep_their_promise() -> None:
    graph = network(2)
    sample = sample_curve(graph, "auto", PlannerOptions(), 4)
    points = sample.curve.points
    assert {0, len(points) - 1} <= set(sample.plans)
    assert len(sample.plans) <= 4
    for number, plan in sample.plans.items():
        assert plan.peak_bytes <= points[number].budget_bytes
        # The final schedule may leave out recomputations that the search has counted.
        assert plan.overhead <= points[number].overhead
    assert pick_points(sample.curve, len(points)) == list(range(len(points)))
    data = page_data(graph, segmented_plan(graph), curve=sample)["curve"]
    assert data["points"] == [[p.budget_bytes, p.overhead] for p in points]
    assert set(data["plans"]) == {str(n) for n in sample.plans}


def embedded(page: str) -> Any:
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_a_page_is_whole_and_asks_for_nothing() -> None:
    graph = network(3)
    data = page_data(graph, segmented_plan(graph))
    page = render_page(data)
    assert embedded(page) == json.loads(json.dumps(data))
    assert "@@" not in page
    lower = page.lower()
    for word in ("http:", "https:", "//cdn", "@import", "url(//", "<link", "<img", " src="):
        assert word not in lower.replace("url(#hatch)", ""), word
    assert "default-src 'none'" in page
    for name in ("memory", "curve", "graph", "modules"):
        assert f'<section id="{name}" aria-labelledby="{name}-title">' in page


def test_names_cannot_break_out_of_the_data() -> None:
    graph = network(1)
    evil = TrainingGraph(graph.values, graph.ops, "ns", "</script><b>&@@SCRIPT@@")
    page = render_page(page_data(evil, segmented_plan(evil)))
    assert embedded(page)["name"] == evil.name
    assert page.count("</script>") == 2
    assert "<b>" not in page


@pytest.mark.slow
def test_a_graph_of_5000_forward_ops_is_less_than_2_megabytes() -> None:
    graph = network(357)
    assert len(graph.ops) > 9_900
    page = render_page(page_data(graph, segmented_plan(graph), ["64x256 float32"] * len(graph.ops)))
    assert len(page.encode()) < 2_000_000


def test_a_plan_of_another_graph() -> None:
    with pytest.raises(PlanMismatchError, match="plan again"):
        page_data(network(2), segmented_plan(network(3)))
