"""memfit beside what people use today: peak, time and correctness of the same training steps.

For each network: plain PyTorch, `checkpoint_sequential`, `checkpoint` for each block, selective
checkpointing, Hugging Face's switch, PyTorch's min-cut partitioner with its memory budgets, and
Chen et al.'s algorithm. memfit gets the measured peaks of the peers as its budgets (peaks within 2%
of each other share one), and is also run at the smallest budget that it can meet.

Every run gets a copy of the model. Its first step, from the same parameters, buffers and random
state, is compared with plain PyTorch's: gradients, buffers. Then its peak is measured, and then all
steps of a network are timed in one process, interleaved, every second round in reverse order. One
thread, and processor time: what a step takes on an idle machine, also where others use it too.

Asserts of memfit's runs: gradients equal plain PyTorch's bit for bit, or to 1e-6 where the order of
a sum differs; buffers equal; measured peak within the budget. Exit code 1 if anything is broken. A
peer that is faster is no failure of the benchmark: the page shows it.

Run `python -m benchmarks.peers.run [--quick] [--rounds N] [NETWORK ...]`. It writes
benchmarks/results/peers.json and docs/benchmarks/peers.md; networks that are not run keep their
rows. `--report` writes the page alone.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import memfit
from benchmarks.lib.harness import (
    MIB,
    chosen,
    command_line,
    interleaved,
    medians,
    read_results,
    say,
    write_page,
    write_results,
)
from benchmarks.peers.networks import QUICK, SUBJECTS, Subject
from benchmarks.peers.page import conditions, page
from benchmarks.peers.verdicts import Timed, budgets_to_meet, judge, kept_segmentations, rating
from benchmarks.peers.ways import BUDGETS, Way, ways
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_planner
from memfit.pytorch.api.entry import capture
from memfit.pytorch.cost.measure import measure_step, steady_allocator

ROUNDS, QUICK_ROUNDS = 7, 3
QUICK_BUDGETS = (1.0, 0.5, 0.0)
TOLERANCE = 1e-6
RESULTS, PAGE = "peers", "peers.md"


@dataclass(frozen=True)
class Seen:
    """What one step computed."""

    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


@dataclass
class Run:
    """A way to run the step, set up, and its figures so far."""

    name: str
    kind: str
    step: Callable[[], None]
    reset: Callable[[], None]
    row: dict[str, Any]


def seen(model: nn.Module) -> Seen:
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return Seen(gradients, {n: b.clone() for n, b in model.named_buffers()})


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference of a gradient entry, relative to the largest entry of that gradient."""
    if found.keys() != expected.keys():
        return float("inf")
    largest = 0.0
    for name, gradient in expected.items():
        gap = float((found[name] - gradient).abs().max())
        scale = float(gradient.abs().max())
        largest = max(largest, gap / scale if scale else gap)
    return largest


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[n], expected[n]) for n in expected
    )


def set_up(subject: Subject, way: Way, expected: Seen | None) -> tuple[Run, Seen]:
    """Run the first step of a way, compare it with plain PyTorch's, and measure a later one."""
    case = subject.case
    model = copy.deepcopy(case.model)
    call = way.make(model)

    def step() -> None:
        torch.manual_seed(1)
        call(*case.args).backward()

    def reset() -> None:
        for p in model.parameters():
            p.grad = None

    reset()
    began = time.perf_counter()
    with way.context():
        step()
    first = time.perf_counter() - began
    found = seen(model)
    base = expected or found
    row = {
        "name": way.name,
        "kind": way.kind,
        "first_step_s": round(first, 3),
        "gradient_difference": difference(found.gradients, base.gradients),
        "buffers_equal": equal(found.buffers, base.buffers),
        "peak_bytes": measure_step(step, warmup=0, reset=reset).peak_bytes,
    }
    row["gradients"] = rating(row["gradient_difference"])
    reset()
    say(
        f"{case.name:11} {way.name:28} peak {row['peak_bytes'] / MIB:8.2f} MiB, first step "
        f"{first:6.1f} s, gradients {row['gradients']} {row['gradient_difference']:.1e}, "
        f"buffers {'equal' if row['buffers_equal'] else 'WRONG'}"
    )
    return Run(way.name, way.kind, step, reset, row), found


def one_step(run: Run) -> tuple[float, float]:
    """Elapsed and processor milliseconds of one step."""
    run.reset()
    gc.collect()
    wall, busy = time.perf_counter(), time.process_time()
    run.step()
    found = (1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - busy))
    run.reset()
    return found


def timed(runs: list[Run], rounds: int, keep: Callable[[], None] = lambda: None) -> None:
    """Time all runs, interleaved, after one round that does not count.

    Args:
        runs: the runs; their rows get the times.
        rounds: rounds that count.
        keep: called after each round from the second on: a run that is stopped keeps its rounds.
    """

    def after(index: int, found: Mapping[str, list[tuple[float, float]]]) -> None:
        times = {name: [round(busy, 3) for _, busy in steps] for name, steps in found.items()}
        middle = medians(times) if index > 0 else {}
        for run in runs:
            run.row["times_ms"] = times[run.name]
            run.row["wall_ms"] = [round(wall, 3) for wall, _ in found[run.name]]
            if middle:
                run.row["step_ms"] = middle[run.name]
        say(f"round {index} of {rounds} of {len(runs)} steps")
        if index >= 2:
            keep()

    # What compiling left behind need not be looked through before every step.
    gc.collect()
    gc.freeze()
    with steady_allocator():
        interleaved({run.name: partial(one_step, run) for run in runs}, rounds, after=after)
    gc.unfreeze()


def as_timed(row: dict[str, Any]) -> Timed:
    times, wall = tuple(row["times_ms"]), tuple(row["wall_ms"])
    return Timed(row["name"], row["peak_bytes"], times, wall)


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """memfit against each peer."""
    ours = [as_timed(row) for row in rows if row["kind"] == "memfit"]
    return [asdict(judge(as_timed(row), ours)) for row in rows if row["kind"] != "memfit"]


def captured(subject: Subject) -> tuple[TrainingGraph, float]:
    """The step as memfit sees it, with measured costs, and the seconds that took."""
    case = subject.case
    began = time.perf_counter()
    step = capture(copy.deepcopy(case.model), case.args, case.loss_fn)
    return step.graph, time.perf_counter() - began


def smallest_budget(graph: TrainingGraph, planner: str) -> int:
    """The smallest budget that a planner can meet."""
    try:
        get_planner(planner)(graph, 1, PlannerOptions())
    except memfit.InfeasibleBudgetError as error:
        return int(error.minimum_bytes)
    return 1


def fitted(
    subject: Subject, name: str, kind: str, budget: int, expected: Seen, graph: TrainingGraph
) -> Run:
    """memfit's executor at a budget in bytes of the whole step."""
    made: list[Any] = []
    planner = "chen" if kind == "chen" else "auto"

    def make(model: nn.Module) -> Callable[..., Any]:
        made.append(memfit.fit(model, subject.case.loss_fn, budget=budget, planner=planner))
        return made[-1]

    run, _ = set_up(subject, Way(name, kind, make), expected)
    plan = made[-1].plan
    run.row.update(
        budget_bytes=budget - graph.resident_bytes,
        planned_peak_bytes=plan.peak_bytes - graph.resident_bytes,
        planned_overhead=plan.overhead / made[-1].graph.total_cost,
        planner=plan.planner,
        planning_s=plan.seconds,
    )
    return run


def broken(network: str, run: Run) -> list[str]:
    """What one of memfit's runs breaks, in words."""
    row, found = run.row, []
    if not row["gradient_difference"] <= TOLERANCE:
        found.append(f"gradients differ by {row['gradient_difference']:.1e}")
    if not row["buffers_equal"]:
        found.append("buffers differ")
    if row["peak_bytes"] > row["budget_bytes"]:
        found.append(f"peak {row['peak_bytes']} above budget {row['budget_bytes']}")
    return [f"{network}, {run.name}: {f}" for f in found]


def set_up_peers(
    subject: Subject, budgets: Sequence[float]
) -> tuple[list[Run], Seen, dict[str, str]]:
    """All peers, of the segmentations tried those worth keeping; and what stopped the others."""
    expected: Seen | None = None
    runs = []
    stopped: dict[str, str] = {}
    for way in ways(subject, budgets):
        try:
            run, found = set_up(subject, way, expected)
        except RuntimeError as error:
            if expected is None:
                raise
            stopped[way.name] = str(error).splitlines()[0]
            say(f"{subject.case.name:11} {way.name:28} does not run: {stopped[way.name]}")
            continue
        expected = expected or found
        runs.append(run)
    assert expected is not None
    tried = [r for r in runs if r.kind == "sequential"]
    if tried:
        timed(tried, 2)
        kept = kept_segmentations([as_timed(r.row) for r in tried])
        runs = [r for r in runs if r.kind != "sequential" or r.name in kept]
        say(f"{subject.case.name:11} kept of the segmentations: {', '.join(kept)}")
    return runs, expected, stopped


def measure(
    key: str, rounds: int, budgets: Sequence[float], keep: Callable[[dict[str, Any]], None]
) -> list[str]:
    """One network: hands its rows and verdicts to `keep`, returns what memfit broke."""
    began = time.perf_counter()
    subject = SUBJECTS[key]()
    network = subject.case.name
    peers, expected, stopped = set_up_peers(subject, budgets)
    graph, capture_s = captured(subject)
    resident = graph.resident_bytes
    smallest = smallest_budget(graph, "auto")
    say(
        f"{network:11} captured and measured in {capture_s:.1f} s; smallest budget above resident "
        f"{(smallest - resident) / MIB:.2f} MiB"
    )
    chens = smallest_budget(graph, "chen")
    peers.append(fitted(subject, "Chen, smallest peak", "chen", chens, expected, graph))
    ours = []
    for index, peak in enumerate(budgets_to_meet(p.row["peak_bytes"] for p in peers)):
        if peak + resident < smallest:
            say(f"{network:11} {peak / MIB:.2f} MiB is below memfit's smallest budget")
            continue
        name = f"memfit {chr(ord('A') + index)}"
        ours.append(fitted(subject, name, "memfit", peak + resident, expected, graph))
    ours.append(fitted(subject, "memfit, smallest", "memfit", smallest, expected, graph))
    rows = [run.row for run in [*peers, *ours]]

    def hand_over() -> None:
        keep(
            {
                "network": network,
                "block": subject.block,
                "rounds": len(rows[0]["times_ms"]),
                "conditions": conditions(),
                "capture_and_measure_s": round(capture_s, 2),
                "ops": len(graph.ops),
                "resident_bytes": resident,
                "seconds": round(time.perf_counter() - began, 1),
                "rows": rows,
                "stopped": stopped,
                "verdicts": verdicts(rows),
            }
        )

    timed([*peers, *ours], rounds, hand_over)
    for v in verdicts(rows):
        times = "" if v["time_ratio"] is None else f"{v['time_ratio']:.3f} of its time: "
        say(f"{network:11} {v['peer']:28} {times}{v['word']}")
    return [w for run in ours for w in broken(network, run)]


def write(networks: dict[str, Any]) -> None:
    document = {"networks": {key: networks[key] for key in SUBJECTS if key in networks}}
    write_results(RESULTS, document)
    write_page(PAGE, page(document["networks"], str(__doc__)))


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; 1 if memfit broke a promise."""
    quick = f"{', '.join(QUICK)}; fewer rounds"
    parser = command_line(__doc__, quick=quick, report=True, names=SUBJECTS)
    parser.add_argument("--rounds", type=int, help=f"timed rounds (default {ROUNDS})")
    options = parser.parse_args(arguments)
    known = read_results(RESULTS, {"networks": {}})["networks"]
    if options.report:
        for network in known.values():
            network["verdicts"] = verdicts(network["rows"])
        write(known)
        return 0
    names = chosen(parser, options.networks or (QUICK if options.quick else ()), SUBJECTS)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    if rounds < 2:
        parser.error(f"{rounds} rounds; time at least 2")
    torch.set_num_threads(1)
    wrong: list[str] = []
    for name in names:

        def keep(found: dict[str, Any], name: str = name) -> None:
            known[name] = found
            write(known)

        # A cache of its own, so that planning is timed as a first user meets it.
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MEMFIT_CACHE_DIR"] = folder
            wrong += measure(name, rounds, QUICK_BUDGETS if options.quick else BUDGETS, keep)
    print("\n".join(wrong) if wrong else "gradients, buffers and peaks of memfit: all right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
