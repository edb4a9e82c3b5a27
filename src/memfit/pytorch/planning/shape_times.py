"""Times of ops at a new input shape, estimated from those measured at other shapes."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["estimated_times"]

Point = tuple[int, int]


def estimated_times(
    measured: Sequence[tuple[Sequence[int], Sequence[int]]], analytic: Sequence[int]
) -> list[int]:
    """The time of each op, in ns.

    An op's measured times are put over its analytic ones (what its arithmetic and its memory
    traffic would take). Between two shapes the new time lies on the straight line through them,
    outside of all it is in proportion to the nearest.

    Args:
        measured: for each shape, the analytic and the measured time of each op.
        analytic: the analytic time of each op at the new shape.
    """
    return [
        _on_the_line(sorted((a[i], m[i]) for a, m in measured), x) for i, x in enumerate(analytic)
    ]


def _on_the_line(points: Sequence[Point], x: int) -> int:
    below = [p for p in points if p[0] <= x]
    above = [p for p in points if p[0] >= x]
    if not below or not above:
        near, time_ns = (below or above)[-1 if below else 0]
        return time_ns * x // near if near else time_ns
    (low, from_ns), (high, to_ns) = below[-1], above[0]
    if high == low:
        return (from_ns + to_ns) // 2
    return from_ns + (to_ns - from_ns) * (x - low) // (high - low)
