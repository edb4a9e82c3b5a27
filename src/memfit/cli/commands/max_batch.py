"""`memfit max-batch`: the largest batch whose training step fits a budget."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from memfit.budget import parse_budget
from memfit.cli.arguments import (
    add_held_arguments,
    add_output_arguments,
    add_time_limit_argument,
    make_optimizer,
)
from memfit.cli.batch_search import Found, Trial, largest_batch
from memfit.cli.graph_case import capture_unallocated, load_unallocated
from memfit.cli.output import (
    foreign_prints_to_stderr,
    print_json,
    print_notes,
    progress,
    stdout_console,
)
from memfit.cli.resizing import first_size, resized_arguments, resized_case
from memfit.cli.target import add_target_arguments, check_target_arguments, load_case
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph.estimates import estimate_note
from memfit.graph.plain import plain_peak_bytes
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PLANNERS, PlannerOptions, get_planner
from memfit.planners.base import Progress
from memfit.units import format_bytes

if TYPE_CHECKING:
    from memfit.pytorch.api.verify import VerifyResult

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
The largest batch whose training step has a plan within a budget. Each batch tried is captured
without giving the model memory and planned with estimated costs; the batch is doubled until it does
not fit, then narrowed down, first along the line through the two nearest trials, then by bisection.
--verify then runs the step of that batch, with measured costs, and compares it with plain PyTorch.

The batch is the first size of --input and --target (or of the inputs that TARGET returns, where it
is that of the first one); where TARGET takes the batch as an argument, name it with --batch-arg.

  memfit max-batch pytorchcv.models.resnet:resnet50 --input 8x3x224x224 --budget 8GiB
  memfit max-batch my_file:make_case --batch-arg batch --budget 8GiB --optimizer adamw
"""


@dataclass
class _Search:
    """Trials of batches, and what they leave behind."""

    args: argparse.Namespace
    budget_bytes: int
    report: Progress | None
    notes: dict[str, None] = field(default_factory=dict)
    plans: dict[int, tuple[Plan, TrainingGraph]] = field(default_factory=dict)
    plain_peaks: dict[int, int] = field(default_factory=dict)
    allocated: bool = False

    def planned(self, batch: int) -> Trial:
        """Whether some plan fits."""
        graph = self._graph(batch)
        options = PlannerOptions(time_limit_s=self.args.time_limit, progress=self._say(batch))
        try:
            plan = get_planner(self.args.planner)(graph, self.budget_bytes, options)
        except InfeasibleBudgetError as error:
            return Trial(batch, error.minimum_bytes, False)
        if plan.timeline(graph).peak_bytes > self.budget_bytes:
            return Trial(batch, plan.peak_bytes, False)
        self.plans[batch] = (plan, graph)
        return Trial(batch, plan.smallest_feasible_budget_bytes, True)

    def plain(self, batch: int) -> Trial:
        """Whether the step that keeps everything fits."""
        if batch not in self.plain_peaks:
            self._graph(batch)
        peak = self.plain_peaks[batch]
        return Trial(batch, peak, peak <= self.budget_bytes)

    def _graph(self, batch: int) -> TrainingGraph:
        args = resized_arguments(self.args, batch)
        built = load_unallocated(args)
        if self.args.batch_arg is None:
            with built.unallocated.building:
                built = built.resized(resized_case(built.case, batch))
        found = capture_unallocated(built, args, self._say(batch))
        self.notes.update(dict.fromkeys(found.notes))
        self.allocated |= found.allocated
        graph = found.graph
        self.plain_peaks[batch] = plain_peak_bytes(graph)
        return graph

    def _say(self, batch: int) -> Progress | None:
        report = self.report
        if report is None:
            return None
        return lambda text, share: report(f"batch {batch}: {text}", share)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `max-batch` to the subcommands."""
    parser = subparsers.add_parser(
        "max-batch",
        help="the largest batch that fits a budget",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_target_arguments(parser)
    add_held_arguments(parser)
    parser.add_argument(
        "--budget",
        required=True,
        help='peak of the whole step, in bytes ("8GiB", "800MB"), or "auto" (what the device has '
        "free)",
    )
    parser.add_argument(
        "--batch-arg",
        metavar="NAME",
        help="TARGET's argument that is the batch; it returns inputs of that batch",
    )
    parser.add_argument(
        "--planner", default="auto", help=f"auto, {', '.join(PLANNERS)} (default: auto)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="build the model and run the step of the batch found, planned and plain; exit code 1 "
        "where it is wrong or over the budget",
    )
    add_time_limit_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, and print what was found.

    Returns:
        0; 1 where `--verify` found the step wrong or over the budget.

    Raises:
        InfeasibleBudgetError: not even a batch of 1 fits.
        MemfitError: wrong arguments, a model that cannot be captured.
    """
    check_target_arguments(args)
    get_planner(args.planner)
    if args.batch_arg is not None and (args.input or not args.batch_arg.isidentifier()):
        raise UsageError(
            f"--batch-arg {args.batch_arg} names an argument of a TARGET that returns its own "
            "inputs; leave --input out, or --batch-arg"
        )
    if parse_budget(args.budget).share is not None:
        raise UsageError(
            f"budget {args.budget!r} is a share of a step that grows with the batch; give bytes, "
            'such as "8GiB", or "auto"'
        )
    began = time.perf_counter()
    with (
        progress("loading", shown=not (args.json or args.quiet)) as report,
        foreign_prints_to_stderr(),
    ):
        search = _Search(args, _budget_bytes(args), report)
        start = _start(args)
        found = largest_batch(search.planned, search.budget_bytes, start)
        if not found.batch:
            raise _too_large(found, search.budget_bytes)
        plain = largest_batch(search.plain, search.budget_bytes, _likely(search, start))
        checked = _verified(args, found.batch, search) if args.verify else None
    seconds = time.perf_counter() - began
    plan, graph = search.plans[found.batch]
    estimates = estimate_note(
        graph, "a larger batch may fit", "memfit plan with that batch measures it"
    )
    if estimates:
        search.notes[estimates] = None
    problem = checked if isinstance(checked, str) else None
    result = None if isinstance(checked, str) else checked
    ok = problem is None and (result is None or result.ok)
    if args.json:
        payload: dict[str, Any] = {
            "status": "OK" if ok else "FAILED",
            "batch": found.batch,
            "plain_batch": plain.batch,
            "budget_bytes": search.budget_bytes,
            "peak_bytes": plan.timeline(graph).peak_bytes,
            "overhead_percent": plan.overhead_percent,
            "planner": plan.planner,
            "trials": [asdict(trial) for trial in found.trials],
            "limited": found.limited,
            "verified": None if result is None else result.to_dict(),
            "verify_problem": problem,
            "model_allocated": search.allocated,
            "seconds": seconds,
            "notes": list(search.notes),
        }
        print_json(payload)
        return 0 if ok else 1
    _print(search, found, plain.batch, result, problem, seconds)
    return 0 if ok else 1


def _budget_bytes(args: argparse.Namespace) -> int:
    budget = parse_budget(args.budget)
    if budget.absolute_bytes is not None:
        return budget.absolute_bytes
    from memfit.cli.target import parse_device
    from memfit.pytorch.api.unallocated import device_is_there
    from memfit.pytorch.cost.measure import free_bytes

    device = parse_device(args.device)
    if not device_is_there(device):
        raise UsageError(
            f'budget "auto" asks what {device} has free, and it is not on this machine; give '
            'bytes, such as "8GiB"'
        )
    return free_bytes(device)


def _start(args: argparse.Namespace) -> int:
    """The batch to try first: the one written, or 1."""
    if args.batch_arg is not None:
        for text in args.arg:
            name, _, value = text.partition("=")
            if name == args.batch_arg and value.isdigit():
                return max(1, int(value))
        return 1
    return first_size(args.input[0]) if args.input else 1


def _likely(search: _Search, start: int) -> int:
    """The largest batch tried whose plain step fits; where there is none, the smallest tried."""
    fitting = [b for b, peak in search.plain_peaks.items() if peak <= search.budget_bytes]
    return max(fitting, default=min(search.plain_peaks, default=start))


def _too_large(found: Found, budget_bytes: int) -> InfeasibleBudgetError:
    smallest = min(found.trials, key=lambda trial: trial.batch)
    return InfeasibleBudgetError(
        budget_bytes=budget_bytes,
        minimum_bytes=smallest.need_bytes,
        binding_op=None,
        detail="of a batch of 1",
        remedy="make the input, the trained parameters or the optimizer's state smaller; memfit "
        "explain says what binds",
    )


def _verified(args: argparse.Namespace, batch: int, search: _Search) -> VerifyResult | str:
    """The step of that batch as run, or why there is none within the budget."""
    from memfit.pytorch.api.verify import verify

    resized = resized_arguments(args, batch)
    case = load_case(resized)
    if args.batch_arg is None:
        case = resized_case(case, batch)
    try:
        return verify(
            case.model,
            case.inputs,
            case.loss_fn,
            budget=search.budget_bytes,
            planner=args.planner,
            optimizer=make_optimizer(args.optimizer, case.model),
            accumulate=args.accumulate,
            rounds=1,
            progress=search.report,
        )
    except InfeasibleBudgetError as error:
        return (
            f"with measured workspaces a batch of {batch} needs "
            f"{format_bytes(error.minimum_bytes)}; try a smaller one"
        )


def _print(
    search: _Search,
    found: Found,
    plain_batch: int,
    result: VerifyResult | None,
    problem: str | None,
    seconds: float,
) -> None:
    from memfit.report.tables import figures_table, print_tables

    plan, graph = search.plans[found.batch]
    table = figures_table(f"Largest batch of {graph.name}", "", "", texts=(0, 1))
    table.add_row("largest batch within the budget", str(found.batch))
    table.add_row("without a plan", str(plain_batch) if plain_batch else "none: not even 1")
    table.add_row("budget", format_bytes(search.budget_bytes))
    table.add_row("peak of its plan, simulated", format_bytes(plan.timeline(graph).peak_bytes))
    table.add_row("overhead, estimated", f"{plan.overhead_percent:+.1f}% of a step")
    after = next((t for t in found.trials if t.batch == found.batch + 1), None)
    if after is not None:
        table.add_row(f"a batch of {after.batch} needs", format_bytes(after.need_bytes))
    table.add_row("batches tried", _tried(found.trials))
    table.add_row("the model was given memory", "yes" if search.allocated else "no")
    table.add_row("found in", f"{seconds:.1f} s")
    if result is not None:
        table.add_row("peak of its plan, measured", format_bytes(result.planned_peak_bytes))
        table.add_row("within the budget", "yes" if result.within_budget else "NO")
        table.add_row("gradients and buffers right", "yes" if _right(result) else "NO")
    console = stdout_console()
    print_tables(console, table)
    if problem is not None:
        console.print(f"NOT VERIFIED: {problem}", soft_wrap=True, markup=False)
    if found.limited:
        console.print("note: larger batches were not tried", soft_wrap=True)
    print_notes(console, list(search.notes))


def _right(result: VerifyResult) -> bool:
    return result.gradients_equal and result.buffers_equal


def _tried(trials: Sequence[Trial]) -> str:
    return ", ".join(f"{t.batch} {'fits' if t.fits else 'does not'}" for t in trials)
