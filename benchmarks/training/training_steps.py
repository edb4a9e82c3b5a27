"""Train real networks within budgets and check everything that memfit promises.

For each network: the plain step's measured peak above parameters and buffers (gradients included),
then budgets of 80, 60 and 40% of it, or the smallest feasible budget where that is larger, and the
smallest feasible budget itself. Asserts: measured peak within budget; gradients bitwise equal to
the captured graph saving everything, and within 1e-6 of eager's; buffers equal; the prediction at
most 2% off and at most 0.5% too low; peaks that fall with the budget.

Run `python -m benchmarks.training.training_steps [--quick] [--report] [NETWORK ...]`. It
writes benchmarks/results/training_steps.json and docs/benchmarks/training-steps.md; networks that
are not run keep their rows. A quick run is GPT-2 alone; `--report` writes the page alone.
"""

from __future__ import annotations

import platform
import sys
import time
from typing import Any

import torch

import memfit
from benchmarks.lib.harness import (
    MIB,
    chosen,
    command_line,
    read_results,
    write_page,
    write_results,
)
from benchmarks.lib.networks import NETWORKS, Case
from memfit.pytorch.cost.measure import measure_step, steady_allocator
from memfit.pytorch.step_call import StepModule

SHARES = (0.8, 0.6, 0.4)
ROUNDS = 5
QUICK = ("gpt2",)
RESULTS, PAGE = "training_steps", "training-steps.md"


def plain_peak_bytes(case: Case) -> int:
    """Measured peak of a plain step above what is there before it."""
    step = StepModule(case.model, case.loss_fn)

    def reset() -> None:
        for p in case.model.parameters():
            p.grad = None

    peak = measure_step(lambda: step(*case.args).backward(), reset=reset).peak_bytes
    reset()
    return peak


def check(name: str, row: dict[str, Any]) -> list[str]:
    """What the row breaks, in words."""
    broken = []
    if not row["within_budget"]:
        broken.append("measured peak above the budget")
    if not row["gradients_equal"]:
        broken.append("gradients differ from the captured graph's")
    if not row["plain_largest_difference"] <= 1e-6:
        broken.append(f"gradients differ from eager's by {row['plain_largest_difference']:.1e}")
    if not row["buffers_equal"]:
        broken.append("buffers differ")
    if not -0.5 <= row["prediction_error_percent"] <= 2.0:
        broken.append(f"prediction off by {row['prediction_error_percent']:.2f}%")
    return [f"{name} at {row['label']}: {b}" for b in broken]


def run(name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows of one network, and what they break."""
    case = NETWORKS[name]()
    above = plain_peak_bytes(case)
    began = time.perf_counter()
    ample = memfit.plan(case.model, case.args, case.loss_fn, budget=2**61)
    planning = time.perf_counter() - began
    smallest = ample.smallest_feasible_budget_bytes
    resident = sum(
        ample.peak_parts[part] for part in ("parameters", "buffers", "inputs", "optimizer_state")
    )
    rows, broken = [], []
    print(
        f"\n{case.name}: plain {above / MIB:.1f} MiB above parameters and inputs "
        f"({resident / MIB:.1f} MiB), smallest feasible {(smallest - resident) / MIB:.2f} MiB, "
        f"captured, measured and planned in {planning:.1f} s"
    )
    print(
        "   budget   MiB   predicted  measured  error%   overhead% pred/meas  "
        "planned/plain s   bitwise captured/eager  largest diff  buffers"
    )
    for share in (*SHARES, 0.0):
        budget = max(resident + int(share * above), smallest)
        label = "smallest" if budget == smallest else f"{share:.0%}"
        if rows and rows[-1]["label"] == "smallest":
            break
        torch._dynamo.reset()
        result = memfit.verify(case.model, case.args, case.loss_fn, budget=budget, rounds=ROUNDS)
        row = {
            "network": case.name,
            "label": label,
            "budget_above_resident_bytes": budget - resident,
            "predicted_above_resident_bytes": result.predicted_peak_bytes - resident,
            "measured_above_resident_bytes": result.planned_peak_bytes - resident,
            "plain_above_resident_bytes": above,
            "smallest_above_resident_bytes": smallest - resident,
            **result.to_dict(),
        }
        rows.append(row)
        broken += check(case.name, row)
        print(
            f"  {label:>8} {(budget - resident) / MIB:6.1f}   "
            f"{row['predicted_above_resident_bytes'] / MIB:8.2f}  "
            f"{row['measured_above_resident_bytes'] / MIB:8.2f}  "
            f"{result.prediction_error_percent:6.3f}   "
            f"{result.predicted_overhead_percent:8.1f} / {result.measured_overhead_percent:5.1f}"
            f"      {result.planned_time_ns / 1e9:6.2f} / {result.plain_time_ns / 1e9:.2f}"
            f"      {result.gradients_equal!s:>5} / {result.plain_gradients_equal!s:<5}"
            f"         {result.plain_largest_difference:.1e}       {result.buffers_equal}",
            flush=True,
        )
    peaks = [row["measured_above_resident_bytes"] for row in rows]
    if peaks != sorted(peaks, reverse=True):
        broken.append(f"{case.name}: measured peaks do not fall with the budget: {peaks}")
    return rows, broken


def page(document: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# Real networks within a budget",
        "",
        "Made by `python -m benchmarks.training.training_steps`; the raw figures are in",
        "`benchmarks/results/training_steps.json`. Peaks in MiB, measured during a real step,",
        "above what is alive before it (parameters, buffers, inputs); gradients included, and",
        "`.grad` is None at the start. Shares are of the plain step's measured peak. Overhead is",
        "against the captured step that saves everything; times are medians of",
        f"{ROUNDS} interleaved steps, and noisy. torch {document['torch']}, {document['machine']}, "
        f"{document['threads']} threads.",
        "",
        "| network | budget | MiB | predicted | measured | overhead predicted | overhead measured |"
        " gradients bitwise equal to captured / eager | buffers equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        if row["label"] == "80%":
            lines.append(
                f"| {row['network']} | plain | | | {row['plain_above_resident_bytes'] / MIB:.1f} "
                "| | | | |"
            )
        yes = {True: "yes", False: "no"}
        lines.append(
            f"| {row['network']} | {row['label']} "
            f"| {row['budget_above_resident_bytes'] / MIB:.1f} "
            f"| {row['predicted_above_resident_bytes'] / MIB:.2f} "
            f"| {row['measured_above_resident_bytes'] / MIB:.2f} "
            f"| {row['predicted_overhead_percent']:.1f}% "
            f"| {row['measured_overhead_percent']:.1f}% "
            f"| {yes[row['gradients_equal']]} / {yes[row['plain_gradients_equal']]} "
            f"| {yes[row['buffers_equal']]} |"
        )
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Run and report; 1 if anything is broken."""
    parser = command_line(__doc__, quick=", ".join(QUICK), report=True, names=NETWORKS)
    options = parser.parse_args(words)
    if options.report:
        write_page(PAGE, page(read_results(RESULTS)))
        return 0
    names = chosen(parser, options.networks or (QUICK if options.quick else ()), NETWORKS)
    known: dict[str, list[dict[str, Any]]] = {}
    for row in read_results(RESULTS, {"rows": []})["rows"]:
        known.setdefault(row["network"], []).append(row)
    broken: list[str] = []
    for name in names:
        with steady_allocator():
            found, wrong = run(name)
        known[found[0]["network"]] = found
        broken += wrong
    document = {
        "memfit": memfit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "memory_model": "bytes that the CPU allocator hands out, above what is alive before a step",
        "rows": [row for rows in known.values() for row in rows],
    }
    write_results(RESULTS, document)
    write_page(PAGE, page(document))
    print("\n" + ("\n".join(broken) if broken else "all promises kept"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
