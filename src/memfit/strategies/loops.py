"""How to run the backward pass of a loop of identical steps in little memory.

A loop carries a state from step to step. Its backward pass needs, for step n-1, n-2, … 0, what that
step's own backward pass reads (the step's *record*), and a record is made by running the step again
from the state before it. A plan holds `slots` states beside the first, and the records of `leaf`
steps at once.

With leaf = 1 this is Griewank and Walther's revolve (ACM TOMS 26(1), 2000, Algorithm 799), whose
number of repeated steps is the proven optimum of a chain of equal steps with `slots` + 1 states.
Where memory holds the records of r steps, a chain of r steps needs no repetition once its first
state is there; the recursion, its optimal splits and its closed form stay those of revolve with
every length multiplied by r.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memfit.strategies.binomial import advances, repetitions, reversible_steps

__all__ = [
    "Advance",
    "Leaf",
    "LoopPlan",
    "Restore",
    "Store",
    "fastest_plan",
    "reversal",
    "split",
    "sweep",
]


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """What is held of a loop.

    Attributes:
        steps: trip count, at least 1.
        slots: states held at once, beside the one before the first step.
        leaf: steps whose records are held at once, at least 1.
        tail: the records of the last steps are kept from the forward pass, so that the backward
            pass begins without repeating a step.
    """

    steps: int
    slots: int
    leaf: int
    tail: bool = True

    @property
    def kept_records(self) -> int:
        """Steps whose records are kept between the passes."""
        return self.steps - sweep(self).tail_begin if self.tail else 0

    @property
    def forward_steps(self) -> int:
        """Forward runs of a step in forward and backward pass together; `steps` at least."""
        least = self.steps + advances(self.steps, self.slots + 1, self.leaf)
        if self.tail:
            return least
        stored = sweep(self).stored
        return least + self.steps - (stored[-1] if stored else 0)


class Sweep(NamedTuple):
    """What the forward pass holds.

    Attributes:
        stored: the step before which the state of slot 0, 1, … is taken.
        tail_begin: the first step whose record is kept, where the plan keeps a tail.
    """

    stored: tuple[int, ...]
    tail_begin: int


class Restore(NamedTuple):
    """Go on from the state in a slot; -1 is the state before the first step."""

    slot: int


class Advance(NamedTuple):
    """Run steps `begin` … `end` - 1 forward, recording nothing."""

    begin: int
    end: int


class Store(NamedTuple):
    """Put the present state into a slot."""

    slot: int


class Leaf(NamedTuple):
    """Run steps `begin` … `end` - 1 forward with records, then backward.

    `recorded` says that the forward pass has left the records.
    """

    begin: int
    end: int
    recorded: bool


Action = Restore | Advance | Store | Leaf


def split(length: int, states: int, leaf: int) -> int:
    """How many steps to advance before the next state is stored; the longest optimal choice.

    Any y that both leaves reach with t - 1 and t repetitions is optimal: y ≤ leaf · β(states, t-1)
    and length - y ≥ leaf · β(states - 1, t - 1).

    Args:
        length: steps to reverse, more than `leaf`.
        states: free slots and the state that is there.
        leaf: as in `LoopPlan`.
    """
    t = repetitions(length, states, leaf)
    left = leaf * reversible_steps(states, t - 1)
    right = length - leaf * reversible_steps(states - 1, t - 1)
    return min(left, right)


def sweep(plan: LoopPlan) -> Sweep:
    """What the forward pass of a plan holds."""
    begin, states = 0, plan.slots + 1
    stored = []
    while plan.steps - begin > plan.leaf:
        begin += split(plan.steps - begin, states, plan.leaf)
        if states == 1:
            break
        stored.append(begin)
        states -= 1
    return Sweep(tuple(stored), begin)


def reversal(plan: LoopPlan) -> Iterator[Action]:
    """What the backward pass does, after a forward pass that has held what `sweep` says."""
    stack = [(0, plan.steps, plan.slots + 1, True)]
    while stack:
        begin, end, states, swept = stack.pop()
        here = plan.slots - states  # the slot of the state before `begin`
        if end - begin <= plan.leaf:
            recorded = swept and plan.tail
            if not recorded:
                yield Restore(here)
            yield Leaf(begin, end, recorded)
            continue
        middle = begin + split(end - begin, states, plan.leaf)
        stack.append((begin, middle, states, False))
        if states == 1:
            recorded = swept and plan.tail
            if not recorded:
                yield Restore(here)
                yield Advance(begin, middle)
            yield Leaf(middle, end, recorded)
            continue
        if not swept:
            yield Restore(here)
            yield Advance(begin, middle)
            yield Store(here + 1)
        stack.append((middle, end, states - 1, swept))


def _leaves(limit: int) -> Sequence[int]:
    """Leaf sizes to try: all up to 512, then 1% apart, and the limit."""
    found, size = [], 1
    while size < limit:
        found.append(size)
        size += max(1, size // 512 * 5)
    return [*found, max(1, limit)]


def fastest_plan(
    steps: int, *, memory_bytes: int, state_bytes: int, record_bytes: int, tail: bool = True
) -> LoopPlan:
    """The plan with the fewest forward steps whose states and records fit into a size.

    Of equal ones that which holds least. One record is always held, whatever the size.

    Args:
        steps: trip count.
        memory_bytes: for stored states and records.
        state_bytes: of one state.
        record_bytes: of one step's record.
        tail: as in `LoopPlan`.
    """
    most = steps if record_bytes == 0 else min(steps, memory_bytes // record_bytes)
    best: tuple[tuple[int, int], LoopPlan] | None = None
    for leaf in _leaves(max(1, most)):
        left = max(0, memory_bytes - leaf * record_bytes)
        useful = -(-steps // leaf) - 1
        slots = useful if state_bytes == 0 else min(useful, left // state_bytes)
        plan = LoopPlan(steps, slots, leaf, tail)
        key = (plan.forward_steps, slots * state_bytes + leaf * record_bytes)
        if best is None or key < best[0]:
            best = (key, plan)
    assert best is not None
    return best[1]
