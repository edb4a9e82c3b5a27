"""Plans of loops: the closed forms against exhaustive search, and every schedule played."""

from __future__ import annotations

from functools import lru_cache

import pytest

from memfit.strategies.binomial import advances
from memfit.strategies.loops import (
    Advance,
    Leaf,
    LoopPlan,
    Restore,
    Store,
    fastest_plan,
    reversal,
    sweep,
)


@lru_cache(None)
def least(length: int, states: int, leaf: int) -> int:
    """Fewest repeated steps, by trying every place for the next state."""
    if length <= leaf:
        return 0
    if states == 1:
        return length - leaf + least(length - leaf, 1, leaf)
    return min(
        y + least(length - y, states - 1, leaf) + least(y, states, leaf) for y in range(1, length)
    )


def play(plan: LoopPlan) -> int:
    """Forward steps of a plan, whose every action finds the state that it needs."""
    held = sweep(plan)
    slots: list[int | None] = [*held.stored, *[None] * (plan.slots - len(held.stored))]
    assert len(slots) == plan.slots
    steps, backward, state = plan.steps, plan.steps, None
    for action in reversal(plan):
        match action:
            case Restore(slot):
                state = 0 if slot < 0 else slots[slot]
            case Advance(begin, end):
                assert state == begin
                steps += end - begin
                state = end
            case Store(slot):
                slots[slot] = state
            case Leaf(begin, end, recorded):
                assert end == backward
                assert end - begin <= plan.leaf
                if recorded:
                    assert plan.tail
                    assert begin == held.tail_begin
                else:
                    assert state == begin
                    steps += end - begin
                backward = begin
    assert backward == 0
    return steps


@pytest.mark.parametrize("leaf", [1, 2, 5])
def test_closed_form_is_the_optimum(leaf: int) -> None:
    for slots in range(5):
        for length in range(1, 45):
            assert advances(length, slots + 1, leaf) == least(length, slots + 1, leaf)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("leaf", [1, 2, 5])
def test_schedules_play(leaf: int, tail: bool) -> None:
    for slots in range(5):
        for length in range(1, 45):
            plan = LoopPlan(length, slots, leaf, tail)
            assert play(plan) == plan.forward_steps


@pytest.mark.parametrize(
    ("steps", "slots", "repeated"), [(10, 2, 15), (56, 4, 140), (56, 2, 210), (100, 99, 99)]
)
def test_chains_of_griewank_and_walther(steps: int, slots: int, repeated: int) -> None:
    assert advances(steps, slots + 1) == repeated


def test_a_hundred_thousand_steps_in_log_memory() -> None:
    plan = fastest_plan(100_000, memory_bytes=40, state_bytes=1, record_bytes=4)
    assert plan.forward_steps < 5 * 100_000
    assert play(plan) == plan.forward_steps


def test_more_memory_is_never_slower() -> None:
    found = [
        fastest_plan(500, memory_bytes=m, state_bytes=2, record_bytes=7).forward_steps
        for m in range(10, 4000, 10)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 500
