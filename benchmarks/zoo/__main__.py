"""Public architectures, each trained plainly and within a budget, by its name.

    python -m benchmarks.zoo                     # all of them
    python -m benchmarks.zoo language gpt2       # groups and names
    python -m benchmarks.zoo --resume            # those that the results do not have yet
    python -m benchmarks.zoo --list              # the names
    python -m benchmarks.zoo --report            # write the page from known results

Each runs in a process of its own: three steps of plain PyTorch, then three of `memfit.fit` at 60%
of the plain peak, or at the smallest budget that the error names, from the same parameters, seeds
and batches. Writes benchmarks/results/zoo.json after each architecture, and docs/benchmarks/zoo.md
at the end. The packages are those of `make zoo`; nothing is downloaded. Exit code 1 where a trained
model's gradients are wrong, or plain PyTorch fails.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.lib.harness import command_line, read_results, write_page, write_results
from benchmarks.zoo.page import conditions, page
from benchmarks.zoo.pool import run_all
from benchmarks.zoo.registry import GROUPS, asked, group_of, names, names_of
from benchmarks.zoo.summary import line_of, ordered

RESULTS, PAGE = "zoo", "zoo.md"
LIMIT_S = 180.0


def main(words: Sequence[str]) -> int:
    """Run what is asked for; 1 where something is wrong."""
    parser = command_line(__doc__, report=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures or groups")
    parser.add_argument("--list", action="store_true", help="print the names, run nothing")
    parser.add_argument("--resume", action="store_true", help="leave out what has results")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for each")
    options = parser.parse_args(words)
    if options.list:
        for group, title in GROUPS.items():
            print(f"{title} ({group}): {', '.join(names_of(group))}")
        return 0
    document: dict[str, Any] = read_results(RESULTS, {"rows": {}})
    if not options.report:
        try:
            wanted = asked(options.names)
        except KeyError as error:
            parser.error(f"unknown architecture or group {error}; --list shows them")
        known = document["rows"] if options.resume else {}
        _run([name for name in wanted if name not in known], document, options)
    write_page(PAGE, page(document, names()))
    rows = document["rows"].values()
    wrong = [r for r in rows if r["outcome"] == "plain fails" or r.get("verdict") == "wrong"]
    return 1 if wrong else 0


def _run(wanted: Sequence[str], document: dict[str, Any], options: Any) -> None:
    document["conditions"] = conditions()
    began, count = time.perf_counter(), 0

    def done(name: str, row: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        document["rows"][name] = {"group": group_of(name), **row}
        document["rows"] = ordered(document["rows"], names())
        write_results(RESULTS, document)
        seconds = time.perf_counter() - began
        print(f"[{count}/{len(wanted)}] {seconds:5.0f} s {line_of(name, row)}", flush=True)

    run_all(wanted, options.limit, max(1, options.jobs), done)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
