"""Plan files: a plan and, beside it, the graph that it is for, so that a report needs one file.

A plan file is the JSON of `Plan.to_json` with two more keys, which readers of the plan alone skip:
`graph`, the graph as `graph_to_json` writes it, and `shapes`, what each op writes, as text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfit.errors import PlanMismatchError
from memfit.files import write_text_whole
from memfit.graph.graph_file import GRAPH_FORMAT, graph_from_json, graph_to_json
from memfit.graph.plan import GRAPH_KEYS, Plan
from memfit.graph.training_graph import TrainingGraph

__all__ = ["PlanFile", "load_plan_file", "save_plan_file"]

_GRAPH, _SHAPES = GRAPH_KEYS


@dataclass(frozen=True)
class PlanFile:
    """What a plan file holds.

    Attributes:
        plan: the plan.
        graph: the graph it is for; None where the file has none.
        shapes: for each op of the graph, shape and type of what it writes, None where unknown;
            empty where the file has none.
    """

    plan: Plan
    graph: TrainingGraph | None = None
    shapes: tuple[str | None, ...] = ()


def save_plan_file(
    path: str | Path, plan: Plan, graph: TrainingGraph, shapes: Sequence[str | None] = ()
) -> None:
    """Write a plan and its graph to `path`, whole or not at all.

    Raises:
        PlanMismatchError: the plan is for another graph.
        UsageError: the file cannot be written.
    """
    plan.check_graph(graph)
    data = json.loads(plan.to_json())
    data[_GRAPH] = json.loads(graph_to_json(graph))
    if shapes:
        data[_SHAPES] = list(shapes)
    write_text_whole(Path(path), json.dumps(data, sort_keys=True) + "\n")


def _object(text: str) -> dict[str, Any]:
    """The JSON object that the text is; an empty one where it is none."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def load_plan_file(path: str | Path) -> PlanFile:
    """Read a plan and, where the file has it, its graph.

    Raises:
        PlanMismatchError: the file cannot be read, is no plan, or its graph is another plan's.
        GraphFileError: the graph in it breaks a rule of its format.
    """
    where = f"plan file {path}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PlanMismatchError(
            f"{where} cannot be read: {reason}; give a file written by memfit plan -o"
        ) from None
    data = _object(text)
    if data.get("format") == GRAPH_FORMAT:
        raise PlanMismatchError(
            f"{where} is a graph, not a plan; plan it with memfit solve GRAPH -o PLAN.json"
        )
    plan = Plan.from_json(text, where=where)
    if data.get(_GRAPH) is None:
        return PlanFile(plan)
    graph = graph_from_json(json.dumps(data[_GRAPH]), where=f"{where}, graph")
    plan.check_graph(graph)
    shapes = data.get(_SHAPES) or []
    known = isinstance(shapes, list) and len(shapes) == len(graph.ops)
    if shapes and not (known and all(s is None or isinstance(s, str) for s in shapes)):
        raise PlanMismatchError(
            f"{where}: shapes is not a list of {len(graph.ops)} texts, one for each op; "
            "plan again and save it with memfit plan -o"
        )
    return PlanFile(plan, graph, tuple(shapes))
