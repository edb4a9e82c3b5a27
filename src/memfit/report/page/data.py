"""The data of a report page: graph and plan as one JSON object, in columns to keep it small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from memfit.analysis.curve import CurveSample
from memfit.graph.plan import Plan
from memfit.graph.simulator import CATEGORIES
from memfit.graph.training_graph import TrainingGraph
from memfit.report.page.tree import fold, module_paths, tree_json
from memfit.report.page.views import activation_ids, plain_view, plan_view, stage_of_ops

__all__ = ["page_data"]

PLAN_COLUMNS, POINT_COLUMNS = 1400, 240
"""Columns of the charts of plan and plain step, and of the plans of the curve's points."""

POINT_LIVE_ROWS = 40


class _Texts:
    """Texts that occur often, by number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, text: str | None) -> int:
        """The number of a text; -1 for None and for the empty text."""
        if not text:
            return -1
        if text not in self._number:
            self._number[text] = len(self.texts)
            self.texts.append(text)
        return self._number[text]

    def numbers(self, texts: Iterable[str | None]) -> list[int]:
        """The numbers of several texts."""
        return [self.number(text) for text in texts]


def page_data(
    graph: TrainingGraph,
    plan: Plan,
    shapes: Sequence[str | None] = (),
    curve: CurveSample | None = None,
) -> dict[str, Any]:
    """Everything that a report page shows; sizes in bytes, times in the graph's cost unit.

    Args:
        graph: the graph.
        plan: its plan.
        shapes: for each op, shape and type of what it writes; empty where unknown.
        curve: the trade-off and the plans of some of its points.

    Raises:
        PlanMismatchError: the plan is for another graph.
        UsageError: the graph has no ops.
    """
    plan.check_graph(graph)
    texts = _Texts()
    stages = stage_of_ops(graph, plan)
    return {
        "name": graph.name,
        "unit": graph.cost_unit,
        "made": _origin(plan),
        "totalCost": graph.total_cost,
        "forwardCost": graph.forward_cost,
        "residentBytes": graph.resident_bytes,
        "categories": [category.value for category in CATEGORIES],
        "ops": _ops(graph, shapes, texts),
        "activations": _activations(graph),
        "edges": [list(before) for before in graph.forward_predecessors],
        "tree": tree_json(fold(graph, stages)),
        "plain": plain_view(graph, PLAN_COLUMNS),
        "plan": plan_view(graph, plan, PLAN_COLUMNS),
        "curve": None if curve is None else _curve(graph, curve),
        "texts": texts.texts,
    }


def _ops(graph: TrainingGraph, shapes: Sequence[str | None], texts: _Texts) -> dict[str, Any]:
    """All ops by column; shapes and module paths of forward ops only."""
    forward = graph.forward_count
    return {
        "forward": forward,
        "name": [op.name for op in graph.ops],
        "target": texts.numbers(op.target for op in graph.ops),
        "source": texts.numbers(str(op.source) if op.source else None for op in graph.ops),
        "cost": [op.cost for op in graph.ops],
        "workspace": [op.workspace_bytes for op in graph.ops],
        "of": [-1 if op.forward_op is None else op.forward_op for op in graph.backward_ops],
        "shape": texts.numbers(shapes[:forward]),
        "module": texts.numbers(module_paths(graph)),
    }


def _activations(graph: TrainingGraph) -> dict[str, list[int]]:
    """Size and producer of each value that a forward op writes."""
    ids = activation_ids(graph)
    return {
        "bytes": [graph.values[v].size_bytes for v in ids],
        "op": [-1 if graph.producer[v] is None else int(graph.producer[v] or 0) for v in ids],
    }


def _origin(plan: Plan) -> str:
    """Where the plan comes from, in a line."""
    known = plan.provenance
    parts = [
        f"memfit {known['memfit']}" if "memfit" in known else "",
        f"PyTorch {known['torch']}" if "torch" in known else "",
        f"device {known['device']}" if "device" in known else "",
        f"{known['cost']} times" if "cost" in known else "",
    ]
    return ", ".join(part for part in parts if part)


def _curve(graph: TrainingGraph, sample: CurveSample) -> dict[str, Any]:
    """The curve's points, and of some of them the plan as a view."""
    found = sample.curve
    plans = {
        str(number): plan_view(graph, plan, POINT_COLUMNS, POINT_LIVE_ROWS)
        for number, plan in sample.plans.items()
    }
    return {
        "planner": found.planner,
        "family": found.family,
        "status": found.status.value,
        "notes": list(found.notes),
        "points": [[point.budget_bytes, point.overhead] for point in found.points],
        "plans": plans,
    }
