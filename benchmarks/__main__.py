"""Run the benchmarks one after the other, with progress and the time each one took.

`python -m benchmarks [--quick]` (`make bench`) runs a part of each, in under 30 minutes in all, and
rewrites the pages under docs/benchmarks; what a part leaves out keeps its last figures.
`--full` (`make bench-full`) runs everything, for hours. A part that fails is named at the end, the
others still run; the exit code is then 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.lib.harness import ROOT, chosen, command_line, module_command

__all__ = ["PARTS", "Part", "main", "run_parts"]

QUICK_LIMIT_S = 30 * 60


@dataclass(frozen=True)
class Part:
    """A benchmark.

    Attributes:
        module: its module in this package.
        about: what it measures, in a few words.
        quick: its arguments in a quick run; None where it is not part of one.
        full: its arguments in a full run.
    """

    module: str
    about: str
    quick: tuple[str, ...] | None
    full: tuple[str, ...] = ()

    def arguments(self, *, full: bool) -> tuple[str, ...] | None:
        return self.full if full else self.quick


# One line for each benchmark; a new one is added here.
PARTS = (
    Part("planning.run", "planning times and answers", ("--quick",)),
    Part("recurrence.planning", "plans of long chains", ("--quick",)),
    Part("training.training_steps", "real networks within budgets", ("--quick",)),
    Part("peers.run", "beside what people use today", ("--quick",)),
    Part("paper.run", "the paper's networks and plans", ("--published",)),
    Part("planning.optimality", "how far from optimal", ()),
    Part("recurrence.run", "an LSTM over a long sequence", ("--quick",), ("--long",)),
    Part("training.overhead", "executor without anything to save", ("--quick",)),
    Part("training.opaque", "modules that cannot be traced", ("--quick",)),
    Part("training.inspect_accuracy", "peaks predicted without memory", ("gpt2",)),
    Part("training.variable_lengths", "inputs of several lengths", None),
    Part("training.inductor", "under Inductor", None),
    Part("ops.run", "fake results of ops beside real ones", None),
)


def run_part(part: Part, arguments: Sequence[str]) -> int:
    """Exit code of a part, which prints as it goes."""
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    return subprocess.run(
        module_command(f"benchmarks.{part.module}", *arguments),
        check=False,
        cwd=ROOT,
        env=environment,
    ).returncode


def run_parts(
    parts: Sequence[Part], *, full: bool, run: Callable[[Part, Sequence[str]], int]
) -> list[tuple[Part, int, float]]:
    """Each part with its exit code and seconds; the rest is left out after an interruption."""
    asked = [(p, a) for p in parts if (a := p.arguments(full=full)) is not None]
    done = []
    for index, (part, arguments) in enumerate(asked, 1):
        command = " ".join(("python -m", f"benchmarks.{part.module}", *arguments))
        print(f"\n== [{index}/{len(asked)}] {part.about}: {command}", flush=True)
        began = time.perf_counter()
        try:
            code = run(part, arguments)
        except KeyboardInterrupt:
            done.append((part, 130, time.perf_counter() - began))
            break
        seconds = time.perf_counter() - began
        done.append((part, code, seconds))
        print(f"== {part.module}: {'done' if code == 0 else f'FAILED ({code})'} in {seconds:.0f} s")
    return done


def main(words: Sequence[str]) -> int:
    """Run and sum up; 1 if a part failed."""
    known = [part.module for part in PARTS]
    parser = command_line(__doc__, quick="a part of each (the default)", names=known, name="module")
    parser.add_argument("--full", action="store_true", help="everything, instead of a part of each")
    options = parser.parse_args(words)
    if options.quick and options.full:
        parser.error("--quick and --full: choose one")
    names = chosen(parser, options.modules, known, "module")
    parts = [part for part in PARTS if part.module in names]
    done = run_parts(parts, full=options.full, run=run_part)
    print()
    for part, code, seconds in done:
        print(f"{'ok' if code == 0 else 'FAILED':7} {seconds / 60:6.1f} min  {part.module}")
    total = sum(seconds for _, _, seconds in done)
    print(f"{'':7} {total / 60:6.1f} min  in all")
    if not options.full and total > QUICK_LIMIT_S:
        print(f"a quick run should take at most {QUICK_LIMIT_S / 60:.0f} minutes")
    return 1 if any(code for _, code, _ in done) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
