"""The page of `run`, and its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.lib.harness import MIB, svg, table, write_page
from benchmarks.planning.verdicts import seconds_text

__all__ = ["draw", "fit_power_law", "page", "write_pages"]

# Okabe and Ito's colour-blind safe palette.
_STYLES = {
    "exact": ("#d55e00", "s"),
    "approximate": ("#0072b2", "^"),
    "liveness": ("#009e73", "o"),
}
_NAMES = {
    "vgg19": "VGG19",
    "unet": "U-Net",
    "resnet50": "ResNet50",
    "resnet152": "ResNet152",
    "googlenet": "GoogLeNet",
    "densenet": "DenseNet161",
    "pspnet": "PSPNet",
    "torch-resnet152": "ResNet152 (torch)",
    "torch-densenet161": "DenseNet161 (torch)",
    "torch-gpt2-12": "GPT-2, 12 layers",
    "torch-gpt2-96": "GPT-2, 96 layers",
    "torch-lstm-512": "LSTM, 512 steps",
}

_LABEL_GAP = 1.16  # between names of networks, on the axis of nodes

Result = dict[str, Any]


def fit_power_law(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(exponent, factor) of seconds = factor * size ** exponent, by least squares of logarithms.

    Raises:
        ValueError: fewer than two different sizes.
    """
    x = [math.log(s) for s in sizes]
    y = [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    if spread == 0:
        raise ValueError("a power law needs two different sizes")
    exponent = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    return exponent, math.exp(mean_y - exponent * mean_x)


def draw(document: Result) -> Any:
    """Seconds against nodes; both axes logarithmic."""
    from matplotlib.figure import Figure

    done = [r for r in document["results"] if "failed" not in r]
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.add_subplot()
    for planner, (colour, marker) in _STYLES.items():
        rows = [r for r in done if r["planner"] == planner]
        if not rows:
            continue
        random = [r for r in rows if r["kind"] == "series-parallel"]
        other = [r for r in rows if r["kind"] != "series-parallel"]
        sizes = [r["forward_ops"] for r in random]
        seconds = [r["max_seconds"] for r in random]
        label = planner
        if len(set(sizes)) > 1:
            exponent, factor = fit_power_law(sizes, seconds)
            label = f"{planner}: nodes$^{{{exponent:.2f}}}$"
            ends = [min(sizes), max(sizes)]
            line = [factor * n**exponent for n in ends]
            axes.plot(ends, line, color=colour, linewidth=1.2, alpha=0.7, zorder=1)
        axes.scatter(sizes, seconds, s=44, color=colour, marker=marker, label=label, zorder=3)
        axes.scatter(
            [r["forward_ops"] for r in other],
            [r["max_seconds"] for r in other],
            s=24,
            facecolors="white",
            edgecolors=colour,
            marker=marker,
            linewidths=1.1,
            zorder=2,
        )
    _label_networks(axes, done)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("nodes (forward ops)")
    axes.set_ylabel("time to plan for one budget, the slowest of five")
    axes.xaxis.set_major_formatter(_nodes_tick)
    axes.yaxis.set_major_formatter(_seconds_tick)
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.scatter([], [], s=24, facecolors="white", edgecolors="#444444", label="real networks")
    axes.legend(title="series-parallel graphs (filled), fitted", frameon=False, loc="upper left")
    facts = document["machine"]
    axes.set_title(
        f"Planning time: {facts['core']} core, {facts['cpus']} CPUs", loc="left", fontsize=10.5
    )
    return figure


def _label_networks(axes: Any, done: Sequence[Result]) -> None:
    """Names of the networks in a row under all points, each on a thin line through its points."""
    names: dict[str, list[Result]] = {}
    for r in done:
        if r["kind"] != "series-parallel":
            names.setdefault(r["case"], []).append(r)
    if not names:
        return
    lowest = min(r["max_seconds"] for r in done)
    bend, row, floor = lowest / 1.5, lowest / 3, lowest / 150
    cases = sorted(names, key=lambda case: (names[case][0]["forward_ops"], case))
    sizes = [names[case][0]["forward_ops"] for case in cases]
    for case, size, x in zip(cases, sizes, _apart(sizes, _LABEL_GAP), strict=True):
        high = max(r["max_seconds"] for r in names[case])
        axes.plot([size, size, x], [high, bend, row], color="#bbbbbb", linewidth=0.7, zorder=0)
        axes.annotate(
            _NAMES.get(case, case),
            (x, row),
            xytext=(0, -2),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="top",
            fontsize=8,
            color="#444444",
        )
    axes.set_ylim(floor, axes.get_ylim()[1])


def _apart(sizes: Sequence[float], gap: float) -> list[float]:
    """Ascending sizes, moved so that each is at least `gap` times the one before.

    Neighbours that are too near are spread evenly about their middle.
    """
    groups: list[tuple[list[float], float]] = []  # logarithms, and the middle that they keep
    for size in sizes:
        group, middle = [math.log(size)], math.log(size)
        while groups:
            last, centre = groups[-1]
            reach = (len(last) + len(group)) / 2 * math.log(gap)
            if middle - centre >= reach:
                break
            groups.pop()
            group = last + group
            middle = sum(group) / len(group)
        groups.append((group, middle))
    return [
        math.exp(middle + (i - (len(group) - 1) / 2) * math.log(gap))
        for group, middle in groups
        for i in range(len(group))
    ]


def _nodes_tick(value: float, _: float) -> str:
    return f"{value:,.0f}"


def _seconds_tick(value: float, _: float) -> str:
    return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"


def page(document: Result) -> str:
    """The results as a page."""
    facts = document["machine"]
    results = document["results"]
    checks = sum(r.get("checks", 0) for r in results)
    wrong = sum(len(r["wrong"]) for r in results)
    compiler = f" built by {facts['compiler']}" if facts["compiler"] else ""
    load = document["load_average_before"]
    lines = [
        "# Planning times",
        "",
        "Made by `python -m benchmarks.planning.run`; the raw figures are in",
        f"`benchmarks/results/planning.json`. memfit {facts['version']}, {facts['core']} core"
        f"{compiler}, Python {facts['python']}, {facts['system']}, {facts['processor']}, "
        f"{facts['cpus']} CPUs" + (f", load {load:.1f} before" if load is not None else "") + ".",
        "",
        "![Seconds against nodes](planning.svg)",
        "",
        f"Medians of {document['repeats']} (fewer where `repeats` says so). Each planner runs on",
        "each graph in a process of its own, at five budgets: the smallest feasible; 25, 50 and",
        "75% of the way from there to the plain step's peak; that peak. `exact` and `approximate`",
        "run as mode time and as mode auto. `median` and `max` are over these budgets. `trade-off`",
        "is the whole trade-off over all budgets, `ratio` its time against the budget in the",
        "middle. Peak RSS is the whole process's, PyTorch not in it; `before` is what it was with",
        "the graph loaded. Every repeat gets a graph of which nothing has been worked out before.",
        "",
        f"{checks:,} answers were checked (golden values, whole schedules, peaks within budget,",
        "overheads that never rise with the budget, trade-offs that agree with single budgets, the",
        f"same plan in every run): {wrong} wrong.",
        *_left_out(document),
        "",
        "## What it must show",
        "",
        "REDUCED: in time, over a smaller family of lower sets than was asked for; see the last",
        "section.",
        "",
        *table(
            ("", "what", "limit", "figure", ""),
            [
                (str(v["number"]), v["what"], v["limit"], v["figure"], v["verdict"])
                for v in document["verdicts"]
            ],
            9,
        ),
        "",
        "## All figures",
        "",
        *table(
            _HEAD,
            [_figures(r) for r in results],
            4,
        ),
        "",
        *_captures(results),
        *_random_graphs(results),
        "## How far smaller families are from all lower sets",
        "",
        "Where the search over all lower sets can be made at all: how much larger the smallest",
        "feasible budget is, and by how much of a step's cost the overhead is larger, on average",
        "and at worst over all budgets of both trade-offs. For `liveness` these are all lower sets",
        "within its blocks; those that part the ops before the end of a block are in neither.",
        "",
        *table(
            ("graph", "planner", "family", "lower sets", "of", "smallest budget", "mean", "worst"),
            [_far(row) for row in document["distances"]],
            3,
        ),
    ]
    return "\n".join(lines) + "\n"


def _left_out(document: Result) -> list[str]:
    """Which graphs the run was asked to leave out, if any, and which figures are older."""
    found = []
    for key, text in (("left_out", "Not in this run"), ("kept", "Kept from an earlier run")):
        names = document.get(key, ())
        found += ["", f"{text}: {', '.join(names)}."] if names else []
    return found


_HEAD = (
    "graph",
    "planner",
    "family",
    "status",
    "nodes",
    "lower sets",
    "median",
    "max",
    "trade-off",
    "ratio",
    "peak RSS, MiB",
    "before",
    "repeats",
)


def _figures(r: Result) -> tuple[str, ...]:
    if "failed" in r:
        return (r["case"], r["planner"], r["failed"], *[""] * 10)
    return (
        r["case"],
        r["planner"],
        r["family"],
        r["status"],
        f"{r['forward_ops']:,}",
        f"{r['lower_sets']:,}",
        seconds_text(r["median_seconds"]),
        seconds_text(r["max_seconds"]),
        seconds_text(r["curve"]["median_seconds"]),
        f"{r['curve']['ratio']:.2f}",
        f"{r['rss_peak_bytes'] / MIB:.0f}",
        f"{r['rss_loaded_bytes'] / MIB:.0f}",
        str(r["repeats"]),
    )


def _far(row: Result) -> tuple[str, ...]:
    start = (row["case"], row["planner"], row["family"], f"{row['lower_sets']:,}")
    if "failed" in row:
        return (*start, row["failed"], "", "", "")
    return (
        *start,
        f"{row['all_lower_sets']:,}",
        f"{row['smallest_percent']:+.2f}%",
        f"{row['mean_percent']:+.3f}%",
        f"{row['worst_percent']:+.3f}%",
    )


def _once(results: Sequence[Result], kind: str) -> list[Result]:
    """One result of each graph of a kind."""
    found: dict[str, Result] = {}
    for r in results:
        if r["kind"] == kind and "failed" not in r:
            found.setdefault(r["case"], r)
    return list(found.values())


def _captures(results: Sequence[Result]) -> list[str]:
    rows = _once(results, "captured")
    if not rows:
        return []
    return [
        "## Graphs captured from PyTorch",
        "",
        "By memfit's own capture, on CPU, with analytic costs: no op is run. Capture is no part of",
        "any planning time.",
        "",
        *table(
            ("graph", "network", "torch", "forward ops", "ops", "capture"),
            [
                (
                    r["case"],
                    ", ".join(f"{k} {v}" for k, v in r["facts"]["built_with"].items()),
                    r["facts"]["torch"],
                    f"{r['forward_ops']:,}",
                    f"{r['ops']:,}",
                    f"{r['facts']['capture_seconds']:.1f} s",
                )
                for r in rows
            ],
            3,
        ),
        "",
    ]


def _random_graphs(results: Sequence[Result]) -> list[str]:
    rows = _once(results, "series-parallel")
    if not rows:
        return []
    return [
        "## Random series-parallel graphs",
        "",
        "A long series of blocks, no two alike; how they are drawn is written in",
        "`benchmarks/planning/graphs.py`. Each has its number of nodes as its seed.",
        "",
        *table(
            ("graph", "nodes", "blocks", "largest block", "lower sets"),
            [
                (
                    r["case"],
                    f"{r['forward_ops']:,}",
                    f"{r['facts']['blocks']:,}",
                    str(r["facts"]["largest_block"]),
                    f"{r['facts']['all_lower_sets']:,}",
                )
                for r in rows
            ],
            1,
        ),
        "",
    ]


def write_pages(document: Result) -> None:
    """Write docs/benchmarks/planning.svg and planning.md."""
    write_page("planning.svg", svg(lambda: draw(document)))
    write_page("planning.md", page(document))
