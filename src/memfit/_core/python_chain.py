"""Nested strategies over a chain of alike steps: what counts is how many are left, and the memory.

The recurrence is that of Griewank and Walther 2000 (revolve) with costs and bytes of a real step:
C(l, m), the least cost of reversing l steps with m bytes, is the least over k of

    k sweep_cost + C(l - k, m - held) + C(k, m)

or of running one step and keeping more of it, for a stage (`staged`). Memory comes in *levels*, a
fraction of what one checkpoint holds apart, so that checkpoints fall on levels exactly. The best k
moves little from l to l + 1 (in revolve by at most one), so that only its neighbours are tried.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from memfit._core.python_slots import Front

__all__ = ["ChainTable", "ChainUnit", "chain_table"]

_NEVER = 1 << 62
_EVERY_SPLIT = 48
"""Chains up to this length try every split."""
_BACK, _AHEAD = 2, 3
"""Longer ones try so many splits before and after the best one of a chain one step shorter."""

_NESTED = -1


@dataclass(frozen=True, slots=True)
class ChainUnit:
    """One step of a chain. Bytes are beyond what the cache holds below the stretch at hand.

    Attributes:
        held_bytes: what holding the interface between two steps takes.
        sweep_cost: cost of computing the next interface again.
        sweep_bytes: peak of that, over one step.
        lent_bytes: the same in the midst of a sweep, with the interface that it starts from.
        first_bytes: peak of the first pass over a step that keeps its interface.
        leaf: costs and needs of reversing one step.
        staged: for each variant (cost, cached bytes, peak on the way back, peak of the sweep) of
            a stage of one step, its sweep included.
        top: for each variant (cost, cached bytes, peak forward, peak on the way back) of such a
            stage in the first pass.
    """

    held_bytes: int
    sweep_cost: int
    sweep_bytes: int
    lent_bytes: int
    first_bytes: int
    leaf: Front
    staged: Sequence[tuple[int, int, int, int]] = ()
    top: Sequence[tuple[int, int, int, int]] = ()


class ChainTable:
    """Reversals of up to `steps` alike steps, and first passes over them, for every memory level.

    Attributes:
        levels: bytes of each level, ascending.
    """

    def __init__(
        self, unit: ChainUnit, steps: int, after: Front | None, most_levels: int, parts: int = 1
    ) -> None:
        if unit.held_bytes < parts:
            raise ValueError(f"a checkpoint of {unit.held_bytes} bytes has no {parts} parts")
        self._unit, self._steps = unit, steps
        self._after = after
        # A checkpoint's bytes are a whole number of levels, or a level is a little too large.
        grain = -(-unit.held_bytes // parts)
        self._held = parts
        least = unit.leaf[1][-1]
        if after is not None:
            # Levels fall on what the part after the chain needs at the very least.
            least += max(0, after[1][-1] - least) % grain
        self.levels = [least + s * grain for s in range(most_levels)]
        # (fewest levels that must be left, cost, levels that it takes, option), one step.
        self._staged = [
            (self._level(max(back, sweep)), cost, max(0, -(-cached // grain)), v)
            for v, (cost, cached, back, sweep) in enumerate(unit.staged)
        ]
        self._top_staged = [
            (self._level(max(back, forward)), cost, max(0, -(-cached // grain)), v)
            for v, (cost, cached, forward, back) in enumerate(unit.top)
        ]
        self._sweep_level = (
            self._level(unit.sweep_bytes),
            self._level(max(unit.sweep_bytes, unit.lent_bytes)),
        )
        self._first_level = self._level(unit.first_bytes)
        none = [_NEVER] * most_levels
        self._leaf_label = [bisect_left(unit.leaf[1], -m, key=lambda n: -n) for m in self.levels]
        self._cost: list[list[int]] = [[0] * most_levels, [unit.leaf[0][a] for a in self._leaf_label]]
        self._choice: list[list[int]] = [none, [1] * most_levels]
        self._option: list[list[int]] = [none, [_NESTED] * most_levels]
        for count in range(2, steps + 1):
            self._reversal(count)
        self._top_cost: list[list[int]] = []
        self._top_choice: list[list[int]] = [none]
        self._top_option: list[list[int]] = [none]
        if after is not None:
            at = [bisect_left(after[1], -m, key=lambda n: -n) for m in self.levels]
            self._after_label = at
            self._top_cost.append([after[0][a] if a < len(after[0]) else _NEVER for a in at])
            for count in range(1, steps + 1):
                self._first_pass(count)

    def _level(self, needed: int) -> int:
        return bisect_left(self.levels, needed)

    def _candidates(self, count: int, last: int, known: int) -> range:
        if count <= _EVERY_SPLIT or known >= _NEVER:
            return range(1, last + 1)
        return range(max(1, known - _BACK), min(last, known + _AHEAD) + 1)

    def _reversal(self, count: int) -> None:
        unit, cost = self._unit, self._cost
        costs, choices, options = [], [], []
        for s in range(len(self.levels)):
            best, choice, option = _NEVER, _NEVER, _NEVER
            rest = s - self._held
            if rest >= 0:
                for k in self._candidates(count, count - 1, self._choice_at(count - 1, s)):
                    if s < self._sweep_level[k > 1]:
                        continue
                    after, below = cost[count - k][rest], cost[k][s]
                    if after < _NEVER and below < _NEVER:
                        found = k * unit.sweep_cost + after + below
                        if found < best:
                            best, choice, option = found, k, _NESTED
            for floor, step, taken, variant in self._staged:
                if s >= floor and s >= taken and cost[count - 1][s - taken] < _NEVER:
                    found = step + cost[count - 1][s - taken]
                    if found < best:
                        best, choice, option = found, 1, variant
            costs.append(best)
            choices.append(choice)
            options.append(option)
        cost.append(costs)
        self._choice.append(choices)
        self._option.append(options)

    def _choice_at(self, count: int, s: int) -> int:
        """The best split of a chain, as far as it says where to look; _NEVER if it does not."""
        if count < 2 or self._option[count][s] != _NESTED:
            return _NEVER
        return self._choice[count][s]

    def _first_pass(self, count: int) -> None:
        cost, top = self._cost, self._top_cost
        costs, choices, options = [], [], []
        for s in range(len(self.levels)):
            best, choice, option = _NEVER, _NEVER, _NEVER
            rest = s - self._held
            if rest >= 0 and s >= self._first_level:
                known = _NEVER
                if self._top_option[count - 1][s] == _NESTED:
                    known = self._top_choice[count - 1][s]
                for k in self._candidates(count, count, known):
                    after, below = top[count - k][rest], cost[k][s]
                    if after < _NEVER and below < _NEVER and after + below < best:
                        best, choice, option = after + below, k, _NESTED
            for floor, step, taken, variant in self._top_staged:
                if s >= floor and s >= taken and top[count - 1][s - taken] < _NEVER:
                    found = step + top[count - 1][s - taken]
                    if found < best:
                        best, choice, option = found, 1, variant
            costs.append(best)
            choices.append(choice)
            options.append(option)
        top.append(costs)
        self._top_choice.append(choices)
        self._top_option.append(options)

    def reversal_cost(self, count: int, level: int) -> int | None:
        """Least cost of reversing `count` steps at a level; None if that is too little memory."""
        cost = self._cost[count][level]
        return cost if cost < _NEVER else None

    def split(self, count: int, level: int) -> tuple[int, int]:
        """(k, option) of a reversal: sweep k steps and reverse them later (option -1), or make one
        step a stage of a variant. For a single step, the label of its front."""
        if count == 1:
            return self._leaf_label[level], _NESTED
        return self._choice[count][level], self._option[count][level]

    def levels_of(self, option: int, *, top: bool = False) -> int:
        """Levels that what is held takes."""
        if option == _NESTED:
            return self._held
        return (self._top_staged if top else self._staged)[option][2]

    def front(self) -> tuple[list[int], list[int], list[int]]:
        """Costs, needs and levels of first passes over all steps, and what comes after them."""
        costs: list[int] = []
        needs: list[int] = []
        at: list[int] = []
        best = _NEVER
        for s, cost in enumerate(self._top_cost[self._steps]):
            if cost < best:
                best = cost
                costs.append(cost)
                needs.append(self.levels[s])
                at.append(s)
        return costs[::-1], needs[::-1], at[::-1]

    def first_pass(self, level: int) -> tuple[list[tuple[int, int, int]], int]:
        """The stages (steps, option, level) of a first pass; the label of what comes after."""
        stages: list[tuple[int, int, int]] = []
        count, s = self._steps, level
        while count:
            k, option = self._top_choice[count][s], self._top_option[count][s]
            stages.append((k, option, s))
            s -= self.levels_of(option, top=True)
            count -= k
        return stages, self._after_label[s]


def chain_table(
    unit: ChainUnit, steps: int, after: Front | None, most_levels: int, parts: int = 1
) -> ChainTable:
    """See `memfit._core.chain_table`."""
    return ChainTable(unit, steps, after, most_levels, parts)
