"""Executor "inductor" beside Inductor's own memory budgets: peak and time of real training steps.

Peers are `torch.compile` as it is, and with `activation_memory_budget` 0.5, 0.2 and 0.0. For each
peer that no other one beats in both peak and time, memfit gets the peer's measured peak as its
budget; it is also run at the smallest budget that it can meet. All steps of a network run in one
process, interleaved, every second round in reverse order; times are medians of `--rounds`. Peaks
are sums of the allocator's events (bytes above what is there before the step). Asserted of memfit's
runs: gradients equal to the default's but for rounding, and peaks within the budget.

Run `python -m benchmarks.training.inductor [NETWORK ...]` (gpt2, resnet18, resnet50); it
writes benchmarks/results/inductor.json and docs/benchmarks/inductor.md. Networks that are not named
keep their rows; `--report` writes the page alone.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._functorch.config as functorch_config

import memfit
from benchmarks.lib import networks
from benchmarks.lib.harness import (
    MIB,
    chosen,
    command_line,
    interleaved,
    medians,
    milliseconds,
    ratios,
    read_results,
    say,
    step_facts,
    write_page,
    write_results,
)
from memfit.pytorch.api.entry import capture
from memfit.pytorch.cost.measure import measure_step, steady_allocator
from memfit.pytorch.step_call import StepModule

PEERS = (1.0, 0.5, 0.2, 0.0)
TIME_NOISE = 1.05
GRADIENT_TOLERANCE = 1e-4  # of the largest entry: kernels that differ add up in other orders
RESULTS, PAGE = "inductor", "inductor.md"


def resnet18() -> networks.Case:
    from pytorchcv.models.resnet import resnet18 as build

    return networks.classifier("ResNet18", build(), 4, 224)


CASES: dict[str, Callable[[], networks.Case]] = {
    "gpt2": lambda: networks.gpt2(layers=6, width=256, tokens=128, batch=4),
    "resnet18": resnet18,
    "resnet50": lambda: networks.resnet50(4, 224),
}


@dataclass
class Variant:
    """One way to run the step."""

    name: str
    step: Callable[[], None]
    model: torch.nn.Module
    compile_s: float
    peak_bytes: int
    details: dict[str, Any]


def prepared(
    name: str, case: networks.Case, model: torch.nn.Module, call: Any, **details: Any
) -> Variant:
    """Compile, warm up and measure."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        call(*case.args).backward()

    began = time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    step()
    peak = measure_step(step).peak_bytes
    say(f"{case.name:9} {name:24} peak {peak / MIB:8.2f} MiB, first step {seconds:6.1f} s")
    return Variant(name, step, model, seconds, peak, details)


def peer(case: networks.Case, budget: float) -> Variant:
    """`torch.compile`, with its budget of saved bytes."""
    model = copy.deepcopy(case.model)
    module = StepModule(model, case.loss_fn)
    name = "default" if budget == 1.0 else f"activation budget {budget:g}"

    def run(*args: Any) -> Any:
        return module(*args)

    # Dynamo keeps and limits what it compiled by code object.
    run.__code__ = run.__code__.replace(co_name=f"run_{int(10 * budget)}")
    call = torch.compile(run, dynamic=False)
    with functorch_config.patch(activation_memory_budget=budget):
        return prepared(name, case, model, call)


def ours(case: networks.Case, name: str, budget: int, resident: int) -> Variant:
    """memfit at a budget in bytes of the whole step; 1: at the smallest one it can meet."""
    while True:
        model = copy.deepcopy(case.model)
        fitted = memfit.fit(model, case.loss_fn, budget=budget, executor="inductor")
        try:
            made = prepared(name, case, model, fitted)
        except memfit.InfeasibleBudgetError as error:
            if budget != 1 and name != "memfit, smallest":
                say(f"{case.name:9} {name}: {error}")
                raise
            budget = error.minimum_bytes
            continue
        plan = fitted.plan
        made.details = {
            "budget_bytes": plan.budget_bytes - resident,
            "planned_peak_bytes": plan.peak_bytes - resident,
            "overhead": plan.overhead / fitted.graph.total_cost,
        }
        return made


def resident_bytes(case: networks.Case) -> int:
    """What memfit counts into a budget that is there before the step."""
    step = capture(copy.deepcopy(case.model), case.args, case.loss_fn, cost="analytic")
    return step.graph.resident_bytes


def gradients(variant: Variant) -> list[torch.Tensor]:
    variant.step()
    return [p.grad.clone() for p in variant.model.parameters() if p.grad is not None]


def difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest difference of a gradient, relative to the largest element of that gradient."""
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
        for a, b in zip(found, expected, strict=True)
    )


def timed(variants: list[Variant], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each step, interleaved."""
    with steady_allocator():
        return interleaved({v.name: partial(milliseconds, v.step) for v in variants}, rounds)


def undominated(variants: list[Variant], times: dict[str, float]) -> list[Variant]:
    """The default, and those that no other clearly beats in both peak and time."""
    return [
        v
        for v in variants
        if v.name == "default"
        or not any(
            o.peak_bytes < v.peak_bytes and times[o.name] * TIME_NOISE < times[v.name]
            for o in variants
        )
    ]


def measure(key: str, rounds: int) -> dict[str, Any]:
    """One network's rows and verdicts."""
    case = CASES[key]()
    resident = resident_bytes(case)
    peers = [peer(case, budget) for budget in PEERS]
    best = undominated(peers, medians(timed(peers, 3)))
    own = [ours(case, f"memfit, as {p.name}", p.peak_bytes + resident, resident) for p in best]
    own.append(ours(case, "memfit, smallest", 1, resident))
    variants = peers + own
    expected = gradients(peers[0])
    wrong = {v.name: difference(gradients(v), expected) for v in variants}
    for mine in own:
        assert wrong[mine.name] <= GRADIENT_TOLERANCE, (mine.name, wrong[mine.name])
        assert mine.peak_bytes <= mine.details["budget_bytes"], mine.name
    times = timed(variants, rounds)
    middle = medians(times)
    rows = [
        {
            "name": v.name,
            "peak_bytes": v.peak_bytes,
            "step_ms": middle[v.name],
            "first_step_s": v.compile_s,
            "gradient_difference": wrong[v.name],
            "times_ms": times[v.name],
            **v.details,
        }
        for v in variants
    ]
    verdicts = []
    for p, mine in zip(best, own, strict=False):
        ratio = statistics.median(ratios(times[mine.name], times[p.name]))
        verdicts.append(
            {
                "peer": p.name,
                "peak_ratio": mine.peak_bytes / p.peak_bytes,
                "time_ratio": ratio,
                "no_slower": ratio <= TIME_NOISE and mine.peak_bytes <= p.peak_bytes,
            }
        )
    theirs = min(p.peak_bytes for p in peers)
    return {
        "network": case.name,
        "rounds": rounds,
        "rows": rows,
        "verdicts": verdicts,
        "smallest_peak_ratio": own[-1].peak_bytes / theirs,
    }


def page(result: dict[str, Any]) -> str:
    """The documentation page."""
    lines = [
        "# Under Inductor: memory budgets beside PyTorch's own",
        "",
        "Made by `python -m benchmarks.training.inductor`. "
        + str(__doc__).split("\n\n")[1].replace("\n", " "),
        "",
        f"torch {result['torch']}, {result['machine']}, {result['threads']} threads. Peaks are "
        "above what is there before the step (parameters, inputs), gradients included.",
        "",
    ]
    for network in result["networks"].values():
        lines += [
            f"## {network['network']}",
            "",
            "| | peak, MiB | budget, MiB | step, ms | gradient difference |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in network["rows"]:
            budget = row.get("budget_bytes")
            shown = "" if budget is None else f"{budget / MIB:.1f}"
            lines.append(
                f"| {row['name']} | {row['peak_bytes'] / MIB:.1f} | {shown} "
                f"| {row['step_ms']:.0f} | {row['gradient_difference']:.1e} |"
            )
        lines.append("")
        for verdict in network["verdicts"]:
            word = "no slower" if verdict["no_slower"] else "SLOWER"
            lines.append(
                f"- against {verdict['peer']}: peak {verdict['peak_ratio']:.3f}, time "
                f"{verdict['time_ratio']:.3f} of the peer's (median of paired ratios): {word}"
            )
        share = 100 * (1 - network["smallest_peak_ratio"])
        lines += [f"- smallest peak: {share:.1f}% below the smallest of the peers", ""]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = command_line(__doc__, report=True, names=CASES)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    if options.report:
        write_page(PAGE, page(read_results(RESULTS)))
        return 0
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    known = read_results(RESULTS, {"networks": {}})["networks"]
    for name in chosen(parser, options.networks, CASES):
        known[name] = measure(name, options.rounds)
        networks_ = {key: known[key] for key in CASES if key in known}
        result = {**step_facts(), "networks": networks_}
        write_results(RESULTS, result)
        write_page(PAGE, page(result))
    for network in result["networks"].values():
        for verdict in network["verdicts"]:
            print(network["network"], json.dumps(verdict))
        print(network["network"], f"smallest {network['smallest_peak_ratio']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
