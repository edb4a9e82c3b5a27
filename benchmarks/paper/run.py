"""The experiments of Kusumoto et al. 2019 beside memfit's plans: their seven networks and sizes.

Parts, all of them if none is named:

- `--published`: the authors' published graphs under their cost model. Every plan of theirs against
  ours under one simulator: smallest peaks, and overheads at equal peaks. Left out where the
  reference data is absent (`MEMFIT_REFERENCE`).
- `--planned`: the networks on PyTorch at the paper's sizes, captured without memory.
- `--times`: how long one plan takes, best of 3. Let nothing else run.
- `--batches`: the largest batch within 12 GB, and time per sample up to there, from plans.
- `--run`: real training steps, at sizes that a small machine takes.

    python -m benchmarks.paper.run [--PART …] [NETWORK …]
    python -m benchmarks.paper.run --report     # the page and its pictures from known results

Each part of each network runs in a process of its own and is written to
benchmarks/results/paper.json at once; what is not named keeps its rows. Then
docs/benchmarks/paper.md and its pictures are written. Exit code 1 if an answer is wrong or a limit
missed.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import memfit
from benchmarks.lib.harness import chosen, command_line, machine, read_results, say, write_results
from benchmarks.paper.names import NAMES

RESULTS = "paper"
PARTS = ("published", "planned", "times", "batches", "run")
BATCH_SIZES = {"unet": (2, 12, 40), "resnet50": (24, 192, 1024), "vgg19": (16, 96, 384)}
BATCH_BUDGET = 12 * 10**9
BATCH_PLANNERS = ("store-all", "chen", "salimans-speed", "approximate", "liveness", "nested")
TIMED = ("exact", "approximate", "chen", "liveness", "nested")
PUBLISHED = {name: "densenet" if name == "densenet161" else name for name in NAMES}

Say = Callable[[str], None]


def published_part(name: str, say: Say) -> dict[str, Any] | None:
    """All plans on a published graph."""
    from benchmarks.paper.graphs import published
    from benchmarks.paper.plans import describe

    graph = published(PUBLISHED[name])
    return None if graph is None else describe(graph, thorough=True, say=say)


def planned_part(name: str, say: Say) -> dict[str, Any]:
    """All plans of the network on PyTorch at the paper's size, and what a CPU's workspaces add."""
    from benchmarks.paper.graphs import captured
    from benchmarks.paper.plans import Ours, describe, plain_peak_bytes

    say("capturing")
    graph, facts = captured(name)
    assert not facts["model_allocated"], f"{name} was given memory"
    result = describe(graph, thorough=False, say=say) | {"facts": facts}
    with_workspace = captured(name, workspace=True)[0]
    ours = Ours.of(with_workspace)
    result["with_workspace"] = {
        "plain_bytes": plain_peak_bytes(with_workspace),
        **{n: ours.smallest(n).peak_bytes for n in ("liveness", "nested")},
    }
    return result


def times_part(name: str, say: Say) -> dict[str, Any]:
    """Seconds that planners take for one budget, half of the plain peak or the least they meet."""
    from dataclasses import replace

    from benchmarks.paper.graphs import captured, published
    from benchmarks.paper.plans import feasible, plain_peak_bytes
    from memfit.errors import InfeasibleBudgetError
    from memfit.planners import PlannerOptions, get_planner

    graphs = {"planned": captured(name)[0]}
    if (known := published(PUBLISHED[name])) is not None:
        graphs["published"] = known
    result: dict[str, Any] = {}
    for kind, graph in graphs.items():
        result[kind] = {}
        for planner in TIMED:
            say(f"{kind}, {planner}")
            budget = plain_peak_bytes(graph) // 2
            if feasible(planner, graph, budget) is None:
                try:
                    get_planner(planner)(graph, 0, PlannerOptions())
                except InfeasibleBudgetError as error:
                    budget = error.minimum_bytes
            seconds = []
            for _ in range(3):
                fresh = replace(graph)  # nothing has been worked out of it yet
                began = time.perf_counter()
                found = feasible(planner, fresh, budget)
                seconds.append(time.perf_counter() - began)
                assert found is not None
            result[kind][planner] = {"seconds": min(seconds), "family": found.family}
    return result


def batches_part(name: str, say: Say) -> dict[str, Any] | None:
    """Largest batches within a fixed memory, and time per sample up to there."""
    from benchmarks.paper.graphs import Batches
    from benchmarks.paper.plans import feasible

    if name not in BATCH_SIZES:
        return None
    say("capturing at three batch sizes")
    made, error = Batches.of(name, *BATCH_SIZES[name])
    series: dict[str, Any] = {}
    for planner in BATCH_PLANNERS:

        def point(batch: int, planner: str = planner) -> list[float] | None:
            graph = made.at(batch)
            plan = feasible(planner, graph, BATCH_BUDGET)
            if plan is None:
                return None
            plan.schedule.validate(graph)
            assert plan.peak_bytes <= BATCH_BUDGET
            return [batch, (plan.total_cost + plan.overhead) / batch, plan.peak_bytes]

        low, high = made.low, made.high + 1
        assert point(low) is not None, f"{planner} does not fit a batch of {low}"
        while high - low > 1:
            middle = (low + high) // 2
            say(f"{planner}: batch {middle}")
            low, high = (low, middle) if point(middle) is None else (middle, high)
        assert low < made.high, f"a batch of {low} still fits; capture a larger one"
        wanted = sorted({low, *(round(made.low * (low / made.low) ** (i / 11)) for i in range(12))})
        points = [point(batch) for batch in wanted]
        assert all(points), f"{planner} does not fit a batch smaller than {low}"
        series[planner] = {"largest": low, "points": points}
    return {
        "budget_bytes": BATCH_BUDGET,
        "captured_at": BATCH_SIZES[name],
        "cost_error_between": error,
        "series": series,
    }


def run_part(name: str, say: Say) -> dict[str, Any]:
    """Real steps."""
    from benchmarks.paper.steps import real_steps

    return real_steps(name, say)


def measure(part: str, name: str) -> dict[str, Any] | None:
    """One part of one network; runs in a process of its own."""
    began = time.perf_counter()

    def told(text: str) -> None:
        say(f"{part} {name}: {text} ({time.perf_counter() - began:.0f} s)")

    found: dict[str, Any] | None = globals()[f"{part}_part"](name, told)
    told("done" if found is not None else "left out")
    return found


def main() -> int:
    """Measure, write, judge."""
    parser = command_line(__doc__, report=True, names=NAMES)
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true", help="see the page")
    options = parser.parse_args()
    names = chosen(parser, options.networks, NAMES)
    parts = [part for part in PARTS if getattr(options, part)] or list(PARTS)
    results: dict[str, Any] = read_results(RESULTS, {})
    wrong = []
    for part in [] if options.report else parts:
        known = results.setdefault(part, {})
        for name in names:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                try:
                    found = pool.submit(measure, part, name).result()
                except Exception as error:
                    wrong.append(f"{part} {name}: {type(error).__name__}: {error}")
                    print("WRONG", wrong[-1], flush=True)
                    continue
            if found is not None:
                known[name] = {"machine": {**machine(), "memfit": memfit.build_info()}, **found}
                results[part] = {n: known[n] for n in NAMES if n in known}
                write_results(RESULTS, results)
    from benchmarks.paper.page import verdicts, write_pages

    write_pages(results)
    judged = list(verdicts(results))
    if not judged:
        print("limits are judged once all seven published graphs are there")
    for verdict in judged:
        print(f"{verdict['verdict']:5} {verdict['what']}: {verdict['figure']}, {verdict['limit']}")
        if verdict["verdict"] != "PASS":
            wrong.append(verdict["what"])
    print("\n".join(wrong) if wrong else "all answers right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
