"""Are plans the same as another memfit's, or as the other core's? Field by field.

    python -m benchmarks.planning.same_plans --beside ../before/.venv/bin/python
    python -m benchmarks.planning.same_plans --beside-core python

Plans the published graphs and four captured ones (ResNet50, GPT-2, U-Net, an LSTM; analytic costs),
or the graph files that are named, with all planners at five budgets, by `memfit solve`, here and
there, and says where any field differs. Seconds and the version of memfit are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.lib.captures import graph_file, is_kept, keep
from benchmarks.lib.harness import command_line, reference_folder, say
from memfit.planners.registry import PLANNERS

BUDGETS = ("100%", "80%", "60%", "45%", "30%")
_LEFT_OUT = frozenset({"seconds", "memfit"})
_WORKER = Path(__file__).with_name("solve_all.py")


def captured() -> Iterator[Path]:
    """The captured graphs, kept in a cache on disk."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.lib import networks

    builders = {
        "resnet50": networks.resnet50,
        "gpt2": networks.gpt2,
        "unet": networks.unet,
        "lstm": lambda: networks.lstm(steps=32),
    }
    for name, build in builders.items():
        file = graph_file(f"same-{name}", 1, [Path(networks.__file__)])
        if not is_kept(file):
            from memfit.pytorch.api.entry import capture

            case = build()
            made = capture(case.model, case.args, case.loss_fn, cost="analytic")
            keep(made.graph, {}, file)
        yield file


def solved(
    python: str, core: str, commands: Sequence[Sequence[str]], jobs: int
) -> list[dict[str, Any]]:
    """What some memfit plans: one answer for each command."""
    environment = {**os.environ, "MEMFIT_CORE": core, "OMP_NUM_THREADS": "1"}
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)

    def run(share: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        made = subprocess.run(
            [python, "-P", str(_WORKER)],
            input=json.dumps(share),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        found = [json.loads(line) for line in made.stdout.splitlines()]
        if len(found) < len(share):
            raise SystemExit(
                f"{python} ended at {' '.join(share[len(found)])} with exit code "
                f"{made.returncode}: {made.stderr.strip()[-500:]}"
            )
        return found

    with ThreadPoolExecutor(jobs) as pool:
        shares = [commands[i::jobs] for i in range(jobs)]
        answers = list(pool.map(run, shares))
    found: list[dict[str, Any]] = [{}] * len(commands)
    for i, answer in enumerate(answers):
        found[i::jobs] = answer
    return found


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """Names of the fields that differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            if key not in _LEFT_OUT:
                yield from differences(ours.get(key), theirs.get(key), f"{where}.{key}")
    elif ours != theirs:
        yield where.lstrip(".")


def main() -> int:
    """Compare; 1 where a plan differs."""
    parser = command_line(__doc__)
    parser.add_argument("graphs", nargs="*", type=Path, help="graph files")
    parser.add_argument(
        "--beside",
        metavar="PYTHON",
        default=sys.executable,
        help="interpreter in which the other memfit is installed",
    )
    parser.add_argument("--core", default="native", choices=("native", "python"))
    parser.add_argument(
        "--beside-core",
        default=None,
        choices=("native", "python"),
        help="core of the other; default: the same",
    )
    parser.add_argument("--planners", nargs="+", default=("auto", *PLANNERS), metavar="NAME")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, metavar="BUDGET")
    parser.add_argument(
        "--ignore",
        nargs="*",
        default=(),
        metavar="FIELD",
        help="fields that may differ, as they are printed",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    graphs = args.graphs or [*sorted((reference_folder() / "graphs").glob("*.txt")), *captured()]
    total: Counter[str] = Counter()
    for graph in graphs:
        commands = [
            [str(graph), "--planner", planner, "--budget", budget]
            for planner in args.planners
            for budget in args.budgets
        ]
        ours = solved(sys.executable, args.core, commands, args.jobs)
        theirs = solved(args.beside, args.beside_core or args.core, commands, args.jobs)
        for command, one, other in zip(commands, ours, theirs, strict=True):
            fields = [f for f in differences(one, other) if f not in args.ignore]
            total["plans"] += 1
            total["infeasible"] += one["code"] == 3
            total["differ"] += bool(fields)
            if fields:
                print(f"{' '.join(command)}: {', '.join(fields)}")
        say(f"{graph.name}: {total['plans']} plans so far, {total['differ']} differ")
    print(
        f"{total['plans']} plans of {len(graphs)} graphs ({total['infeasible']} infeasible, which "
        f"are compared by their errors): {total['differ']} differ"
    )
    return 1 if total["differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
