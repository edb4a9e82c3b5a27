"""An LSTM over a long sequence: what a rolled loop takes, beside what else there is.

    python -m benchmarks.recurrence.run [--long]
    python -m benchmarks.recurrence.run --report    # the page from known results

Writes benchmarks/results/recurrence.json and docs/benchmarks/recurrence.md. `--long` also captures
512 and 2,000 steps in Python and runs 100,000 rolled ones, which takes minutes each.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops.scan import scan
from torch.utils.checkpoint import checkpoint

import memfit
from benchmarks.lib.allocation_meter import environment, peak_of
from benchmarks.lib.harness import (
    MIB,
    ROOT,
    command_line,
    module_command,
    read_results,
    write_page,
    write_results,
)
from benchmarks.recurrence.from_papers import gruslys
from memfit.analysis.peers import chen_points
from memfit.pytorch.cost.measure import measure_step
from memfit.strategies.binomial import advances
from memfit.strategies.loops import LoopPlan

RESULTS, PAGE = "recurrence", "recurrence.md"


class Lstm(nn.Module):
    """One LSTM cell over a sequence; only its last state is used."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)
        self.head = nn.Linear(width, 8)
        self.how = how

    def chunk(
        self, xs: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some steps, in Python."""
        for x in xs.unbind(0):
            h, c = self.cell(x, (h, c))
        return h, c

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        """Of the last state."""
        h = xs.new_zeros(xs.shape[1], xs.shape[2])
        c = torch.zeros_like(h)
        if self.how in ("plain", "unrolled"):
            h, c = self.chunk(xs, h, c)
        elif self.how == "sqrt":
            for part in xs.split(math.isqrt(xs.shape[0])):
                h, c = checkpoint(self.chunk, part, h, c, use_reentrant=False)
        else:

            def body(carry: Any, x: torch.Tensor) -> Any:
                carry = self.cell(x, carry)
                return carry, carry[0].new_zeros(1)

            (h, c), _ = scan(body, (h, c), xs)
        return self.head(h)


def run(
    how: str,
    steps: int,
    batch: int,
    width: int,
    budget: str | int | None = None,
    *,
    by_events: bool = True,
) -> dict[str, Any]:
    """One way of training: times, peaks and gradients of one step."""
    torch.manual_seed(0)
    model = Lstm(width, how)
    xs, target = torch.randn(steps, batch, width), torch.randn(batch, 8)
    module: Callable[..., torch.Tensor] = lambda x, y: F.mse_loss(model(x), y)  # noqa: E731
    found: dict[str, Any] = {"how": how, "steps": steps, "batch": batch, "width": width}
    began = time.perf_counter()
    fitted = None
    if budget is not None:
        loops = "roll" if how == "rolled" else "auto"
        fitted = memfit.fit(model, F.mse_loss, budget=budget, loops=loops)
        module = fitted

    def step() -> torch.Tensor:
        loss = module(xs, target)
        loss.backward()
        return loss

    def reset() -> None:
        for p in model.parameters():
            p.grad = None

    if budget is not None:
        step()
        found["first_step_s"] = time.perf_counter() - began
        reset()
    if by_events:
        found["peak_bytes"] = measure_step(step, reset=reset, warmup=0).peak_bytes
        reset()
    began = time.perf_counter()
    if by_events:
        step()
    else:
        found["peak_bytes"] = peak_of(step)
    found["step_s"] = time.perf_counter() - began
    found["gradients"] = [p.grad.double().norm().item() for p in model.parameters()]
    found["forward_steps"] = {"plain": steps, "sqrt": 2 * steps}.get(how)
    if fitted is not None:
        found |= planned(fitted, found)
    return found


def planned(fitted: Any, row: dict[str, Any]) -> dict[str, Any]:
    """What the plan says, and the optima of a chain of equal steps beside it."""
    plan, graph = fitted.plan, fitted.graph
    resident = graph.resident_bytes
    steps, state = row["steps"], 2 * row["batch"] * row["width"] * 4
    record = 4 * state  # h, c, four gates, the next c and its tanh
    found = {
        "budget_bytes": plan.budget_bytes - resident,
        "planned_peak_bytes": plan.peak_bytes - resident,
        "plain_planned_bytes": plan.plain_peak_bytes - resident,
        "plan_s": plan.seconds,
        "state_bytes": state,
        "record_bytes": record,
    }
    assert row.get("peak_bytes", 0) <= found["budget_bytes"], (row, found)
    if row["how"] == "unrolled":
        work = graph.forward_cost
        chen = min(chen_points(graph), key=lambda point: point.peak_bytes)
        return found | {
            "ops": len(graph.ops),
            "planner": plan.planner,
            "forward_steps": steps * (1 + plan.overhead / work),
            "chen_peak_bytes": chen.peak_bytes - resident,
            "chen_forward_steps": steps * (1 + chen.overhead / work),
        }
    loop = LoopPlan(*plan.provenance["loops"][0])
    memory = loop.slots * state + (loop.leaf - 1) * record
    found |= {
        "slots": loop.slots,
        "leaf": loop.leaf,
        "forward_steps": loop.forward_steps,
        "revolve_forward_steps": steps + advances(steps, memory // state + 1),
    }
    if steps <= 600 and memory // state <= 300:
        found["gruslys_forward_steps"] = gruslys(steps, memory // state, -(-record // state))
    return found


def main() -> int:
    """Run all, write the results and the page; 1 if gradients differ."""
    parser = command_line(__doc__, quick="rolled, 512; other rows are kept", report=True)
    parser.add_argument("--long", action="store_true", help="with what takes minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="take the shorter rows as they are")
    parser.add_argument("--row", help="one row, in a process of its own")
    options = parser.parse_args()
    if options.report:
        write_page(PAGE, page(read_results(RESULTS)))
        return 0
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    if options.row:
        print(json.dumps(run(*json.loads(options.row), by_events=False)))
        return 0
    known = read_results(RESULTS) if options.quick or options.keep else []
    later = [r for r in known if options.quick and (r["steps"] > 512 or r["how"] == "unrolled")]

    def add(*args: Any, apart: bool = False) -> dict[str, Any]:
        row = _apart(args, options.threads) if apart else run(*args)
        rows.append(row)
        shape = ("steps", "batch", "width")
        like = next(r for r in rows if all(r[k] == row[k] for k in shape))
        row["same_gradients"] = row["gradients"] == like["gradients"]
        row["gradient_difference"] = max(
            abs(a - b) / max(abs(b), 1e-12)
            for a, b in zip(row["gradients"], like["gradients"], strict=True)
        )
        print(row, flush=True)
        write_results(RESULTS, rows + later)
        write_page(PAGE, page(rows + later))
        return row

    if options.keep:
        rows += [r for r in known if r["steps"] < 100_000]
    shapes = ((512, 32, 256),) if options.quick else ((512, 32, 256), (2000, 32, 256))
    for shape in () if options.keep else shapes:
        plain = add("plain", *shape)["peak_bytes"]
        root = add("sqrt", *shape)["peak_bytes"]
        if shape[0] == 512 and options.long:
            add("unrolled", *shape, _resident(*shape) + root)
        # The gradients of the weights alone are over 2% of what 512 steps take.
        for peak in (root, plain // (20 if shape[0] == 512 else 50)):
            add("rolled", *shape, _resident(*shape) + peak)
    if options.long:
        shape = (100_000, 4, 32)
        add("plain", *shape, apart=True)
        for size in (2**24, 2**21):
            add("rolled", *shape, _resident(*shape) + size, apart=True)
        shape = (2000, 4, 64)
        add("plain", *shape)
        add("unrolled", *shape, _resident(*shape) + add("sqrt", *shape)["peak_bytes"])
    return 0 if all(r["gradient_difference"] < 1e-4 for r in rows) else 1


def _apart(args: Sequence[Any], threads: int) -> dict[str, Any]:
    row = ("--threads", str(threads), "--row", json.dumps(args))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            module_command("benchmarks.recurrence.run", *row),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(Path(folder)),
        )
    return json.loads(done.stdout.splitlines()[-1])


def _resident(steps: int, batch: int, width: int) -> int:
    parameters = 8 * width * width + 8 * width + 8 * width + 8
    return 4 * (parameters + steps * batch * width + batch * 8)


def page(rows: list[dict[str, Any]]) -> str:
    """The results for people."""
    lines = [
        "# An LSTM over a long sequence",
        "",
        "One `nn.LSTMCell` over a sequence, its last state in a linear layer; CPU, float32. Peaks",
        "are above parameters and inputs, with all gradients: allocator events of one step; for",
        "100,000 steps the same blocks, counted below PyTorch (`allocation_meter.c`). The",
        "budgets: what √n takes, and 2% of what plain takes (5% for 512 steps, where the weights'",
        "gradients alone are over 2%). *plain* is a loop in Python, which",
        "*unrolled* is captured and planned op by op (its forward runs are costs over the cost of",
        "the forward pass; *Chen* is the smallest peak of Chen et al.'s segments on that graph),",
        "*√n* is `torch.utils.checkpoint` over segments of √n steps (what Chen et al. 2016",
        'recommend for a chain), *rolled* is `torch`\'s `scan` in `memfit.fit(..., loops="roll")`.',
        "*revolve* is the proven optimum of a chain of equal steps (Griewank and Walther 2000) at",
        "as much memory for states as the rolled plan has for states and records; *Gruslys* is the",
        "optimum with mixed storage (Gruslys et al. 2016), where its table can be computed. Times",
        "were taken on a machine that others use too. "
        "`python -m benchmarks.recurrence.run --long`.",
        "",
        "| steps | batch x width | | budget, MiB | peak, MiB | states + records held "
        "| forward runs of a step | revolve | Gruslys | step, s | first step, s | gradients |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        n = r["steps"]
        held = f"{r['slots']} + {r['leaf']}" if "slots" in r else ""
        lines.append(
            f"| {n} | {r['batch']} x {r['width']} | {r['how'].replace('sqrt', '√n')} "
            f"| {_mib(r.get('budget_bytes'))} | {_mib(r['peak_bytes'])} | {held} "
            f"| {_ratio(r['forward_steps'], n)} | {_ratio(r.get('revolve_forward_steps'), n)} "
            f"| {_ratio(r.get('gruslys_forward_steps'), n)} | {_seconds(r.get('step_s'))} "
            f"| {_seconds(r.get('first_step_s'))} | "
            f"{'the same' if r['same_gradients'] else format(r['gradient_difference'], '.0e')} |"
        )
        if "chen_peak_bytes" in r:
            lines.append(
                f"| {n} | {r['batch']} x {r['width']} | Chen, simulated | "
                f"| {_mib(r['chen_peak_bytes'])} | | {_ratio(r['chen_forward_steps'], n)} "
                "| | | | | |"
            )
    return "\n".join([*lines, ""])


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / MIB:.1f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _ratio(steps: float | None, of: int) -> str:
    return "" if steps is None else f"{steps / of:.3f}"


if __name__ == "__main__":
    sys.exit(main())
