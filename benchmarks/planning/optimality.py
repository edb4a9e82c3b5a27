"""How far from optimal: plans of published networks beside proven lower bounds.

    python -m benchmarks.planning.optimality                   # VGG19 and U-Net, some minutes
    python -m benchmarks.planning.optimality --time-limit 60   # per bound; 600 by default
    python -m benchmarks.planning.optimality --report          # write the page from known results

Writes benchmarks/results/optimality.json and docs/benchmarks/optimality.md. Needs `memfit[ilp]`.

Each network is planned at shares of its plain peak by `auto` and by `refined`; the bound holds for
every schedule that runs the ops in the order of the plan. Every answer is checked: schedules are
validated and simulated, no bound may be above a plan, and where a bound is called the optimum, the
schedule that attains it is simulated too. A wrong answer ends the run with exit code 1.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import memfit
from benchmarks.lib.harness import (
    command_line,
    machine,
    read_results,
    reference_folder,
    write_page,
    write_results,
)
from memfit import _core
from memfit.bounds import LowerBound, bound_graph, highs_version
from memfit.errors import InfeasibleBudgetError
from memfit.graph.graph_file import read_graph
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan
from memfit.graph.schedule import Schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners import PlannerOptions, get_planner
from memfit.strategies.carried import StepOrder

RESULTS, PAGE = "optimality", "optimality.md"
NETWORKS = ("vgg19", "unet")
SHARES = (90, 80, 70, 60, 50)
GAP_PERCENT = 2.0
"""The most that a plan may be above the bound, in percent of one forward pass."""


class Wrong(Exception):
    """An answer is wrong."""


def made_with() -> dict[str, Any]:
    """Where and with what the figures were made."""
    return {
        "memfit": memfit.__version__,
        "core": _core.core_name(),
        "highs": highs_version(),
        **machine(),
        "load": round(os.getloadavg()[0], 1),
    }


def check(graph: TrainingGraph, schedule: Schedule, budget_bytes: int, overhead: int) -> None:
    """Play a schedule.

    Raises:
        Wrong: it breaks the budget or costs something else.
    """
    schedule.validate(graph)
    peak = simulate(graph, schedule).peak_bytes
    if peak > budget_bytes:
        raise Wrong(f"a schedule takes {peak} bytes, and the budget is {budget_bytes}")
    if schedule.overhead(graph) != overhead:
        raise Wrong(f"a schedule costs {schedule.overhead(graph)} and not {overhead}")


def check_bound(graph: TrainingGraph, bound: LowerBound, plans: dict[str, Plan]) -> None:
    """Hold a bound against plans in its order.

    Raises:
        Wrong: a plan is below the bound, or fits what is said to be infeasible.
    """
    for name, plan in plans.items():
        if bound.overhead is None or bound.overhead > plan.overhead:
            raise Wrong(f"the bound is {bound.overhead}, and {name} has {plan.overhead}")
    if bound.proven_optimum:
        if bound.witness is None or bound.overhead is None:
            raise Wrong("an optimum without a schedule")
        check(graph, bound.witness, bound.budget_bytes, bound.overhead)


def planned(graph: TrainingGraph, name: str, budget_bytes: int) -> tuple[Plan, float]:
    """A plan, checked, and the seconds that it took."""
    began = time.perf_counter()
    plan = get_planner(name)(graph, budget_bytes, PlannerOptions())
    seconds = time.perf_counter() - began
    check(graph, plan.schedule, budget_bytes, plan.overhead)
    return plan, seconds


def row(graph: TrainingGraph, plain: int, share: int, limit_s: float) -> dict[str, Any]:
    """One budget of one network."""
    budget = plain * share // 100
    found: dict[str, Any] = {"share": share, "budget_bytes": budget}
    plans: dict[str, Plan] = {}
    order = StepOrder.of_program(graph)
    try:
        for name in ("auto", "refined"):
            plan, seconds = planned(graph, name, budget)
            plans[name] = plan
            found[name] = {"overhead": plan.overhead, "seconds": round(seconds, 2)}
        if plans["refined"].overhead > plans["auto"].overhead:
            raise Wrong("the refined plan is worse than the one it starts from")
        order = StepOrder.of_schedule(graph, plans["refined"].schedule)
    except InfeasibleBudgetError as error:
        found["smallest_bytes"] = error.minimum_bytes

    def progress(label: str, share_done: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{label} {share_done:5.1%} of the time limit", end="", file=sys.stderr)

    # Neither plan is told to the solver: the bound is found on its own.
    bound = bound_graph(graph, budget, order=order, time_limit_s=limit_s, progress=progress)
    check_bound(graph, bound, plans)
    found["bound"] = bound.to_dict()
    found["program_order"] = order == StepOrder.of_program(graph)
    return found


def network(name: str, limit_s: float) -> dict[str, Any]:
    """All budgets of one network."""
    graph = read_graph(reference_folder() / "graphs" / f"cg_{name}.txt")
    plain = simulate(graph, store_all_schedule(graph)).peak_bytes
    rows = []
    for share in SHARES:
        rows.append(row(graph, plain, share, limit_s))
        print(f"\r{name} {share}%: {_told(rows[-1])}", file=sys.stderr)
    return {
        "name": name,
        "forward_ops": graph.forward_count,
        "backward_ops": len(graph.ops) - graph.forward_count,
        "plain_bytes": plain,
        "forward_cost": graph.forward_cost,
        "rows": rows,
    }


def _told(found: dict[str, Any]) -> str:
    bound = found["bound"]
    if bound["infeasible"]:
        return f"nothing fits, {bound['method']}"
    refined = found.get("refined", {}).get("overhead")
    return f"refined {refined}, bound {bound['overhead']}, {bound['seconds']:.1f} s"


HEAD = """# How far from optimal

Made by `{command}`; the raw figures are in `benchmarks/results/optimality.json`. memfit {memfit},
{core} core, HiGHS {highs}, Python {python}, {system}, {processor}, {cpus} CPUs, load {load} before.

The graphs are those that Kusumoto et al. published with their 2019 paper, in its cost model: a
convolution costs 10, any other op 1, a gradient has the size of its value, and there are no
parameters and no workspaces. Memory is that of [ADR 0001](../adr/0001-memory-model.md): the budget
is the peak of the whole step, every value is freed after its last use, gradients count. Budgets
are shares of the plain step's peak, overheads and gaps are in percent of one forward pass.

*auto* is the default planner, *refined* starts from its plan and searches around it. The *bound*
holds for every schedule that runs forward and backward ops in the plan's order, whatever it keeps
and however often it computes something again, anywhere in the backward pass; the solver is told of
no plan. It is the *optimum* where a schedule was found that attains it. *Rows* are how many of the
backward ops the integer program had to tell apart. See
[how it works](../how-it-works.md#how-far-from-optimal).

The gap is to be at most {gap:g}: {verdict}.
"""


def page(data: dict[str, Any]) -> str:
    """The page as Markdown."""
    parts = [
        HEAD.format(
            command=data["command"],
            gap=GAP_PERCENT,
            verdict=verdict(data["networks"]),
            **data["machine"],
        )
    ]
    parts += [_section(found) for found in data["networks"]]
    return "\n".join(parts)


def _gap(found: dict[str, Any], forward_cost: int) -> float | None:
    if "refined" not in found or found["bound"]["overhead"] is None:
        return None
    return 100 * (found["refined"]["overhead"] - found["bound"]["overhead"]) / forward_cost


def verdict(networks: list[dict[str, Any]]) -> str:
    """Whether every gap is as small as it has to be."""
    gaps = [_gap(r, found["forward_cost"]) for found in networks for r in found["rows"]]
    known = [gap for gap in gaps if gap is not None]
    word = "PASS" if max(known) <= GAP_PERCENT else "FAIL"
    nothing = sum(r["bound"]["infeasible"] for found in networks for r in found["rows"])
    rest = f"; at {nothing} more nothing fits, which is proven" if nothing else ""
    return f"{word}, at most {max(known):.1f} at {len(known)} budgets{rest}"


def _section(found: dict[str, Any]) -> str:
    cost = found["forward_cost"]
    lines = [
        f"## {found['name']}",
        "",
        f"{found['forward_ops']} forward and {found['backward_ops']} backward ops; plain peak "
        f"{found['plain_bytes']:,} bytes; a forward pass costs {cost}.",
        "",
        "| budget | auto | refined | bound | optimum | gap of refined | of auto | order "
        "| rows | bound after | refined after |",
        "|---:|---:|---:|---:|:--|---:|---:|:--|:--|---:|---:|",
    ]
    for r in found["rows"]:
        bound = r["bound"]
        cells = [f"{r['share']}%"]
        for name in ("auto", "refined"):
            cells.append(f"{100 * r[name]['overhead'] / cost:.1f}" if name in r else "-")
        if bound["infeasible"]:
            cells += ["nothing fits", "proven"]
        else:
            cells += [
                f"{bound['overhead_percent']:.1f}",
                "yes" if bound["proven_optimum"] else "not known",
            ]
        gap = _gap(r, cost)
        cells += (
            ["-", "-"]
            if gap is None
            else [
                f"{gap:.1f}",
                f"{100 * (r['auto']['overhead'] - bound['overhead']) / cost:.1f}",
            ]
        )
        cells.append("program's" if r["program_order"] else "plan's own")
        cells.append(_rows(bound["method"]))
        cells.append(f"{bound['seconds']:.1f} s")
        cells.append(f"{r['refined']['seconds']:.1f} s" if "refined" in r else "-")
        lines.append("| " + " | ".join(cells) + " |")
    for r in found["rows"]:
        if r["bound"]["infeasible"]:
            least = r.get("smallest_bytes", 0)
            lines += [
                "",
                f"At {r['share']}% nothing fits: {r['bound']['method']}. The smallest budget that "
                f"memfit meets is {least:,} bytes, {100 * least / found['plain_bytes']:.1f}% of "
                "the plain peak.",
            ]
        for note in r["bound"]["notes"]:
            lines += ["", f"At {r['share']}%: {note}."]
    return "\n".join(lines) + "\n"


def _rows(method: str) -> str:
    start = "integer program over "
    return method.removeprefix(start).split(" rows")[0] if method.startswith(start) else "none"


def main() -> int:
    parser = command_line(__doc__, report=True)
    parser.add_argument(
        "--time-limit", type=float, default=600.0, metavar="S", help="per bound (default: 600)"
    )
    args = parser.parse_args()
    if not args.report:
        facts = made_with()
        try:
            networks = [network(name, args.time_limit) for name in NETWORKS]
        except Wrong as error:
            print(f"wrong: {error}", file=sys.stderr)
            return 1
        limit = "" if args.time_limit == 600.0 else f" --time-limit {args.time_limit:g}"
        command = f"python -m benchmarks.planning.optimality{limit}"
        data = {"command": command, "machine": facts, "networks": networks}
        write_results(RESULTS, data)
    write_page(PAGE, page(read_results(RESULTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
