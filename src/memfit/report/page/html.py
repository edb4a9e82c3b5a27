"""A report page: one HTML file with style, script and data inside, which asks the network nothing.

The parts lie beside this file; `page.html` names where they go.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from memfit.analysis.curve import CurveSample
from memfit.files import write_text_whole
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.report.page.data import page_data

__all__ = ["render_page", "save_report"]

SCRIPTS = ("base.js", "memory.js", "curve.js", "layout.js", "graph.js", "modules.js", "main.js")
STYLES = ("page.css",)


def _part(name: str) -> str:
    return (files("memfit.report.page") / name).read_text(encoding="utf-8")


def render_page(data: Mapping[str, Any]) -> str:
    """The page that shows `data` (`page_data`)."""
    # In HTML a script ends at its first "</script", whatever the quotes around it.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    parts = {
        "TITLE": html.escape(f"{data['name']}: memory of a training step"),
        "STYLE": "\n".join(_part(name) for name in STYLES),
        "SCRIPT": "\n".join(_part(name) for name in SCRIPTS),
        "DATA": text.replace("<", "\\u003c").replace("\u2028", "\\u2028"),
    }
    pieces = _part("page.html").split("@@")
    # Names stand at odd places; the data are never searched for them.
    return "".join(parts[p] if i % 2 else p for i, p in enumerate(pieces))


def save_report(
    path: str | Path,
    graph: TrainingGraph,
    plan: Plan,
    shapes: Sequence[str | None] = (),
    curve: CurveSample | None = None,
) -> int:
    """Write the report of a plan to `path`, whole or not at all; returns its size in bytes.

    Raises:
        PlanMismatchError: the plan is for another graph.
        UsageError: the file cannot be written, or the graph has no ops.
    """
    page = render_page(page_data(graph, plan, shapes, curve))
    write_text_whole(Path(path), page)
    return len(page.encode("utf-8"))
