"""`memfit demo`: a built-in U-Net trained within 80, 60 and 40% of its plain step's peak."""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.cli.arguments import add_output_arguments
from memfit.cli.output import foreign_prints_to_stderr, print_json, progress, stdout_console
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.planners.base import Progress
from memfit.units import format_bytes

if TYPE_CHECKING:
    from memfit.pytorch.api.demo_model import DemoCase
    from memfit.pytorch.api.verify import VerifyResult
    from memfit.pytorch.capture.captured_step import CapturedStep

__all__ = ["SHARES", "add_parser", "run"]

SHARES = (80, 60, 40)
"""Budgets, in percent of the plain step's measured peak."""

ROUNDS = 7
"""Timed steps of each kind."""

_PICTURE = "timeline.svg"
_REPORT = "report.html"
_DESCRIPTION = """\
Train a built-in U-Net with dropout and batch norm on one CPU thread: a plain step, then steps
within 80%, 60% and 40% of its measured peak (or within the smallest feasible budget, where that is
larger). Prints what was predicted and measured, and draws memory over time. Nothing is downloaded.
"""


@dataclass(frozen=True, slots=True)
class _Row:
    """One budget.

    Attributes:
        share_percent: of the plain step's measured peak.
        asked_bytes: that share, in bytes.
        result: what the step did within the budget; its budget is the smallest feasible one where
            what was asked for is smaller.
    """

    share_percent: int
    asked_bytes: int
    result: VerifyResult

    @property
    def raised(self) -> bool:
        return self.result.budget_bytes > self.asked_bytes


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo` to the subcommands."""
    parser = subparsers.add_parser(
        "demo",
        help="train a built-in U-Net within three budgets",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="folder for picture and report, made where it is missing (default: %(default)s)",
    )
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the steps, draw the picture, print the table.

    Returns:
        0, or 1 where a planned step is wrong or over its budget.

    Raises:
        UsageError: the folder cannot be used.
    """
    folder: Path = args.output
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"cannot write to {folder}: it is a file; give a folder with -o")
    began = time.perf_counter()
    with (
        progress("loading", shown=not (args.json or args.quiet)) as report,
        foreign_prints_to_stderr(),
    ):
        from memfit.pytorch.api.demo_model import demo_case

        case = demo_case(batch=2, size=128)
        with _one_thread():
            step, plain_peak_bytes = _plain(case, report)
            rows = [_row(case, share, plain_peak_bytes, report) for share in SHARES]
        _make_folder(folder)
        picture = _draw(folder / _PICTURE, step, rows[-1], report)
        page = _report(folder / _REPORT, step, rows[-1])
    seconds = time.perf_counter() - began
    if args.json:
        print_json(_payload(rows, plain_peak_bytes, picture, page, seconds))
    else:
        _print(rows, plain_peak_bytes, step.graph.resident_bytes, picture, page, seconds)
    return 0 if all(row.result.ok for row in rows) else 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other make times useless on a machine that does other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _scaled(report: Progress | None, label: str) -> Progress | None:
    """The callback with `label` before what is said."""
    if report is None:
        return None
    return lambda text, share: report(f"{label}: {text}", share)


def _plain(case: DemoCase, report: Progress | None) -> tuple[CapturedStep, int]:
    """The step as a graph, and the plain step's measured peak, resident memory included."""
    from memfit.pytorch.api.entry import capture
    from memfit.pytorch.cost.measure import measure_step

    def run_step() -> object:
        loss = case.loss_fn(case.model(*case.inputs), case.target)
        loss.backward()
        return loss

    step = capture(
        case.model,
        (*case.inputs, case.target),
        case.loss_fn,
        progress=_scaled(report, "plain step"),
    )
    peak = measure_step(run_step, reset=lambda: case.model.zero_grad(set_to_none=True)).peak_bytes
    case.model.zero_grad(set_to_none=True)
    return step, step.graph.resident_bytes + peak


def _row(case: DemoCase, share: int, plain_peak_bytes: int, report: Progress | None) -> _Row:
    from memfit.pytorch.api.verify import verify

    asked = plain_peak_bytes * share // 100

    def attempt(budget_bytes: int) -> VerifyResult:
        return verify(
            case.model,
            (*case.inputs, case.target),
            case.loss_fn,
            budget=budget_bytes,
            rounds=ROUNDS,
            progress=_scaled(report, f"budget {share}%"),
        )

    try:
        return _Row(share, asked, attempt(asked))
    except InfeasibleBudgetError as error:
        return _Row(share, asked, attempt(error.minimum_bytes))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make folder {folder}: {error.strerror}; give another one with -o"
        ) from None


def _report(path: Path, step: CapturedStep, row: _Row) -> Path:
    """The report of the tightest budget, with the trade-off."""
    from memfit.analysis.curve import sample_curve
    from memfit.planners import PlannerOptions
    from memfit.pytorch.capture.op_shapes import op_shapes
    from memfit.report.page.html import save_report

    curve = sample_curve(step.graph, "auto", PlannerOptions(), most=12)
    save_report(path, step.graph, row.result.plan, op_shapes(step), curve)
    return path


def _draw(path: Path, step: CapturedStep, row: _Row, report: Progress | None) -> Path | None:
    """The picture of the tightest budget; None where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from memfit.analysis.trace import trace_of
    from memfit.graph.plain import store_all_schedule
    from memfit.report.figure import save_timeline_figure

    if report is not None:
        report("drawing", 0.0)
    result = row.result
    result.plan.check_graph(step.graph)
    save_timeline_figure(
        path,
        plain=trace_of(step.graph, store_all_schedule(step.graph)),
        planned=trace_of(step.graph, result.plan.schedule),
        budget_bytes=result.budget_bytes,
        title=f"Demo U-Net within {_budget_label(row)}",
    )
    return path


def _print(
    rows: list[_Row],
    plain_peak_bytes: int,
    resident_bytes: int,
    picture: Path | None,
    page: Path,
    seconds: float,
) -> None:
    from memfit.report.tables import demo_row, demo_table, print_tables

    console = stdout_console()
    table = demo_table(
        [demo_row(_row_label(row), row.result) for row in rows],
        plain_peak_bytes=plain_peak_bytes,
        plain_time_ns=rows[0].result.plain_time_ns,
    )
    print_tables(console, table)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    say(
        "Peaks are of the whole step; parameters, buffers and inputs "
        f"({format_bytes(resident_bytes)}) are part of them. Overheads are against the captured "
        "step that keeps everything, timed on one thread."
    )
    for row in rows:
        if row.raised:
            say(
                f"{row.share_percent}% of the plain step's peak, {format_bytes(row.asked_bytes)}, "
                "is less than the smallest feasible budget, so the step ran within the latter: "
                f"{format_bytes(row.result.budget_bytes)}."
            )
    say(_correctness(rows))
    if picture is None:
        say('No picture: matplotlib is not installed; run: pip install "memfit[plot]"')
    else:
        say(f"Memory over one step, plain against planned: {picture}")
    say(f"The same as a page, with graph and trade-off, to open in a browser: {page}")
    say(f"Done in {seconds:.0f} s.")


def _row_label(row: _Row) -> str:
    return "smallest feasible" if row.raised else f"{row.share_percent}%"


def _correctness(rows: list[_Row]) -> str:
    """How gradients and buffers compare with plain PyTorch's, in one sentence."""
    worst = max(row.result.plain_largest_difference for row in rows)
    gradients = (
        "Gradients equal plain PyTorch's bit for bit"
        if all(row.result.plain_gradients_equal for row in rows)
        else f"Gradients differ from plain PyTorch's by at most {worst:.1e} of a gradient's "
        "largest entry"
    )
    buffers = (
        "batch norm's running statistics do too"
        if all(row.result.buffers_equal for row in rows)
        else "BATCH NORM'S RUNNING STATISTICS DIFFER"
    )
    return f"{gradients}; {buffers}."


def _budget_label(row: _Row) -> str:
    if row.raised:
        return f"its smallest feasible budget ({row.share_percent}% is less)"
    return f"{row.share_percent}% of the plain step's peak"


def _payload(
    rows: list[_Row], plain_peak_bytes: int, picture: Path | None, page: Path, seconds: float
) -> dict[str, Any]:
    return {
        "status": "OK" if all(row.result.ok for row in rows) else "FAILED",
        "plain_peak_bytes": plain_peak_bytes,
        "budgets": [
            {
                "share_percent": row.share_percent,
                "asked_bytes": row.asked_bytes,
                "raised_to_smallest_feasible": row.raised,
                **row.result.to_dict(),
            }
            for row in rows
        ],
        "picture": None if picture is None else str(picture),
        "report": str(page),
        "seconds": seconds,
    }
