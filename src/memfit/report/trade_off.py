"""A trade-off beside what peers reach: rows, table, CSV, picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import TradeOff
from memfit.planners.peers import PeerPoint
from memfit.report.figure import byte_scale, save_figure
from memfit.report.tables import figures_table
from memfit.units import format_bytes, format_time_ns

__all__ = ["Sweep", "SweepRow", "save_sweep_figure", "sweep_csv", "sweep_note", "sweep_table"]

OURS = "memfit"
# Okabe and Ito's colour-blind safe palette; markers differ too.
_STYLES: dict[str, tuple[str, str]] = {
    "chen": ("#d55e00", "s"),
    "sqrt(n)": ("#009e73", "D"),
    "per module": ("#cc79a7", "^"),
    "paper, time": ("#56b4e9", "v"),
    "paper, memory": ("#e69f00", "P"),
    "salimans": ("#8c8c8c", "X"),
}


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One point, ours or a peer's.

    Attributes:
        series: `memfit`, or the peer's name.
        detail: which one of the series.
        peak_bytes: peak of the whole step; for `memfit`, the smallest budget for this overhead.
        peak_percent: of the plain step's peak.
        overhead: cost of recomputation, in the graph's cost unit.
        overhead_percent: of a step's cost without recomputation.
    """

    series: str
    detail: str
    peak_bytes: int
    peak_percent: float
    overhead: int
    overhead_percent: float


@dataclass(frozen=True)
class Sweep:
    """A trade-off from the plain step to the smallest feasible budget, with peers' points.

    Attributes:
        graph: name of the graph.
        plain_peak_bytes: simulated peak of the step that keeps everything.
        resident_bytes: alive all through the step, whatever the plan.
        curve: our trade-off.
        rows: our points by falling budget, then those of peers.
    """

    graph: str
    plain_peak_bytes: int
    resident_bytes: int
    curve: TradeOff
    rows: tuple[SweepRow, ...]

    @classmethod
    def of(
        cls,
        graph: TrainingGraph,
        plain_peak_bytes: int,
        curve: TradeOff,
        peers: Sequence[PeerPoint],
    ) -> Sweep:
        """The rows of a trade-off and of peers' points."""

        def row(series: str, detail: str, peak: int, overhead: int) -> SweepRow:
            share = 100.0 * peak / plain_peak_bytes if plain_peak_bytes else 0.0
            cost = 100.0 * overhead / curve.total_cost if curve.total_cost else 0.0
            return SweepRow(series, detail, peak, share, overhead, cost)

        ours = [row(OURS, "", p.budget_bytes, p.overhead) for p in reversed(curve.points)]
        others = [row(p.series, p.detail, p.peak_bytes, p.overhead) for p in peers]
        return cls(graph.name, plain_peak_bytes, graph.resident_bytes, curve, (*ours, *others))

    @property
    def ours(self) -> list[SweepRow]:
        """Our points, by falling budget and rising overhead."""
        return [row for row in self.rows if row.series == OURS]

    @property
    def peers(self) -> list[SweepRow]:
        """Peers' points."""
        return [row for row in self.rows if row.series != OURS]

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        curve = self.curve
        return {
            "status": curve.status.value,
            "graph": self.graph,
            "planner": curve.planner,
            "family": curve.family,
            "cost_unit": curve.cost_unit,
            "total_cost": curve.total_cost,
            "plain_peak_bytes": self.plain_peak_bytes,
            "resident_bytes": self.resident_bytes,
            "smallest_feasible_budget": min((r.peak_bytes for r in self.ours), default=None),
            "points": [asdict(row) for row in self.ours],
            "peers": [asdict(row) for row in self.peers],
            "seconds": curve.seconds,
            "notes": list(curve.notes),
        }


def thinned(rows: Sequence[SweepRow], most: int) -> list[SweepRow]:
    """At most so many rows, about evenly over the peaks; both ends stay.

    Args:
        rows: by falling peak.
        most: 2 or more.
    """
    if len(rows) <= most:
        return list(rows)
    top, bottom = rows[0].peak_bytes, rows[-1].peak_bytes
    chosen = [rows[0]]
    for i in range(1, most - 1):
        wanted = top - (top - bottom) * i / (most - 1)
        nearest = min(rows[1:-1], key=lambda row: abs(row.peak_bytes - wanted))
        if nearest is not chosen[-1]:
            chosen.append(nearest)
    return [*chosen, rows[-1]]


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
            _cost(row.overhead, curve.cost_unit),
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
                _ours_at(curve, row.peak_bytes),
            )
        tables.append(peers)
    return tables


def sweep_note(sweep: Sweep, most: int) -> str:
    """One line on who planned and what the table left out."""
    count = len(sweep.ours)
    shown = len(thinned(sweep.ours, most))
    some = f"{shown} of {count} points shown" if shown < count else f"{count} points"
    return f"{some}, by planner {sweep.curve.planner}; the first keeps everything."


def _ours_at(curve: TradeOff, peak_bytes: int) -> str:
    overhead = curve.overhead_at(peak_bytes)
    if overhead is None:
        return "infeasible"
    return f"{100.0 * overhead / curve.total_cost if curve.total_cost else 0.0:+.1f}%"


def _cost(amount: int, unit: str) -> str:
    return format_time_ns(amount) if unit == "ns" else f"{amount} {unit}s"


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
