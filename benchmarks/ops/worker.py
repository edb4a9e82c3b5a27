"""A process that runs entries of the op database for `run`, and may crash in a kernel.

The argument is how many samples are taken of an entry. Reads lines `entry first_run` from stdin and
writes to stdout, as JSON lines, what it is about to do and what it found. The first runs of an
entry that crashed are left out: they were told before.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.ops.samples import execute, runs_of
from benchmarks.ops.watch import Call, Watch


def main() -> None:
    """Serve until stdin ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what kernels print is not for the reader
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def tell(kind: str, value: Any) -> None:
        out.write(json.dumps([kind, value]) + "\n")

    watch = Watch(lambda call: tell("call", compact(call)), lambda op: tell("op", op))
    for line in sys.stdin:
        entry, first = line.split()
        try:
            for number, run in enumerate(runs_of(entry, int(sys.argv[1]))):
                if number < int(first):
                    continue
                tell("run", [number, run.label])
                try:
                    with watch:
                        execute(run)
                except Exception as error:  # refused, as in eager
                    tell("refused", type(error).__name__)
        except Exception as error:
            tell("no samples", f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
        tell("done", entry)


def compact(call: Call) -> dict[str, Any]:
    """What is not empty of a call."""
    return {k: v for k, v in asdict(call).items() if v}


if __name__ == "__main__":
    main()
