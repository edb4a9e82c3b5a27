"""What other papers' ways of reversing a chain cost, against the proven optimum."""

from __future__ import annotations

from types import ModuleType

import pytest

from memfit.strategies.binomial import forward_steps
from support.benchmarks import benchmark_module


@pytest.fixture(scope="module")
def papers() -> ModuleType:
    return benchmark_module("recurrence.from_papers")


def test_states_alone_attain_the_optimum(papers: ModuleType) -> None:
    for s in range(1, 10):
        for n in range(1, 61):
            assert papers.gruslys_states(n, s) == forward_steps(n, s), (n, s)


def test_mixed_memory_never_costs_more_than_states_alone(papers: ModuleType) -> None:
    for n in (1, 2, 9, 30):
        for memory in range(1, 25):
            alone = papers.gruslys_states(n, memory)
            mixed = papers.gruslys_mixed(n, memory, recording=5)
            assert mixed is not None
            assert mixed <= alone
    assert papers.gruslys_mixed(30, 24, 1) < papers.gruslys_states(30, 24)
    assert papers.gruslys_mixed(9, 9 * 5, 5) == 9  # everything is recorded
    assert papers.gruslys_mixed(2, 0, 5) is None


def test_records_never_cost_more_than_states_alone(papers: ModuleType) -> None:
    for n in (1, 2, 9, 30):
        for slots in range(12):
            assert papers.gruslys(n, slots, slots + 1) == papers.gruslys_states(n, slots + 1)
            assert papers.gruslys(n, slots, 3) <= papers.gruslys_states(n, slots + 1)


def test_equal_segments(papers: ModuleType) -> None:
    runs, alive = papers.sqrt_checkpointing(100, 10)
    assert (runs, alive) == (190, 10)
    assert papers.sqrt_checkpointing(7, 1) == (7, 7)
    assert papers.sqrt_checkpointing(7, 7)[1] == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sqrt_checkpointing", (5, 6), "6 segments of 5 steps"),
        ("gruslys_states", (5, 0), "0 slots"),
        ("gruslys_mixed", (0, 1, 1), "0 steps"),
    ],
)
def test_what_makes_no_sense_is_refused(
    papers: ModuleType, name: str, arguments: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(papers, name)(*arguments)
