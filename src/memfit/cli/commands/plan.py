"""`memfit plan`: what to keep and what to compute again, without training anything."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from memfit.bounds import LowerBound, bound_plan
from memfit.cli.arguments import (
    add_output_arguments,
    add_planning_arguments,
    check_output_file,
    check_planning_arguments,
    planning_keywords,
)
from memfit.cli.bounding import add_bound_arguments, bound_limit, bound_rows
from memfit.cli.output import foreign_prints_to_stderr, print_json, progress, stdout_console
from memfit.cli.target import add_target_arguments, check_target_arguments, load_case
from memfit.graph.plan_file import save_plan_file

if TYPE_CHECKING:
    pass

__all__ = ["add_parser", "run"]


_DESCRIPTION = """\
Plan one training step of a model within a memory budget, without running it.

  memfit plan pytorchcv.models.resnet:resnet50 --input 8x3x224x224 --budget 60%
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan` to the subcommands."""
    parser = subparsers.add_parser(
        "plan",
        help="plan a model's training step",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_target_arguments(parser)
    add_planning_arguments(parser)
    add_bound_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PLAN.json", help="write plan and graph to this file"
    )
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan, write the plan where asked to, print it.

    Raises:
        MemfitError: wrong arguments, a model that cannot be captured, an infeasible budget.
    """
    check_target_arguments(args)
    check_planning_arguments(args)
    bound_s = bound_limit(args)
    if args.output is not None:
        check_output_file(args.output)
    with (
        progress("loading", shown=not (args.json or args.quiet)) as report,
        foreign_prints_to_stderr(),
    ):
        from memfit.pytorch.api.entry import plan_step
        from memfit.pytorch.capture.op_shapes import op_shapes

        case = load_case(args)
        if report is not None:
            report("capturing", 0.0)
        step, made = plan_step(
            case.model,
            case.inputs,
            case.loss_fn,
            **planning_keywords(args, case.model, report),
        )
        bound: LowerBound | None = None
        if bound_s is not None:
            made, bound = bound_plan(step.graph, made, time_limit_s=bound_s, progress=report)
    if args.output is not None:
        save_plan_file(args.output, made, step.graph, op_shapes(step))
    if args.json:
        print_json(json.loads(made.to_json()))
        return 0
    from memfit.report.tables import plan_table, print_tables, stages_table

    console = stdout_console()
    table = plan_table(made)
    for row in bound_rows(bound, made.overhead) if bound is not None else ():
        table.add_row(*row)
    print_tables(console, table, stages_table(made))
    if args.output is not None:
        console.print(f"plan written to {args.output}", soft_wrap=True, markup=False)
    return 0
