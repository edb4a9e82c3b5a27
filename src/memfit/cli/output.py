"""What the command line writes: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from memfit.errors import InfeasibleBudgetError
from memfit.planners.base import Progress as Report

__all__ = [
    "EXIT_INFEASIBLE",
    "debugging",
    "drop_what_cannot_be_written",
    "error_payload",
    "flush_stdout",
    "foreign_prints_to_stderr",
    "one_line",
    "print_json",
    "print_notes",
    "progress",
    "stdout_console",
]

EXIT_INFEASIBLE = 3
"""Exit code of a command whose budget is infeasible."""

PROGRESS_AFTER_S = 1.0
"""Nothing is shown for what takes less."""

_PIPED_WIDTH = 120


def print_json(payload: Mapping[str, Any]) -> None:
    """One JSON object on stdout. Infinite and undefined numbers, which JSON lacks, become null."""
    print(json.dumps(_finite(payload), indent=2, sort_keys=True, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Let the command line end as it does for what is not printed by a console."""
        raise BrokenPipeError


def stdout_console() -> Console:
    """A console on stdout; wide enough for tables where stdout is a file or a pipe."""
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=_PIPED_WIDTH)


def flush_stdout() -> None:
    """Have written what was printed; a process may have been started without a stdout."""
    if sys.stdout is not None:
        sys.stdout.flush()


def drop_what_cannot_be_written() -> None:
    """Give what the interpreter flushes at exit somewhere to go, where its reader is gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError, ValueError):  # no file at all
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """One line for each note."""
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def error_payload(error: BaseException) -> dict[str, Any]:
    """The JSON object that stands for an error: `status`, `message` and the smallest budget."""
    smallest = error.minimum_bytes if isinstance(error, InfeasibleBudgetError) else None
    return {
        "status": "ERROR" if smallest is None else "INFEASIBLE",
        "message": one_line(str(error)),
        "smallest_feasible_budget": smallest,
    }


def debugging() -> bool:
    """Whether the environment asks for tracebacks (`MEMFIT_DEBUG=1`)."""
    return os.environ.get("MEMFIT_DEBUG", "") not in ("", "0")


@contextmanager
def foreign_prints_to_stderr() -> Iterator[None]:
    """While PyTorch and the user's code run: what they print goes to stderr, stdout is for results.

    PyTorch logs a traceback where it cannot trace a model; an error is one line here, so its log is
    off unless `MEMFIT_DEBUG` or PyTorch's own `TORCH_LOGS` asks for it.
    """
    from memfit.pytorch.compat.eager import quiet_logs

    if not debugging() and "TORCH_LOGS" not in os.environ:
        quiet_logs()
    with redirect_stdout(sys.stderr):
        yield


class _TimeLeft(ProgressColumn):
    """Time left in what is being done, where it says how far it is."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Such as `about 12 s left`; nothing where it is not known."""
        left = task.time_remaining
        if left is None or task.finished or not task.completed:
            return Text("")
        return Text(f"about {_duration(left)} left")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextmanager
def progress(label: str, *, shown: bool) -> Iterator[Report | None]:
    """A progress callback `(label, share done)` that draws a bar on stderr after one second.

    Yields None, and draws nothing, where it is not wanted or stderr is no terminal.
    """
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield None
        return
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        _TimeLeft(),
        console=console,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task: TaskID = bar.add_task(label, total=None)
    timer = threading.Timer(PROGRESS_AFTER_S, bar.start)
    timer.daemon = True
    timer.start()

    shown_text = label

    def report(text: str, share: float) -> None:
        nonlocal shown_text
        if text != shown_text:  # the time left is that of one kind of work
            shown_text = text
            bar.reset(task, total=1.0)
        bar.update(task, description=escape(text), completed=share, total=1.0)

    try:
        yield report
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
