"""One trade-off: what every budget costs, ours beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memfit.analysis.peers import PeerPoint
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import TradeOff

__all__ = ["OURS", "Sweep", "SweepRow", "ours_at", "thinned"]


OURS = "memfit"


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One point, ours or a peer's.

    Attributes:
        series: `memfit`, or the peer's name.
        detail: which one of the series.
        peak_bytes: peak of the whole step; for `memfit`, the smallest budget for this overhead.
        peak_percent: of the plain step's peak.
        overhead: cost of recomputation, in the graph's cost unit.
        overhead_percent: of a step's cost without recomputation.
    """

    series: str
    detail: str
    peak_bytes: int
    peak_percent: float
    overhead: int
    overhead_percent: float


@dataclass(frozen=True)
class Sweep:
    """A trade-off from the plain step to the smallest feasible budget, with peers' points.

    Attributes:
        graph: name of the graph.
        plain_peak_bytes: simulated peak of the step that keeps everything.
        resident_bytes: alive all through the step, whatever the plan.
        curve: our trade-off.
        rows: our points by falling budget, then those of peers.
    """

    graph: str
    plain_peak_bytes: int
    resident_bytes: int
    curve: TradeOff
    rows: tuple[SweepRow, ...]

    @classmethod
    def of(
        cls,
        graph: TrainingGraph,
        plain_peak_bytes: int,
        curve: TradeOff,
        peers: Sequence[PeerPoint],
    ) -> Sweep:
        """The rows of a trade-off and of peers' points."""

        def row(series: str, detail: str, peak: int, overhead: int) -> SweepRow:
            share = 100.0 * peak / plain_peak_bytes if plain_peak_bytes else 0.0
            cost = 100.0 * overhead / curve.total_cost if curve.total_cost else 0.0
            return SweepRow(series, detail, peak, share, overhead, cost)

        ours = [row(OURS, "", p.budget_bytes, p.overhead) for p in reversed(curve.points)]
        others = [row(p.series, p.detail, p.peak_bytes, p.overhead) for p in peers]
        return cls(graph.name, plain_peak_bytes, graph.resident_bytes, curve, (*ours, *others))

    @property
    def ours(self) -> list[SweepRow]:
        """Our points, by falling budget and rising overhead."""
        return [row for row in self.rows if row.series == OURS]

    @property
    def peers(self) -> list[SweepRow]:
        """Peers' points."""
        return [row for row in self.rows if row.series != OURS]

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        curve = self.curve
        return {
            "status": curve.status.value,
            "graph": self.graph,
            "planner": curve.planner,
            "family": curve.family,
            "cost_unit": curve.cost_unit,
            "total_cost": curve.total_cost,
            "plain_peak_bytes": self.plain_peak_bytes,
            "resident_bytes": self.resident_bytes,
            "smallest_feasible_budget": min((r.peak_bytes for r in self.ours), default=None),
            "points": [asdict(row) for row in self.ours],
            "peers": [asdict(row) for row in self.peers],
            "seconds": curve.seconds,
            "notes": list(curve.notes),
        }


def thinned(rows: Sequence[SweepRow], most: int) -> list[SweepRow]:
    """At most so many rows, about evenly over the peaks; both ends stay.

    Args:
        rows: by falling peak.
        most: 2 or more.
    """
    if len(rows) <= most:
        return list(rows)
    top, bottom = rows[0].peak_bytes, rows[-1].peak_bytes
    chosen = [rows[0]]
    for i in range(1, most - 1):
        wanted = top - (top - bottom) * i / (most - 1)
        nearest = min(rows[1:-1], key=lambda row: abs(row.peak_bytes - wanted))
        if nearest is not chosen[-1]:
            chosen.append(nearest)
    return [*chosen, rows[-1]]


def ours_at(curve: TradeOff, peak_bytes: int) -> str:
    overhead = curve.overhead_at(peak_bytes)
    if overhead is None:
        return "infeasible"
    return f"{100.0 * overhead / curve.total_cost if curve.total_cost else 0.0:+.1f}%"
