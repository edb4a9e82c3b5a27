"""The reference dynamic program over an explicit table of stages, checked by eye and by force."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from memfit._core.reference.canonical_dp import EdgeTable

Row = tuple[int, int, int, int, int, int]


def table_of(states: int, rows: list[Row]) -> EdgeTable:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(6)]
    return EdgeTable.from_lists(states, *columns)


# (source, target, variant, cost, cached, peak): straight on, or by way of state 1.
TRIANGLE: list[Row] = [
    (0, 1, 0, 2, 5, 10),
    (0, 1, 1, 6, 1, 10),
    (0, 2, 0, 20, 0, 30),
    (1, 2, 0, 3, 4, 10),
]


def test_least_cost_within_the_budget() -> None:
    table = table_of(3, TRIANGLE)
    assert table.shortest(15) == [0, 3]
    assert table.shortest(14) == [1, 3]
    assert table.shortest(11) == [1, 3]
    assert table.shortest(10) is None
    assert table.smallest_budget() == (11, [1, 3])


def test_the_largest_cost_on_the_front() -> None:
    table = table_of(3, TRIANGLE)
    assert table.shortest(30, longest=True) == [2]
    assert table.shortest(29, longest=True) == [1, 3]
    # At 20 it is dominated: nothing is cached on the way straight on, but it may not be taken.
    assert table.shortest(20) == [0, 3]


def test_ties_are_broken_by_least_m_and_then_by_the_smallest_edge() -> None:
    table = table_of(2, [(0, 1, 0, 1, 7, 3), (0, 1, 1, 1, 4, 3), (0, 1, 2, 1, 4, 3)])
    assert table.shortest(3) == [1]
    assert table.shortest(3, longest=True) == [1]


def test_one_state() -> None:
    table = table_of(1, [])
    assert table.shortest(0) == []
    assert table.smallest_budget() == (0, [])
    assert len(table) == 0


def test_no_way_on() -> None:
    table = table_of(3, [(0, 1, 0, 1, 1, 1)])
    assert table.shortest(100) is None
    with pytest.raises(ValueError, match="no path"):
        table.smallest_budget()


def column(**changed: list[int]) -> list[list[int]]:
    """Columns of a two-state table with one edge, some of them changed."""
    columns = {
        "sources": [0],
        "targets": [1],
        "variants": [0],
        "costs": [1],
        "cached": [1],
        "peaks": [1],
    }
    return list({**columns, **changed}.values())


@pytest.mark.parametrize(
    ("states", "columns"),
    [
        (0, column()),
        (2, column(targets=[2])),
        (2, column(targets=[0])),
        (2, column(sources=[1])),
        (2, column(costs=[-1])),
        (2, column(cached=[-1])),
        (2, column(peaks=[-1])),
        (2, column(variants=[-1])),
        (2, column(peaks=[1, 2])),
        (3, [[1, 0], [2, 1], [0, 0], [0, 0], [0, 0], [0, 0]]),
    ],
)
def test_bad_tables_are_refused(states: int, columns: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        EdgeTable.from_lists(states, *columns)


@pytest.mark.parametrize("seed", range(100))
def test_paths_equal_brute_force(seed: int) -> None:
    random = Random(seed)
    states = random.randint(2, 6)
    rows = [
        (i, j, v, random.randint(0, 5), random.randint(0, 9), random.randint(0, 20))
        for i, j, v in product(range(states), range(states), range(2))
        if i < j and random.random() < 0.7
    ] or [(0, states - 1, 0, 1, 1, 1)]
    paths: list[tuple[int, int, int, list[int]]] = []

    def walk(state: int, cost: int, m: int, peak: int, path: list[int]) -> None:
        if state == states - 1:
            paths.append((cost, m, peak, path))
        for e, (source, target, _, c, cached, p) in enumerate(rows):
            if source == state:
                walk(target, cost + c, m + cached, max(peak, m + p), [*path, e])

    walk(0, 0, 0, 0, [])
    table = table_of(states, rows)
    if not paths:
        assert table.shortest(10**6) is None
        return
    least = min(peak for _, _, peak, _ in paths)
    budget, path = table.smallest_budget()
    assert budget == least
    assert (least, path) in [(peak, p) for _, _, peak, p in paths]
    for budget in (least - 1, least, least + 3, least + 10, 1000):
        fitting = [found for found in paths if found[2] <= budget]
        labels = {found[:2] for found in fitting}
        front = [
            a for a in labels if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in labels)
        ]
        for longest in (False, True):
            found_path = table.shortest(budget, longest)
            if not fitting:
                assert found_path is None
                continue
            found = next(f for f in fitting if f[3] == found_path)
            assert found[:2] == (max(front) if longest else min(front))
