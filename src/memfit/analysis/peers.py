"""What other strategies reach on the same graph: points beside a trade-off.

Chen et al. 2016 (arXiv 1604.06174), cuts at every √n-th op, checkpoints around the modules of one
depth, the two modes of Kusumoto et al. 2019 on {L^v}, and the two automatic choices of Salimans and
Bulatov 2018. All are run by our simulator, with
liveness analysis, so that only the choice of what to keep differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memfit.graph.schedule import make_schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions, Progress
from memfit.planners.chen import segmentations
from memfit.planners.paper.system import build_table
from memfit.planners.salimans.checkpoints import checkpoint_order
from memfit.planners.salimans.memory import spaced_bottlenecks
from memfit.planners.salimans.speed import costly_ops
from memfit.strategies.canonical import canonical_schedule

__all__ = [
    "PeerPoint",
    "chen_points",
    "module_cuts",
    "module_points",
    "paper_points",
    "peer_points",
    "salimans_points",
    "sqrt_point",
    "undominated",
]

_MOST_OF_MODE = 16


@dataclass(frozen=True, slots=True)
class PeerPoint:
    """A strategy of somebody else's on a graph.

    Attributes:
        series: whose: `chen`, `sqrt(n)`, `per module`, `paper, time`, `paper, memory`,
            `salimans`.
        detail: which one of the series, for people.
        peak_bytes: simulated peak of the whole step.
        overhead: cost of recomputation, in the graph's cost unit.
    """

    series: str
    detail: str
    peak_bytes: int
    overhead: int


def peer_points(
    graph: TrainingGraph, budgets: Sequence[int], progress: Progress | None = None
) -> list[PeerPoint]:
    """The points of all peers.

    Args:
        graph: the graph.
        budgets: of the whole step, in bytes; the paper's modes are asked for each.
        progress: called with a label and the share done.
    """
    if not graph.forward_count:
        return []
    makers: tuple[Callable[[], list[PeerPoint]], ...] = (
        lambda: chen_points(graph),
        lambda: [sqrt_point(graph)],
        lambda: module_points(graph),
        lambda: paper_points(graph, budgets),
        lambda: salimans_points(graph),
    )
    found: list[PeerPoint] = []
    for i, make in enumerate(makers):
        if progress is not None:
            progress("computing peers' points", i / len(makers))
        found += make()
    return found


def undominated(points: Sequence[PeerPoint]) -> list[PeerPoint]:
    """Those that no other of them beats in both peak and overhead, by rising peak."""
    kept: list[PeerPoint] = []
    for point in sorted(points, key=lambda p: (p.peak_bytes, p.overhead)):
        if not kept or point.overhead < kept[-1].overhead:
            kept.append(point)
    return kept


def _judged(graph: TrainingGraph, series: str, detail: str, cuts: Sequence[int]) -> PeerPoint:
    schedule = canonical_schedule(graph, cuts)
    peak = simulate(graph, schedule).peak_bytes
    return PeerPoint(series, detail, peak, schedule.overhead(graph))


def chen_points(graph: TrainingGraph) -> list[PeerPoint]:
    """Chen's segmentations at single ops, for 1 to 4 √n segments; those worth having."""
    found = [_judged(graph, "chen", f"{len(cuts)} segments", cuts) for cuts in segmentations(graph)]
    return undominated(found)


def sqrt_point(graph: TrainingGraph) -> PeerPoint:
    """Segments of √n ops each, wherever they end."""
    count = graph.forward_count
    length = max(1, math.isqrt(count))
    cuts = [(1 << end) - 1 for end in range(length, count, length)]
    cuts.append((1 << count) - 1)
    return _judged(graph, "sqrt(n)", f"{len(cuts)} segments of {length} ops", cuts)


def salimans_points(graph: TrainingGraph) -> list[PeerPoint]:
    """Checkpoints at bottlenecks √n ops apart, and at all convolutions and matrix products.

    A graph without any has no such point.
    """
    found = []
    for detail, kept in (
        ("memory: {} bottlenecks", spaced_bottlenecks(graph)),
        ("speed: {} costly ops", costly_ops(graph)),
    ):
        if kept:
            schedule = make_schedule(graph, *checkpoint_order(graph, kept))
            peak = simulate(graph, schedule).peak_bytes
            overhead = schedule.overhead(graph)
            found.append(PeerPoint("salimans", detail.format(len(kept)), peak, overhead))
    return found


def module_cuts(graph: TrainingGraph) -> Iterator[tuple[int, list[int]]]:
    """For each depth of module paths, the prefixes that end where the module of that depth ends.

    Ops of no module belong to the one before. Depths that cut like the one before are left out.
    """
    paths: list[tuple[str, ...]] = []
    for op in graph.forward_ops:
        module = op.source.module if op.source else ""
        paths.append(tuple(module.split(".")) if module else ())
    whole = (1 << graph.forward_count) - 1
    last: list[int] = [whole]
    for depth in range(1, max(map(len, paths), default=0) + 1):
        cuts = []
        current: tuple[str, ...] | None = None
        for v, path in enumerate(paths):
            if not path:
                continue
            if current is not None and path[:depth] != current:
                cuts.append((1 << v) - 1)
            current = path[:depth]
        cuts.append(whole)
        if cuts != last:
            yield depth, cuts
        last = cuts


def module_points(graph: TrainingGraph) -> list[PeerPoint]:
    """A checkpoint around every module of one depth, for each depth of module paths.

    A module whose forward pass goes on elsewhere in between counts as several. The last checkpoint
    is not computed again, as its backward pass comes right after it.
    """
    return [
        _judged(graph, "per module", f"{len(cuts)} modules of depth {depth}", cuts)
        for depth, cuts in module_cuts(graph)
    ]


def paper_points(graph: TrainingGraph, budgets: Sequence[int]) -> list[PeerPoint]:
    """The time- and the memory-centric strategy over {L^v} for budgets of the paper's formulas.

    Where they are above a budget in the simulation, they are points all the same: at their peak.
    """
    table = build_table(graph, "pruned", PlannerOptions())
    wanted = {graph.resident_bytes + table.minimum_bytes, *budgets}
    chosen = _spread(sorted(wanted), _MOST_OF_MODE)
    found: list[PeerPoint] = []
    for mode in ("time", "memory"):
        points: dict[tuple[int, int], PeerPoint] = {}
        for budget in chosen:
            strategy = table.strategy(budget - graph.resident_bytes, mode)
            if strategy is None:
                continue
            overhead = strategy.schedule.overhead(graph)
            detail = f"{len(strategy.lower_sets)} stages"
            point = PeerPoint(f"paper, {mode}", detail, strategy.peak_bytes, overhead)
            points.setdefault((point.peak_bytes, point.overhead), point)
        found += undominated(list(points.values()))
    return found


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most so many of the items, evenly over their positions, both ends included."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
