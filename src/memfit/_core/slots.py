"""Pareto fronts of (cost still to come, bytes still needed) with bounded size: the reference.

From a state with m bytes cached, the end can be reached at a cost within a budget exactly where
m + need <= budget; no budget enters, so a front holds for all of them. Costs fall into *slots* of
2**shift units each, and of the labels of a slot the one with the least need is kept, then the
cheapest: exact where a slot is one unit, and never wrong where it is not, for a label is always one
of a real path.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

__all__ = ["MANTISSA_BITS", "NOTHING", "Front", "FrontBuilder", "last_front", "slot_shift"]

NOTHING = -(1 << 62)
"""The need of the last state."""

Front = tuple[Sequence[int], Sequence[int]]
"""Costs, ascending, and needs, descending, both strictly."""


def slot_shift(total_cost: int, slots: int) -> int:
    """The least shift with which costs up to `total_cost` fall into fewer than `slots` slots."""
    shift = 0
    while total_cost >> shift >= slots:
        shift += 1
    return shift


def last_front() -> Front:
    """The front of the last state."""
    return [0], [NOTHING]


def need_at(front: Front, cost: int) -> int | None:
    """The least need at that cost or less; None if there is none."""
    at = bisect_right(front[0], cost)
    return front[1][at - 1] if at else None


class FrontBuilder:
    """Collects the front of one state from the fronts of those after it."""

    def __init__(self, shift: int) -> None:
        self._shift = shift
        self._best: dict[int, tuple[int, int]] = {}

    def add(self, cost: int, cached_bytes: int, peak_bytes: int, after: Front) -> None:
        """A way on to the state whose front is `after`."""
        for more, need in zip(*after, strict=True):
            label = (max(peak_bytes, cached_bytes + need), cost + more)
            slot = label[1] >> self._shift
            if slot not in self._best or label < self._best[slot]:
                self._best[slot] = label
            # From here on the need no longer counts beside the peak, and more would only cost.
            if cached_bytes + need <= peak_bytes:
                break

    def take(self) -> Front:
        """The front."""
        costs: list[int] = []
        needs: list[int] = []
        for slot in sorted(self._best):
            need, cost = self._best[slot]
            if not needs or need < needs[-1]:
                costs.append(cost)
                needs.append(need)
        return costs, needs


MANTISSA_BITS = 8
"""Of labels whose costs agree in so many leading bits, the one with the least need stays."""
