"""What other papers' ways of reversing a chain cost, for comparison with the optimum and with ours.

Chen et al. 2016 (arXiv 1604.06174) store every √l-th state. Gruslys et al. 2016 (arXiv 1606.03401)
find the optimum by dynamic programming: their "hidden state memorisation" stores states only;
"mixed" may store what a run recorded for its backward as well, at its own size. Steps, states and
recordings are those of `memfit.strategies.binomial`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

__all__ = ["gruslys", "gruslys_mixed", "gruslys_states", "sqrt_checkpointing"]


def sqrt_checkpointing(steps: int, segments: int) -> tuple[int, int]:
    """(runs of a step, states and recordings alive at once) of equal segments after Chen et al.

    The states between segments are stored in the first pass; each segment but the last is run
    again, recording. Alive are the first states of all segments and one segment's recordings.

    Raises:
        ValueError: segments are fewer than 1 or more than the steps.
    """
    if not 1 <= segments <= steps:
        raise ValueError(f"{segments} segments of {steps} steps; 1 to {steps} are possible")
    longest = -(-steps // segments)
    last = steps - longest * (-(-steps // longest) - 1)
    return 2 * steps - last, longest


@cache
def _states(steps: int, slots: int) -> int:
    if steps == 1:
        return 1
    if slots == 1:
        return steps * (steps + 1) // 2
    return min(k + _states(steps - k, slots - 1) + _states(k, slots) for k in range(1, steps))


def gruslys_states(steps: int, slots: int) -> int:
    """Least runs of a step with hidden-state memorisation, by the dynamic program of Gruslys et al.
    (2016, Eq. 1), which tries every split.

    The optimum is that of `forward_steps`; this one takes O(l² s), for up to a few hundred steps.

    Raises:
        ValueError: fewer than one step or slot.
    """
    if steps < 1 or slots < 1:
        raise ValueError(f"a chain of {steps} steps with {slots} slots; both must be 1 or more")
    return _grown(steps, slots)


def _grown(steps: int, slots: int) -> int:
    # Shorter chains first, so that the recursion stays shallow.
    for count in range(1, steps + 1):
        _states(count, slots)
    return _states(steps, slots)


def gruslys_mixed(steps: int, memory: int, recording: int) -> int | None:
    """Least runs of a step where states (of one unit) and recordings (of `recording` units) may be
    stored: mixed memorisation of Gruslys et al. (2016, section 3.3).

    A recording holds the state after its step as well. The step being reversed has its recording's
    memory to itself, beside `memory`. O(l² memory).

    Args:
        steps: length of the chain.
        memory: units of memory beside the first state.
        recording: units of one recording.

    Returns:
        The number, or None where `memory` is too little.
    """
    if steps < 1 or recording < 1:
        raise ValueError(f"{steps} steps with recordings of {recording}; both must be 1 or more")
    never = 1 << 60
    cost = [[never] * (memory + 1) for _ in range(steps + 1)]
    cost[1] = [1] * (memory + 1)
    for count in range(2, steps + 1):
        row = cost[count]
        for m in range(1, memory + 1):
            best = min(k + cost[count - k][m - 1] + cost[k][m] for k in range(1, count))
            if m >= recording:
                best = min(best, 1 + cost[count - 1][m - recording])
            row[m] = best
    found = cost[steps][memory] if memory >= 0 else never
    return found if found < never else None


@cache
def gruslys(steps: int, slots: int, record: int) -> int:
    """Fewest forward steps with mixed storage (Gruslys et al. 2016, BPTT-MSM), by their table.

    Args:
        steps: length of the chain.
        slots: memory beyond the first state and the record in use, in states.
        record: a stored record (internal state) in states.
    """
    import numpy as np

    table: list[Any] = []
    for m in range(slots + 1):
        cost = np.zeros(steps + 1)
        for t in range(1, steps + 1):
            best = t * (t + 1) / 2 if m == 0 else math.inf
            y = np.arange(1, t)
            if m > 0 and t == 1:
                best = 1
            if m > 0 and t > 1:
                best = min(best, float((y + cost[y] + table[m - 1][t - y]).min()))
            if m >= record and t > 1:
                z = np.arange(1, t + 1)
                best = min(best, float((z + cost[z - 1] + table[m - record][t - z]).min()))
            cost[t] = best
        table.append(cost)
    return int(table[slots][steps])
