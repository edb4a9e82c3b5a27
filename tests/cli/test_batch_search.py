"""The search for the largest batch finds it, in few trials."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.cli.batch_search import LIMIT, Found, Trial, largest_batch


def search(need: Callable[[int], int], budget: int, start: int = 1) -> Found:
    return largest_batch(lambda b: Trial(b, need(b), need(b) <= budget), budget, start)


def test_a_straight_line_takes_few_trials() -> None:
    found = search(lambda b: 1000 + 37 * b, 1000 + 37 * 700 + 5, start=8)
    assert found.batch == 700
    assert len(found.trials) <= 6
    assert {701} == {t.batch for t in found.trials if not t.fits and t.batch <= 701}


def test_nothing_fits() -> None:
    found = search(lambda b: 1000 + b, 900, start=64)
    assert found.batch == 0
    assert min(t.batch for t in found.trials) == 1


def test_everything_fits() -> None:
    found = search(lambda b: 5, 10)
    assert (found.batch, found.limited) == (LIMIT, True)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=60),
    st.integers(0, 20_000),
    st.integers(1, 80),
)
def test_any_rising_need(steps: list[int], budget: int, start: int) -> None:
    def need(batch: int) -> int:
        return sum(steps[:batch]) + max(0, batch - len(steps)) * 500

    found = search(need, budget, start)
    assert need(found.batch) <= budget or found.batch == 0
    assert need(found.batch + 1) > budget
    assert len({t.batch for t in found.trials}) == len(found.trials)


@pytest.mark.parametrize("start", [1, 7, 1000])
def test_the_start_does_not_matter(start: int) -> None:
    assert search(lambda b: b * b, 12_345, start).batch == 111
