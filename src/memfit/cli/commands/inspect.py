"""`memfit inspect`: where the memory of a plain step goes, without giving the model any."""

from __future__ import annotations

import argparse
from typing import Any

from memfit.budget import parse_bytes
from memfit.cli.arguments import add_held_arguments, add_output_arguments
from memfit.cli.graph_case import capture_unallocated, load_unallocated
from memfit.cli.output import (
    foreign_prints_to_stderr,
    print_json,
    print_notes,
    progress,
    stdout_console,
)
from memfit.cli.target import add_target_arguments, check_target_arguments
from memfit.errors import InvalidBudgetError, UsageError
from memfit.units import format_bytes

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Will it fit? Predict the peak of a plain training step, and show where its memory goes, before any
planning. The model is built without memory (fake tensors) and nothing is run, so that models larger
than this machine, and devices that it lacks, can be asked about. Workspaces of ops are estimates.

  memfit inspect pytorchcv.models.resnet:resnet50 --input 32x3x224x224
  memfit inspect pytorchcv.models.resnet:resnet50 --input 256x3x224x224 --device cuda --memory 24GiB
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `inspect` to the subcommands."""
    parser = subparsers.add_parser(
        "inspect",
        help="where the memory of a plain step goes, before planning",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_target_arguments(parser)
    add_held_arguments(parser)
    parser.add_argument(
        "--memory",
        metavar="BYTES",
        help='what the device has ("24GiB"), for the verdict (default: what this machine has free, '
        "where the device is there)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=10,
        help="values and modules listed, largest first (default: %(default)s)",
    )
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print where the memory goes.

    Returns:
        0, whether it fits or not.

    Raises:
        MemfitError: wrong arguments, a model that cannot be captured.
    """
    check_target_arguments(args)
    if args.rows < 1:
        raise UsageError(f"--rows is {args.rows}; it must be 1 or more")
    if args.memory is not None:
        try:
            parse_bytes(args.memory)
        except InvalidBudgetError:
            raise UsageError(
                f"--memory {args.memory!r} is no size; write bytes, such as 24GiB"
            ) from None
    with (
        progress("loading", shown=not (args.json or args.quiet)) as report,
        foreign_prints_to_stderr(),
    ):
        from memfit.analysis.explanation import floor_of_any_plan
        from memfit.analysis.step_memory import step_memory
        from memfit.graph.estimates import estimate_note
        from memfit.report.step_memory import memory_tables

        built = load_unallocated(args)
        found = capture_unallocated(built, args, report, likely=True)
        memory = step_memory(found.graph, rows=args.rows)
        floor = floor_of_any_plan(found.graph)[0]
        estimates = estimate_note(
            found.graph, "the peak is a prediction", "memfit verify measures a step"
        )
        notes = [*found.notes, *([estimates] if estimates else [])]
        available, whose = _available_bytes(args)
    fits = None if available is None else memory.peak_bytes <= available
    if args.json:
        payload: dict[str, Any] = {
            "status": "OK",
            **memory.to_dict(),
            "device": args.device,
            "floor_bytes": floor,
            "available_bytes": available,
            "fits": fits,
            "model_allocated": found.allocated,
            "notes": notes,
        }
        print_json(payload)
        return 0
    verdicts = []
    if available is not None:
        verdicts.append((f"{whose}", format_bytes(available)))
        verdicts.append(("the plain step fits", "yes" if fits else "no"))
    verdicts.append(("the model was given memory", "yes" if found.allocated else "no"))
    console = stdout_console()
    from memfit.report.tables import print_tables

    print_tables(console, *memory_tables(memory, verdicts))
    if memory.at is not None:
        where = f"The peak is reached in the {memory.phase} op {memory.at}."
        console.print(where, soft_wrap=True, markup=False)
    if fits is False and available is not None:
        console.print(_advice(args, memory.peak_bytes, available, floor), soft_wrap=True)
    print_notes(console, notes)
    return 0


def _advice(args: argparse.Namespace, peak: int, available: int, floor: int) -> str:
    """What to do where the plain step does not fit."""
    short = f"The plain step needs {format_bytes(peak - available)} more than there is"
    if floor > available:
        return (
            f"{short}, and no plan can go below {format_bytes(floor)}: make the batch or the model "
            "smaller, or train fewer parameters."
        )
    return (
        f"{short}; memfit plan with --budget {available} looks for one that fits, and memfit sweep "
        "shows what each budget costs."
    )


def _available_bytes(args: argparse.Namespace) -> tuple[int | None, str]:
    """What there is for the whole step, and whose figure that is."""
    if args.memory is not None:
        return parse_bytes(args.memory), "memory of the device, as given"
    from memfit.cli.target import parse_device
    from memfit.pytorch.api.unallocated import device_is_there
    from memfit.pytorch.cost.measure import free_bytes

    device = parse_device(args.device)
    if not device_is_there(device):
        return None, ""
    # Nothing of the step is alive yet: all that is free is there for it.
    return free_bytes(device), f"free on {device}, less a margin"
