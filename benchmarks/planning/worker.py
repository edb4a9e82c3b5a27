"""One planner on one graph, measured in a process of its own; started by `run`.

Takes one JSON object as its argument and writes JSON lines: `{"progress": text}` while it runs,
`{"result": …}` at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import reference_folder
from benchmarks.planning.graphs import CASES, capture_to_cache
from memfit.errors import InfeasibleBudgetError, MemfitError
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan, PlanStatus
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions, TradeOff
from memfit.planners.registry import get_curve, get_planner

ENOUGH_SECONDS = 150.0  # of timing; repeats are dropped rather than going far beyond it
PAPER_FAMILY = {"exact": "all", "approximate": "pruned"}
MEMORY_GUARD_BYTES = 14 * 2**30
UNREDUCED_LOWER_SETS = 1 << 22


def say(**line: Any) -> None:
    """One line for the parent."""
    print(json.dumps(line), flush=True)


def rss_bytes() -> int:
    """Resident memory now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def peak_rss_bytes() -> int:
    """Largest resident memory so far.

    `ru_maxrss` of a child starts at its parent's on Linux, so the process's own mark is preferred.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak_rss() -> None:
    """Start the mark of `peak_rss_bytes` at what is resident now, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Checks:
    """Assertions counted, and those that failed in words."""

    done: int = 0
    wrong: list[str] = field(default_factory=list)

    def that(self, holds: bool, otherwise: str) -> None:
        """Count one assertion."""
        self.done += 1
        if not holds:
            self.wrong.append(otherwise)


@dataclass
class Row:
    """One budget of one mode, and what was planned for it.

    The plan itself is not kept: it would count as memory of the runs that follow.
    """

    mode: str
    label: str
    budget_bytes: int
    seconds: list[float] = field(default_factory=list)
    overhead: int = 0
    digest: str = ""
    found: dict[str, Any] = field(default_factory=dict)

    def take(self, plan: Plan) -> None:
        """Remember a plan; its overhead is the one that its planner minimises."""
        paper = plan.formula_overhead
        self.overhead = plan.overhead if paper is None else paper
        self.digest = hashlib.sha256(repr(plan.schedule).encode()).hexdigest()
        self.found = {
            "family": plan.family,
            "status": plan.status.value,
            "lower_sets": plan.lower_sets,
            "overhead": plan.overhead,
            "formula_overhead": plan.formula_overhead,
            "peak_bytes": plan.peak_bytes,
            "formula_peak_bytes": plan.formula_peak_bytes,
            "stages": len(plan.stages),
            "notes": list(plan.notes),
        }

    def to_dict(self) -> dict[str, Any]:
        """For the results."""
        return {
            "mode": self.mode,
            "label": self.label,
            "budget_bytes": self.budget_bytes,
            "seconds": [round(s, 6) for s in self.seconds],
            "median_seconds": self.median_seconds,
            **self.found,
        }

    @property
    def median_seconds(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.seconds)


class Measurement:
    """A planner on a graph at several budgets, and its whole trade-off."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.case = CASES[spec["case"]]
        self.planner_name: str = spec["planner"]
        self.planner = get_planner(self.planner_name)
        self.curve = get_curve(self.planner_name)
        self.paper = self.planner_name in PAPER_FAMILY
        self.modes = ("time", "auto") if self.paper else ("auto",)
        self.graph, self.facts = self.case.load(spec["captured"])
        self.checks = Checks()
        gc.collect()
        self.loaded_rss = self.peak_rss = rss_bytes()

    def options(self, mode: str) -> PlannerOptions:
        """The options of a mode."""
        return PlannerOptions(mode=mode, family=self.spec["family"])

    def timed(self, call: Callable[[TrainingGraph], Any]) -> tuple[Any, float]:
        """`call` on a copy of the graph that has nothing worked out yet, and its seconds."""
        fresh = dataclasses.replace(self.graph)
        gc.collect()
        forget_peak_rss()
        began = time.perf_counter()
        found = call(fresh)
        seconds = time.perf_counter() - began
        self.peak_rss = max(self.peak_rss, peak_rss_bytes())
        return found, seconds

    def smallest(self, mode: str) -> tuple[int, float]:
        """The smallest feasible budget, which the planner names when it is given far too little."""

        def ask(graph: TrainingGraph) -> int:
            try:
                return self.planner(graph, 1, self.options(mode)).budget_bytes
            except InfeasibleBudgetError as error:
                return error.minimum_bytes

        return self.timed(ask)

    def budgets(self, mode: str, smallest: int, plain: int) -> list[Row]:
        """The budgets to plan for, from the smallest feasible to the plain peak.

        By the paper's formula even the smallest may be above the plain peak: then up to twice the
        smallest.
        """
        name, top = ("plain", plain) if plain > smallest else ("twice", 2 * smallest)
        found: dict[int, str] = {}
        for share in self.spec["shares"]:
            label = {0.0: "smallest", 1.0: name}.get(share, f"{share:.0%}")
            found.setdefault(smallest + int(share * (top - smallest)), label)
        return [Row(mode, label, budget) for budget, label in found.items()]

    def run(self) -> dict[str, Any]:
        """Time everything, then check everything."""
        say(progress="smallest feasible budget")
        plain = simulate(self.graph, store_all_schedule(self.graph)).peak_bytes
        smallest: dict[str, int] = {}
        rows: list[Row] = []
        smallest_seconds = []
        for mode in self.modes:
            smallest[mode], seconds = self.smallest(mode)
            smallest_seconds.append(seconds)
            rows += self.budgets(mode, smallest[mode], plain)
        repeats: int = self.spec["repeats"]
        curve_seconds: list[float] = []
        trade_off: TradeOff | None = None
        done = 0
        began = time.perf_counter()
        while done < repeats:
            for row in rows:
                say(progress=f"{row.mode} {row.label}, {done + 1} of {repeats}")
                self.plan_once(row)
            say(progress=f"trade-off, {done + 1} of {repeats}")
            found, seconds = self.timed(lambda g: self.curve(g, self.options("time")))
            same = trade_off is None or trade_off.points == found.points
            self.checks.that(same, "the trade-off differs from run to run")
            trade_off = found
            curve_seconds.append(seconds)
            done += 1
            spent = time.perf_counter() - began
            if spent * (done + 1) / done > ENOUGH_SECONDS:
                break
        assert trade_off is not None
        say(progress="checking")
        self.check_plans(rows, smallest)
        self.check_curve(rows, trade_off, smallest)
        self.check_golden(trade_off)
        one = [row.median_seconds for row in rows if row.mode == rows[0].mode]
        middle = one[len(one) // 2]
        first = rows[0].found
        return {
            "case": self.case.name,
            "kind": self.case.kind,
            "planner": self.planner_name,
            "family_asked": self.spec["family"],
            "family": first["family"],
            "status": first["status"],
            "lower_sets": first["lower_sets"],
            "all_lower_sets": self.all_lower_sets(),
            "facts": self.facts,
            "forward_ops": self.graph.forward_count,
            "ops": len(self.graph.ops),
            "cost_unit": self.graph.cost_unit,
            "forward_cost": self.graph.forward_cost,
            "total_cost": self.graph.total_cost,
            "plain_peak_bytes": plain,
            "smallest_budget_bytes": smallest,
            "smallest_seconds": smallest_seconds,
            "repeats": done,
            "budgets": [row.to_dict() for row in rows],
            "median_seconds": statistics.median(row.median_seconds for row in rows),
            "max_seconds": max(row.median_seconds for row in rows),
            "curve": {
                "seconds": [round(s, 6) for s in curve_seconds],
                "median_seconds": statistics.median(curve_seconds),
                "ratio": statistics.median(curve_seconds) / middle,
                "points": len(trade_off.points),
                "family": trade_off.family,
                "status": trade_off.status.value,
            },
            "points": [[p.budget_bytes, p.overhead] for p in trade_off.points],
            "rss_loaded_bytes": self.loaded_rss,
            "rss_peak_bytes": self.peak_rss,
            "checks": self.checks.done,
            "wrong": self.checks.wrong,
        }

    def plan_once(self, row: Row) -> None:
        """Plan for a budget and time it, then check: whole, within budget, the same every time."""
        plan, seconds = self.timed(
            lambda g: self.planner(g, row.budget_bytes, self.options(row.mode))
        )
        row.seconds.append(seconds)
        name = f"{row.mode} {row.label}"
        before = row.digest
        row.take(plan)
        if before:
            self.checks.that(row.digest == before, f"{name}: the plan differs from run to run")
            return
        try:
            plan.schedule.validate(self.graph)
            self.checks.that(True, "")
        except MemfitError as error:
            self.checks.that(False, f"{name}: {error}")
        peak = plan.formula_peak_bytes if row.mode == "time" else plan.peak_bytes
        assert peak is not None
        within = peak <= row.budget_bytes
        self.checks.that(within, f"{name}: peak {peak} above budget {row.budget_bytes}")
        lower_sets = self.all_lower_sets()
        if self.planner_name == "exact" and plan.family == "all" and lower_sets is not None:
            self.checks.that(
                plan.lower_sets == lower_sets,
                f"{name}: {plan.lower_sets} lower sets searched, there are {lower_sets}",
            )

    def check_plans(self, rows: Iterable[Row], smallest: dict[str, int]) -> None:
        """Overheads never rise with the budget, and the smallest budget is the smallest."""
        last: dict[str, int] = {}
        for row in rows:
            if row.mode == "time" or not self.paper:
                before = last.get(row.mode)
                self.checks.that(
                    before is None or row.overhead <= before,
                    f"{row.mode} {row.label}: overhead {row.overhead} above {before} of a smaller "
                    "budget",
                )
                last[row.mode] = row.overhead
        if max(row.seconds[0] for row in rows) < 20:
            for mode, minimum in smallest.items():
                self.check_below(mode, minimum)

    def check_below(self, mode: str, minimum: int) -> None:
        """One byte less than the smallest feasible budget is refused, with the same figure."""
        try:
            self.planner(self.graph, minimum - 1, self.options(mode))
            self.checks.that(False, f"{mode}: {minimum - 1} fits, {minimum} is named smallest")
        except InfeasibleBudgetError as error:
            self.checks.that(
                error.minimum_bytes == minimum,
                f"{mode}: smallest budget named {minimum}, then {error.minimum_bytes}",
            )

    def all_lower_sets(self) -> int | None:
        """The number of lower sets, where it is known from elsewhere."""
        if self.case.kind == "published":
            return int(_golden()["graphs"][self.case.name]["lower_sets"])
        found = self.facts.get("all_lower_sets")
        return None if found is None else int(found)

    def check_curve(self, rows: list[Row], curve: TradeOff, smallest: dict[str, int]) -> None:
        """The trade-off agrees with plans for single budgets.

        Under the paper's formulas they are equal, or the curve is above by what costs were rounded
        up by, where its status says that it is not optimal. The default planner may do better than
        its curve, which counts peaks from above, but never worse.
        """
        points = curve.points
        budgets = [p.budget_bytes for p in points]
        overheads = [p.overhead for p in points]
        self.checks.that(bool(points), "the trade-off has no point")
        self.checks.that(budgets == sorted(set(budgets)), "the trade-off's budgets do not rise")
        falls = overheads == sorted(set(overheads), reverse=True)
        self.checks.that(falls, "the trade-off's overheads do not fall")
        mode = rows[0].mode
        if points:
            low = smallest[mode]
            fits = low == budgets[0] if self.paper else low <= budgets[0]
            self.checks.that(fits, f"smallest budget {low}, the trade-off's first is {budgets[0]}")
        chosen = [row for row in rows if row.mode == mode]
        if max(row.median_seconds for row in chosen) < 5:
            for i in sorted({0, len(points) // 2, len(points) - 1}):
                row = Row(mode, f"point {i + 1} of {len(points)}", budgets[i])
                self.plan_once(row)
                chosen.append(row)
        for row in chosen:
            at = curve.overhead_at(row.budget_bytes)
            equal = self.paper and curve.status is PlanStatus.OPTIMAL_IN_FAMILY
            if at is None:
                # The simulated minimum may be below what the default planner's curve counts.
                self.checks.that(
                    not self.paper, f"{row.label}: planned below the trade-off's first point"
                )
                continue
            agrees = row.overhead == at if equal else row.overhead <= at
            self.checks.that(
                agrees,
                f"{row.label} ({row.budget_bytes}): overhead {row.overhead}, trade-off says {at}",
            )

    def check_golden(self, curve: TradeOff) -> None:
        """The paper's planners give the golden values."""
        family = PAPER_FAMILY.get(self.planner_name)
        if self.case.kind != "published" or family is None:
            return
        golden = _golden()

        def entries(kind: str) -> list[dict[str, Any]]:
            return [
                e for e in golden[kind] if (e["graph"], e["family"]) == (self.case.name, family)
            ]

        for entry in entries("plans"):
            say(progress=f"golden {entry['mode']} {entry['budget_bytes']}")
            plan = self.planner(self.graph, entry["budget_bytes"], self.options(entry["mode"]))
            wanted = (family, entry["overhead"], entry["cached_bytes"])
            found = (plan.family, plan.formula_overhead, plan.formula_cached_bytes)
            self.checks.that(found == wanted, f"golden {entry}: found {found}")
            if entry["mode"] == "time":
                at = curve.overhead_at(entry["budget_bytes"])
                self.checks.that(at == entry["overhead"], f"golden {entry}: trade-off says {at}")
        for entry in entries("infeasible"):
            try:
                self.planner(self.graph, entry["budget_bytes"], self.options("time"))
                self.checks.that(False, f"golden {entry}: a plan was found")
            except InfeasibleBudgetError:
                self.checks.that(True, "")


def _golden() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((reference_folder() / "golden.json").read_text())
    return data


def unreduced(spec: dict[str, Any]) -> dict[str, Any]:
    """The trade-off over all lower sets of a graph where the planner searches a smaller family.

    For the paper's planners with exact costs, or none: rounded ones would be no measure.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GUARD_BYTES, MEMORY_GUARD_BYTES))
    graph, _ = CASES[spec["case"]].load(spec["captured"])
    options = PlannerOptions(family="all", max_lower_sets=UNREDUCED_LOWER_SETS)
    name = spec["planner"]
    if name == "liveness":
        from memfit.planners.liveness.table import FULL

        # As much work as it takes; the planner itself stops at a few seconds' worth.
        for core, effort in FULL.items():
            FULL[core] = dataclasses.replace(
                effort, cuts=UNREDUCED_LOWER_SETS, steps=1 << 60, states=1 << 60
            )
    else:
        from memfit.planners.paper import system as paper_dp

        paper_dp._COST_STEPS = 1 << 60  # costs are rounded only where this asks for it
    began = time.perf_counter()
    found = get_curve("exact" if name == "approximate" else name)(graph, options)
    if name != "liveness" and found.status is not PlanStatus.OPTIMAL_IN_FAMILY:
        raise RuntimeError("costs are rounded: " + "; ".join(found.notes))
    return {
        "family": found.family,
        "lower_sets": found.lower_sets,
        "seconds": time.perf_counter() - began,
        "points": [[p.budget_bytes, p.overhead] for p in found.points],
    }


def main(argument: str) -> None:
    """Do what the parent asks for."""
    spec: dict[str, Any] = json.loads(argument)
    if spec["task"] == "capture":
        say(progress="capturing")
        say(result={"captured": str(capture_to_cache(spec["case"]))})
    elif spec["task"] == "unreduced":
        say(progress="all lower sets, however long it takes")
        say(result=unreduced(spec))
    else:
        say(result=Measurement(spec).run())


if __name__ == "__main__":
    main(sys.argv[1])
