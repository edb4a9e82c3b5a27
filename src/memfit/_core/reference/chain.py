"""Nested strategies over a chain of alike steps: what counts is how many are left, and the memory.

The recurrence is that of Griewank and Walther 2000 (revolve) with costs and bytes of a real step:
C(l, m), the least cost of reversing l steps with m bytes, is the least over k of

    k sweep_cost + C(l - k, m - held) + C(k, m)

or of running one step and keeping more of it, for a stage (`staged`). The first step may be
another than the rest, for what comes before a chain is part of what is reversed. Memory comes in
*levels*, a fraction of what one checkpoint holds apart, so that checkpoints fall on levels exactly.
The best k moves little from l to l + 1 (in revolve by at most one), so that only its neighbours are
tried.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from memfit._core.problem import ChainUnit
from memfit._core.slots import Front

__all__ = ["ChainTable", "chain_table"]

_NEVER = 1 << 62
_EVERY_SPLIT = 48
"""Chains up to this length try every split."""
_BACK, _AHEAD = 2, 3
"""Longer ones try so many splits before and after the best one of a chain one step shorter."""

_NESTED = -1


class Best(NamedTuple):
    """The best way over some steps at a level.

    Attributes:
        cost: its cost.
        k: steps of its first part.
        option: the variant of that part; `_NESTED` where it is reversed in parts of its own.
        look: the best k of a split, whether or not a stage is better.
    """

    cost: int
    k: int
    option: int
    look: int


_NO_WAY = Best(_NEVER, _NEVER, _NEVER, _NEVER)


def _labels(front: Front, levels: Sequence[int]) -> list[int]:
    """The label of least cost within each level."""
    return [bisect_left(front[1], -m, key=lambda need: -need) for m in levels]


class _Levelled:
    """A step in levels of memory; a stage is (fewest levels left, cost, levels that it takes)."""

    def __init__(self, unit: ChainUnit, levels: Sequence[int], grain: int) -> None:
        def level(needed: int) -> int:
            return bisect_left(levels, needed)

        def taken(cached: int) -> int:
            return max(0, -(-cached // grain))

        self.held = taken(unit.held_bytes)
        self.sweep_cost = unit.sweep_cost
        self.sweep_level = level(unit.sweep_bytes)
        self.lent_level = level(unit.lent_bytes)
        self.first_level = level(unit.first_bytes)
        self.leaf_label = _labels(unit.leaf, levels)
        costs = unit.leaf[0]
        self.leaf = [costs[a] if a < len(costs) else _NEVER for a in self.leaf_label]
        self.staged = [
            (level(max(back, sweep)), cost, taken(cached))
            for cost, cached, back, sweep in unit.staged
        ]
        self.top = [
            (level(max(back, forward)), cost, taken(cached))
            for cost, cached, forward, back in unit.top
        ]

    def long_level(self, rest: _Levelled) -> int:
        """Level of a sweep over this step and more of the rest."""
        return max(self.sweep_level, rest.sweep_level, rest.lent_level)


class _Cells:
    """Costs, splits and options by number of steps and level."""

    def __init__(self, levels: int) -> None:
        self.cost = [[0] * levels]
        self.k = [[_NEVER] * levels]
        self.option = [[_NEVER] * levels]
        self.look = [[_NEVER] * levels]

    def add(self, row: Sequence[Best]) -> None:
        """The row of the next number of steps."""
        self.cost.append([best.cost for best in row])
        self.k.append([best.k for best in row])
        self.option.append([best.option for best in row])
        self.look.append([best.look for best in row])


class ChainTable:
    """Reversals of up to `steps` alike steps, and first passes over them, for every memory level.

    Attributes:
        levels: bytes of each level, ascending.
    """

    def __init__(
        self,
        unit: ChainUnit,
        steps: int,
        after: Front | None,
        most_levels: int,
        parts: int = 1,
        first: ChainUnit | None = None,
    ) -> None:
        if unit.held_bytes < parts:
            raise ValueError(f"a checkpoint of {unit.held_bytes} bytes has no {parts} parts")
        self._steps = steps
        self._first = first is not None
        # A checkpoint's bytes are a whole number of levels, or a level is a little too large.
        grain = -(-unit.held_bytes // parts)
        least = unit.leaf[1][-1]
        if after is not None:
            # Levels fall on what the part after the chain needs at least, and begin there.
            beyond = max(after[1][-1], least - (most_levels // 2) * grain) - least
            least += beyond % grain if beyond > 0 else -(-beyond // grain * grain)
        self.levels = [least + s * grain for s in range(most_levels)]
        self._unit = _Levelled(unit, self.levels, grain)
        self._bottom = self._unit if first is None else _Levelled(first, self.levels, grain)
        every = range(most_levels)
        self._reversals = _Cells(most_levels)
        self._reversals.add([Best(cost, 1, _NESTED, _NEVER) for cost in self._unit.leaf])
        for count in range(2, steps + 1):
            self._reversals.add([self._reversal(count, s, False) for s in every])
        # Reversals that reach down to the first step.
        self._bottoms = self._reversals
        if first is not None:
            self._bottoms = _Cells(most_levels)
            self._bottoms.add([Best(cost, 1, _NESTED, _NEVER) for cost in self._bottom.leaf])
            for count in range(2, steps + 1):
                self._bottoms.add([self._reversal(count, s, True) for s in every])
        # First passes over so many last steps.
        self._tops: _Cells | None = None
        if after is not None:
            self._after_label = _labels(after, self.levels)
            self._tops = _Cells(most_levels)
            self._tops.cost[0] = [
                after[0][a] if a < len(after[0]) else _NEVER for a in self._after_label
            ]
            for count in range(1, steps + 1):
                self._tops.add([self._first_pass(count, s) for s in every])

    def _candidates(self, count: int, last: int, known: int) -> range:
        if count <= _EVERY_SPLIT or known >= _NEVER:
            return range(1, last + 1)
        return range(max(1, known - _BACK), min(last, known + _AHEAD) + 1)

    def _reversal(self, count: int, s: int, bottom: bool) -> Best:
        """The best reversal at a level; `bottom`: its first step is the first of all."""
        unit = self._unit
        lowest, below = (self._bottom, self._bottoms) if bottom else (unit, self._reversals)
        cost = self._reversals.cost
        best = _NO_WAY
        known = below.look[count - 1][s]
        for k in self._candidates(count, count - 1, known):
            rest = s - (lowest.held if k == 1 else unit.held)
            if rest < 0 or s < (lowest.sweep_level if k == 1 else lowest.long_level(unit)):
                continue
            after, under = cost[count - k][rest], below.cost[k][s]
            if after < _NEVER and under < _NEVER:
                found = lowest.sweep_cost + (k - 1) * unit.sweep_cost + after + under
                if found < best.cost:
                    best = Best(found, k, _NESTED, k)
        for option, (floor, step, taken) in enumerate(lowest.staged):
            if s >= floor and s >= taken and cost[count - 1][s - taken] < _NEVER:
                found = step + cost[count - 1][s - taken]
                if found < best.cost:
                    best = Best(found, 1, option, best.look)
        return best

    def _first_pass(self, count: int, s: int) -> Best:
        """The best first pass over the last steps at a level."""
        assert self._tops is not None
        unit, top = self._unit, self._tops.cost
        bottom = count == self._steps
        lowest, below = (self._bottom, self._bottoms) if bottom else (unit, self._reversals)
        best = _NO_WAY
        # What comes first may be another step, and its splits others than those one step above.
        known = self._tops.look[count - 1][s] if lowest is unit else _NEVER
        for k in self._candidates(count, count, known):
            rest = s - (lowest.held if k == 1 else unit.held)
            if rest < 0 or s < max(lowest.first_level, unit.first_level if k > 1 else 0):
                continue
            after, under = top[count - k][rest], below.cost[k][s]
            if after < _NEVER and under < _NEVER and after + under < best.cost:
                best = Best(after + under, k, _NESTED, k)
        for option, (floor, step, taken) in enumerate(lowest.top):
            if s >= floor and s >= taken and top[count - 1][s - taken] < _NEVER:
                found = step + top[count - 1][s - taken]
                if found < best.cost:
                    best = Best(found, 1, option, best.look)
        return best

    def reversal_cost(self, count: int, level: int, bottom: bool = False) -> int | None:
        """Least cost of reversing `count` steps at a level; None if that is too little memory.

        Args:
            count: number of steps.
            level: number of the level.
            bottom: whether the first of them is the chain's first step.
        """
        cells = self._bottoms if bottom else self._reversals
        cost = cells.cost[count][level]
        return cost if cost < _NEVER else None

    def split(self, count: int, level: int, bottom: bool = False) -> tuple[int, int]:
        """(k, option) of a reversal: sweep k steps and reverse them later (option -1), or make one
        step a stage of a variant. For a single step, the label of its front."""
        if count == 1:
            return (self._bottom if bottom else self._unit).leaf_label[level], _NESTED
        cells = self._bottoms if bottom else self._reversals
        return cells.k[count][level], cells.option[count][level]

    def levels_of(self, k: int, option: int, bottom: bool = False, top: bool = False) -> int:
        """Levels that is held after k steps takes, or by a stage of a variant."""
        lowest = self._bottom if bottom else self._unit
        if option == _NESTED:
            return lowest.held if k == 1 else self._unit.held
        return (lowest.top if top else lowest.staged)[option][2]

    def front(self) -> tuple[list[int], list[int], list[int]]:
        """Costs, needs and levels of first passes over all steps, and what comes after them."""
        costs: list[int] = []
        needs: list[int] = []
        at: list[int] = []
        best = _NEVER
        row = [] if self._tops is None else self._tops.cost[self._steps]
        for s, cost in enumerate(row):
            if cost < best:
                best = cost
                costs.append(cost)
                needs.append(self.levels[s])
                at.append(s)
        return costs[::-1], needs[::-1], at[::-1]

    def first_pass(self, level: int) -> tuple[list[tuple[int, int, int]], int]:
        """The stages (steps, option, level) of a first pass; the label of what comes after."""
        assert self._tops is not None, "made without what comes after the chain"
        stages: list[tuple[int, int, int]] = []
        count, s = self._steps, level
        while count:
            k, option = self._tops.k[count][s], self._tops.option[count][s]
            stages.append((k, option, s))
            s -= self.levels_of(k, option, count == self._steps, top=True)
            count -= k
        return stages, self._after_label[s]


def chain_table(
    unit: ChainUnit,
    steps: int,
    after: Front | None,
    most_levels: int,
    parts: int = 1,
    first: ChainUnit | None = None,
) -> ChainTable:
    """See `memfit._core.chain_table`."""
    return ChainTable(unit, steps, after, most_levels, parts, first)
