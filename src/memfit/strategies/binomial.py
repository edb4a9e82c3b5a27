"""What reversing a chain of steps costs with few checkpoints: proven optima, for comparison.

A chain of l steps is reversed from its last step to its first. Reversing a step takes its input and
runs it once more, recording what its backward needs (a *taping* run). A state may be stored, as a
*checkpoint*; running a step without recording is an *advance*. The chain's first state counts as a
checkpoint.

Griewank and Walther 2000 (Algorithm 799: revolve, ACM TOMS 26(1)) prove the least number of
advances. Chen et al. 2016 (arXiv 1604.06174) store every √l-th state. Gruslys et al. 2016 (arXiv
1606.03401) find the optimum by dynamic programming: their "hidden state memorisation" stores
states only, as here; "mixed" may store what a taping run recorded as well, at its own size.
"""

from __future__ import annotations

import math
from functools import cache

__all__ = [
    "advances",
    "forward_steps",
    "gruslys_mixed",
    "gruslys_states",
    "repetitions",
    "reversible_steps",
    "split",
    "sqrt_checkpointing",
]


def reversible_steps(checkpoints: int, repetitions: int) -> int:
    """β(s, r) = C(s + r, s): the longest chain that s checkpoints reverse when no step is advanced
    over more than r times (Griewank and Walther 2000, Eq. 1); 0 for negative r."""
    return math.comb(checkpoints + repetitions, checkpoints) if repetitions >= 0 else 0


def repetitions(steps: int, checkpoints: int, leaf: int = 1) -> int:
    """r, the least number with leaf · β(s, r) >= l; no step is advanced over more often.

    Args:
        steps: l.
        checkpoints: s.
        leaf: steps that are taped in one run.

    Raises:
        ValueError: fewer than one step or checkpoint.
    """
    if steps < 1 or checkpoints < 1:
        raise ValueError(
            f"a chain of {steps} steps with {checkpoints} checkpoints; both must be 1 or more"
        )
    low, high = -1, 1
    while leaf * reversible_steps(checkpoints, high) < steps:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if leaf * reversible_steps(checkpoints, middle) >= steps:
            high = middle
        else:
            low = middle
    return high


def advances(steps: int, checkpoints: int, leaf: int = 1) -> int:
    """The least number of advances that reverse l steps with s checkpoints:
    r l - leaf · β(s + 1, r - 1) (Griewank and Walther 2000, Eq. 3, for leaves of one step).

    Arguments and errors are those of `repetitions`.
    """
    r = repetitions(steps, checkpoints, leaf)
    return r * steps - leaf * reversible_steps(checkpoints + 1, r - 1)


def forward_steps(steps: int, checkpoints: int) -> int:
    """The least number of runs of a step, advances and taping runs: plain training takes l."""
    return steps + advances(steps, checkpoints)


def split(steps: int, checkpoints: int) -> int:
    """Where the next checkpoint is best set: a number of steps k that attains the least number of
    advances k + t(k, s) + t(l - k, s - 1).

    With r repetitions any k between bounds on β does (Griewank and Walther 2000, section 2); this
    is the smallest, found by their bounds.

    Raises:
        ValueError: fewer than two steps, or than one checkpoint.
    """
    if steps < 2:
        raise ValueError(f"a chain of {steps} steps has no split; 2 steps at least")
    r = repetitions(steps, checkpoints)
    if checkpoints == 1:
        return steps - 1
    # The part above may have r repetitions with one checkpoint less, the part below r - 1.
    return max(
        1,
        reversible_steps(checkpoints, r - 2) if r >= 2 else 1,
        steps - reversible_steps(checkpoints - 1, r),
    )


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
