from __future__ import annotations

from dataclasses import replace

import pytest

from memfit.analysis.explanation import explain_budget
from memfit.errors import InfeasibleBudgetError
from memfit.graph.estimates import estimate_note, noting_estimates
from memfit.graph.graph_file import graph_from_json, graph_to_json
from memfit.graph.training_graph import Estimate, Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners import PLANNERS, PlannerOptions, get_curve, get_planner


def graph(estimate: Estimate | None, workspace_bytes: int = 10) -> TrainingGraph:
    """Three forward ops in a row and their backward ops; the forward ops have workspaces."""
    names = ["aten.convolution.default", "aten.sort.default", "custom.op"]
    values = [Value("x", 8, ValueKind.INPUT)]
    ops = []
    for i, name in enumerate(names):
        values.append(Value(f"a{i}", 8, ValueKind.ACTIVATION))
        ops.append(
            Op(f"f{i}", name, Phase.FORWARD, (i,), (i + 1,), 1, workspace_bytes,
               workspace_estimate=estimate)
        )  # fmt: skip
    for i in (2, 1, 0):
        values.append(Value(f"g{i}", 8, ValueKind.GRADIENT, is_output=i == 0))
        reads = (i + 1,) if i == 2 else (i + 1, len(values) - 2)
        ops.append(Op(f"b{i}", "back", Phase.BACKWARD, reads, (len(values) - 1,), 1))
    return TrainingGraph(tuple(values), tuple(ops))


def test_a_note_names_the_ops_and_what_would_measure_them() -> None:
    assert estimate_note(graph(Estimate.ANALYTIC)) == (
        "the smallest feasible budget is an upper bound: the workspace of 3 ops (convolution, "
        'sort, custom.op) was estimated, not measured; measure it with cost="measured" '
        "(--cost measured)"
    )
    assert "no PyTorch profiler" in str(estimate_note(graph(Estimate.PROFILER)))
    assert str(estimate_note(graph(Estimate.FAILED))).endswith("not measured")
    assert str(estimate_note(graph(Estimate.FAILED), "so", "do that")).startswith("so: ")


@pytest.mark.parametrize("made", [graph(None), graph(Estimate.ANALYTIC, 0)])
def test_there_is_no_note_where_nothing_was_estimated(made: TrainingGraph) -> None:
    assert estimate_note(made) is None
    error = InfeasibleBudgetError(budget_bytes=1, minimum_bytes=2, binding_op=None)
    assert noting_estimates(error, made) is error


def test_graph_files_keep_what_was_estimated() -> None:
    made = graph(Estimate.PROFILER)
    assert graph_from_json(graph_to_json(made)) == made


@pytest.mark.parametrize("name", ["auto", *(name for name in PLANNERS if name != "revolve")])
def test_every_planner_says_it(name: str) -> None:
    made, options = graph(Estimate.ANALYTIC), PlannerOptions()
    note = estimate_note(made)
    plan = get_planner(name)(made, 2**20, options)
    assert list(plan.notes).count(note) == 1
    with pytest.raises(InfeasibleBudgetError, match="an upper bound: the workspace of 3 ops"):
        get_planner(name)(made, 1, options)


def test_trade_offs_say_it() -> None:
    made = graph(Estimate.ANALYTIC)
    for name in ("auto", "liveness", "exact"):
        assert get_curve(name)(made, PlannerOptions()).notes.count(str(estimate_note(made))) == 1
    exact = replace(made, ops=tuple(replace(op, workspace_estimate=None) for op in made.ops))
    assert get_curve("auto")(exact, PlannerOptions()).notes == ()


def test_an_explanation_advises_measuring_only_what_was_estimated() -> None:
    for estimate, advised in ((Estimate.ANALYTIC, True), (Estimate.FAILED, False), (None, False)):
        made = graph(estimate, workspace_bytes=100)
        plan = get_planner("liveness")
        found = explain_budget(made, 1, plan, PlannerOptions(), plain_peak_bytes=200)
        assert any("--cost measured" in text for text in found.remedies) is advised
