"""The page of the zoo."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.lib.harness import MIB, processor, table
from benchmarks.zoo.registry import GROUPS
from benchmarks.zoo.summary import Counts, causes, counts, ordered

__all__ = ["conditions", "page"]

Row = Mapping[str, Any]

HEAD = """# A zoo of public architectures

Made by `make zoo`; all figures are in `benchmarks/results/zoo.json`. Public architectures by name,
with small random configurations, a real training loss each, and nothing downloaded. `python -m
benchmarks.zoo NAME` runs one.
"""

MEANING = """\
## What is measured

Each runs in a process of its own, on one thread. Plain PyTorch trains three steps with SGD, with a
new batch each step. Then `memfit.fit(model, loss, budget=...)` trains the same from the same
parameters, with the same random seeds and batches, at 60% of the plain step's peak (parameters,
buffers and inputs included); where that raises `InfeasibleBudgetError`, at the smallest feasible
budget that the error names. Each step begins with the parameters and buffers that plain PyTorch had
before it, so that a difference is of that step alone.

- *plain*, *fitted*: peak in MiB above parameters, buffers and inputs, the largest from the second
  step on; the running sum of the CPU allocator's events (`memfit.pytorch.cost.measure`). **over**:
  with what is resident, it is above the budget.
- *of plain*: the budget, as a share of the plain step's whole peak; *smallest* where it is the
  smallest feasible one.
- *result*: losses, gradients and buffers of all three steps beside plain PyTorch's. `bitwise`:
  every bit equal. A number: the largest difference of an entry, relative to the largest entry of
  the same tensor, up to 1e-4, which the order of a sum explains. **wrong**: a larger one.
- *rung*: how the step is planned ([what models are taken](../any-model.md)).
- *planned*: the step's time over plain PyTorch's that the plan predicts. *measured*: the ratio of
  the medians of five rounds, in turn, of processor time.
- *first step*: seconds until the first step is done: capture, measuring ops, planning and the step,
  and a refused budget before it.
"""


def conditions() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    import memfit

    return {
        "memfit": memfit.__version__,
        "core": memfit.build_info()["core"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": processor(),
        "packages": {
            d.name: d.version
            for d in sorted(importlib.metadata.distributions(), key=lambda d: d.name.lower())
            if d.name in PACKAGES
        },
    }


PACKAGES = (
    "conformer",
    "CoCa-pytorch",
    "demucs",
    "denoising-diffusion-pytorch",
    "diffusers",
    "e3nn",
    "egnn-pytorch",
    "equiformer-pytorch",
    "iTransformer",
    "linear-attention-transformer",
    "mambapy",
    "minGRU-pytorch",
    "mixture-of-experts",
    "mmdit",
    "monai",
    "neuraloperator",
    "nflows",
    "performer-pytorch",
    "pytorch-tabnet",
    "reformer-pytorch",
    "rtdl_num_embeddings",
    "rtdl_revisiting_models",
    "se3-transformer-pytorch",
    "segmentation_models_pytorch",
    "soft-moe-pytorch",
    "st-moe-pytorch",
    "tab-transformer-pytorch",
    "timm",
    "torch-geometric",
    "torchani",
    "torchdiffeq",
    "transformers",
    "vector-quantize-pytorch",
    "vit-pytorch",
    "x-clip",
    "x-transformers",
    "zuko",
)
"""Distributions that architectures are from, whose versions the page names."""


def page(document: Mapping[str, Any], names: Sequence[str]) -> str:
    """The page of a document of results."""
    rows = ordered(document["rows"], names)
    lines = [HEAD, *_conditions(document.get("conditions")), *_summary(rows), MEANING]
    for group, title in GROUPS.items():
        own = {name: row for name, row in rows.items() if row["group"] == group}
        trained = {name: row for name, row in own.items() if row["outcome"] == "trained"}
        if trained:
            lines += [f"## {title}", "", *_group(trained), ""]
    lines += [*_opaque(rows), *_again(rows), *_wrong(rows), *_rest(rows), *_not_run(rows, names)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _conditions(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    text = (
        f"memfit {found['memfit']} ({found['core']} core), torch {found['torch']}, "
        f"Python {found['python']}, {found['system']}, {found['machine']}, 1 thread. {packages}."
    )
    return [text, ""]


def _summary(rows: Mapping[str, Row]) -> Iterator[str]:
    yield "## In short"
    yield ""
    groups = {
        title: counts([r for r in rows.values() if r["group"] == group])
        for group, title in GROUPS.items()
    }
    every = counts(rows.values())
    yield (
        f"{every.all} architectures. Trained at 60% of the plain peak: "
        f"{_share(every.share, every)}; there or at the smallest feasible budget: "
        f"{_share(every.trained, every)}. Of those that trained, {every.held} stayed within the "
        f"budget, {every.bitwise} are bitwise equal to plain PyTorch, {every.summation} differ by "
        f"the order of a sum, {every.wrong} are wrong."
    )
    yield ""
    yield from _ratios(rows)
    head = ("group", "architectures", "at 60%", "trained", "held", "bitwise", "order of summation")
    body = [_counted(title, one) for title, one in groups.items() if one.all]
    yield from table((*head, "wrong"), [*body, _counted("all", every)], 1)
    yield ""


def _ratios(rows: Mapping[str, Row]) -> Iterator[str]:
    """How the time of a step compares with what its plan says."""
    found = sorted(
        (row["fitted_ms"] / row["plain_ms"] / (1 + row["overhead_planned"]), name)
        for name, row in rows.items()
        if row["outcome"] == "trained" and "overhead_planned" in row
    )
    if not found:
        return
    worst = ", ".join(f"{name} {ratio:.2f}" for ratio, name in reversed(found[-5:]))
    middle = median(ratio for ratio, _ in found)
    yield f"Time of a step over what its plan says: median {middle:.2f}; the largest: {worst}."
    yield ""


def _share(number: int, of: Counts) -> str:
    return f"{number} ({100 * number / of.all:.0f}%)" if of.all else str(number)


def _counted(title: str, one: Counts) -> tuple[str, ...]:
    figures = (one.all, one.share, one.trained, one.held, one.bitwise, one.summation, one.wrong)
    return (title, *map(str, figures))


def _group(rows: Mapping[str, Row]) -> list[str]:
    head = ("", "from", "result", "rung", "plain", "fitted", "of plain", "planned", "measured")
    return table((*head, "first step, s"), [_cells(n, r) for n, r in rows.items()], 4)


def _cells(name: str, row: Row) -> tuple[str, ...]:
    whole = row["resident_bytes"] + row["plain_peak_bytes"]
    smallest = "" if row["budget"] == "60%" else " (smallest)"
    over = "" if row["held"] else " **over**"
    return (
        name,
        ", ".join(row["packages"]),
        _result(row),
        row["rung"],
        f"{row['plain_peak_bytes'] / MIB:.1f}",
        f"{row['fitted_peak_bytes'] / MIB:.1f}{over}",
        f"{100 * row['budget_bytes'] / whole:.0f}%{smallest}",
        f"{1 + row.get('overhead_planned', 0):.2f}",
        f"{row['fitted_ms'] / row['plain_ms']:.2f}",
        f"{row['first_step_s']:.1f}",
    )


def _result(row: Row) -> str:
    if row["verdict"] == "bitwise":
        return "bitwise"
    figure = f"{row['difference']:.0e}"
    return f"**wrong**, {figure}" if row["verdict"] == "wrong" else figure


def _opaque(rows: Mapping[str, Row]) -> Iterator[str]:
    found = {name: row["opaque"] for name, row in rows.items() if row.get("opaque")}
    if not found:
        return
    yield "## Modules that run as one op"
    yield ""
    for name, modules in found.items():
        more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
        yield f"- {name}: {', '.join(modules[:3])}{more}"
    yield ""


def _again(rows: Mapping[str, Row]) -> Iterator[str]:
    found = {name: row["captures"] for name, row in rows.items() if row.get("captures", 1) > 1}
    if not found:
        return
    yield "## Captured more than once"
    yield ""
    yield (
        "For four batches of the same shapes, of which one is timed: "
        + ", ".join(f"{name} ({times} times)" for name, times in found.items())
        + "."
    )
    yield ""


def _wrong(rows: Mapping[str, Row]) -> Iterator[str]:
    found = {n: r for n, r in rows.items() if r.get("verdict") == "wrong"}
    if not found:
        return
    yield "## Differences above 1e-4"
    yield ""
    for name, row in found.items():
        yield f"- {name}: {row['difference']:.0e} in {row['difference_in']}"
    yield ""


def _rest(rows: Mapping[str, Row]) -> Iterator[str]:
    found = causes(rows)
    if not found:
        return
    yield "## Not trained"
    yield ""
    for cause, names in found.items():
        yield f"- {', '.join(names)}: {_inline(cause)}"


def _not_run(rows: Mapping[str, Row], names: Sequence[str]) -> Iterator[str]:
    left = [name for name in names if name not in rows]
    if left:
        yield ""
        yield "## Without figures"
        yield ""
        yield f"{len(left)} architectures that have not been run: {', '.join(left)}."


def _inline(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split())[:300] + "`"
