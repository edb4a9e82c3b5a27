"""`memfit explain`: why a budget is infeasible, and what would lower what the step needs."""

from __future__ import annotations

import argparse

from memfit.budget import parse_budget
from memfit.cli.arguments import add_output_arguments, add_time_limit_argument
from memfit.cli.graph_case import add_graph_arguments, check_graph_arguments, load_graph
from memfit.cli.output import EXIT_INFEASIBLE, print_json, print_notes, progress, stdout_console
from memfit.errors import UsageError
from memfit.graph.estimates import estimate_note
from memfit.graph.plain import plain_peak_bytes
from memfit.planners import PLANNERS, PlannerOptions, get_planner

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Say why a budget is infeasible: the op at which the plan for the smallest feasible budget reaches
its peak, what must be alive there, and what would lower it. A feasible budget is explained too.
Exit code: 0 where the budget is feasible, 3 where it is not.

  memfit explain pytorchcv.models.resnet:resnet50 --input 8x3x224x224 --budget 10%
  memfit explain graph.json --budget 100MB
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `explain` to the subcommands."""
    parser = subparsers.add_parser(
        "explain",
        help="why a budget is infeasible, and what would help",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_graph_arguments(parser)
    parser.add_argument(
        "--budget",
        required=True,
        help='peak of the whole step: bytes ("3GiB", "800MB", 3221225472), or a share of the plain '
        'step\'s peak ("60%%")',
    )
    parser.add_argument(
        "--planner", default="auto", help=f"auto, {', '.join(PLANNERS)} (default: auto)"
    )
    add_time_limit_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the explanation.

    Returns:
        0 where the budget is feasible, 3 where it is not, as everywhere: a script can tell.

    Raises:
        MemfitError: wrong arguments, a model that cannot be captured.
    """
    check_graph_arguments(args)
    budget = parse_budget(args.budget)
    if budget.auto:
        raise UsageError(
            'budget "auto" needs a device; give bytes ("3GiB") or a share of the plain step\'s '
            'peak ("60%")'
        )
    planner = get_planner(args.planner)
    with progress("loading", shown=not (args.json or args.quiet)) as report:
        from memfit.analysis.explanation import explain_budget, sentences

        case = load_graph(args, report)
        graph = case.graph
        plain = plain_peak_bytes(graph)
        budget_bytes = budget.resolve(plain_peak_bytes=plain, free_bytes=0)
        options = PlannerOptions(time_limit_s=args.time_limit, progress=report)
        estimates = estimate_note(graph)
        notes = [*case.notes, *([estimates] if estimates else [])]
        found = explain_budget(graph, budget_bytes, planner, options, plain)
    code = 0 if found.feasible else EXIT_INFEASIBLE
    if args.json:
        print_json({**found.to_dict(), "notes": notes})
        return code
    console = stdout_console()
    for line in sentences(found):
        console.print(line, soft_wrap=not console.is_terminal, markup=False)
    print_notes(console, notes)
    return code
