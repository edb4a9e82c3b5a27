"""The page of `run`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch

import memfit
from benchmarks.lib.harness import MIB, processor
from benchmarks.peers.ways import BUDGETS, DESCRIPTIONS

__all__ = ["conditions", "page"]

Network = Mapping[str, Any]

MEANING = """\
- *peak*: MiB above what is alive before the step (parameters, buffers, inputs), gradients and
  workspaces included; the running sum of the CPU allocator's events
  (`memfit.pytorch.cost.measure`). `.grad` is None at the start.
- *step*: median of the rounds, in ms; forward, loss and backward, without optimizer. All steps of
  one network run in one process, interleaved, every second round in reverse order, with the C
  allocator kept from handing memory back. It is the processor time of one thread, which is what a
  step takes on an idle machine. The machine that made this page was not idle (see the load at each
  table), so elapsed times, which the raw figures hold too, are not shown. Nor was it when *first
  step* was taken, which is elapsed time.
- *gradients*: of the first step, against plain PyTorch's from the same parameters and random state.
  `bitwise`, or the largest difference relative to the largest entry of that gradient; `WRONG` above
  1e-3.
- *buffers*: whether the running statistics after the first step are plain PyTorch's, bit for bit.
- *first step*: seconds until the first step is done: for memfit capture, planning and the step. The
  time and workspace of each op are measured once before that and kept on disk; `capture` above each
  table says how long capture and these measurements took.
- *planned*: recomputation that the plan predicts, of the whole step.
- A verdict compares a peer with the run of memfit's that has the largest peak among those with at
  most the peer's. Times are compared round by round; the figure is the median of the ratios,
  in brackets their quartiles. `no slower`: at most 1.05. Above that: `SLOWER`."""

WHY = {
    "lstm": "A captured step adds up the gradients of the shared weights, step after step, in new "
    "memory (`aten::add`), where eager's autograd adds in place (`aten::add_`), and it calls its "
    "many small ops from Python; each is about half of the difference (`python "
    "-m benchmarks.peers.profile lstm`). min-cut runs the same ops and is as slow as memfit.",
}
"""Why memfit is slower on a network, where it is known."""

ROCKMATE = """\
## Not in the tables: Rockmate

Rockmate (Zhao, Le Hellard, Eyraud-Dubois, Gusak, Beaumont 2023) could not be run here. Tried with
Python 3.11 and torch 2.13.0 on CPU, in an environment of its own:

- `rockmate` 2.0.0 with `rkgb` 2.0.0, the newest on PyPI: `import rockmate` ends in
  `ModuleNotFoundError: No module named 'rkgb.core'`; the source distribution of `rkgb` 2.0.0 holds
  two modules and not the packages that they import. There is no wheel.
- `rockmate` 1.0.1 with `rkgb` 1.0.1 is importable. It measures time and memory on CUDA alone, and
  says so; on CPU all its costs are zero, and planning a perceptron of five layers ends in
  `ZeroDivisionError: division by zero` (`rockmate/main.py`, the simulated overhead) or, at a budget
  of 1 MB, in `ValueError: Can't find a feasible sequence with the given budget`. Its solver is
  Gurobi (13.0.3), under a licence that limits the size of problems.
"""


def conditions() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "memfit": memfit.__version__,
        "core": memfit.build_info()["core"],
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "pytorchcv": importlib.metadata.version("pytorchcv"),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
    }


def _gradients(row: Network) -> str:
    if row["gradients"] == "bitwise":
        return "bitwise"
    word = "WRONG, " if row["gradients"] == "WRONG" else ""
    return f"{word}{row['gradient_difference']:.0e}"


def _table(network: Network) -> Iterator[str]:
    eager = next(row for row in network["rows"] if row["kind"] == "eager")
    yield (
        "| | peak, MiB | budget, MiB | step, ms | of plain | planned | gradients | buffers "
        "| first step, s |"
    )
    yield "|---|---:|---:|---:|---:|---:|---|---|---:|"
    for row in network["rows"]:
        budget = f"{row['budget_bytes'] / MIB:.1f}" if "budget_bytes" in row else ""
        planned = f"{100 * row['planned_overhead']:.1f}%" if "planned_overhead" in row else ""
        yield (
            f"| {row['name']} | {row['peak_bytes'] / MIB:.1f} | {budget} | {row['step_ms']:.0f} "
            f"| {row['step_ms'] / eager['step_ms']:.2f} | {planned} | {_gradients(row)} "
            f"| {'equal' if row['buffers_equal'] else 'WRONG'} | {row['first_step_s']:.1f} |"
        )


def _verdicts(network: Network) -> Iterator[str]:
    rows = {row["name"]: row for row in network["rows"]}
    for v in network["verdicts"]:
        wrong = [
            what
            for what, is_wrong in (
                ("gradients", rows[v["peer"]]["gradients"] == "WRONG"),
                ("buffers", not rows[v["peer"]]["buffers_equal"]),
            )
            if is_wrong
        ]
        note = f" (the peer's {' and '.join(wrong)} are wrong)" if wrong else ""
        if v["ours"] is None:
            yield (
                f"- {v['peer']}: OUT OF REACH; memfit's smallest peak is {v['peak_ratio']:.3f} of "
                f"the peer's{note}"
            )
            continue
        yield (
            f"- {v['peer']}: {v['word']}; {v['ours']} takes {v['time_ratio']:.3f} "
            f"[{v['low']:.3f}, {v['high']:.3f}] of its time at {v['peak_ratio']:.3f} of its peak"
            f"{note}"
        )


def _section(key: str, network: Network) -> Iterator[str]:
    where = network["conditions"]
    yield from (
        f"## {network['network']}",
        "",
        f"`python -m benchmarks.peers.run --rounds {network['rounds']} {key}`: {network['rounds']} "
        f"rounds, load {where['load']} when it ended, {network['seconds']:.0f} s in all. "
        f"{network['ops']:,} ops; {network['resident_bytes'] / MIB:.1f} MiB of parameters, buffers "
        f"and inputs; capture {network['capture_and_measure_s']:.1f} s. A block is "
        f"{network['block']}.",
        "",
    )
    yield from _table(network)
    yield ""
    yield from _verdicts(network)
    if key in WHY and any(v["word"] != "no slower" for v in network["verdicts"]):
        yield f"- Why: {WHY[key]}"
    for peer, error in network.get("stopped", {}).items():
        yield f"- {peer}: does not run; {error}"
    yield ""


def _loss(network: Network, verdict: Mapping[str, Any]) -> str:
    start = f"| {network['network']} | {verdict['peer']} |"
    if verdict["ours"] is None:
        return f"{start} out of reach | | | {verdict['peak_ratio']:.3f} | |"
    rows = {row["name"]: row for row in network["rows"]}
    ours, peer = rows[verdict["ours"]], rows[verdict["peer"]]
    pairs = zip(ours["times_ms"], peer["times_ms"], strict=True)
    rounds = ", ".join(f"{a / b:.2f}" for a, b in pairs)
    fastest = min(ours["times_ms"]) / min(peer["times_ms"])
    return (
        f"{start} {verdict['time_ratio']:.3f} | {fastest:.3f} | {rounds} "
        f"| {verdict['peak_ratio']:.3f} "
        f"| {100 * ours['planned_overhead']:.1f}% |"
    )


def _summary(networks: Mapping[str, Network]) -> Iterator[str]:
    verdicts = [(n, v) for n in networks.values() for v in n["verdicts"]]
    lost = [(n, v) for n, v in verdicts if v["word"] != "no slower"]
    yield (
        f"{len(verdicts) - len(lost)} of {len(verdicts)} comparisons: memfit is no slower at an "
        "equal or smaller peak."
    )
    yield ""
    if lost:
        yield (
            "| memfit loses on | to | our time over its | fastest rounds | by round | at a peak of "
            "| planned |"
        )
        yield "|---|---|---:|---:|---|---:|---:|"
        yield from (_loss(n, v) for n, v in lost)
        yield ""
        yield (
            "*fastest rounds*: our fastest round over the peer's. Other jobs on the machine only "
            "add time, so that a step which is slower by itself is slower there too. *by round*: "
            "the ratio in each round. *planned*: the recomputation that the plan "
            "predicts; what is lost beyond it is not the plan's."
        )
        yield ""
    yield "| | plain, MiB | smallest peak of a peer | memfit's smallest | its time over plain's |"
    yield "|---|---:|---:|---:|---:|"
    for n in networks.values():
        eager = next(r for r in n["rows"] if r["kind"] == "eager")
        peer = min((r for r in n["rows"] if r["kind"] != "memfit"), key=lambda r: r["peak_bytes"])
        ours = min((r for r in n["rows"] if r["kind"] == "memfit"), key=lambda r: r["peak_bytes"])
        yield (
            f"| {n['network']} | {eager['peak_bytes'] / MIB:.1f} "
            f"| {peer['peak_bytes'] / MIB:.1f} ({peer['name']}) | {ours['peak_bytes'] / MIB:.1f} "
            f"| {ours['step_ms'] / eager['step_ms']:.2f} |"
        )
    yield ""


def page(networks: Mapping[str, Network], about: str) -> str:
    """The documentation page.

    Args:
        networks: what was measured, by key.
        about: the benchmark's own description.
    """
    first = next(iter(networks.values()))["conditions"]
    lines = [
        "# Beside what people use today",
        "",
        "Made by `python -m benchmarks.peers.run`; raw figures, every round's time included, are "
        "in",
        "`benchmarks/results/peers.json`. " + about.split("\n\n")[1].replace("\n", " "),
        "",
        f"memfit {first['memfit']} ({first['core']} core), torch {first['torch']}, transformers "
        f"{first['transformers']}, pytorchcv {first['pytorchcv']}, Python {first['python']}, "
        f"{first['system']}, {first['machine']}, {first['threads']} thread. Random weights, real "
        "losses, dropout where the model has it. Everything here runs PyTorch's ordinary kernels, "
        "op by op; under Inductor see [Inductor](inductor.md).",
        "",
        "## In short",
        "",
        *_summary(networks),
        "## What is measured",
        "",
        MEANING,
        "",
        "## The peers",
        "",
        *(f"- *{kind}*: {text}." for kind, text in DESCRIPTIONS.items()),
        "",
        f"Budgets of min-cut: {', '.join(f'{b:g}' for b in BUDGETS)}.",
        "",
    ]
    for key, network in networks.items():
        lines += _section(key, network)
    return "\n".join([*lines, ROCKMATE])
