"""TARGET as a training graph: a model's step, with memory or without it, or a graph file."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memfit.cli.arguments import add_held_arguments, make_optimizer
from memfit.cli.output import foreign_prints_to_stderr
from memfit.cli.target import (
    TrainingCase,
    add_target_arguments,
    check_target_arguments,
    load_case,
    parse_device,
)
from memfit.errors import MemfitError, UsageError
from memfit.graph.graph_file import read_graph
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import Progress

if TYPE_CHECKING:
    from memfit.pytorch.api.unallocated import Unallocated

__all__ = [
    "Built",
    "GraphCase",
    "add_graph_arguments",
    "capture_unallocated",
    "check_graph_arguments",
    "is_graph_file",
    "load_graph",
    "load_unallocated",
]


@dataclass(frozen=True)
class GraphCase:
    """A training graph and where it came from.

    Attributes:
        graph: the graph, with costs.
        notes: what a reader should know.
        allocated: whether the model was given memory.
    """

    graph: TrainingGraph
    notes: tuple[str, ...] = ()
    allocated: bool = False


@dataclass(frozen=True)
class Built:
    """A model and inputs, and what captures them without memory.

    Attributes:
        case: the model, its inputs and its loss.
        unallocated: captures it.
        notes: what a reader should know.
        allocated: whether the model was given memory.
    """

    case: TrainingCase
    unallocated: Unallocated
    notes: tuple[str, ...] = ()
    allocated: bool = False

    def resized(self, case: TrainingCase) -> Built:
        """The same with other inputs."""
        return replace(self, case=case)


def add_graph_arguments(parser: ArgumentParser) -> None:
    """TARGET, which may be a graph file, its options, and how ops are costed."""
    add_target_arguments(parser)
    for action in parser._actions:
        if action.dest == "model":
            action.help = f"{action.help} Or a graph file, as for memfit solve."
    parser.add_argument(
        "--cost",
        default="measured",
        choices=("measured", "analytic"),
        help="time and workspace of each op: measured once on this machine and kept on disk, or "
        "estimated from sizes, which gives the model no memory and needs no device (default: "
        "%(default)s)",
    )
    add_held_arguments(parser)


def is_graph_file(target: str) -> bool:
    """Whether TARGET names a graph file: an existing file, or a name that only a file has."""
    return Path(target).is_file() or (":" not in target and target.endswith((".json", ".txt")))


def check_graph_arguments(args: Namespace) -> None:
    """Refuse what can be seen to be wrong before PyTorch and the model are loaded.

    Raises:
        UsageError: see there.
    """
    if not is_graph_file(args.model):
        check_target_arguments(args)
        return
    given = [
        option
        for option, value in (
            ("--input", args.input),
            ("--arg", args.arg),
            ("--target", args.target),
            ("--optimizer", args.optimizer),
            ("--accumulate", args.accumulate),
        )
        if value
    ]
    if given:
        raise UsageError(
            f"{args.model} is a graph file, to which {given[0]} does not apply; leave it out, or "
            "name a model as MODULE:CALLABLE"
        )


def load_graph(args: Namespace, progress: Progress | None) -> GraphCase:
    """TARGET as a graph.

    Raises:
        UsageError: a wrong argument or file.
        CaptureError: the model cannot be captured.
    """
    if is_graph_file(args.model):
        _refuse_plan(Path(args.model))
        return GraphCase(read_graph(args.model))
    with foreign_prints_to_stderr():
        if args.cost == "analytic":
            built = load_unallocated(args)
            return capture_unallocated(built, args, progress)
        from memfit.pytorch.api.entry import capture

        case = load_case(args)
        step = capture(
            case.model,
            case.inputs,
            case.loss_fn,
            cost=args.cost,
            optimizer=make_optimizer(args.optimizer, case.model),
            accumulate=args.accumulate,
            loops="unroll",
            progress=progress,
        )
    return GraphCase(step.graph, allocated=True)


def capture_unallocated(
    built: Built, args: Namespace, progress: Progress | None, *, likely: bool = False
) -> GraphCase:
    """The step of a model without memory as a graph; for `likely` see `Unallocated.capture`."""
    case, unallocated = built.case, built.unallocated
    unallocated.fake_module(case.model)
    with unallocated.building:
        optimizer = make_optimizer(args.optimizer, case.model)
        step = unallocated.capture(
            case.model,
            case.inputs,
            case.loss_fn,
            optimizer=optimizer,
            accumulate=args.accumulate,
            likely=likely,
            progress=progress,
        )
    return GraphCase(step.graph, built.notes, built.allocated)


def load_unallocated(args: Namespace) -> Built:
    """TARGET built without memory, or with memory where it cannot be built without.

    Raises:
        UsageError: TARGET cannot be found, called or used.
    """
    from memfit.pytorch.api.unallocated import device_is_there, holds_memory, without_memory

    device = parse_device(args.device)
    unallocated = without_memory(device)
    notes: list[str] = []
    if not device_is_there(device):
        notes.append(
            f"{device} is not on this machine: the step was captured with the CPU's ops, and its "
            "values take what PyTorch's CUDA allocator would hand out; attention kernels and the "
            "workspaces of cuBLAS and cuDNN may differ"
        )
    try:
        case = load_case(args, unallocated=unallocated)
    except UsageError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, (MemfitError, ImportError)):
            raise
        case = load_case(Namespace(**{**vars(args), "device": str(unallocated.built_on)}))
        said = " ".join(str(cause).split())[:120]
        notes.append(
            "the model was built with memory, as building it without failed: "
            f"{type(cause).__name__}: {said}"
        )
    return Built(case, unallocated, tuple(notes), holds_memory(case.model))


def _refuse_plan(path: Path) -> None:
    """A plan where a graph is wanted is a slip worth a message of its own."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(data, dict) and "graph_fingerprint" in data and "ops" not in data:
        raise UsageError(
            f"{path} is a plan, not a graph; give the model that it was made for as "
            "MODULE:CALLABLE, or a graph file"
        )
