"""The first of the fixed random programs: each trains as in plain PyTorch, in its budgets."""

from __future__ import annotations

from collections import Counter

import pytest

from programs.fixed import PER_FILE, frozen, outcome

COUNTS: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def only_new_garbage() -> object:
    with frozen():
        yield


@pytest.mark.parametrize("tens", range(PER_FILE // 10))
def test_programs_train_as_in_plain_pytorch(tens: int) -> None:
    first = 10 * tens
    found = [wrong for seed in range(first, first + 10) if (wrong := outcome(seed, COUNTS))]
    assert not found, "\n".join(found)


def test_most_programs_are_trained() -> None:
    if COUNTS.total() >= PER_FILE // 2:  # where all of them ran in this process
        assert COUNTS["right"] > 10 * COUNTS["refused"]
