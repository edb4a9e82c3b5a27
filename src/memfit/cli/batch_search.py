"""The largest batch that needs at most so much: few trials, as each is a capture and a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Found", "Trial", "largest_batch"]

LIMIT = 1 << 20
"""Batches above this are not tried."""

_FASTEST = 8  # the batch grows by at most this factor from trial to trial
_SECANTS = 8  # trials at guesses before plain bisection


@dataclass(frozen=True, slots=True)
class Trial:
    """One batch that was tried.

    Attributes:
        batch: its size.
        need_bytes: the smallest memory found to do for it.
        fits: whether it fits.
    """

    batch: int
    need_bytes: int
    fits: bool


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        batch: the largest batch that fits; 0 where not even one of 1 does.
        trials: in the order in which they were tried.
        limited: the search stopped at `LIMIT`.
    """

    batch: int
    trials: tuple[Trial, ...]
    limited: bool = False


def largest_batch(attempt: Callable[[int], Trial], limit_bytes: int, start: int) -> Found:
    """The largest batch that fits, found by growing and narrowing.

    The batch is at least doubled until one does not fit. What is needed is nearly a straight line
    over the batch, so that further trials are made where the line through the two nearest ones
    meets the limit, and by bisection after that.

    Args:
        attempt: tries a batch.
        limit_bytes: the budget, for guessing.
        start: the batch to try first.

    Returns:
        A batch that fits, the next larger one of which does not: what fits is taken to fit smaller.
    """
    trials: dict[int, Trial] = {}

    def fits(batch: int) -> bool:
        if batch not in trials:
            trials[batch] = attempt(batch)
        return trials[batch].fits

    low, high = 0, None
    batch = max(1, min(start, LIMIT))
    while True:
        if fits(batch):
            low = batch
        else:
            high = batch
        if high is not None and high - low <= 1:
            return Found(low, tuple(trials.values()))
        if low >= LIMIT:
            return Found(low, tuple(trials.values()), limited=True)
        guess = _line(trials, low, high, limit_bytes)
        if high is None:
            most = min(LIMIT, _FASTEST * low)
            least = min(LIMIT, 2 * low)
            # One more than the guess: it is meant not to fit.
            batch = least if guess is None else min(most, max(least, guess + 1))
        elif guess is None or len(trials) > _SECANTS:
            batch = (low + high) // 2
        else:
            batch = min(high - 1, max(low + 1, guess))


def _line(trials: dict[int, Trial], low: int, high: int | None, limit_bytes: int) -> int | None:
    """Where the line through the two trials nearest to the limit meets it; None for no line."""
    around = sorted(trials, key=lambda b: (abs(b - low) + (abs(b - high) if high else 0), -b))[:2]
    if len(around) < 2:
        return None
    a, b = (trials[batch] for batch in around)
    rise = b.need_bytes - a.need_bytes
    if rise == 0 or (rise > 0) != (b.batch > a.batch):
        return None
    return a.batch + (limit_bytes - a.need_bytes) * (b.batch - a.batch) // rise
