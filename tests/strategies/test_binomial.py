"""The proven optima of reversing chains, against dynamic programs that try every split."""

from __future__ import annotations

import math

import pytest

from memfit.strategies.binomial import (
    advances,
    forward_steps,
    repetitions,
    reversible_steps,
    split,
)


def every_split(most_steps: int, most_checkpoints: int) -> dict[tuple[int, int], int]:
    """Least advances by number of steps and checkpoints, from the definition."""
    least: dict[tuple[int, int], int] = {}
    for s in range(1, most_checkpoints + 1):
        for n in range(1, most_steps + 1):
            ways = [k + least[k, s] + least[n - k, s - 1] for k in range(1, n) if s > 1]
            # With one checkpoint, the first state, every step is reached from there.
            ways.append(n * (n - 1) // 2)
            least[n, s] = min(ways)
    return least


def test_the_closed_form_is_the_optimum() -> None:
    for (n, s), least in every_split(60, 9).items():
        assert advances(n, s) == least, (n, s)
        assert forward_steps(n, s) == n + least


def test_the_split_attains_the_optimum() -> None:
    for n in (2, 3, 7, 40, 401, 2_000, 123_457):
        for s in (2, 3, 5, 17, 100, n - 1, n):
            if s < 2:
                continue
            k = split(n, s)
            assert 1 <= k < n
            assert k + advances(k, s) + advances(n - k, s - 1) == advances(n, s), (n, s)
        assert split(n, 1) == n - 1


def test_binomials() -> None:
    assert reversible_steps(3, 2) == math.comb(5, 3)
    assert repetitions(10, 3) == 2
    assert repetitions(11, 3) == 3
    assert repetitions(1, 4) == 0
    assert forward_steps(1, 1) == 1
    assert forward_steps(5, 100) == 5 + 4


def test_logarithmic_memory_takes_logarithmic_work() -> None:
    # Griewank and Walther 2000: with s = r, β(s, s) grows as 4^s.
    for s in range(2, 12):
        longest = reversible_steps(s, s)
        assert s >= math.log(longest, 4)
        assert advances(longest, s) <= s * longest


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: repetitions(0, 3), "a chain of 0 steps"),
        (lambda: advances(3, 0), "with 0 checkpoints"),
        (lambda: split(1, 2), "has no split"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
