"""Draw the demo U-Net's forward ops as the stages of a real plan: docs/pictures/unet-stages.svg.

Run from the root of the repository, with the extra `plot` installed:

    python docs/pictures/make_unet_stages.py

Costs are analytic and the model is fixed, so that the same version draws the same picture.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

import memfit
from memfit.files import write_bytes_whole
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch.api.demo_model import demo_case
from memfit.pytorch.api.entry import capture
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.units import format_bytes

NAMES = {
    "convolution": "conv",
    "_native_batch_norm_legit_functional": "batch norm",
    "relu": "relu",
    "bernoulli": "draw",
    "div": "scale",
    "mul": "drop",
    "max_pool2d_with_indices": "pool",
    "upsample_bilinear2d": "upsample",
    "cat": "join skip",
    "_log_softmax": "log softmax",
    "nll_loss2d_forward": "loss",
}
"""Ops that are drawn, and what is written on them. Bookkeeping (counters, copies) is left out."""

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a500", "#555555")
BOX_WIDTH, BOX_HEIGHT, LEVEL_GAP = 0.78, 1.5, 2.3


@dataclass(frozen=True)
class Box:
    """A drawn op.

    Attributes:
        op: its id.
        x, y: left and lower edge.
        stage: number of its stage, from 0.
        kept: its output is kept for the backward pass.
        again: it runs again in the backward pass.
    """

    op: int
    x: float
    y: float
    stage: int
    kept: bool
    again: bool


def short_name(target: str) -> str | None:
    """What to write on an op; None for one that is not drawn."""
    return NAMES.get(target.removeprefix("aten.").split(".")[0])


def stage_of_ops(plan: Plan) -> dict[int, int]:
    """Stage number of each forward op: a schedule runs the forward ops stage by stage."""
    forward = [step.op for step in plan.schedule.steps[: plan.schedule.backward_start]]
    numbers = [n for n, stage in enumerate(plan.stages) for _ in range(stage.forward_ops)]
    return dict(zip(forward, numbers, strict=True))


def resolution(step: CapturedStep, op: int) -> int | None:
    """Height of an op's output image in pixels; None where it is no image."""
    value = step.node_of[op].meta["val"]
    first = value[0] if isinstance(value, (tuple, list)) else value
    return int(first.shape[2]) if first.ndim == 4 else None


def place(step: CapturedStep, plan: Plan) -> list[Box]:
    """The drawn ops from left to right in program order, lower where the resolution is lower."""
    graph = step.graph
    stages = stage_of_ops(plan)
    kept = plan.schedule.kept(graph)
    again = set(plan.schedule.recomputed_ops)
    drawn = [i for i, op in enumerate(graph.forward_ops) if short_name(op.target)]
    heights = {i: resolution(step, i) for i in drawn}
    levels = sorted({h for h in heights.values() if h is not None})
    boxes: list[Box] = []
    y = 0.0
    for column, op in enumerate(drawn):
        if heights[op] is not None:
            y = levels.index(heights[op]) * LEVEL_GAP
        own = any(v in kept and graph.values[v].size_bytes > 1024 for v in graph.ops[op].outputs)
        boxes.append(Box(op, float(column), y, stages[op], own, op in again))
    return boxes


def draw(graph: TrainingGraph, plan: Plan, boxes: list[Box]) -> Figure:
    """The picture."""
    figure = Figure(figsize=(16, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_plan(axes, graph, plan, boxes)
    axes.set_title(
        f"Demo U-Net in {len(plan.stages)} stages: budget {format_bytes(plan.budget_bytes)}, plain "
        f"{format_bytes(plan.plain_peak_bytes)}, {format_bytes(plan.cached_bytes)} kept, "
        f"{plan.overhead_percent:.1f}% more computation",
        loc="left",
    )
    add_legend(axes)
    return figure


def draw_plan(axes: Axes, graph: TrainingGraph, plan: Plan, boxes: list[Box]) -> None:
    """Ops, skip connections and numbers of the stages."""
    box_of = {box.op: box for box in boxes}
    for box in boxes:
        draw_box(axes, box, short_name(graph.ops[box.op].target) or "")
    for box in boxes:
        for before in graph.forward_predecessors[box.op]:
            if before in box_of and box.x - box_of[before].x > 8:
                draw_skip(axes, box_of[before], box)
    for number in range(len(plan.stages)):
        members = [box for box in boxes if box.stage == number]
        if members:
            middle = sum(box.x for box in members) / len(members) + BOX_WIDTH / 2
            low = min(box.y for box in members)
            axes.text(
                middle, low - 0.25, str(number + 1), ha="center", va="top", fontsize=11,
                fontweight="bold", color=color_of(number),
            )  # fmt: skip
    axes.set_xlim(-0.6, len(boxes) + 0.4)
    axes.set_ylim(-1.1, max(box.y for box in boxes) + 3.4)
    axes.set_axis_off()


def add_legend(axes: Axes) -> None:
    """What full, hatched and white boxes are."""
    axes.legend(
        handles=[
            Patch(facecolor="#777777", edgecolor="#777777", label="kept for the backward pass"),
            Patch(facecolor="white", edgecolor="#777777", hatch="////", label="computed again"),
            Patch(facecolor="white", edgecolor="#777777", label="freed, not needed again"),
        ],
        loc="upper center",
        ncols=3,
        frameon=False,
    )


def color_of(stage: int) -> str:
    """A stage's colour; neighbours differ."""
    return COLORS[stage % len(COLORS)]


def draw_box(axes: Axes, box: Box, name: str) -> None:
    """One op: full where its output is kept, hatched where it is computed again."""
    color = color_of(box.stage)
    axes.add_patch(
        FancyBboxPatch(
            (box.x, box.y),
            BOX_WIDTH,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=color if box.kept else "white",
            edgecolor=color,
            linewidth=1.4,
            hatch="////" if box.again and not box.kept else None,
        )
    )
    axes.text(
        box.x + BOX_WIDTH / 2,
        box.y + BOX_HEIGHT / 2,
        name,
        rotation=90,
        ha="center",
        va="center",
        fontsize=8,
        color="white" if box.kept else "black",
        bbox=None if box.kept else {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"},
    )


def draw_skip(axes: Axes, start: Box, end: Box) -> None:
    """A skip connection, from an op on the way down to the one that joins it on the way up."""
    axes.add_patch(
        FancyArrowPatch(
            (start.x + BOX_WIDTH, start.y + BOX_HEIGHT),
            (end.x + BOX_WIDTH / 2, end.y + BOX_HEIGHT),
            connectionstyle="arc3,rad=-0.06",
            arrowstyle="-|>",
            mutation_scale=12,
            color="#888888",
            linewidth=1.2,
        )
    )


def main() -> None:
    """Capture, plan, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/pictures/unet-stages.svg"))
    parser.add_argument("--budget", default="50%", help="default: %(default)s")
    args = parser.parse_args()
    case = demo_case(batch=2, size=128)
    call = (*case.inputs, case.target)
    step = capture(case.model, call, case.loss_fn, cost="analytic")
    plan = memfit.plan(case.model, call, case.loss_fn, budget=args.budget, cost="analytic")
    plan.check_graph(step.graph)
    kind = args.output.suffix.removeprefix(".")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "memfit", "hatch.linewidth": 0.6}):
        figure = draw(step.graph, plan, place(step, plan))
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_bytes_whole(args.output, buffer.getvalue())
    print(f"{args.output}: {len(plan.stages)} stages")


if __name__ == "__main__":
    main()
