"""Orders of fused kernels: each respects what ops need, and its peak is that of a plain replay."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from memfit.pytorch.inductor.kernel_order import Kernels, best_order, orders, peak_bytes


@st.composite
def programs(draw: st.DrawFn) -> Kernels:
    """Up to seven ops, each making one buffer and reading some earlier ones; two inputs. Some write
    a part of a later one's buffer beforehand."""
    count = draw(st.integers(1, 7))
    sizes = draw(st.lists(st.integers(0, 9), min_size=count + 2, max_size=count + 2))
    reads = []
    for op in range(count):
        known = [*range(op), count, count + 1]
        reads.append(tuple(sorted(draw(st.sets(st.sampled_from(known), max_size=3)))))
    writes = []
    for op in range(count):
        whole = draw(st.integers(op, count - 1)) if draw(st.booleans()) else op
        writes.append((op,) if whole == op else (op, whole))
    return Kernels(
        names=tuple(f"b{i}" for i in range(count + 2)),
        writes=tuple(writes),
        reads=tuple(reads),
        follows=tuple(frozenset(b for b in r if b < count) for r in reads),
        workspace_bytes=tuple(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))),
        allocated_bytes=(*sizes[:count], 0, 0),
        freed_bytes=tuple(sizes),
        is_output=(*draw(st.lists(st.booleans(), min_size=count, max_size=count)), False, False),
        input_bytes=sizes[count] + sizes[count + 1],
    )


@st.composite
def fused(draw: st.DrawFn) -> tuple[Kernels, list[int]]:
    """A program, and a kernel for each of its ops, numbered without gaps."""
    ops = draw(programs())
    drawn = draw(st.lists(st.integers(0, 6), min_size=len(ops.writes), max_size=len(ops.writes)))
    number = {k: i for i, k in enumerate(dict.fromkeys(drawn))}
    return ops, [number[k] for k in drawn]


def valid(ops: Kernels, kernel_of: Sequence[int], order: Sequence[int]) -> bool:
    place = {kernel: i for i, kernel in enumerate(order)}
    return all(
        place[kernel_of[need]] <= place[kernel_of[op]]
        for op, needs in enumerate(ops.follows)
        for need in needs
    )


def replayed(ops: Kernels, kernel_of: Sequence[int], order: Sequence[int]) -> int:
    """The peak, from the set of live buffers after each kernel."""
    unread = {
        b for b in range(len(ops.names)) if not ops.makers[b] and not any(b in r for r in ops.reads)
    }
    live = {b for b in range(len(ops.names)) if not ops.makers[b]}
    peak = ops.input_bytes
    for at, kernel in enumerate(order):
        members = [op for op, k in enumerate(kernel_of) if k == kernel]
        live |= {b for op in members for b in ops.writes[op]}
        workspace = sum(ops.workspace_bytes[op] for op in members)
        peak = max(peak, sum(ops.freed_bytes[b] for b in live) + workspace)
        rest = set(order[at + 1 :])
        needed = {
            b
            for op, k in enumerate(kernel_of)
            if k in rest
            for b in (*ops.reads[op], *ops.writes[op])
        }
        live = {b for b in live if b in needed or ops.is_output[b] or b in unread}
    return peak


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(fused())
def test_orders_are_valid_and_their_peaks_those_of_a_replay(
    case: tuple[Kernels, list[int]],
) -> None:
    ops, kernel_of = case
    count = max(kernel_of) + 1
    possible = [o for o in itertools.permutations(range(count)) if valid(ops, kernel_of, o)]
    if not possible:
        with pytest.raises(ValueError, match="need each other"):
            list(orders(ops, kernel_of))
        return
    found = list(orders(ops, kernel_of))
    for order in found:
        assert sorted(order) == list(range(count))
        assert valid(ops, kernel_of, order)
        assert peak_bytes(ops, kernel_of, order) == replayed(ops, kernel_of, order)
    best = best_order(ops, kernel_of)
    assert best.peak_bytes == min(peak_bytes(ops, kernel_of, o) for o in found)
    assert best.peak_bytes >= min(replayed(ops, kernel_of, o) for o in possible)


@settings(max_examples=100, deadline=None)
@given(programs())
def test_without_fusion_the_order_is_the_programs(ops: Kernels) -> None:
    alone = range(len(ops.writes))
    assert all(order == list(alone) for order in orders(ops, alone))


def test_a_fusion_that_moves_a_chain_forward_raises_the_peak() -> None:
    """a reads x; big = f(); c = g(big) and x; fused, a and c need big at once with early.

    early -> a (reads x) -> done; big -> c (reads x): with a and c in one kernel, big runs before
    `early` is done with.
    """
    ops = Kernels(
        names=("early", "a", "big", "c", "x"),
        writes=((0,), (1,), (2,), (3,)),
        reads=((), (0, 4), (), (2, 4)),
        follows=(frozenset(), frozenset({0}), frozenset(), frozenset({2})),
        workspace_bytes=(0,) * 4,
        allocated_bytes=(10, 1, 10, 1, 0),
        freed_bytes=(10, 1, 10, 1, 2),
        is_output=(False, True, False, True, False),
        input_bytes=2,
    )
    assert best_order(ops, [0, 1, 2, 3]).peak_bytes == 14
    assert best_order(ops, [0, 1, 2, 1]).peak_bytes == 24
