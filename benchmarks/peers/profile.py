"""Where plain PyTorch and memfit spend a step of a network of `run`, op by op.

memfit gets plain PyTorch's peak as its budget, so that it recomputes nothing: what it takes longer
is the captured step's. Prints the ops with the largest differences, in ms of one thread.

Run `python -m benchmarks.peers.profile NETWORK [--ops N]`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.lib.harness import command_line
from benchmarks.peers.networks import SUBJECTS
from benchmarks.peers.run import Run, captured, fitted, set_up
from benchmarks.peers.ways import ways


def op_times(run: Run) -> dict[str, tuple[float, int]]:
    """Milliseconds in each op itself, and how often it ran, in one step after two others."""
    for _ in range(2):
        run.reset()
        run.step()
    run.reset()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run.step()
    return {e.key: (e.self_cpu_time_total / 1e3, e.count) for e in seen.key_averages()}


def main(words: Sequence[str]) -> int:
    """Profile both and print."""
    parser = command_line(__doc__)
    parser.add_argument("network", choices=SUBJECTS)
    parser.add_argument("--ops", type=int, default=12, help="ops to show (default 12)")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    subject = SUBJECTS[options.network]()
    eager = next(way for way in ways(subject, ()) if way.kind == "eager")
    plain, expected = set_up(subject, eager, None)
    graph, _ = captured(subject)
    budget = plain.row["peak_bytes"] + graph.resident_bytes
    ours = fitted(subject, "memfit", "memfit", budget, expected, graph)
    before, after = op_times(plain), op_times(ours)
    none = (0.0, 0)
    differences = {op: after.get(op, none)[0] - before.get(op, none)[0] for op in {*before, *after}}
    print(f"{'':40} {'plain':>16} {'memfit':>16} {'more':>8}")
    for op in sorted(differences, key=lambda op: -abs(differences[op]))[: options.ops]:
        a, b = before.get(op, none), after.get(op, none)
        print(f"{op[:40]:40} {a[0]:8.1f} {a[1]:6}x {b[0]:8.1f} {b[1]:6}x {differences[op]:+8.1f}")
    totals = (sum(t for t, _ in before.values()), sum(t for t, _ in after.values()))
    print(
        f"{'all':40} {totals[0]:8.1f} {'':7} {totals[1]:8.1f} {'':7} {totals[1] - totals[0]:+8.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
