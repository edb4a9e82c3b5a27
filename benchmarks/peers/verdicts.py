"""What `run` makes of its measurements: budgets to meet, and verdicts. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "NOISE",
    "Timed",
    "Verdict",
    "budgets_to_meet",
    "judge",
    "kept_segmentations",
    "opponent",
    "rating",
]

NOISE = 1.05
"""Ratios of times up to this one count as equal."""

ROUNDING = 1e-3
"""Differences of a gradient up to this share of its largest entry can come from rounding."""


@dataclass(frozen=True)
class Timed:
    """A way to run a step, measured.

    Attributes:
        name: as shown.
        peak_bytes: measured peak.
        times_ms: processor time of each round; equal indices are of the same round.
        wall_ms: elapsed time of each round.
    """

    name: str
    peak_bytes: int
    times_ms: tuple[float, ...]
    wall_ms: tuple[float, ...] = ()

    @property
    def median_ms(self) -> float:
        return statistics.median(self.times_ms)


@dataclass(frozen=True)
class Verdict:
    """One of ours against a peer.

    Attributes:
        peer: its name.
        ours: the run of memfit's it is compared with; None where none has as small a peak.
        peak_ratio: our peak over the peer's.
        time_ratio: median over the rounds of our time over the peer's in the same round.
        low, high: quartiles of these ratios. As all ratios of times, None without a run of ours.
        wall_ratio: the same median for elapsed times, which other processes disturb.
        word: "no slower", "SLOWER", or "OUT OF REACH" where memfit has no such peak.
    """

    peer: str
    ours: str | None
    peak_ratio: float
    time_ratio: float | None
    low: float | None
    high: float | None
    wall_ratio: float | None
    word: str


def budgets_to_meet(peaks: Iterable[int], within: float = 0.02) -> list[int]:
    """Few budgets that stand for all these peaks, largest first.

    Each peak has a budget that is at most it and at least (1 - within) of it.
    """
    found: list[int] = []
    group: list[int] = []
    for peak in sorted(peaks, reverse=True):
        if group and peak < group[0] * (1 - within):
            found.append(group[-1])
            group = []
        group.append(peak)
    return found + group[-1:]


def opponent(peer: Timed, ours: Sequence[Timed]) -> Timed | None:
    """Of our runs whose peak is at most the peer's, the one with the largest peak."""
    small = [run for run in ours if run.peak_bytes <= peer.peak_bytes]
    return max(small, key=lambda run: run.peak_bytes, default=None)


def judge(peer: Timed, ours: Sequence[Timed]) -> Verdict:
    """Whether we are no slower than a peer at an equal or smaller peak."""
    run = opponent(peer, ours)
    if run is None:
        smallest = min(ours, key=lambda r: r.peak_bytes)
        peaks = smallest.peak_bytes / peer.peak_bytes
        return Verdict(peer.name, None, peaks, None, None, None, None, "OUT OF REACH")
    ratios = [a / b for a, b in zip(run.times_ms, peer.times_ms, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    wall = [a / b for a, b in zip(run.wall_ms, peer.wall_ms, strict=True)]
    return Verdict(
        peer=peer.name,
        ours=run.name,
        peak_ratio=run.peak_bytes / peer.peak_bytes,
        time_ratio=middle,
        low=low,
        high=high,
        wall_ratio=statistics.median(wall) if wall else None,
        word="no slower" if middle <= NOISE else "SLOWER",
    )


def kept_segmentations(tried: Sequence[Timed]) -> list[str]:
    """Names of the segmentation with the smallest peak and of the fastest, once if they are one.

    Equal peaks: the faster one.
    """
    if not tried:
        return []
    smallest = min(tried, key=lambda t: (t.peak_bytes, t.median_ms))
    fastest = min(tried, key=lambda t: t.median_ms)
    return list(dict.fromkeys([smallest.name, fastest.name]))


def rating(difference: float) -> str:
    """A gradient's largest relative difference from eager's, in a word."""
    if difference == 0:
        return "bitwise"
    return "rounding" if difference <= ROUNDING else "WRONG"
