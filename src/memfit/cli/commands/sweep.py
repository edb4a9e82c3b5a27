"""`memfit sweep`: what every budget costs, from the plain step to the smallest feasible one."""

from __future__ import annotations

import argparse
from pathlib import Path

from memfit.cli.arguments import add_output_arguments, add_time_limit_argument, check_output_file
from memfit.cli.graph_case import add_graph_arguments, check_graph_arguments, load_graph
from memfit.cli.output import print_json, print_notes, progress, stdout_console
from memfit.errors import UsageError
from memfit.files import write_text_whole
from memfit.graph.plain import plain_peak_bytes
from memfit.planners import PLANNERS, PlannerOptions, get_curve

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
What every budget costs: the trade-off between the peak of a training step and the time of what is
computed again, from the plain step to the smallest feasible budget, and what other strategies reach
on the same graph (Chen et al., √n, a checkpoint around each module, the paper's two modes, Salimans
and Bulatov).

  memfit sweep pytorchcv.models.resnet:resnet50 --input 8x3x224x224 --figure resnet50.svg
  memfit sweep graph.json --csv graph.csv
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `sweep` to the subcommands."""
    parser = subparsers.add_parser(
        "sweep",
        help="what every budget costs, beside other strategies",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_graph_arguments(parser)
    parser.add_argument(
        "--planner",
        default="auto",
        help=f"auto, or one of {', '.join(PLANNERS)} that has a trade-off (default: auto)",
    )
    parser.add_argument("--no-peers", action="store_true", help="leave other strategies out")
    parser.add_argument(
        "--rows",
        type=int,
        default=16,
        help="points shown in the table; JSON, CSV and picture have all (default: %(default)s)",
    )
    parser.add_argument(
        "--csv", metavar="FILE", help="write all points to this file, or to stdout for -"
    )
    parser.add_argument(
        "--figure", type=Path, metavar="PICTURE", help="draw it: .svg or .png; needs memfit[plot]"
    )
    add_time_limit_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the trade-off, write CSV and picture where asked to.

    Raises:
        MemfitError: wrong arguments, a model that cannot be captured.
    """
    check_graph_arguments(args)
    curve = get_curve(args.planner)
    _check_outputs(args)
    with progress("loading", shown=not (args.json or args.quiet)) as report:
        from memfit.analysis.peers import peer_points
        from memfit.analysis.sweep import Sweep
        from memfit.report.trade_off import save_sweep_figure, sweep_csv, sweep_note, sweep_table

        case = load_graph(args, report)
        graph = case.graph
        found = curve(graph, PlannerOptions(time_limit_s=args.time_limit, progress=report))
        budgets = [point.budget_bytes for point in found.points]
        peers = [] if args.no_peers else peer_points(graph, budgets, report)
        plain = plain_peak_bytes(graph)
        sweep = Sweep.of(graph, plain, found, peers)
        if args.figure is not None:
            save_sweep_figure(args.figure, sweep)
    if args.csv == "-":
        print(sweep_csv(sweep), end="")
        return 0
    if args.csv is not None:
        write_text_whole(Path(args.csv), sweep_csv(sweep))
    if args.json:
        notes = [*found.notes, *case.notes]
        print_json({**sweep.to_dict(), "notes": notes})
        return 0
    from memfit.report.tables import print_tables

    console = stdout_console()
    print_tables(console, *sweep_table(sweep, args.rows))
    console.print(sweep_note(sweep, args.rows), soft_wrap=True, markup=False)
    for what, path in (("points", args.csv), ("picture", args.figure)):
        if path is not None:
            console.print(f"{what} written to {path}", soft_wrap=True, markup=False)
    print_notes(console, (*found.notes, *case.notes))
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    if args.rows < 2:
        raise UsageError(f"--rows is {args.rows}; it must be 2 or more")
    if args.csv == "-" and args.json:
        raise UsageError("--csv - and --json both want stdout; give --csv a file, or leave one out")
    if args.csv not in (None, "-"):
        check_output_file(Path(args.csv))
    if args.figure is not None:
        from memfit.report.figure import check_figure_path

        check_figure_path(args.figure)
        check_output_file(args.figure)
