"""A trade-off beside what peers reach: rows, table, CSV, picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from memfit.analysis.sweep import OURS, Sweep, ours_at, thinned
from memfit.report.figure import byte_scale, save_figure
from memfit.report.tables import figures_table
from memfit.units import format_bytes, format_cost

__all__ = ["save_sweep_figure", "sweep_csv", "sweep_note", "sweep_table"]

# Okabe and Ito's colour-blind safe palette; markers differ too.
_STYLES: dict[str, tuple[str, str]] = {
    "chen": ("#d55e00", "s"),
    "sqrt(n)": ("#009e73", "D"),
    "per module": ("#cc79a7", "^"),
    "paper, time": ("#56b4e9", "v"),
    "paper, memory": ("#e69f00", "P"),
    "salimans": ("#8c8c8c", "X"),
}


def sweep_table(sweep: Sweep, most: int) -> list[Table]:
    """Our trade-off in at most so many rows, and peers' points beside the overhead of ours."""
    curve = sweep.curve
    ours = sweep.ours
    shown = thinned(ours, most)
    table = figures_table(
        f"What each budget costs: {escape(sweep.graph)}",
        "budget",
        "of plain peak",
        "overhead",
        "of a step",
        texts=(),
    )
    for row in shown:
        table.add_row(
            format_bytes(row.peak_bytes),
            f"{row.peak_percent:.1f}%",
            format_cost(row.overhead, curve.cost_unit),
            f"{row.overhead_percent:+.1f}%",
        )
    tables = [table]
    if sweep.peers:
        peers = figures_table(
            "Peers on the same graph",
            "strategy",
            "",
            "peak",
            "of plain peak",
            "overhead",
            "memfit at that peak",
            texts=(0, 1),
        )
        for row in sweep.peers:
            peers.add_row(
                row.series,
                row.detail,
                format_bytes(row.peak_bytes),
                f"{row.peak_percent:.1f}%",
                f"{row.overhead_percent:+.1f}%",
                ours_at(curve, row.peak_bytes),
            )
        tables.append(peers)
    return tables


def sweep_note(sweep: Sweep, most: int) -> str:
    """One line on who planned and what the table left out."""
    count = len(sweep.ours)
    shown = len(thinned(sweep.ours, most))
    some = f"{shown} of {count} points shown" if shown < count else f"{count} points"
    return f"{some}, by planner {sweep.curve.planner}; the first keeps everything."


def sweep_csv(sweep: Sweep) -> str:
    """All points as CSV, a header first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("series", "detail", "peak_bytes", "peak_percent", "overhead", "overhead_percent", "unit")
    )
    for row in sweep.rows:
        writer.writerow(
            (
                row.series,
                row.detail,
                row.peak_bytes,
                f"{row.peak_percent:.3f}",
                row.overhead,
                f"{row.overhead_percent:.3f}",
                sweep.curve.cost_unit,
            )
        )
    return text.getvalue()


def save_sweep_figure(path: str | Path, sweep: Sweep) -> None:
    """Draw overhead over peak: our trade-off as a line, peers as marks.

    Raises:
        UsageError: matplotlib is missing, or the suffix is neither `.svg` nor `.png`.
    """
    save_figure(path, lambda: _draw(sweep))


def _draw(sweep: Sweep) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.add_subplot()
    tallest = max([sweep.plain_peak_bytes, *(row.peak_bytes for row in sweep.rows)])
    scale, unit = byte_scale(tallest)
    ours = sweep.ours[::-1]
    right = tallest / scale
    # Between two points, the overhead is that of the smaller budget.
    axes.step(
        [*(row.peak_bytes / scale for row in ours), right],
        [*(row.overhead_percent for row in ours), ours[-1].overhead_percent],
        where="post",
        color="#0072b2",
        linewidth=1.8,
        marker="o",
        markersize=3 if len(ours) > 40 else 5,
        label=OURS,
    )
    for series in dict.fromkeys(row.series for row in sweep.peers):
        rows = [row for row in sweep.peers if row.series == series]
        color, marker = _STYLES.get(series, ("#222222", "x"))
        axes.scatter(
            [row.peak_bytes / scale for row in rows],
            [row.overhead_percent for row in rows],
            color=color,
            marker=marker,
            s=42,
            edgecolors="white",
            linewidths=0.6,
            zorder=3,
            label=series,
        )
    axes.axvline(
        sweep.plain_peak_bytes / scale,
        color="#222222",
        linewidth=1.0,
        linestyle=":",
        label=f"plain step, {format_bytes(sweep.plain_peak_bytes)}",
    )
    axes.set_xlabel(f"peak of the whole step ({unit})")
    axes.set_ylabel("overhead, in percent of a step")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{sweep.graph}: memory against time", loc="left", fontsize=13)
    axes.legend(fontsize=10, frameon=False)
    return figure
