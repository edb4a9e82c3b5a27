"""`memfit report`: a plan as one HTML page that works offline."""

from __future__ import annotations

import argparse
from pathlib import Path

from memfit.analysis.curve import CurveSample, sample_curve
from memfit.cli.arguments import add_output_arguments, add_time_limit_argument, check_output_file
from memfit.cli.output import print_json, progress, stdout_console
from memfit.errors import UsageError
from memfit.graph.graph_file import read_graph
from memfit.graph.plan_file import PlanFile, load_plan_file
from memfit.planners import PlannerOptions
from memfit.report.page.html import save_report
from memfit.units import format_bytes

__all__ = ["add_parser", "run"]

_WITH_CURVE = ("exact", "approximate")
_DESCRIPTION = """\
Write a plan as one HTML page: memory over the step, the trade-off, the graph and its modules. The
page needs no network and no server; open it in a browser.

  memfit plan pytorchcv.models.resnet:resnet50 --input 8x3x224x224 --budget 60% -o plan.json
  memfit report plan.json --curve -o report.html
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `report` to the subcommands."""
    parser = subparsers.add_parser(
        "report",
        help="write a plan as an HTML page",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "plan", type=Path, metavar="PLAN.json", help="written by memfit plan -o or memfit solve -o"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="PAGE.html",
        help="the page (default: %(default)s)",
    )
    parser.add_argument(
        "--graph",
        type=Path,
        metavar="GRAPH.json",
        help="the plan's graph, for plan files that have none inside",
    )
    parser.add_argument(
        "--curve",
        action="store_true",
        help="search the whole trade-off too, so that the page shows what every budget costs",
    )
    parser.add_argument(
        "--curve-points",
        type=int,
        default=12,
        metavar="N",
        help="points of the trade-off whose plans the page can show (default: %(default)s)",
    )
    add_time_limit_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, draw, write.

    Raises:
        PlanMismatchError: the file is no plan, or the graph is another plan's.
        UsageError: no graph, or a page that cannot be written.
    """
    if args.curve_points < 2:
        raise UsageError(f"--curve-points is {args.curve_points}; it must be 2 or more")
    _check_output(args.output, args.plan)
    with progress("reading", shown=not (args.json or args.quiet)) as report:
        file = _with_graph(load_plan_file(args.plan), args.plan, args.graph)
        assert file.graph is not None
        curve: CurveSample | None = None
        if args.curve:
            planner = file.plan.planner if file.plan.planner in _WITH_CURVE else "auto"
            options = PlannerOptions(time_limit_s=args.time_limit, progress=report)
            curve = sample_curve(file.graph, planner, options, args.curve_points)
        if report is not None:
            report("drawing", 0.9)
        size = save_report(args.output, file.graph, file.plan, file.shapes, curve)
    if args.json:
        points = None if curve is None else len(curve.curve.points)
        print_json(
            {"status": "OK", "report": str(args.output), "bytes": size, "curve_points": points}
        )
    else:
        stdout_console().print(
            f"report written to {args.output} ({format_bytes(size)}); open it in a browser",
            soft_wrap=True,
            markup=False,
        )
    return 0


def _with_graph(file: PlanFile, plan_path: Path, graph_path: Path | None) -> PlanFile:
    """The plan file with its own graph or the one that is given."""
    if graph_path is not None:
        graph = read_graph(graph_path)
        file.plan.check_graph(graph)
        return PlanFile(file.plan, graph, file.shapes)
    if file.graph is None:
        raise UsageError(
            f"plan file {plan_path} holds no graph, which a report needs; plan again with memfit "
            "plan -o, which writes the graph along, or name the graph file with --graph"
        )
    return file


def _check_output(path: Path, plan: Path) -> None:
    """Refuse a place that cannot be written before a trade-off is searched."""
    check_output_file(path)
    if path.exists() and plan.exists() and path.samefile(plan):
        raise UsageError(f"cannot write {path}: it is the plan; name another file with -o")
