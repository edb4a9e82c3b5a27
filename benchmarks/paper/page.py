"""docs/benchmarks/paper.md and its pictures, from benchmarks/results/paper.json."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.lib.harness import write_page
from benchmarks.paper.figures import batches_picture, equal_peak_picture
from benchmarks.paper.graphs import THREADS
from benchmarks.paper.names import FAMILIES, SHARES, TITLES
from benchmarks.paper.steps import TOLERANCE_PERCENT

__all__ = ["verdicts", "write_pages"]

SMALLEST_LIMIT, OVERHEAD_LIMIT = 0.15, 0.30
GB = 10**9

# Minimum peak memory in GB: Kusumoto et al., NeurIPS 2019, table 1; a K40, with liveness analysis.
PAPER_GB = {  # approximate, exact, Chen, vanilla
    "pspnet": (2.7, 2.8, 4.0, 9.4),
    "unet": (5.0, 4.7, 7.4, 9.1),
    "resnet50": (3.4, 3.4, 3.7, 8.9),
    "resnet152": (2.3, 2.3, 2.4, 9.2),
    "vgg19": (4.5, 4.5, 4.7, 7.0),
    "densenet161": (1.6, 1.7, 1.8, 8.5),
    "googlenet": (5.2, 5.2, 6.5, 8.5),
}
COLUMNS = ("approximate", "exact", "chen", "salimans", "liveness", "nested")


def mean(numbers: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(numbers) / len(numbers)


def verdicts(results: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The two limits on all seven published graphs, against both of the paper's families."""
    rows = results.get("published", {})
    if set(rows) < set(TITLES):
        return
    for family in FAMILIES:
        against = [row[family] for row in rows.values()]
        lower = mean([r["smallest_peak_lower"]["nested"] for r in against])
        yield _verdict(
            f"smallest peak below that of {family}, mean of 7 graphs", lower, SMALLEST_LIMIT
        )
        lower = mean([r["overhead_lower"] for r in against])
        yield _verdict(
            f"overhead below that of {family} at equal peak, mean of 7 graphs",
            lower,
            OVERHEAD_LIMIT,
        )


def _verdict(what: str, figure: float, limit: float) -> dict[str, str]:
    return {
        "what": what,
        "figure": f"{figure:.1%}",
        "limit": f"at least {limit:.0%}",
        "verdict": "PASS" if figure >= limit else "MISS",
    }


def write_pages(results: dict[str, Any]) -> None:
    """Write paper.md and, where there is something to draw, its pictures."""
    sections = [_head(results)]
    if results.get("published"):
        sections.append(_against(results))
        write_page("paper-equal-peak.svg", equal_peak_picture(results["published"]))
    if results.get("planned"):
        sections += [_table_1(results["planned"]), _liveness(results), _shares(results["planned"])]
    if results.get("published"):
        sections.append(_table_published(results["published"]))
    if results.get("batches"):
        sections.append(_batches(results["batches"]))
        write_page("paper-batches.svg", batches_picture(results["batches"]))
    if results.get("times"):
        sections.append(_times(results["times"]))
    if results.get("run"):
        sections.append(_steps(results["run"]))
    sections.append(_MODEL)
    write_page("paper.md", _reflowed("\n".join(sections)))


def _reflowed(text: str) -> str:
    """Paragraphs of prose in lines of a hundred."""
    blocks = []
    for block in text.strip().split("\n\n"):
        prose = not block.lstrip().startswith(("|", "#", "!"))
        whole = textwrap.fill(block, 100, break_on_hyphens=False, break_long_words=False)
        blocks.append(whole if prose else block.strip("\n"))
    return "\n\n".join(blocks) + "\n"


def _head(results: dict[str, Any]) -> str:
    part = next(iter(results.values()))
    found = next(iter(part.values()))["machine"]
    build = found["memfit"]
    return f"""# The paper's experiments, side by side

Made by `python -m benchmarks.paper.run`; raw figures are in `benchmarks/results/paper.json`. Each
section names the part that makes it alone. memfit {build["version"]}, {build["core"]} core built by
{build["compiler"]}, Python {found["python"]}, {found["system"]}, {found["processor"]}, \
{found["cpus"]} CPUs.

*The paper*: Kusumoto et al., *A Graph Theoretic Framework of Recomputation Algorithms for
Memory-Efficient Backpropagation*, NeurIPS 2019. *Their plans*: the time- and memory-centric
strategies of `exact` and `approximate`, our implementations of their dynamic programs, for all
nominal budgets of their formulas, each simulated with liveness analysis by memfit's simulator: the
best of both modes counts, which is more than their system does. *Chen*: Chen et al. 2016.
*Salimans*: the better of the two automatic choices of Salimans and Bulatov 2018, from their
description. *Overhead*: the cost of what is computed again, in percent of one step (forward and
backward) without recomputation. *Peak*: simulated, of the whole step. GB is 10^9 bytes.
"""


def _percent(overhead: int | None, row: dict[str, Any]) -> str:
    return "-" if overhead is None else f"{100 * overhead / row['total_cost']:.1f}"


def _against(results: dict[str, Any]) -> str:
    rows = results["published"]
    lines = [
        "## Against the paper's own plans, on their published graphs",
        "",
        "`python -m benchmarks.paper.run --published`. *Smallest peak*: the least over their "
        "plans,",
        "and over ours, the smallest budget that the planner accepts. *At equal peak*: for each of",
        "their plans that no other of theirs beats in both peak and overhead, and that computes",
        "something again, we plan with its peak as the budget (the better of `liveness` and",
        "`nested`); mean, over these plans, of how much lower our overhead is. `liveness` computes",
        "a value at most twice, as their plans do. `nested` may do so more often; what its least",
        "peaks cost is in the tables below.",
        "",
        "| what | figure | limit | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {v['what']} | {v['figure']} | {v['limit']} | {v['verdict']} |"
        for v in verdicts(results)
    ]
    for family in FAMILIES:
        lower = mean([row[family]["smallest_peak_lower"]["liveness"] for row in rows.values()])
        lines.append(
            f"| smallest peak below that of {family}, `liveness` alone | {lower:.1%} | none | |"
        )
    for family in FAMILIES:
        lines += [
            "",
            f"Against `{family}`:",
            "",
            "| graph | nodes | lower sets | plain, GB | theirs, smallest | `liveness` | lower by "
            "| `nested` | lower by | plans compared "
            "| overhead at equal peak lower by | ours more for |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name, row in rows.items():
            found, smallest = row[family], row["smallest"]
            lower = found["smallest_peak_lower"]
            lines.append(
                f"| {TITLES[name][0]} | {row['nodes']} | {found['lower_sets']:,} "
                f"| {row['plain_bytes'] / GB:.2f} | {smallest[family]['peak_bytes'] / GB:.3f} "
                f"| {smallest['liveness']['peak_bytes'] / GB:.3f} | {lower['liveness']:.1%} "
                f"| {smallest['nested']['peak_bytes'] / GB:.3f} | {lower['nested']:.1%} "
                f"| {len(found['equal_peak'])} | {found['overhead_lower']:.1%} "
                f"| {sum(mine > theirs for _, theirs, mine in found['equal_peak'])} |"
            )
        means = [
            mean([row[family]["smallest_peak_lower"][n] for row in rows.values()])
            for n in ("liveness", "nested")
        ]
        overhead = mean([row[family]["overhead_lower"] for row in rows.values()])
        lines.append(f"| mean | | | | | | {means[0]:.1%} | | {means[1]:.1%} | | {overhead:.1%} | |")
    lines += [
        "",
        "Their plans that no other of theirs beats, and ours; lines that leave a panel lead to",
        "our smallest peak.",
        "",
        "![Overhead against peak on the seven published graphs](paper-equal-peak.svg)",
        "",
    ]
    return "\n".join(lines)


def _cell(row: dict[str, Any], planner: str) -> str:
    found = row["smallest"].get(planner)
    if found is None:
        return "-"
    return f"{found['peak_bytes'] / GB:.2f} (+{_percent(found['overhead'], row)})"


def _table_1(rows: dict[str, Any]) -> str:
    lines = [
        "## Minimum peak memory, on PyTorch at the paper's sizes",
        "",
        "`python -m benchmarks.paper.run --planned`. GB, the overhead there in percent of a step "
        "in",
        "brackets. The first four columns are the paper's own, measured on a K40 (table 1, with",
        "liveness analysis); all others are simulated on the graph that memfit captures from",
        "PyTorch (parameters, their gradients and inputs included), and no model got any memory.",
        "",
        "| network (batch) | paper: approximate | exact | Chen | vanilla | here: approximate "
        "| exact | Chen | Salimans | `liveness` | `nested` | vanilla |",
        "|---|" + "---:|" * 11,
    ]
    for name, row in rows.items():
        title, batch = TITLES[name]
        theirs = " | ".join(f"{x:.1f}" for x in PAPER_GB[name])
        ours = " | ".join(_cell(row, planner) for planner in COLUMNS)
        lines.append(f"| {title} ({batch}) | {theirs} | {ours} | {row['plain_bytes'] / GB:.2f} |")
    lines += [
        "",
        "As a share of vanilla, the paper's best against ours, and with the workspaces that a",
        "CPU's kernels (oneDNN) likely take, where the bytes of one op alone may bind:",
        "",
        "| network | paper, best | here: theirs, best | `liveness` | `nested` | vanilla with CPU "
        "workspaces, GB | `liveness` | `nested` |",
        "|---|" + "---:|" * 7,
    ]
    for name, row in rows.items():
        plain, smallest, cpu = row["plain_bytes"], row["smallest"], row["with_workspace"]
        best = min(smallest[family]["peak_bytes"] for family in FAMILIES)
        lines.append(
            f"| {TITLES[name][0]} | {min(PAPER_GB[name][:2]) / PAPER_GB[name][3]:.0%} "
            f"| {best / plain:.0%} | {smallest['liveness']['peak_bytes'] / plain:.0%} "
            f"| {smallest['nested']['peak_bytes'] / plain:.0%} | {cpu['plain_bytes'] / GB:.2f} "
            f"| {cpu['liveness'] / GB:.2f} | {cpu['nested'] / GB:.2f} |"
        )
    lines += [
        "",
        "The same comparison as on the published graphs (nominal budgets a hundredth of the",
        "vanilla peak apart). Costs are estimates in nanoseconds; where they had to be rounded or",
        "fewer lower sets were searched, the last column says so.",
        "",
        "| network | nodes | ops | theirs | family, lower sets | smallest peak: `liveness` "
        "lower by "
        "| `nested` | overhead at equal peak lower by | |",
        "|---|---:|---:|---|---|---:|---:|---:|---|",
    ]
    for name, row in rows.items():
        for family in FAMILIES:
            found = row[family]
            lower = found["smallest_peak_lower"]
            overhead = found["overhead_lower"]
            lines.append(
                f"| {TITLES[name][0]} | {row['nodes']} | {row['ops']} | {family} "
                f"| {found['family']}, {found['lower_sets']:,} | {lower['liveness']:.1%} "
                f"| {lower['nested']:.1%} | {'-' if overhead is None else f'{overhead:.1%}'} "
                f"| {'; '.join(found['notes'])} |"
            )
    return "\n".join([*lines, ""])


def _liveness(results: dict[str, Any]) -> str:
    lines = [
        "## With and without liveness analysis",
        "",
        "The smallest peak of their plans by the paper's formula, Eq. (2), and simulated, every",
        "value freed at its last use; GB, with the overhead in percent of a step in brackets.",
        "",
        "| graphs | network | exact, formula | exact, time | exact, memory | approximate, formula "
        "| approximate, time | approximate, memory |",
        "|---|---|" + "---:|" * 6,
    ]
    for part in ("planned", "published"):
        for name, row in results.get(part, {}).items():
            cells = []
            for family in FAMILIES:
                cells.append(f"{row[family]['formula_smallest_bytes'] / GB:.3f}")
                cells += [_cell(row, f"{family}, {mode}") for mode in ("time", "memory")]
            kind = "PyTorch" if part == "planned" else part
            lines.append(f"| {kind} | {TITLES[name][0]} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _share_rows(rows: dict[str, Any]) -> list[str]:
    shares = " | ".join(f"{share}%" for share in SHARES)
    lines = [f"| network | planner | {shares} |", "|---|---|" + "---:|" * len(SHARES)]
    for name, row in rows.items():
        for planner in ("chen", "salimans", "approximate", "exact", "liveness", "nested"):
            cells = " | ".join(_percent(found, row) for found in row["at_share"][planner])
            lines.append(f"| {TITLES[name][0]} | {planner} | {cells} |")
    return lines


def _shares(rows: dict[str, Any]) -> str:
    lines = [
        "## Overhead at shares of the vanilla peak",
        "",
        "On PyTorch, in percent of a step; - where no plan of the planner fits. `exact` and",
        "`approximate` are the best of both modes over all nominal budgets.",
        "",
        *_share_rows(rows),
    ]
    return "\n".join([*lines, ""])


def _table_published(rows: dict[str, Any]) -> str:
    lines = [
        "## The same on the published graphs",
        "",
        "Under the authors' cost model (10 for convolutions, else 1), without parameters.",
        "Their files",
        "have batch sizes of their own, so that bytes are not those of the paper's table. Smallest",
        "peaks in GB, the overhead there in percent of a step in brackets:",
        "",
        "| graph | approximate | exact | Chen | Salimans | `liveness` | `nested` | vanilla |",
        "|---|" + "---:|" * 7,
    ]
    for name, row in rows.items():
        cells = " | ".join(_cell(row, planner) for planner in COLUMNS)
        lines.append(f"| {TITLES[name][0]} | {cells} | {row['plain_bytes'] / GB:.2f} |")
    lines += ["", "Overhead at shares of the vanilla peak, in percent of a step:", ""]
    return "\n".join([*lines, *_share_rows(rows), ""])


def _batches(rows: dict[str, Any]) -> str:
    budget = next(iter(rows.values()))["budget_bytes"]
    lines = [
        f"## The largest batch within {budget / GB:g} GB",
        "",
        "`python -m benchmarks.paper.run --batches`. For each planner the largest batch whose",
        "plan fits, found by bisection, and the time per sample there from plans (analytic costs),",
        "beside that",
        "of the plain step at the same batch. The graph at a batch size is read between two",
        "captured ones.",
        "",
        "| network | planner | largest batch | times vanilla's | time per sample there |",
        "|---|---|---:|---:|---:|",
    ]
    for name, row in rows.items():
        plain = row["series"]["store-all"]
        for planner, found in row["series"].items():
            batch, per_sample, _ = found["points"][-1]
            lines.append(
                f"| {TITLES[name][0]} | {'vanilla' if planner == 'store-all' else planner} "
                f"| {batch:,} | {batch / plain['largest']:.2f} "
                f"| {per_sample / plain['points'][-1][1]:.2f} |"
            )
    lines += ["", "![Time per sample against batch size](paper-batches.svg)", ""]
    return "\n".join(lines)


def _times(rows: dict[str, Any]) -> str:
    planners = list(next(iter(rows.values()))["planned"])
    lines = [
        "## Planning time",
        "",
        "`python -m benchmarks.paper.run --times`. Seconds for one plan at half of the vanilla",
        "peak, or at the smallest budget where that is larger; the best of 3. On PyTorch costs are",
        "nanoseconds,",
        "nearly all different, which makes Pareto fronts longer than the paper's cost model",
        "does. The",
        "paper's own figures: exact over 80 s on GoogLeNet and PSPNet, approximate within 1",
        "s. More in [planning times](planning.md).",
        "",
        "| graphs | network | " + " | ".join(planners) + " |",
        "|---|---|" + "---:|" * len(planners),
    ]
    for kind in ("planned", "published"):
        for name, row in rows.items():
            if kind in row:
                cells = " | ".join(f"{row[kind][p]['seconds']:.3f}" for p in planners)
                where = "PyTorch" if kind == "planned" else kind
                lines.append(f"| {where} | {TITLES[name][0]} | {cells} |")
    return "\n".join([*lines, ""])


def _steps(rows: dict[str, Any]) -> str:
    torch = next(iter(rows.values()))["torch"]
    yes = {True: "yes", False: "no"}
    lines = [
        "## Real steps",
        "",
        f"""`python -m benchmarks.paper.run --run`, torch {torch}, {THREADS} threads. Plans of
`liveness`, run by PyTorch's own kernels on the CPU. MB above what is there before the step.
Asserted: gradients and loss bitwise equal to those of the captured graph saving everything; buffers
equal; measured peak within the budget; prediction within {TOLERANCE_PERCENT:g}%. Overheads are of
measured costs of ops. Times of whole steps are in the raw figures; they were taken once, on a
machine that had other work: [training steps](training-steps.md) has better ones. Where 60% is less
than the smallest feasible budget, both rows are that one: with batches this small, gradients of
parameters (VGG19) and a kernel's workspace (U-Net) weigh more than at the paper's sizes.""",
        "",
        "| network | batch, size | budget | MB | predicted | measured | error | overhead predicted "
        "| equal to captured / eager | largest difference from eager |",
        "|---|---|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for name, row in rows.items():
        resident = row["resident_bytes"]
        size = f"{row['batch']}, {row['size']}"
        plain = (row["plain_bytes"] - resident) / 1e6
        lines.append(f"| {TITLES[name][0]} | {size} | vanilla | | | {plain:.1f} | | | | |")
        for found in row["rows"]:
            above = [
                (found[key] - resident) / 1e6
                for key in ("budget_bytes", "predicted_peak_bytes", "planned_peak_bytes")
            ]
            label = found["label"] if found["feasible_at_label"] else f"{found['label']}, smallest"
            lines.append(
                f"| {TITLES[name][0]} | {size} | {label} | {above[0]:.1f} | {above[1]:.2f} "
                f"| {above[2]:.2f} | {found['prediction_error_percent']:+.3f}% "
                f"| {found['predicted_overhead_percent']:.1f}% "
                f"| {yes[found['gradients_equal']]} / {yes[found['plain_gradients_equal']]} "
                f"| {found['plain_largest_difference']:.1e} |"
            )
    return "\n".join([*lines, ""])


_MODEL = """## Memory model

That of [ADR 0001](../adr/0001-memory-model.md): values are storages, freed right after their last
use; parameters, buffers and inputs are alive throughout, parameter gradients to the end. On PyTorch
the networks are captured from fake tensors by AOTAutograd (CPU, float32), with costs of a roofline
for two CPU threads. Workspaces of ops are left out, but where a table says otherwise: the paper's
cost model has none, and a GPU's are not a CPU's. An op with its bookkeeping (the updates of batch
norm's running statistics) is one node of their dynamic programs, so that ResNet50, ResNet152 and
DenseNet161 have exactly as many nodes as their published graphs. U-Net is that of the published
graph (convolutions without padding, crops); PSPNet has ResNet101 with a stem of three convolutions
and an auxiliary loss, GoogLeNet two auxiliary losses, as theirs do. PyTorch's local response
normalisation is several ops, so that GoogLeNet's vanilla step takes more than theirs.
"""
