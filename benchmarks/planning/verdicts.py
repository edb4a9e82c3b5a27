"""What `run` makes of its measurements: comparisons between planners, and verdicts."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.lib.harness import MIB
from benchmarks.planning.graphs import CASES

PLANNERS = ("exact", "approximate", "liveness")
GIB = 2**30
PUBLISHED = tuple(case.name for case in CASES.values() if case.kind == "published")

Result = dict[str, Any]


def overhead_at(points: Sequence[list[int]], budget: int) -> int | None:
    """What a budget costs by a trade-off; None where it is too small."""
    at = bisect_right(points, budget, key=lambda point: point[0])
    return points[at - 1][1] if at else None


def distance(points: Sequence[list[int]], whole: Sequence[list[int]], total_cost: int) -> Result:
    """How far one trade-off is above another.

    Returns:
        In percent: how much larger the smallest feasible budget is (`smallest_percent`), and by how
        much of a step's cost the overhead is larger, at the worst and on average over all budgets
        at which either trade-off changes (`worst_percent`, `mean_percent`).
    """
    above = []
    for budget in sorted({b for b, _ in (*points, *whole)}):
        one, other = overhead_at(points, budget), overhead_at(whole, budget)
        if one is not None and other is not None:
            above.append(100 * (one - other) / total_cost)
    return {
        "smallest_percent": 100 * (points[0][0] / whole[0][0] - 1) if whole[0][0] else 0.0,
        "worst_percent": max(above),
        "mean_percent": sum(above) / len(above),
    }


def compare_planners(results: list[Result]) -> None:
    """Over all lower sets no budget may cost more than over {L^v}, under the same formula."""
    points = {(r["case"], r["planner"]): r["points"] for r in results if "points" in r}
    for r in results:
        fewer = points.get((r["case"], "approximate"))
        if r["planner"] != "exact" or "points" not in r or fewer is None:
            continue
        r["checks"] += 1
        pairs = [(budget, overhead_at(r["points"], budget), cost) for budget, cost in fewer]
        above = [p for p in pairs if p[1] is None or p[1] > p[2]]
        if above:
            budget, exact, approximate = above[0]
            r["wrong"].append(
                f"the trade-off costs more than that of approximate at {len(above)} of "
                f"{len(fewer)} budgets, first at {budget}: {exact} against {approximate}"
            )


def searched_all(r: Result) -> bool:
    """Whether a planner searched all lower sets, by its own word and by their number."""
    known = r["all_lower_sets"]
    return r["family"] == "all" and (known is None or r["lower_sets"] >= known)


def is_optimum(r: Result) -> bool:
    """Whether a planner found the optimum over all lower sets."""
    return bool(r["family"] == "all" and r["status"] == "OPTIMAL_IN_FAMILY")


def limits(results: list[Result]) -> Iterator[Result]:
    """What must be met, each with its figure and PASS, MISS or REDUCED.

    REDUCED: in time, but over a smaller family of lower sets than was asked for.
    """
    by = {(r["case"], r["planner"]): r for r in results}

    def judge(
        number: int, case: str, planner: str, seconds: float, gib: float = math.inf
    ) -> Iterator[Result]:
        r = by.get((case, planner))
        if r is None:
            return
        what = f"{planner} on {case}"
        limit = f"under {seconds:g} s" + (f" and {gib:g} GiB" if math.isfinite(gib) else "")
        if "failed" in r:
            yield {"number": number, "what": what, "limit": limit, "figure": r["failed"]} | {
                "verdict": "MISS"
            }
            return
        rss = r["rss_peak_bytes"]
        met = r["max_seconds"] < seconds and rss < gib * GIB
        whole = planner == "approximate" or searched_all(r)
        yield {
            "number": number,
            "what": what,
            "limit": limit,
            "figure": f"{seconds_text(r['max_seconds'])}, {rss / MIB:.0f} MiB, "
            f"family {r['family']}, {r['lower_sets']:,} lower sets",
            "verdict": ("PASS" if whole else "REDUCED") if met else "MISS",
        }

    for case in ("googlenet", "pspnet"):
        yield from judge(1, case, "exact", 1.0, 1.0)
    for case in PUBLISHED:
        yield from judge(2, case, "approximate", 0.05)
    for case in PUBLISHED:
        slow = case in ("googlenet", "pspnet")
        yield from judge(3, case, "liveness", 5.0 if slow else 0.3)
    yield from judge(4, "torch-gpt2-96", "liveness", 10.0)
    yield from judge(4, "sp-50000", "liveness", 60.0, 4.0)
    for planner in PLANNERS:
        ratios = [
            (r["curve"]["ratio"], r["case"])
            for r in results
            if r["planner"] == planner and "curve" in r
        ]
        if ratios:
            worst, case = max(ratios)
            yield {
                "number": 5,
                "what": f"whole trade-off of {planner} against one budget",
                "limit": "at most 5 times",
                "figure": f"at most {worst:.2f} times, on {case}",
                "verdict": "PASS" if worst <= 5 else "MISS",
            }


def seconds_text(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
