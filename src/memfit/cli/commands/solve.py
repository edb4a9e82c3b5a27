"""`memfit solve`: plan a bare graph file, without a model."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from memfit.bounds import LowerBound, bound_graph, bound_plan
from memfit.budget import parse_budget
from memfit.cli.arguments import add_output_arguments, add_time_limit_argument, check_output_file
from memfit.cli.bounding import add_bound_arguments, bound_limit, bound_rows
from memfit.cli.output import (
    EXIT_INFEASIBLE,
    one_line,
    print_json,
    print_notes,
    progress,
    stdout_console,
)
from memfit.cuts.lower_sets import FAMILIES
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph.graph_file import read_graph
from memfit.graph.plain import plain_peak_bytes
from memfit.graph.plan import Plan
from memfit.graph.plan_file import save_plan_file
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import (
    DEFAULT_PLANNER,
    PLANNERS,
    Planner,
    PlannerOptions,
    get_curve,
    get_planner,
)
from memfit.planners.base import MODES
from memfit.report.tables import print_tables
from memfit.units import format_bytes

__all__ = ["add_parser", "run", "solve_json"]


_FORMULA_PLANNERS = ("exact", "approximate")
_DESCRIPTION = """\
Plan a graph file: memfit's JSON, or the text format of the published graphs under the paper's cost
model (10 for functions whose names start with Conv, else 1). Overheads are in the graph's cost
unit. Exit codes: 0 a plan, 2 wrong usage or input, 3 infeasible budget, 1 a failure of ours.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `solve` to the subcommands."""
    parser = subparsers.add_parser("solve", help="plan a bare graph file", description=_DESCRIPTION)
    parser.add_argument("graph", metavar="GRAPH", help="graph file, JSON or published text format")
    parser.add_argument(
        "--planner",
        default=DEFAULT_PLANNER,
        help=f"auto (liveness, or nested where room is short; default), {', '.join(PLANNERS)}",
    )
    parser.add_argument(
        "--mode",
        default="auto",
        help="for exact and approximate: time (least overhead), memory (most overhead on the "
        "Pareto front), auto (time, then memory, both with liveness analysis; default)",
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME",
        help="for salimans-collection: a forward op, or a value of one, to keep; may be repeated",
    )
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--curve",
        action="store_true",
        help="print the whole trade-off instead of a plan: each overhead that some budget calls "
        "for, with the least such budget",
    )
    wanted.add_argument(
        "--budget",
        help='peak of the whole step: bytes ("3GiB", "800MB", 3221225472), or a share of the plain '
        'step\'s peak ("60%%")',
    )
    parser.add_argument(
        "--family",
        default="auto",
        help=f"lower sets to search: auto (the planner's own), {', '.join(FAMILIES)}",
    )
    parser.add_argument(
        "--max-lower-sets",
        type=int,
        metavar="N",
        help="with more lower sets than this, the next smaller family is searched "
        "(default: as many as planner and core can take)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PLAN.json", help="write plan and graph to this file"
    )
    add_time_limit_argument(parser)
    add_bound_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan, and print the result to stdout.

    Returns:
        0, or 3 for an infeasible budget with `--json`.

    Raises:
        InfeasibleBudgetError: an infeasible budget, without `--json`.
        UsageError: a wrong argument or graph file.
    """
    planner = get_planner(args.planner)
    if args.mode not in MODES:
        raise UsageError(f"unknown mode {args.mode!r}; known modes: {', '.join(MODES)}")
    if args.family not in ("auto", *FAMILIES):
        raise UsageError(
            f"unknown family {args.family!r}; known families: auto, {', '.join(FAMILIES)}"
        )
    if args.max_lower_sets is not None and args.max_lower_sets < 2:
        raise UsageError(f"--max-lower-sets is {args.max_lower_sets}; it must be 2 or more")
    if args.curve and args.output is not None:
        raise UsageError("-o writes a plan, and --curve makes none; give --budget")
    if args.curve and args.bound:
        raise UsageError("--bound is for one budget, and --curve is for all; give --budget")
    limit_s = bound_limit(args)
    if args.output is not None:
        check_output_file(args.output)
    if ":" in args.graph and not Path(args.graph).exists():
        raise UsageError(
            f"there is no graph file {args.graph}; if it is a model, plan it with memfit plan"
        )
    options = PlannerOptions(
        mode=args.mode,
        family=args.family,
        max_lower_sets=args.max_lower_sets,
        time_limit_s=args.time_limit,
        checkpoints=tuple(args.checkpoint),
    )
    return _curve(args, options) if args.curve else _plan(args, planner, options, limit_s)


def _plan(
    args: argparse.Namespace, planner: Planner, options: PlannerOptions, bound_s: float | None
) -> int:
    budget = parse_budget(args.budget)
    if budget.auto:
        raise UsageError(
            'budget "auto" needs a device; give bytes ("3GiB") or a share of the plain step\'s '
            'peak ("60%")'
        )
    graph = read_graph(args.graph)
    plain_peak = plain_peak_bytes(graph)
    budget_bytes = budget.resolve(plain_peak_bytes=plain_peak, free_bytes=0)
    shown = not (args.json or args.quiet)
    bound: LowerBound | None = None
    try:
        with progress("planning", shown=shown) as report:
            plan = planner(graph, budget_bytes, replace(options, progress=report))
    except InfeasibleBudgetError as error:
        if bound_s is not None:
            with progress("bounding", shown=shown) as report:
                bound = bound_graph(graph, budget_bytes, time_limit_s=bound_s, progress=report)
            error = _with_bound(error, bound)
        if not args.json:
            raise error from None
        name = "nested" if args.planner == "auto" else args.planner
        result = _infeasible_json(error, graph, name, args.mode)
        if bound is not None:
            result["bound"] = bound.to_dict()
        print_json(result)
        return EXIT_INFEASIBLE
    if bound_s is not None:
        with progress("bounding", shown=shown) as report:
            plan, bound = bound_plan(graph, plan, time_limit_s=bound_s, progress=report)
    if args.output is not None:
        save_plan_file(args.output, plan, graph)
    result = solve_json(plan, graph)
    if args.json:
        print_json(result)
    else:
        console = stdout_console()
        table = _table(result)
        for row in bound_rows(bound, plan.overhead) if bound is not None else ():
            table.add_row(*row)
        print_tables(console, table)
        print_notes(console, [*result["notes"], *(bound.notes if bound is not None else ())])
    return 0


def _curve(args: argparse.Namespace, options: PlannerOptions) -> int:
    curve = get_curve(args.planner)
    graph = read_graph(args.graph)
    with progress("planning", shown=not (args.json or args.quiet)) as report:
        found = curve(graph, replace(options, progress=report))
    if args.json:
        print_json(asdict(found))
        return 0
    console = stdout_console()
    table = Table(
        title=f"{graph.name}: {found.planner}, family {found.family}, "
        f"{found.lower_sets} lower sets, {found.seconds:.2f} s",
        title_justify="left",
    )
    table.add_column("budget", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column(f"overhead ({found.cost_unit})", justify="right")
    table.add_column("of one forward pass", justify="right")
    for point in found.points:
        share = 100.0 * point.overhead / graph.forward_cost if graph.forward_cost else 0.0
        size = format_bytes(point.budget_bytes)
        table.add_row(size, str(point.budget_bytes), str(point.overhead), f"{share:.2f}%")
    print_tables(console, table)
    print_notes(console, found.notes)
    return 0


def solve_json(plan: Plan, graph: TrainingGraph) -> dict[str, Any]:
    """What `--json` writes.

    `overhead` and `cached_bytes` are the paper's for its planners (every stage counted, the last
    one too; M of all boundaries), and those of the schedule for all others. `executed_overhead` and
    `kept_bytes` are always the schedule's. `total_time` is the cost of one forward pass, to which
    `overhead_percent` refers.
    """
    formula = plan.planner in _FORMULA_PLANNERS
    overhead = plan.overhead
    cached = plan.cached_bytes
    if formula and plan.formula_overhead is not None and plan.formula_cached_bytes is not None:
        overhead, cached = plan.formula_overhead, plan.formula_cached_bytes
    return {
        "status": plan.status.value,
        "graph": graph.name,
        "planner": plan.planner,
        "family": plan.family,
        "mode": plan.mode,
        "lower_sets": plan.lower_sets,
        "budget_bytes": plan.budget_bytes,
        "overhead": overhead,
        "overhead_percent": 100.0 * overhead / plan.forward_cost if plan.forward_cost else 0.0,
        "executed_overhead": plan.overhead,
        "formula_overhead": plan.formula_overhead,
        "total_time": plan.forward_cost,
        "cost_unit": plan.cost_unit,
        "cached_bytes": cached,
        "kept_bytes": plan.cached_bytes,
        "formula_peak_bytes": plan.formula_peak_bytes,
        "peak_bytes": plan.peak_bytes,
        "plain_peak_bytes": plan.plain_peak_bytes,
        "stages": [asdict(stage) for stage in plan.stages],
        "seconds": plan.seconds,
        "smallest_feasible_budget": plan.smallest_feasible_budget_bytes,
        "notes": list(plan.notes),
        "graph_fingerprint": plan.graph_fingerprint,
        **({"bound": plan.provenance["bound"]} if "bound" in plan.provenance else {}),
    }


def _with_bound(error: InfeasibleBudgetError, bound: LowerBound) -> InfeasibleBudgetError:
    """The same error, which says whether any schedule at all may fit."""
    detail = "it is proven that no schedule in program order fits"
    if not bound.infeasible:
        detail = "that no schedule at all fits is not proven"
    return InfeasibleBudgetError(
        budget_bytes=error.budget_bytes,
        minimum_bytes=error.minimum_bytes,
        binding_op=error.binding_op,
        detail=detail,
    )


def _infeasible_json(
    error: InfeasibleBudgetError, graph: TrainingGraph, planner: str, mode: str
) -> dict[str, Any]:
    return {
        "status": "INFEASIBLE",
        "graph": graph.name,
        "planner": planner,
        "mode": mode if planner in _FORMULA_PLANNERS else None,
        "budget_bytes": error.budget_bytes,
        "smallest_feasible_budget": error.minimum_bytes,
        "binding_op": error.binding_op,
        "message": one_line(str(error)),
    }


def _table(result: dict[str, Any]) -> Table:
    planner = result["planner"] + (f", {result['mode']}-centric" if result["mode"] else "")
    unit = "" if result["cost_unit"] == "unit" else f" {result['cost_unit']}"
    table = Table(title=f"{result['graph']}: {planner}", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")

    def size(label: str, value: int | None) -> None:
        if value is not None:
            table.add_row(label, f"{format_bytes(value)} ({value:,} bytes)")

    table.add_row("status", result["status"])
    table.add_row("family", f"{result['family']} ({result['lower_sets']} lower sets)")
    size("budget", result["budget_bytes"])
    size("peak, simulated with liveness", result["peak_bytes"])
    size("peak, the paper's formula", result["formula_peak_bytes"])
    size("peak of the plain step", result["plain_peak_bytes"])
    size("smallest feasible budget", result["smallest_feasible_budget"])
    size("kept for the backward pass", result["kept_bytes"])
    table.add_row(
        "overhead",
        f"{result['overhead']}{unit}, {result['overhead_percent']:.1f}% of a forward pass "
        f"({result['total_time']}{unit})",
    )
    if result["executed_overhead"] != result["overhead"]:
        table.add_row("overhead as scheduled", f"{result['executed_overhead']}{unit}")
    table.add_row("stages", str(len(result["stages"])))
    table.add_row("planned in", f"{result['seconds']:.2f} s")
    return table
