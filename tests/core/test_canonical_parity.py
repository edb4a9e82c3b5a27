"""Both cores answer alike on the stages under the paper's formulas."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit._core.reference import canonical as python_canonical
from memfit._core.reference import lower_sets as python_lower_sets

if TYPE_CHECKING:
    from memfit._core import native
else:
    try:
        from memfit._core import native
    except ImportError:
        native = None

CanonicalArguments = tuple[list[list[int]], list[int], list[int], list[int], bool]
"""Predecessors, sizes in bytes, costs, lower sets, only connected stages."""

LARGEST_SUM = 2**60 - 1
"""The most that sizes or costs may add up to."""

needs_native = pytest.mark.skipif(native is None, reason="native core is not built")


def random_predecessors(random: Random, nodes: int) -> list[list[int]]:
    return [sorted(random.sample(range(v), random.randint(0, min(v, 3)))) for v in range(nodes)]


def random_canonical(random: Random, nodes: int) -> CanonicalArguments:
    """A graph with few or many edges, perhaps none, and sizes and costs full of ties or zeros, of
    everyday size, or as large as they may be; all of its lower sets, or some."""
    degree = random.choice([0, 1, 2, 2, 3, 3])
    predecessors = [
        sorted(random.sample(range(v), random.randint(0, min(v, degree)))) for v in range(nodes)
    ]

    def amounts() -> list[int]:
        most = random.choice([0, 2, 30, 10**4, 10**12, LARGEST_SUM // max(1, nodes)])
        return [random.choice([0, most, random.randint(0, most)]) for _ in range(nodes)]

    sets = python_lower_sets.enumerate_lower_sets(predecessors, 1 << nodes)
    connected = random.random() < 0.5
    if not connected and random.random() < 0.5:
        sets = [s for s in sets if s in (0, sets[-1]) or random.random() < 0.5]
    return predecessors, amounts(), amounts(), sets, connected


def assert_same_answers(
    arguments: CanonicalArguments,
    threads: Sequence[int],
    random: Random,
    tries: int = 8,
    units: Sequence[int] = (1,),
) -> None:
    """All that can be asked of a table of stages, of the native core and of the reference.

    Args:
        arguments: the table's.
        threads: numbers of threads that the native core is asked with.
        random: chooses budgets.
        tries: the number of budgets taken from the curve.
        units: what the native core's costs are multiplied by, each of which multiplies overheads
            and changes nothing else; the reference is asked once.
    """
    reference = python_canonical.canonical_table(*arguments)
    curve, least = reference.curve(), reference.smallest_budget()
    assert curve[-1][1] == least
    chosen = [budget for _, budget in random.sample(curve, min(tries, len(curve)))]
    budgets = {least - 1, least, least + 1, 2 * least + 1, 2**62, 2**63 - 1, 0, -1, *chosen}
    budgets |= {b - 1 for b in chosen} | {random.randint(least, b) for b in chosen}
    paths = [(b, mode, reference.shortest(b, mode)) for b in budgets for mode in (False, True)]
    predecessors, sizes, costs, sets, connected = arguments
    for unit, count in itertools.product(units, threads):
        scaled = [unit * cost for cost in costs]
        ours = native.canonical_table(predecessors, sizes, scaled, sets, connected, threads=count)
        assert ours.curve() == [(unit * overhead, peak) for overhead, peak in curve]
        assert ours.smallest_budget() == least
        for budget, longest, path in paths:
            assert ours.shortest(budget, longest) == path, (budget, longest)


@needs_native
@settings(max_examples=400)
@given(st.randoms(use_true_random=False), st.integers(0, 8))
def test_canonical_tables(random: Random, nodes: int) -> None:
    assert_same_answers(random_canonical(random, nodes), (1, 2, 3), random)


@needs_native
def test_curves_of_thousands_of_small_graphs() -> None:
    # A stage that is wrongly taken for beaten by others shows in one curve of a hundred or so.
    for seed in range(4000):
        random = Random(seed)
        nodes = random.randint(3, 8)
        predecessors = random_predecessors(random, nodes)
        sizes, costs = (
            [random.randint(0, most) for _ in range(nodes)]
            for most in (random.choice([3, 30, 1000]), random.choice([2, 10, 1000]))
        )
        sets = python_lower_sets.enumerate_lower_sets(predecessors, 1 << nodes)
        connected = random.random() < 0.5
        if not connected:
            sets = [s for s in sets if s in (0, sets[-1]) or random.random() < 0.5]
        if len(sets) > 80:
            continue
        arguments = (predecessors, sizes, costs, sets, connected)
        ours = native.canonical_table(*arguments, threads=1)
        assert ours.curve() == python_canonical.canonical_table(*arguments).curve(), seed


@pytest.mark.sampled(2)
@needs_native
@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("nodes", [63, 64, 65, 130])
def test_canonical_tables_across_word_boundaries(nodes: int, connected: bool) -> None:
    # Two chains side by side that meet at every third node.
    predecessors = [[p for p in (v - 2, v - 1 - v % 3) if 0 <= p < v] for v in range(nodes)]
    predecessors = [sorted(set(before)) for before in predecessors]
    sets = python_lower_sets.enumerate_lower_sets(predecessors, 1000)
    assert len(sets) > nodes + 1
    random = Random(nodes)
    # Costs with few different sums keep the reference quick; times 10**9 they call for sparse
    # fronts.
    sizes = [random.randint(0, 50) for _ in range(nodes)]
    costs = [random.choice([0, 0, 0, 0, 1, 2]) for _ in range(nodes)]
    arguments = (predecessors, sizes, costs, sets, connected)
    assert_same_answers(arguments, (1, 2), random, 2, units=(1, 10**9))


@needs_native
def test_wide_fronts_are_the_same_on_any_number_of_threads() -> None:
    # Three chains side by side: 9**3 lower sets. Costs of 10**9 are too far apart for arrays over
    # them; those of 10**3 are not.
    predecessors = [[v - 3] if v >= 3 else [] for v in range(24)]
    sets = python_lower_sets.enumerate_lower_sets(predecessors, 1000)
    for cost in (10**3, 10**9):
        random = Random(cost)
        sizes = [random.randint(1, 10**6) for _ in predecessors]
        costs = [random.randint(1, cost) for _ in predecessors]
        assert_same_answers((predecessors, sizes, costs, sets, True), (1, 2, 3), random, 2)


@needs_native
@pytest.mark.parametrize("nodes", [1, 12])
def test_graphs_without_edges(nodes: int) -> None:
    empty: list[list[int]] = [[] for _ in range(nodes)]
    sets = python_lower_sets.enumerate_lower_sets(empty, 1 << nodes)
    sizes = [5] * nodes
    assert_same_answers((empty, sizes, sizes, sets, True), (1, 3), Random(nodes))
    table = native.canonical_table(empty, sizes, sizes, sets, True)
    # Every node is computed again, by itself at the best.
    assert (table.curve(), table.smallest_budget()) == ([(5 * nodes, 10)], 10)


@needs_native
def test_no_nodes_at_all() -> None:
    for connected in (True, False):
        arguments: CanonicalArguments = ([], [], [], [0], connected)
        assert_same_answers(arguments, (1, 2), Random(0))
        table = native.canonical_table(*arguments)
        assert (table.curve(), table.smallest_budget(), table.shortest(0)) == ([(0, 0)], 0, [])


@needs_native
@given(st.randoms(use_true_random=False), st.integers(1, 7))
def test_connected_stages_need_every_lower_set_in_both_cores(random: Random, nodes: int) -> None:
    predecessors = random_predecessors(random, nodes)
    sets = python_lower_sets.enumerate_lower_sets(predecessors, 1 << nodes)
    if len(sets) > 2:
        del sets[random.randrange(1, len(sets) - 1)]
        for core in (python_canonical, native):
            with pytest.raises(ValueError, match="need the family of all lower sets"):
                core.canonical_table(predecessors, [1] * nodes, [1] * nodes, sets, True)


@needs_native
@pytest.mark.parametrize("numbers", [[2**60], [2**59, 2**59], [-1], [2**62, 2**62], [5, -6]])
def test_sizes_and_costs_out_of_range_are_refused(numbers: list[int]) -> None:
    chain = [[v - 1] if v else [] for v in range(len(numbers))]
    sets = [(1 << v) - 1 for v in range(len(numbers) + 1)]
    ones = [1] * len(numbers)
    for sizes, costs in ((numbers, ones), (ones, numbers)):
        with pytest.raises(ValueError, match=r"add up below 2\*\*60"):
            native.canonical_table(chain, sizes, costs, sets, True)


@needs_native
def test_sizes_and_costs_at_the_limit() -> None:
    third = LARGEST_SUM // 3
    assert 3 * third == LARGEST_SUM
    diamond = [[], [0], [0], [1, 2]]
    sets = python_lower_sets.enumerate_lower_sets(diamond, 100)
    for amounts in ([third, third, third, 0], [0, 0, 0, LARGEST_SUM], [LARGEST_SUM, 0, 0, 0]):
        for connected in (True, False):
            assert_same_answers((diamond, amounts, amounts, sets, connected), (1, 2), Random(0))


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node_bytes": [1]}, "one number for each node"),
        ({"node_cost": [1, 1, 1]}, "one number for each node"),
        ({"lower_sets": []}, "there must be lower sets"),
        ({"lower_sets": [1, 3]}, "begin with the empty set"),
        ({"lower_sets": [0, 1]}, "end with all nodes"),
        ({"lower_sets": [0, 3, 1]}, "sorted by size"),
        ({"lower_sets": [0, 2, 3]}, "is no lower set"),
        ({"lower_sets": [0, 5, 3]}, "is no lower set"),
        ({"lower_sets": [0, 1, 1, 3], "connected": True}, "occurs twice"),
        ({"predecessors": [[], [1]]}, "does not come before its node"),
        ({"predecessors": [[1], []]}, "does not come before its node"),
        ({"predecessors": [[], [-1]]}, "does not come before its node"),
    ],
)
def test_wrong_families_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {
        "predecessors": [[], [0]],
        "node_bytes": [1, 1],
        "node_cost": [1, 1],
        "lower_sets": [0, 1, 3],
        "connected": False,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        native.canonical_table(**arguments)


def many_stages(nodes: int) -> CanonicalArguments:
    """No edges, and stages between any two nested sets of nodes."""
    empty: list[list[int]] = [[] for _ in range(nodes)]
    sets = native.enumerate_lower_sets(empty, 1 << nodes)
    return empty, [1] * nodes, [1] * nodes, sets, False


def long_chain(nodes: int) -> CanonicalArguments:
    """As many sizes of lower sets as nodes, with one lower set each."""
    chain = [[v - 1] if v else [] for v in range(nodes)]
    sets = [(1 << v) - 1 for v in range(nodes + 1)]
    return chain, [1] * nodes, [1] * nodes, sets, False


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
def test_progress_of_a_canonical_table(threads: int) -> None:
    shares: list[float] = []
    ran = threading.Event()
    worker = threading.Timer(0.01, ran.set)
    worker.start()
    native.canonical_table(*many_stages(15), shares.append, threads=threads)
    # The worker could run only because the interpreter's lock was free.
    assert ran.is_set()
    worker.join()
    assert shares
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_the_progress_callback_stops_a_canonical_table(threads: int) -> None:
    def fail(share: float) -> None:
        raise KeyError(share)

    with pytest.raises(KeyError):
        native.canonical_table(*many_stages(15), fail, threads=threads)


@needs_native
@pytest.mark.skipif(sys.platform == "win32", reason="signals to oneself are POSIX")
@pytest.mark.parametrize(("make", "nodes"), [(many_stages, 16), (long_chain, 3000)])
def test_ctrl_c_stops_a_canonical_table_within_a_second(
    make: Callable[[int], CanonicalArguments], nodes: int
) -> None:
    arguments = make(nodes)
    struck: list[float] = []

    def strike() -> None:
        struck.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    # What a shell starts in the background inherits that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, strike)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            native.canonical_table(*arguments, threads=1)
        assert time.monotonic() - struck[0] < 1
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
