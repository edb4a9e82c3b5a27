"""Plan real, published and random graphs, time it, and check the answers.

Each planner runs on each graph in a process of its own, at the smallest feasible budget, at 25, 50
and 75% of the way from there to the peak of the plain step, and at that peak. The paper's planners,
`exact` and `approximate`, run on the published graphs (on others with `--planner`), by their
formula (mode time) and as the authors' whole system (mode auto). Then comes the whole trade-off
over budgets. Everything is repeated, interleaved; each repeat gets a graph of which nothing has
been worked out before. Captured graphs are captured once, in another process, and kept in a cache,
so that no planning time holds any capture.

Asserts: golden values where there are any; schedules that are whole and peaks within budget;
overheads that never rise with the budget; trade-offs that agree with single budgets; the same plan
in every run; the smallest feasible budget refused when it is one byte less; and the limits that
`limits` below lists, each printed with PASS or MISS. Exit code 1 if anything is missed or wrong.

Run `python -m benchmarks.planning.run [--quick] [--planner NAME] [--json PATH] [CASE ...]`. A whole
run writes benchmarks/results/planning.json, docs/benchmarks/planning.md and its picture. So does a
quick one: graphs that it leaves out keep their results where those are of the same machine and the
same memfit. `--report` writes the page and the picture alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.status import Status
from rich.table import Table

import memfit
from benchmarks.lib.harness import (
    MIB,
    ROOT,
    chosen,
    command_line,
    machine,
    module_command,
    read_results,
    reference_folder,
    to_json,
    write_results,
)
from benchmarks.planning.graphs import CASES, CaseGraph, cached_capture
from benchmarks.planning.picture import write_pages
from benchmarks.planning.verdicts import (
    PLANNERS,
    Result,
    compare_planners,
    distance,
    is_optimum,
    limits,
    searched_all,
    seconds_text,
)
from memfit.files import write_text_whole

RESULTS = "planning"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
WORKER_LIMIT_S = 1800.0
UNREDUCED_LIMIT_S = 60.0
UNREDUCED_OPS = 2_000
CAPTURE_LIMIT_S = 1800.0


def start(spec: Result, limit_s: float, status: Status, what: str) -> Result:
    """Run one worker; its result, or `{"failed": why}`."""
    process = subprocess.Popen(
        module_command("benchmarks.planning.worker", json.dumps(spec)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit_s, stop)
    timer.start()
    found: Result | None = None
    doing = ""
    try:
        for text in process.stdout:
            line = json.loads(text)
            doing = line.get("progress", doing)
            status.update(f"{what}: {doing}")
            found = line.get("result", found)
        process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
    reader.join()
    if late.is_set():
        return {"failed": f"stopped after {limit_s:g} s, at {doing}", "seconds_above": limit_s}
    if found is None:
        last = [line.strip() for line in errors if line.strip()]
        return {"failed": f"exit code {process.returncode}: {last[-1] if last else 'no message'}"}
    return found


def measure(
    case: CaseGraph,
    captured: str | None,
    planner: str,
    repeats: int,
    status: Status,
    limit_s: float,
) -> Result:
    """One planner on one graph."""
    spec = {
        "task": "measure",
        "case": case.name,
        "captured": captured,
        "planner": planner,
        "family": "all" if planner == "liveness" and case.kind == "published" else "auto",
        "repeats": repeats,
        "shares": SHARES,
    }
    found = start(spec, limit_s, status, f"{case.name}, {planner}")
    start_of = {"case": case.name, "kind": case.kind, "planner": planner, "captured": captured}
    return {**start_of, "wrong": [], **found}


def distances(results: list[Result], status: Status, limit_s: float) -> list[Result]:
    """How far the plans of smaller families are from those over all lower sets."""
    points = {(r["case"], r["planner"]): r for r in results if "points" in r}
    found: list[Result] = []
    for r in points.values():
        if searched_all(r):
            continue
        row = {"case": r["case"], "planner": r["planner"], "family": r["family"]}
        row["lower_sets"] = r["lower_sets"]
        exact = points.get((r["case"], "exact"))
        if r["planner"] == "approximate" and exact is not None and is_optimum(exact):
            whole = exact
        elif r["forward_ops"] > UNREDUCED_OPS:
            continue
        else:
            spec = {"task": "unreduced", **{k: r[k] for k in ("case", "captured", "planner")}}
            what = f"{r['case']}, {r['planner']}"
            whole = start(spec, limit_s, status, what)
            if "failed" not in whole and whole["family"] != "all":
                whole = {"failed": "more lower sets than can be searched at all"}
        if "failed" in whole:
            row["failed"] = whole["failed"]
        else:
            row["all_lower_sets"] = whole["lower_sets"]
            row |= distance(r["points"], whole["points"], r["total_cost"])
        found.append(row)
    return found


def results_table(results: list[Result], title: str) -> Table:
    """One line for each graph and planner."""
    table = Table(title=title, title_justify="left")
    table.add_column("graph")
    table.add_column("planner")
    for name in ("nodes", "lower sets"):
        table.add_column(name, justify="right")
    table.add_column("family")
    table.add_column("status")
    for name in ("median", "max", "curve", "ratio", "peak RSS", "before"):
        table.add_column(name, justify="right")
    for r in results:
        if "failed" in r:
            table.add_row(r["case"], r["planner"], "", "", "", f"[red]{r['failed']}[/red]")
            continue
        table.add_row(
            r["case"],
            r["planner"],
            f"{r['forward_ops']:,}",
            f"{r['lower_sets']:,}",
            r["family"],
            r["status"].lower().replace("_", " "),
            seconds_text(r["median_seconds"]),
            seconds_text(r["max_seconds"]),
            seconds_text(r["curve"]["median_seconds"]),
            f"{r['curve']['ratio']:.2f}",
            f"{r['rss_peak_bytes'] / MIB:.0f} MiB",
            f"{r['rss_loaded_bytes'] / MIB:.0f} MiB",
        )
    return table


def measured_on() -> Result:
    """What the figures were measured on, and with what."""
    return {**machine(), **memfit.build_info()}


def load_average() -> float | None:
    """Processes that wanted a CPU in the last minute, this benchmark included."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    quick = "the published graphs and the series-parallel ones of 1,000 and 5,000 ops; 3 repeats"
    parser = command_line(__doc__, quick=quick, report=True, names=CASES, name="case")
    parser.add_argument("--planner", action="append", choices=PLANNERS, help="only this one")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the raw results there")
    parser.add_argument("--repeats", type=int, help="repeats of everything (default 5)")
    parser.add_argument(
        "--limit", type=float, default=WORKER_LIMIT_S, metavar="SECONDS", help="for one worker"
    )
    parser.add_argument(
        "--unreduced-limit",
        type=float,
        default=UNREDUCED_LIMIT_S,
        metavar="SECONDS",
        help="for a search over all lower sets where the planner reduced its family; 0 for none",
    )
    arguments = parser.parse_args(words)
    chosen(parser, arguments.cases, CASES, "case")
    return arguments


def chosen_cases(names: list[str], quick: bool, console: Console) -> list[CaseGraph]:
    """The graphs to plan; published ones only where they are there."""
    cases = [CASES[n] for n in names] or [c for c in CASES.values() if c.quick or not quick]
    folder = reference_folder()
    if not folder.is_dir() and any(c.kind == "published" for c in cases):
        console.print(f"no published graphs at {folder}; set MEMFIT_REFERENCE to their folder")
        cases = [c for c in cases if c.kind != "published"]
    return cases


def prepare(case: CaseGraph, status: Status) -> Result:
    """Capture a graph unless it is in the cache: `{"captured": file}`, or `{"failed": why}`."""
    if case.kind != "captured":
        return {"captured": None}
    cached = cached_capture(case.name)
    if cached is not None:
        return {"captured": str(cached)}
    spec = {"task": "capture", "case": case.name}
    return start(spec, CAPTURE_LIMIT_S, status, f"{case.name}, PyTorch")


def planners_for(case: CaseGraph, asked: list[str] | None) -> list[str]:
    """The planners to run: those asked for, or the paper's on the published graphs alone."""
    if asked:
        return [p for p in PLANNERS if p in asked]
    return list(PLANNERS) if case.kind == "published" else ["liveness"]


def not_planned(case: CaseGraph, planner: str, why: str) -> Result:
    """The result of a graph that could not be captured."""
    failed = {"failed": f"not captured: {why}", "wrong": []}
    return {"case": case.name, "kind": case.kind, "planner": planner, **failed}


def collect(
    arguments: argparse.Namespace, cases: list[CaseGraph], repeats: int, console: Console
) -> tuple[list[Result], list[Result]]:
    """Measure; what was found when it was interrupted, if it was, and how far from all lower sets.

    Raises:
        KeyboardInterrupt: interrupted before the first result.
    """
    results: list[Result] = []
    far: list[Result] = []
    with console.status("starting") as status:
        try:
            for case in cases:
                ready = prepare(case, status)
                for planner in planners_for(case, arguments.planner):
                    if "failed" in ready:
                        r = not_planned(case, planner, ready["failed"])
                    else:
                        file = ready["captured"]
                        r = measure(case, file, planner, repeats, status, arguments.limit)
                    results.append(r)
                    text = r.get("failed") or (
                        f"{seconds_text(r['median_seconds'])}, at most "
                        f"{seconds_text(r['max_seconds'])}; {r['checks']} checks, "
                        f"{len(r['wrong'])} wrong"
                    )
                    console.print(f"{case.name} {planner}: {text}", highlight=False)
            compare_planners(results)
            if arguments.unreduced_limit > 0:
                far = distances(results, status, arguments.unreduced_limit)
        except KeyboardInterrupt:
            if not results:
                raise
            last = results[-1]
            last["wrong"].append("interrupted after this one")
    return results, far


def kept_from(known: Result, facts: Result, fresh: set[str]) -> tuple[list[Result], list[Result]]:
    """Results and distances of an earlier run, without those of the graphs in `fresh`.

    Empty where that run was on another machine or of another memfit.
    """
    if known.get("machine") != facts:
        return [], []
    results, far = known["results"], known["distances"]
    return (
        [r for r in results if r["case"] not in fresh],
        [r for r in far if r["case"] not in fresh],
    )


def in_order(rows: list[Result]) -> list[Result]:
    """Rows in the order of the graphs."""
    place = {name: at for at, name in enumerate(CASES)}
    return sorted(rows, key=lambda r: place[r["case"]])


def main(words: list[str]) -> int:
    """Run and report; 1 if anything is missed or wrong."""
    arguments = parse(words)
    if arguments.report:
        write_pages(read_results(RESULTS))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the worker too
    console = Console(width=None if sys.stdout.isatty() else 160)
    cases = chosen_cases(arguments.cases, arguments.quick, console)
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    facts = measured_on()
    load = load_average()
    began = time.perf_counter()
    results, far = collect(arguments, cases, repeats, console)
    for r in results:
        r.pop("captured", None)
        points = r.pop("points", None)
        if points is not None:  # some are enough to draw it
            r["curve"]["sample"] = points[:: max(1, len(points) // 64)]
    kept: list[Result] = []
    if arguments.quick:
        kept, kept_far = kept_from(read_results(RESULTS, {}), facts, {c.name for c in cases})
        results, far = in_order([*results, *kept]), in_order([*far, *kept_far])
    verdicts = list(limits(results))
    document = {
        "machine": facts,
        "load_average_before": load,
        "seconds": round(time.perf_counter() - began, 1),
        "repeats": repeats,
        "quick": arguments.quick,
        "left_out": sorted(set(CASES) - {r["case"] for r in results}),
        "kept": sorted({r["case"] for r in kept}),
        "verdicts": verdicts,
        "distances": far,
        "results": results,
    }
    wanted = sum(len(planners_for(case, arguments.planner)) for case in cases)
    interrupted = len(results) - len(kept) < wanted
    whole = not (arguments.cases or arguments.planner or interrupted)
    if arguments.json is not None:
        write_text_whole(arguments.json, to_json(document))
    elif whole:
        write_results(RESULTS, document)
        write_pages(document)
    title = f"{facts['core']} core ({facts['compiler'] or 'no compiler'}), {facts['cpus']} CPUs"
    console.print(results_table(results, title))
    report(document, console)
    bad = any("failed" in r or r["wrong"] for r in results)
    return 1 if bad or any(v["verdict"] == "MISS" for v in verdicts) else 0


def report(document: Result, console: Console) -> None:
    """Verdicts, distances and what is wrong."""
    colours = {"PASS": "green", "REDUCED": "yellow", "MISS": "red"}
    for number, group in itertools.groupby(document["verdicts"], key=lambda v: v["number"]):
        for v in group:
            colour = colours[v["verdict"]]
            console.print(
                f"{number}. [{colour}]{v['verdict']:7}[/{colour}] {v['what']}, {v['limit']}: "
                f"{v['figure']}",
                highlight=False,
            )
    for row in document["distances"]:
        where = f"6. {row['planner']} on {row['case']}, family {row['family']} "
        if "failed" in row:
            text = f"all lower sets not searched: {row['failed']}"
        else:
            text = (
                f"against all {row['all_lower_sets']:,} lower sets: smallest budget "
                f"{row['smallest_percent']:+.2f}%, overhead {row['mean_percent']:+.3f}% of a step "
                f"on average, {row['worst_percent']:+.3f}% at worst"
            )
        console.print(where + text, highlight=False)
    wrong = [f"{r['case']} {r['planner']}: {w}" for r in document["results"] for w in r["wrong"]]
    checks = sum(r.get("checks", 0) for r in document["results"])
    console.print(f"{checks} answers checked, {len(wrong)} wrong", highlight=False)
    for line in wrong:
        console.print(f"[red]{line}[/red]", highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
