"""`memfit plan`: what to keep and what to compute again, without training anything."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.bounds import LowerBound, bound_plan
from memfit.budget import parse_budget
from memfit.cli.bounding import add_bound_arguments, bound_limit, bound_rows
from memfit.cli.output import (
    add_output_arguments,
    add_time_limit_argument,
    check_output_file,
    foreign_prints_to_stderr,
    print_json,
    progress,
    stdout_console,
)
from memfit.cli.target import add_target_arguments, check_target_arguments, load_case
from memfit.errors import UsageError
from memfit.graph.plan_file import save_plan_file
from memfit.planners import PLANNERS, get_planner

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "OPTIMIZERS",
    "add_parser",
    "add_planning_arguments",
    "check_planning_arguments",
    "make_optimizer",
    "run",
]

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "sgd-momentum": ("SGD", {"momentum": 0.9}),
    "rmsprop": ("RMSprop", {}),
    "adagrad": ("Adagrad", {}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
}
"""By name: the class in `torch.optim` and what it is made with besides the learning rate."""

_DESCRIPTION = """\
Plan one training step of a model within a memory budget, without running it.

  memfit plan pytorchcv.models.resnet:resnet50 --input 8x3x224x224 --budget 60%
"""


def add_planning_arguments(parser: argparse.ArgumentParser) -> None:
    """Budget, planner, costs and optimizer."""
    parser.add_argument(
        "--budget",
        required=True,
        help='peak of the whole step: bytes ("3GiB", "800MB", 3221225472), a share of the plain '
        'step\'s peak ("60%%"), or "auto" (what the device has free)',
    )
    parser.add_argument(
        "--planner", default="auto", help=f"auto, {', '.join(PLANNERS)} (default: auto, liveness)"
    )
    parser.add_argument(
        "--mode",
        default="auto",
        choices=("time", "memory", "auto"),
        help="for exact and approximate; auto tries time, then memory (default: %(default)s)",
    )
    parser.add_argument(
        "--cost",
        default="measured",
        choices=("measured", "analytic"),
        help="time and workspace of each op: measured once on this machine and kept on disk, or "
        "estimated from sizes (default: %(default)s)",
    )
    parser.add_argument(
        "--optimizer",
        choices=tuple(OPTIMIZERS),
        help="count this optimizer's state into the budget (default: none)",
    )


def check_planning_arguments(args: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before PyTorch and the model are loaded.

    Raises:
        UsageError: a budget that cannot be read, or an unknown planner.
    """
    parse_budget(args.budget)
    get_planner(args.planner)


def make_optimizer(name: str | None, model: nn.Module) -> torch.optim.Optimizer | None:
    """The optimizer of that name over what the model trains; None for no name."""
    if name is None:
        return None
    import torch

    kind, options = OPTIMIZERS[name]
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UsageError(
            f"--optimizer {name} has nothing to update: no parameter of {type(model).__name__} "
            "requires gradients; leave it out"
        )
    made: torch.optim.Optimizer = getattr(torch.optim, kind)(trained, lr=1e-3, **options)
    return made


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
    add_time_limit_argument(parser)
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
        from memfit.pytorch.api import plan_step
        from memfit.pytorch.op_shapes import op_shapes

        case = load_case(args)
        if report is not None:
            report("capturing", 0.0)
        step, made = plan_step(
            case.model,
            case.inputs,
            case.loss_fn,
            budget=args.budget,
            planner=args.planner,
            mode=args.mode,
            cost=args.cost,
            optimizer=make_optimizer(args.optimizer, case.model),
            time_limit_s=args.time_limit,
            progress=report,
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
