"""What reversing a chain of steps costs with few checkpoints: proven optima, for comparison.

A chain of l steps is reversed from its last step to its first. Reversing a step takes its input and
runs it once more, recording what its backward needs (a *taping* run). A state may be stored, as a
*checkpoint*; running a step without recording is an *advance*. The chain's first state counts as a
checkpoint.

Griewank and Walther 2000 (Algorithm 799: revolve, ACM TOMS 26(1)) prove the least number of
advances. Gruslys et al. 2016 (arXiv 1606.03401) call this hidden-state memorisation: states are
stored, and not what a taping run recorded.
"""

from __future__ import annotations

import math

__all__ = [
    "advances",
    "forward_steps",
    "repetitions",
    "reversible_steps",
    "split",
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
