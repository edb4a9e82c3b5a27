"""The pictures of docs/benchmarks/paper.md."""

from __future__ import annotations

from typing import Any

from benchmarks.lib.harness import svg
from benchmarks.paper.names import FAMILIES, NAMES, SHARES, TITLES

__all__ = ["batches_picture", "equal_peak_picture"]

# Okabe and Ito's colour-blind safe palette.
_STYLES = {
    "store-all": ("vanilla", "#222222", "o"),
    "chen": ("Chen et al.", "#d55e00", "s"),
    "salimans-speed": ("Salimans, speed", "#8c8c8c", "X"),
    "approximate": ("the paper, approximate", "#56b4e9", "v"),
    "liveness": ("memfit, liveness", "#0072b2", "D"),
    "nested": ("memfit, nested", "#009e73", "^"),
}
_HIDDEN = 0.003


def _thinned(points: list[Any], plain: int) -> list[Any]:
    """Points by rising peak, without those that one before hides: 0.3% of vanilla apart."""
    kept = points[:1]
    for point in points[1:]:
        if point[0] - kept[-1][0] >= _HIDDEN * plain:
            kept.append(point)
    return kept


def equal_peak_picture(rows: dict[str, Any]) -> str:
    """Overhead against peak: their plans that none of theirs beats, and ours at the same peaks."""

    def draw() -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12.6, 6.2), layout="constrained")
        names = [name for name in NAMES if name in rows]
        for at, name in enumerate(names):
            axes = figure.add_subplot(2, 4, at + 1)
            row = rows[name]
            plain, cost = row["plain_bytes"], row["total_cost"]
            for family, colour, marker in (
                ("approximate", "#56b4e9", "v"),
                ("exact", "#d55e00", "s"),
            ):
                points = _thinned(row[family]["equal_peak"], plain)
                axes.plot(
                    [100 * p / plain for p, _, _ in points],
                    [100 * overhead / cost for _, overhead, _ in points],
                    color=colour,
                    marker=marker,
                    markevery=max(1, len(points) // 25),
                    markersize=3.5,
                    linewidth=0.9,
                    drawstyle="steps-post",
                    label=f"the paper, {family}",
                )
            pairs = {p: o for f in FAMILIES for p, _, o in row[f]["equal_peak"]}
            for percent, found in zip(SHARES, row["at_share"]["nested"], strict=True):
                if found is not None:
                    pairs[percent * plain // 100] = found
            least = row["smallest"]["nested"]
            pairs[least["peak_bytes"]] = least["overhead"]
            theirs = max(o for f in FAMILIES for _, o, _ in row[f]["equal_peak"])
            ours = _thinned(sorted(pairs.items()), plain)
            axes.plot(
                [100 * p / plain for p, _ in ours],
                [100 * mine / cost for _, mine in ours],
                color="#0072b2",
                marker="o",
                markevery=max(1, len(ours) // 25),
                markersize=3.5,
                linewidth=1.4,
                drawstyle="steps-post",
                label="memfit at the same peaks and below",
            )
            axes.set_title(TITLES[name][0], fontsize=11)
            axes.set_ylim(0, 160 * theirs / cost)
            axes.set_xlim(right=102)
            axes.grid(True, linewidth=0.3, alpha=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel("peak, % of vanilla")
            if at % 4 == 0:
                axes.set_ylabel("overhead, % of a step")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        blank = figure.add_subplot(2, 4, 8)
        blank.axis("off")
        blank.legend(handles, labels, loc="center", frameon=False, fontsize=9)
        return figure

    return svg(draw)


def batches_picture(rows: dict[str, Any]) -> str:
    """Time per sample against batch size, up to the largest batch of each planner."""

    def draw() -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.2 * len(rows), 4.0), layout="constrained")
        for at, (name, row) in enumerate(rows.items()):
            axes = figure.add_subplot(1, len(rows), at + 1)
            unit = row["series"]["store-all"]["points"][-1][1]
            for planner, found in row["series"].items():
                label, colour, marker = _STYLES[planner]
                axes.plot(
                    [batch for batch, _, _ in found["points"]],
                    [per_sample / unit for _, per_sample, _ in found["points"]],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1.2,
                    label=label,
                )
            axes.set_xscale("log", base=2)
            ticks = [t for t in (2**k for k in range(14)) if t >= row["captured_at"][0] / 1.5]
            top = max(found["largest"] for found in row["series"].values())
            axes.set_xticks([t for t in ticks if t <= top * 1.1], minor=False)
            axes.set_xticklabels([str(t) for t in ticks if t <= top * 1.1])
            axes.set_xlabel("batch size")
            axes.set_title(f"{TITLES[name][0]}, {row['budget_bytes'] / 1e9:g} GB", fontsize=11)
            axes.grid(True, linewidth=0.3, alpha=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            if at == 0:
                axes.set_ylabel("time per sample, of vanilla's")
                axes.legend(frameon=False)
        return figure

    return svg(draw)
