"""The proven optima of reversing chains, against dynamic programs that try every split."""

from __future__ import annotations

import math

import pytest

from memfit.strategies.binomial import (
    advances,
    forward_steps,
    gruslys_mixed,
    gruslys_states,
    repetitions,
    reversible_steps,
    split,
    sqrt_checkpointing,
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
        assert gruslys_states(n, s) == forward_steps(n, s) == n + least


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


def test_mixed_memory_never_costs_more_than_states_alone() -> None:
    for n in (1, 2, 9, 30):
        for memory in range(1, 25):
            alone = gruslys_states(n, memory)
            mixed = gruslys_mixed(n, memory, recording=5)
            assert mixed is not None
            assert mixed <= alone
    assert gruslys_mixed(30, 24, 1) < gruslys_states(30, 24)  # type: ignore[operator]
    assert gruslys_mixed(9, 9 * 5, 5) == 9  # everything is recorded
    assert gruslys_mixed(2, 0, 5) is None


def test_equal_segments() -> None:
    runs, alive = sqrt_checkpointing(100, 10)
    assert (runs, alive) == (190, 10)
    assert sqrt_checkpointing(7, 1) == (7, 7)
    assert sqrt_checkpointing(7, 7)[1] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: repetitions(0, 3), "a chain of 0 steps"),
        (lambda: advances(3, 0), "with 0 checkpoints"),
        (lambda: split(1, 2), "has no split"),
        (lambda: sqrt_checkpointing(5, 6), "6 segments of 5 steps"),
        (lambda: gruslys_states(5, 0), "0 slots"),
        (lambda: gruslys_mixed(0, 1, 1), "0 steps"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
