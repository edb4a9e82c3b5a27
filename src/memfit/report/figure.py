"""Picture of live memory over one training step: plain against planned."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.analysis.trace import Trace
from memfit.errors import UsageError
from memfit.files import write_bytes_whole
from memfit.graph.simulator import CATEGORIES, Category
from memfit.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["byte_scale", "check_figure_path", "save_figure", "save_timeline_figure"]

# Okabe and Ito's colour-blind safe palette; what a planner decides about gets the strong colours.
_BANDS: tuple[tuple[str, str, tuple[Category, ...]], ...] = (
    (
        "parameters, buffers, inputs",
        "#c8c8c8",
        (Category.PARAMETERS, Category.BUFFERS, Category.INPUTS, Category.OPTIMIZER),
    ),
    ("parameter gradients", "#8c8c8c", (Category.PARAMETER_GRADIENTS,)),
    ("outputs", "#f0e442", (Category.OUTPUTS,)),
    ("kept activations", "#0072b2", (Category.KEPT,)),
    ("other activations", "#56b4e9", (Category.TRANSIENT,)),
    ("recomputed", "#e69f00", (Category.RECOMPUTED,)),
    ("activation gradients", "#009e73", (Category.ACTIVATION_GRADIENTS,)),
    ("workspace", "#cc79a7", (Category.WORKSPACE,)),
)
_PLAIN = "#222222"
_BUDGET = "#d55e00"
_FORMATS = (".svg", ".png")
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def save_timeline_figure(
    path: str | Path,
    *,
    plain: Trace,
    planned: Trace,
    budget_bytes: int | None = None,
    title: str = "",
) -> None:
    """Draw plain (outline) against planned (stacked by what the memory is for), and save it.

    Args:
        path: ends in `.svg` or `.png`; written whole or not at all.
        plain: the step that keeps everything.
        planned: the step as planned. Both times are shown in percent of the plain step's.
        budget_bytes: drawn as a line.
        title: above the picture.

    Raises:
        UsageError: matplotlib is missing, or the suffix is another.
    """
    save_figure(path, lambda: _draw(plain, planned, budget_bytes, title))


def check_figure_path(path: str | Path) -> None:
    """Refuse a picture that could not be saved, before anything is computed for it.

    Raises:
        UsageError: matplotlib is missing, or the suffix is neither `.svg` nor `.png`.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"picture {path} ends in {path.suffix!r}; name it with {' or '.join(_FORMATS)}"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            'pictures need matplotlib, which is not installed; run: pip install "memfit[plot]"'
        ) from None


def save_figure(path: str | Path, draw: Callable[[], Figure]) -> None:
    """Save what `draw` returns; the same picture gives the same file, whole or not at all.

    Raises:
        UsageError: see `check_figure_path`.
    """
    check_figure_path(path)
    import matplotlib

    path = Path(path)
    kind = path.suffix.lower()
    buffer = io.BytesIO()
    # No date and no random ids: the same picture gives the same file.
    metadata: dict[str, Any] = {"Date": None} if kind == ".svg" else {"Software": None}
    style = {"svg.hashsalt": "memfit", "svg.fonttype": "path", "font.size": 11}
    with matplotlib.rc_context(style):
        draw().savefig(buffer, format=kind[1:], dpi=150, metadata=metadata)
    write_bytes_whole(path, buffer.getvalue())


def byte_scale(most_bytes: int) -> tuple[int, str]:
    """The unit to draw bytes in, and its name."""
    return next((s, u) for s, u in _UNITS if most_bytes >= s or s == 1)


def _draw(plain: Trace, planned: Trace, budget_bytes: int | None, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.add_subplot()
    tallest = max(plain.timeline.peak_bytes, planned.timeline.peak_bytes, budget_bytes or 0)
    scale, unit = byte_scale(tallest)
    _stack(axes, planned, plain.total, scale)
    axes.stairs(
        [b / scale for b in plain.timeline.live_bytes],
        _percent(plain.edges, plain.total),
        baseline=None,
        color=_PLAIN,
        linewidth=1.4,
        label="plain step, everything kept",
    )
    if budget_bytes is not None:
        axes.axhline(
            budget_bytes / scale,
            color=_BUDGET,
            linewidth=1.6,
            linestyle=(0, (6, 3)),
            label=f"budget {format_bytes(budget_bytes)}",
        )
    _mark_passes(axes, plain, planned)
    _mark_peaks(axes, plain, planned, scale)
    width = 100 * max(1.0, planned.total / plain.total)
    axes.set_xlim(0, width)
    axes.set_ylim(0, 1.2 * tallest / scale)
    axes.set_xlabel("progress through the step, in percent of the plain step's time")
    axes.set_ylabel(f"live memory ({unit})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title or "Memory over one training step", loc="left", fontsize=13)
    figure.legend(loc="outside right upper", fontsize=10, frameon=False)
    return figure


def _percent(edges: Sequence[int], total: int) -> list[float]:
    return [100 * edge / total for edge in edges]


def _stack(axes: Axes, trace: Trace, total: int, scale: int) -> None:
    """Stacked areas; empty bands are left out, those too thin to be seen have no legend entry."""
    visible = trace.timeline.peak_bytes / scale / 500
    index = {category: i for i, category in enumerate(CATEGORIES)}
    edges = _percent(trace.edges, total)
    floor = [0.0] * len(trace.timeline.parts_bytes)
    for label, color, categories in _BANDS:
        columns = [index[c] for c in categories]
        heights = [sum(row[c] for c in columns) / scale for row in trace.timeline.parts_bytes]
        if not any(heights):
            continue
        top = [low + high for low, high in zip(floor, heights, strict=True)]
        shown = label if max(heights) >= visible else None
        axes.stairs(top, edges, baseline=floor, fill=True, color=color, label=shown, linewidth=0)
        floor = top


def _mark_passes(axes: Axes, plain: Trace, planned: Trace) -> None:
    """Where each backward pass starts."""
    for trace, color in ((plain, _PLAIN), (planned, "#0072b2")):
        axes.axvline(
            100 * trace.backward_start / plain.total, color=color, linewidth=0.9, linestyle=":"
        )
    axes.text(
        100 * plain.backward_start / plain.total,
        0.99,
        " backward pass ",
        transform=axes.get_xaxis_transform(),
        verticalalignment="top",
        fontsize=9,
        color="#444444",
    )


def _mark_peaks(axes: Axes, plain: Trace, planned: Trace, scale: int) -> None:
    for trace, name, color in ((plain, "plain", _PLAIN), (planned, "planned", "#0072b2")):
        x, y = 100 * trace.peak_time / plain.total, trace.timeline.peak_bytes / scale
        axes.plot([x], [y], marker="o", markersize=6, color=color, markeredgecolor="white")
        left = trace.peak_time > 0.6 * plain.total
        axes.annotate(
            f"{name} peak {format_bytes(trace.timeline.peak_bytes)}",
            (x, y),
            xytext=(-10 if left else 10, 10),
            textcoords="offset points",
            horizontalalignment="right" if left else "left",
            fontsize=11,
            fontweight="bold",
            color=color,
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.85},
        )
