"""The page and picture of `planning`."""

from __future__ import annotations

from typing import Any

from benchmarks.lib.harness import MIB, svg, write_page

__all__ = ["write_pages"]

HEAD = """# Chains, recurrence and recomputing more than once

Made by `python -m benchmarks.recurrence.planning` ({core} core); numbers are in
`benchmarks/results/recurrence_planning.json`. How it works is in
[ADR 0007](../adr/0007-nested-strategies.md). *Forward work* is the cost of all forward ops that run
over that of one forward pass; *peak* is the simulated peak beyond what is resident all through the
step.

![Forward work against peak memory](recurrence-planning.svg)
"""


def write_pages(data: dict[str, Any]) -> None:
    """Write recurrence-planning.md and recurrence-planning.svg."""
    parts = [
        HEAD.format(core=data["core"]),
        _states(data["states"]),
        _mixed(data["mixed"]),
        *[_chain(chain) for chain in data["chains"]],
    ]
    if data["networks"]:
        parts.append(_networks(data["networks"]))
    write_page("recurrence-planning.md", "\n".join(parts))
    write_page("recurrence-planning.svg", svg(lambda: picture(data["chains"])))


def _states(rows: list[dict[str, Any]]) -> str:
    lines = [
        "## Chains of alike steps: runs of a step against the proven optimum",
        "",
        "Only states are stored, as in Griewank and Walther 2000; their closed form is optimal.",
        "",
        "| chains up to | checkpoints up to | pairs compared | equal | ours more | seconds |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['longest']:,} | {r['slots']} | {r['pairs']:,} | {r['equal']:,} | {r['more']} "
        f"| {r['seconds']} |"
        for r in rows
    ]
    lines += [
        "",
        "| steps | checkpoints | ours | proven | forward work |",
        "|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        longest = r["longest"]
        lines += [
            f"| {e['steps']:,} | {e['slots']} | {e['ours']:,} | {e['proven']:,} "
            f"| {e['ours'] / e['steps']:.2f} |"
            for e in r["examples"]
            if e["steps"] == longest
        ]
    return "\n".join(lines) + "\n"


def _mixed(rows: list[dict[str, Any]]) -> str:
    lines = [
        "## Recordings stored too",
        "",
        "200 steps whose recording takes as much as 8 states. Memory is in states, beside the "
        "first one and the recording of the step being reversed. Gruslys et al. 2016 store either.",
        "",
        "| memory | ours | Gruslys et al., mixed | revolve |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['memory']} | {r['ours']:,} | {r['gruslys_mixed']:,} | {r['revolve']:,} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def _chain(chain: dict[str, Any]) -> str:
    plain = chain["plain_bytes"]
    lines = [
        f"## A chain of {chain['steps']:,} steps, unrolled",
        "",
        f"States of 1 MiB, recordings of 8 MiB; plain peak {plain / MIB:,.0f} MiB. Whole "
        "schedules, validated; peaks simulated. The smallest peak of single recomputations is "
        f"{chain['smallest_single_bytes'] / MIB:,.0f} MiB "
        f"({chain['smallest_single_bytes'] / plain:.2%}). The search took "
        f"{chain['nested_seconds']} s, that of single recomputations {chain['single_seconds']} s.",
        "",
        "| budget | ours: peak | work | an op again, at most | revolve: slots | peak | work "
        "| optimum with so many slots |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in chain["rows"]:
        ours, revolve = row["nested"], row["revolve"]
        cells = [
            f"{row['share']:.2%}",
            f"{ours['bytes'] / MIB:,.1f} MiB ({ours['bytes'] / plain:.2%})",
            f"{ours['work']:.3f}",
            str(ours["most_recomputations"]),
        ]
        if revolve:
            cells += [
                str(revolve["slots"]),
                f"{revolve['bytes'] / MIB:,.1f} MiB",
                f"{revolve['work']:.3f}",
                f"{row['proven']:.3f}",
            ]
        else:
            cells += ["-"] * 4
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _networks(rows: list[dict[str, Any]]) -> str:
    lines = [
        "## Networks: the smallest peak",
        "",
        "Beyond what is resident (parameters, buffers, inputs). *Single*: each op runs again once "
        "at most (planner `liveness`). *Gradients* are the parameters' gradients alive at the "
        "nested peak; no plan can do without them. *Floor*: a bound for every schedule that runs "
        "each backward op once: what one op reads, writes and works with, and gradients that must "
        "be there meanwhile.",
        "",
        "| graph | plain | single | work | nested | work | below single | gradients "
        "| below single, gradients left out | floor |",
        "|:--|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        single, nested, gradients = r["single_bytes"], r["nested_bytes"], r["gradient_bytes"]
        lines.append(
            f"| {r['name']} | {r['plain_bytes'] / MIB:,.0f} MiB | {single / MIB:,.0f} MiB "
            f"| {r['single_work']:.2f} | {nested / MIB:,.0f} MiB | {r['nested_work']:.2f} "
            f"| {1 - nested / single:.1%} | {gradients / MIB:,.0f} MiB "
            f"| {1 - (nested - gradients) / (single - gradients):.1%} "
            f"| {r['bound_bytes'] / MIB:,.0f} MiB "
            f"({1 - r['bound_bytes'] / single:.1%} below single) |"
        )
    return "\n".join(lines) + "\n"


def picture(chains: list[dict[str, Any]]) -> Any:
    """Forward work against peak, both axes logarithmic, a panel a chain."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(chains), 3.8), layout="constrained")
    for at, chain in enumerate(chains):
        axes = figure.add_subplot(1, len(chains), at + 1)
        plain = chain["plain_bytes"]
        series = {
            "ours (nested)": ("#009e73", "o", [r["nested"] for r in chain["rows"]]),
            "revolve": ("#0072b2", "s", [r["revolve"] for r in chain["rows"] if r["revolve"]]),
            "equal segments (√n)": ("#d55e00", "^", chain["segments"]),
        }
        for label, (colour, marker, points) in series.items():
            pairs = sorted((100 * p["bytes"] / plain, p["work"]) for p in points)
            axes.plot(
                [x for x, _ in pairs],
                [y for _, y in pairs],
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.2,
                label=label,
            )
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        axes.set_xlabel("peak, % of plain")
        axes.set_title(f"{chain['steps']:,} steps")
        ticks = [1, 1.5, 2, 3, 4, 6, 10]
        axes.set_yticks(ticks, labels=[f"{t:g}x" for t in ticks])
        axes.set_ylim(0.95, 12)
        axes.grid(True, which="both", linewidth=0.3, alpha=0.6)
        if at == 0:
            axes.set_ylabel("forward work, of one forward pass")
            axes.legend(frameon=False)
    return figure
