"""Draw the demo U-Net under Chen's algorithm and under ours: docs/pictures/massive-block.svg.

Chen et al. (2016) cut a network where a single value passes. A skip connection passes beside every
cut under it, so all that lies between its ends stays one block, which has to be computed again at
once. Lower sets may be cut anywhere, with the skip's value kept in the boundary.

Run from the root of the repository, with the extra `plot` installed:

    python docs/pictures/make_massive_block.py

Costs are analytic and the model is fixed, so that the same version draws the same picture.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from pathlib import Path

import matplotlib
from make_unet_stages import add_legend, draw_plan, place, stage_of_ops
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memfit.errors import InfeasibleBudgetError
from memfit.files import write_bytes_whole
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_planner
from memfit.pytorch.api.demo_model import demo_case
from memfit.pytorch.api.entry import capture
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.units import format_bytes


def tightest(graph: TrainingGraph, planner: str) -> Plan:
    """The planner's plan for the smallest budget that it can meet."""
    try:
        return get_planner(planner)(graph, 1, PlannerOptions())
    except InfeasibleBudgetError as error:
        return get_planner(planner)(graph, error.minimum_bytes, PlannerOptions())


def largest_stage(graph: TrainingGraph, plan: Plan) -> tuple[int, int]:
    """Ops and bytes written by the stage that writes the most bytes."""
    stages = stage_of_ops(plan)
    ops: Counter[int] = Counter(stages.values())
    size: Counter[int] = Counter()
    for op, stage in stages.items():
        size[stage] += sum(graph.values[v].size_bytes for v in graph.ops[op].outputs)
    stage, most = size.most_common(1)[0]
    return ops[stage], most


def title(graph: TrainingGraph, plan: Plan, name: str) -> str:
    """What the plan amounts to, in a line."""
    ops, size = largest_stage(graph, plan)
    return (
        f"{name}: {len(plan.stages)} stages, the largest {ops} of {graph.forward_count} forward "
        f"ops and {format_bytes(size)}; smallest budget {format_bytes(plan.budget_bytes)} (plain "
        f"{format_bytes(plan.plain_peak_bytes)}), {plan.overhead_percent:.1f}% more computation"
    )


def draw(step: CapturedStep, plans: list[tuple[str, Plan]]) -> Figure:
    """A plan below the other."""
    figure = Figure(figsize=(16, 10.6), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(plans), 1)
    for axes, (name, plan) in zip(rows, plans, strict=True):
        draw_plan(axes, step.graph, plan, place(step, plan))
        axes.set_title(title(step.graph, plan, name), loc="left")
        add_legend(axes)
    return figure


def main() -> None:
    """Capture, plan, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("docs/pictures/massive-block.svg")
    )
    args = parser.parse_args()
    case = demo_case(batch=2, size=128)
    step = capture(case.model, (*case.inputs, case.target), case.loss_fn, cost="analytic")
    plans = [
        ("Chen's algorithm", tightest(step.graph, "chen")),
        ("memfit", tightest(step.graph, "liveness")),
    ]
    kind = args.output.suffix.removeprefix(".")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "memfit", "hatch.linewidth": 0.6}):
        figure = draw(step, plans)
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_bytes_whole(args.output, buffer.getvalue())
    for name, plan in plans:
        print(title(step.graph, plan, name))


if __name__ == "__main__":
    main()
