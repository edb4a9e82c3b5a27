"""The programs that the default tests run, in two files that run side by side."""

from __future__ import annotations

from collections import Counter

import pytest

from programs.check import check, pairs_for
from programs.generate import generate
from programs.program import source

__all__ = ["TENS", "Part"]

PER_FILE = 110
QUICK_TENS = 2  # the others run with `make test-slow`
MOST = 4  # statements
TENS = pytest.mark.parametrize(
    "tens",
    [
        pytest.param(tens, marks=[pytest.mark.slow] if tens >= QUICK_TENS else [])
        for tens in range(PER_FILE // 10)
    ],
)


class Part:
    """One file's share of the programs.

    Args:
        number: of the file, from 0.
    """

    def __init__(self, number: int) -> None:
        self._first = number * PER_FILE
        self._counts: Counter[str] = Counter()

    def train(self, tens: int) -> None:
        """Ten of the programs: nothing is wrong with any."""
        first = self._first + 10 * tens
        found = [wrong for seed in range(first, first + 10) if (wrong := self._outcome(seed))]
        assert not found, "\n".join(found)

    def most_are_trained(self) -> None:
        """Few of them are refused; to be asked when all have run."""
        if self._counts.total() < 5 * QUICK_TENS:
            pytest.skip("the programs did not run in this process")
        assert self._counts["right"] > 10 * self._counts["refused"]

    def _outcome(self, seed: int) -> str:
        """What is wrong with a seed's program, with its source; empty where nothing is."""
        program = generate(seed, MOST)
        if program is None:
            return ""
        pairs = pairs_for(seed, others=1)
        verdict = check(program, pairs, measured=seed % 10 == 0, fresh=seed % 20 == 1)
        self._counts[verdict.status] += 1
        return f"{verdict.findings}\n{source(program)}" if verdict.findings else ""
