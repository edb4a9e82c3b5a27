"""Families of lower sets on small graphs that can be checked by eye."""

from __future__ import annotations

import pytest

from memfit import _core
from memfit.cuts.lower_sets import ancestor_sets, boundary, choose_family, is_lower_set, lower_sets
from memfit.errors import TooManyLowerSetsError, UsageError
from memfit.graph.published import bare_graph
from memfit.graph.training_graph import TrainingGraph


def graph_of(*predecessors: list[int]) -> TrainingGraph:
    ones = [1] * len(predecessors)
    return bare_graph(predecessors, ones, ones, [[] for _ in predecessors])


#       0
#      / \
#     1   2      two branches that 3 joins
#      \ /
#       3
DIAMOND = graph_of([], [0], [0], [1, 2])


@pytest.mark.parametrize(
    ("family", "masks"),
    [
        ("all", [0b0000, 0b0001, 0b0011, 0b0101, 0b0111, 0b1111]),
        ("pruned", [0b0000, 0b0001, 0b0011, 0b0101, 0b1111]),
        ("prefix", [0b0000, 0b0001, 0b0011, 0b0111, 0b1111]),
        ("pruned+prefix", [0b0000, 0b0001, 0b0011, 0b0101, 0b0111, 0b1111]),
    ],
)
def test_families(family: str, masks: list[int], core: str) -> None:
    assert lower_sets(DIAMOND.forward_predecessors, family, 100) == masks


def test_cuts_after_useful_ops_only(core: str) -> None:
    useful = [False, True, True, False]
    assert lower_sets(DIAMOND.forward_predecessors, "pruned", 100, useful) == [
        0,
        0b0011,
        0b0101,
        0b1111,
    ]
    assert lower_sets(DIAMOND.forward_predecessors, "prefix", 100, useful) == [
        0,
        0b0011,
        0b0111,
        0b1111,
    ]
    assert lower_sets(DIAMOND.forward_predecessors, "all", 100, useful) == [
        0,
        0b0011,
        0b0101,
        0b0111,
        0b1111,
    ]


def test_ancestor_sets() -> None:
    assert ancestor_sets(DIAMOND.forward_predecessors) == [0b0001, 0b0011, 0b0101, 0b1111]


def test_boundary() -> None:
    assert boundary(DIAMOND, 0b0011) == 0b0011
    assert boundary(DIAMOND, 0b0111) == 0b0110
    assert boundary(DIAMOND, 0b1111) == 0


def test_is_lower_set() -> None:
    assert is_lower_set(DIAMOND, 0b0101)
    assert not is_lower_set(DIAMOND, 0b0100)
    assert not is_lower_set(DIAMOND, 0b11111)


def test_too_many_lower_sets_fall_to_the_next_smaller_family(core: str) -> None:
    # 300 ops that read nothing: 2**300 lower sets.
    graph = graph_of(*([] for _ in range(300)))
    with pytest.raises(TooManyLowerSetsError, match="more than 4096 lower sets"):
        lower_sets(graph.forward_predecessors, "all", 4096)
    family, masks = choose_family(graph.forward_predecessors, "auto", 4096)
    assert family == "pruned+prefix"
    assert len(masks) == 600


def test_the_limit_is_exact(core: str) -> None:
    assert len(_core.enumerate_lower_sets(DIAMOND.forward_predecessors, 6)) == 6
    with pytest.raises(TooManyLowerSetsError):
        _core.enumerate_lower_sets(DIAMOND.forward_predecessors, 5)


def test_the_limit_counts_lower_sets_of_useful_ops(core: str) -> None:
    # 2 reads 0 by way of 1, which is not useful: the empty set, {0} and V.
    chain = [[], [0], [1]]
    assert lower_sets(chain, "all", 3, [True, False, True]) == [0b000, 0b001, 0b111]
    with pytest.raises(TooManyLowerSetsError):
        lower_sets(chain, "all", 2, [True, False, True])


def test_choosing_a_family_by_name() -> None:
    before = DIAMOND.forward_predecessors
    assert choose_family(before, "pruned", 1)[0] == "pruned"
    assert choose_family(before, "auto", 6) == ("all", lower_sets(before, "all", 6))
    with pytest.raises(UsageError, match="unknown family 'most'; known families: auto, all,"):
        choose_family(before, "most", 6)


def test_no_ops(core: str) -> None:
    for family in ("all", "pruned", "prefix", "pruned+prefix"):
        assert lower_sets([], family, 10) == [0]
