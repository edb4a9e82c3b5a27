"""`memfit verify`: one step plain, one captured, one planned, side by side."""

from __future__ import annotations

import argparse

from memfit.cli.arguments import (
    add_output_arguments,
    add_planning_arguments,
    check_planning_arguments,
    planning_keywords,
)
from memfit.cli.output import foreign_prints_to_stderr, print_json, progress, stdout_console
from memfit.cli.target import add_target_arguments, check_target_arguments, load_case
from memfit.errors import UsageError

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Run one training step plain, one captured and saving everything, and one planned, from the same
start, and compare gradients, buffers, peak memory and time. The exit code is 1 where gradients or
buffers differ or the measured peak is over the budget.

  memfit verify pytorchcv.models.resnet:resnet18 --input 4x3x224x224 --budget 60%
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `verify` to the subcommands."""
    parser = subparsers.add_parser(
        "verify",
        help="run a model's step plain and planned, and compare",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_target_arguments(parser)
    add_planning_arguments(parser)
    parser.add_argument(
        "--executor",
        default="eager-graph",
        choices=("eager-graph", "inductor"),
        help="PyTorch's kernels op by op, or code that Inductor generates (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="timed steps of each kind (default: %(default)s)"
    )
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the three steps and print what they did.

    Returns:
        0, or 1 where the planned step is wrong or over its budget.

    Raises:
        MemfitError: wrong arguments, a model that cannot be captured, an infeasible budget.
    """
    check_target_arguments(args)
    check_planning_arguments(args)
    if args.rounds < 1:
        raise UsageError(f"--rounds is {args.rounds}; it must be 1 or more")
    with (
        progress("loading", shown=not (args.json or args.quiet)) as report,
        foreign_prints_to_stderr(),
    ):
        from memfit.pytorch.api.verify import verify

        case = load_case(args)
        result = verify(
            case.model,
            case.inputs,
            case.loss_fn,
            **planning_keywords(args, case.model, report),
            executor=args.executor,
            rounds=args.rounds,
        )
    if args.json:
        print_json(result.to_dict())
    else:
        from memfit.report.tables import plan_table, print_tables, verify_table

        print_tables(stdout_console(), plan_table(result.plan), verify_table(result))
    return 0 if result.ok else 1
