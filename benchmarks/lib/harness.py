"""What benchmarks have in common: where files are, command lines, rounds, results, pages.

Imports no PyTorch by itself: some benchmarks measure the memory of processes that do without it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from memfit.files import write_text_whole

__all__ = [
    "DOCS",
    "MIB",
    "PAGES",
    "ROOT",
    "chosen",
    "command_line",
    "interleaved",
    "machine",
    "medians",
    "milliseconds",
    "module_command",
    "processor",
    "ratios",
    "read_results",
    "reference_folder",
    "results_file",
    "say",
    "step_facts",
    "svg",
    "table",
    "to_json",
    "write_page",
    "write_results",
]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = DOCS / "benchmarks"
MIB = 2**20

Key = TypeVar("Key")
Found = TypeVar("Found")


# --- command lines and processes ------------------------------------------------------------------


def command_line(
    about: str | None,
    *,
    quick: str | None = None,
    report: bool = False,
    names: Iterable[str] = (),
    name: str = "network",
) -> argparse.ArgumentParser:
    """A parser with the options that most benchmarks have; they add their own.

    Args:
        about: the benchmark's docstring, of which the first line is shown.
        quick: what `--quick` runs; None where there is no such option.
        report: whether there is `--report`, which writes the page and runs nothing.
        names: what can be chosen by name; see `chosen`.
        name: what such a name is of.
    """
    spec = sys.modules["__main__"].__spec__  # None where a file is run, and not a module
    prog = f"python -m {spec.name.removesuffix('.__main__')}" if spec else None
    parser = argparse.ArgumentParser(prog=prog, description=(about or "").splitlines()[0])
    known = ", ".join(names)
    if known:
        parser.add_argument(f"{name}s", nargs="*", metavar=name.upper(), help=known)
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help=quick)
    if report:
        text = "write the page from known results, run nothing"
        parser.add_argument("--report", action="store_true", help=text)
    return parser


def chosen(
    parser: argparse.ArgumentParser,
    asked: Sequence[str],
    known: Iterable[str],
    name: str = "network",
) -> list[str]:
    """The names asked for, or all that are known; an unknown one ends the program."""
    every = list(known)
    unknown = [one for one in asked if one not in every]
    if unknown:
        parser.error(f"unknown {name} {unknown[0]!r}; known {name}s: {', '.join(every)}")
    return list(asked) or every


def module_command(module: str, *arguments: str) -> list[str]:
    """How a benchmark's module is started in a process of its own, from `ROOT`."""
    return [sys.executable, "-m", module, *arguments]


def say(text: str) -> None:
    """A line of progress, with the time of day."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def reference_folder() -> Path:
    """Folder of the published graphs and golden values."""
    given = os.environ.get("MEMFIT_REFERENCE")
    return Path(given) if given else ROOT.parent / "shared" / "reference"


# --- rounds ---------------------------------------------------------------------------------------


def interleaved(
    measures: Mapping[Key, Callable[[], Found]],
    rounds: int,
    *,
    warmup: int = 1,
    after: Callable[[int, Mapping[Key, list[Found]]], None] = lambda index, found: None,
) -> dict[Key, list[Found]]:
    """What each measure returns, once a round, every second round in reverse order.

    Args:
        measures: the measures, such as `milliseconds` of a step, in the order of the first round.
        rounds: rounds that count.
        warmup: rounds before them that do not.
        after: called after each round with its number, 0 or less before those that count, and with
            what was found so far.
    """
    order = list(measures)
    found: dict[Key, list[Found]] = {key: [] for key in measures}
    for index in range(1 - warmup, rounds + 1):
        for key in order:
            one = measures[key]()
            if index > 0:
                found[key].append(one)
        order.reverse()
        after(index, found)
    return found


def milliseconds(step: Callable[[], object]) -> float:
    """How long a step takes by the clock."""
    began = time.perf_counter_ns()
    step()
    return (time.perf_counter_ns() - began) / 1e6


def medians(times: Mapping[Key, Sequence[float]]) -> dict[Key, float]:
    """The median of each."""
    return {key: statistics.median(rounds) for key, rounds in times.items()}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round: what disturbs a whole round disturbs both."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


# --- where figures were made ----------------------------------------------------------------------


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What figures of planning are made on; `memfit.build_info` says with what."""
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def step_facts() -> dict[str, Any]:
    """What figures of real steps are made with."""
    import torch

    return {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


# --- results --------------------------------------------------------------------------------------


def results_file(name: str) -> Path:
    """Where results are kept."""
    return ROOT / "benchmarks" / "results" / f"{name}.json"


def read_results(name: str, otherwise: Any = None) -> Any:
    """Results of an earlier run.

    Args:
        name: whose, as in `results_file`.
        otherwise: what to take where there are none; None is an error there.
    """
    path = results_file(name)
    if otherwise is not None and not path.is_file():
        return otherwise
    return json.loads(path.read_text(encoding="utf-8"))


def write_results(name: str, document: Any) -> None:
    """Keep results, for `read_results`."""
    write_text_whole(results_file(name), to_json(document))


def to_json(document: Any) -> str:
    """JSON with a row a line, so that a diff shows which figures are new.

    A row is a list of scalars, or an object without lists of anything but scalars inside. Objects
    of nothing but objects are tables by name: each of their entries is a row.
    """
    return "\n".join(_lines(document, "", "", row=False)) + "\n"


def _lines(value: Any, indent: str, start: str, *, row: bool) -> list[str]:
    nested = isinstance(value, dict | list) and bool(value)
    if not nested or (_is_row(value) and (row or not _is_table(value)) and indent):
        return [f"{indent}{start}{json.dumps(value)}"]
    inner = indent + " "
    if isinstance(value, dict):
        parts = [_lines(v, inner, f"{json.dumps(k)}: ", row=False) for k, v in value.items()]
    else:
        parts = [_lines(v, inner, "", row=True) for v in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = [f"{indent}{start}{opening}"]
    for at, part in enumerate(parts):
        lines += part
        lines[-1] += "," if at + 1 < len(parts) else ""
    return [*lines, f"{indent}{closing}"]


def _is_row(value: Any) -> bool:
    if isinstance(value, list):
        return not any(isinstance(v, dict | list) for v in value)
    return not isinstance(value, dict) or all(_is_row(v) for v in value.values())


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, dict) for v in value.values())


# --- pages ----------------------------------------------------------------------------------------


def write_page(name: str, text: str) -> None:
    """A page or a picture of the documentation's benchmarks, such as `planning.md`."""
    write_text_whole(PAGES / name, text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int) -> list[str]:
    """A Markdown table whose columns from number `right` on are aligned to the right."""
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join("---:" if i >= right else "---" for i in range(len(head))) + "|")
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def svg(draw: Callable[[], Any]) -> str:
    """A figure of matplotlib's as SVG, the same bytes each time.

    Args:
        draw: makes the figure; called with the style of all pictures set.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "memfit", "font.size": 9.5}):
        out = io.StringIO()
        draw().savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
