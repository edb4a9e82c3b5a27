"""Every ATen op's fake result beside its real one, over PyTorch's own op database.

    python -m benchmarks.ops.run              # all entries, some minutes
    python -m benchmarks.ops.run --jobs 2     # in two processes
    python -m benchmarks.ops.run --report     # write the page from known results

Writes benchmarks/results/ops.json, docs/ops.md and src/memfit/pytorch/layouts/surveyed.txt, the
list of ops whose results memfit does not look at. The same PyTorch gives the same files. A kernel
that ends its process loses one run. Needs `expecttest`, which PyTorch's op database imports.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.lib.harness import (
    DOCS,
    ROOT,
    command_line,
    read_results,
    results_file,
    to_json,
)
from benchmarks.ops.page import page, surveyed_text
from benchmarks.ops.pool import EntryResult, run_entries
from benchmarks.ops.verdicts import survey_of
from memfit.files import write_text_whole

RESULTS = "ops"
PAGE = DOCS / "ops.md"
LIST = ROOT / "src" / "memfit" / "pytorch" / "layouts" / "surveyed.txt"


def main(words: Sequence[str]) -> int:
    """Survey and write; 1 where an entry has no samples that could be made."""
    parser = command_line(__doc__, report=True)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--samples", type=int, default=2, help="of each entry (default: 2)")
    parser.add_argument("--results", type=Path, help="write the results there, and nothing else")
    options = parser.parse_args(words)
    if options.report:
        survey = read_results(RESULTS)
    else:
        from benchmarks.ops.samples import entries

        names = entries()
        began, count = time.perf_counter(), 0

        def done(result: EntryResult) -> None:
            nonlocal count
            count += 1
            crashed = f", {len(result.crashed)} crashed" if result.crashed else ""
            print(
                f"[{count}/{len(names)}] {time.perf_counter() - began:5.0f} s {result.name}: "
                f"{result.runs} runs{crashed} {result.trouble}",
                flush=True,
            )

        found = run_entries(names, options.samples, max(1, options.jobs), done)
        version = torch.__version__.partition("+")[0]
        survey = {
            "torch": version,
            "samples": options.samples,
            **survey_of([asdict(one) for one in found]),
        }
        write_text_whole(options.results or results_file(RESULTS), to_json(survey))
    if options.results is None:
        write_text_whole(PAGE, page(survey))
        write_text_whole(LIST, surveyed_text(survey))
    for name, number in survey["verdicts"].items():
        print(f"{number:5} {name}")
    for name, why in survey["without_samples"].items():
        print(f"no samples: {name}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
