"""Every ATen op's fake result beside its real one, over PyTorch's own op database.

    python -m benchmarks.ops.run              # all entries, some minutes
    python -m benchmarks.ops.run --jobs 2     # in two processes
    python -m benchmarks.ops.run --report     # write the page from known results

Writes results/ops.json, ../docs/ops.md and ../src/memfit/pytorch/layouts/surveyed.txt, the list of
ops whose results memfit does not look at. The same PyTorch gives the same files. A kernel that ends
its process loses one run. Needs `expecttest`, which PyTorch's op database imports.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from memfit.files import write_text_whole

from benchmarks.ops.page import page, surveyed_text
from benchmarks.ops.pool import EntryResult, run_entries
from benchmarks.ops.verdicts import survey_of

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ops.json"
PAGE = HERE.parent / "docs" / "ops.md"
LIST = HERE.parent / "src" / "memfit" / "pytorch" / "layouts" / "surveyed.txt"


def main(words: Sequence[str]) -> int:
    """Survey and write; 1 where an entry has no samples that could be made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--samples", type=int, default=2, help="of each entry (default: 2)")
    parser.add_argument("--report", action="store_true", help="write the page, run nothing")
    parser.add_argument("--results", type=Path, help="write the results there, and nothing else")
    options = parser.parse_args(words)
    if options.report:
        survey = json.loads(RESULTS.read_text())
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
        write_text_whole(options.results or RESULTS, json.dumps(survey, indent=1) + "\n")
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
