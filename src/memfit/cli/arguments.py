"""Arguments that several commands share, and their checks."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.budget import parse_budget
from memfit.errors import UsageError
from memfit.planners import DEFAULT_PLANNER, PLANNERS, get_planner

__all__ = [
    "OPTIMIZERS",
    "add_held_arguments",
    "add_output_arguments",
    "add_planning_arguments",
    "add_time_limit_argument",
    "check_output_file",
    "check_planning_arguments",
    "make_optimizer",
    "planning_keywords",
    "seconds",
]

if TYPE_CHECKING:
    import torch
    from torch import nn

    from memfit.planners.base import Progress


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "sgd-momentum": ("SGD", {"momentum": 0.9}),
    "rmsprop": ("RMSprop", {}),
    "adagrad": ("Adagrad", {}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
}
"""By name: the class in `torch.optim` and what it is made with besides the learning rate."""


def add_planning_arguments(parser: argparse.ArgumentParser) -> None:
    """Budget, planner, costs and optimizer."""
    parser.add_argument(
        "--budget",
        required=True,
        help='peak of the whole step: bytes ("3GiB", "800MB", 3221225472), a share of the plain '
        'step\'s peak ("60%%"), or "auto" (what the device has free)',
    )
    parser.add_argument(
        "--planner",
        default=DEFAULT_PLANNER,
        help=f"auto (liveness, or nested where room is short; default), {', '.join(PLANNERS)}",
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
    add_held_arguments(parser, "the budget")
    parser.add_argument(
        "--loops",
        default="auto",
        choices=("auto", "roll", "unroll"),
        help="what becomes of scan and while_loop: planned op by op, or as a loop; auto rolls the "
        "long ones (default: %(default)s)",
    )
    parser.add_argument(
        "--fullgraph",
        action="store_true",
        help="refuse a model with modules that cannot be traced; by default each runs as one op",
    )
    add_time_limit_argument(parser)


def planning_keywords(
    args: argparse.Namespace, model: nn.Module, progress: Progress | None
) -> dict[str, Any]:
    """The keywords of `memfit.plan` and its kin that the command line gives."""
    return {
        "budget": args.budget,
        "planner": args.planner,
        "mode": args.mode,
        "cost": args.cost,
        "optimizer": make_optimizer(args.optimizer, model),
        "accumulate": args.accumulate,
        "loops": args.loops,
        "fullgraph": args.fullgraph,
        "time_limit_s": args.time_limit,
        "progress": progress,
    }


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


def add_held_arguments(parser: ArgumentParser, what: str = "the step") -> None:
    """What is alive all through a step beside parameters: `--optimizer`, `--accumulate`.

    Args:
        parser: takes them.
        what: they are counted into.
    """
    parser.add_argument(
        "--optimizer",
        choices=tuple(OPTIMIZERS),
        help=f"count this optimizer's state into {what} (default: none)",
    )
    parser.add_argument(
        "--accumulate",
        action="store_true",
        help=f"gradients are accumulated over several steps: {what} holds every .grad from the "
        "start",
    )


def add_output_arguments(parser: ArgumentParser) -> None:
    """`--json` and `--quiet`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout and nothing else"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress on stderr")


def add_time_limit_argument(parser: ArgumentParser) -> None:
    """`--time-limit`."""
    parser.add_argument(
        "--time-limit",
        type=seconds,
        metavar="SECONDS",
        help="stop planning after this long with the best plan so far, which says so (default: "
        "no limit)",
    )


def seconds(text: str) -> float:
    """A number of seconds, for `argparse`."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number of seconds; give 0 or more")
    return found


def check_output_file(path: Path) -> None:
    """Refuse a place that cannot be written before minutes are spent on a plan."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(
            f"cannot write {path}: there is no folder {path.parent}; choose one that exists"
        )
