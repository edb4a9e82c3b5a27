"""Stages of canonical strategies under the paper's formulas: the reference in pure Python."""

from __future__ import annotations

from collections.abc import Sequence

from memfit._core.python_pareto import EdgeTable

__all__ = ["canonical_edges"]


def _weight(mask: int, weights: Sequence[int]) -> int:
    total = 0
    while mask:
        low = mask & -mask
        total += weights[low.bit_length() - 1]
        mask ^= low
    return total


def canonical_edges(
    predecessors: Sequence[Sequence[int]],
    node_bytes: Sequence[int],
    node_cost: Sequence[int],
    lower_sets: Sequence[int],
    zero_last: bool = False,
) -> EdgeTable:
    """All stages L -> L' between nested lower sets, by Eq. (1) and (2) of Kusumoto et al. 2019.

    With V' = L' minus L: cost = T(V' minus boundary(L')); cached bytes = M(boundary(L') minus L);
    peak bytes beyond the cache = 2 M(V') + M(delta+(L') minus L') + M(delta-(delta+(L')) minus L').

    Args:
        predecessors: for each node its predecessors.
        node_bytes: M, in bytes.
        node_cost: T.
        lower_sets: bitmasks by number of nodes, the empty set first and V last; state numbers of
            the result are positions in this list.
        zero_last: the last stage costs nothing (its values are still alive).

    Returns:
        The stages by source and then by target, all of variant 0.
    """
    count = len(node_bytes)
    before = [0] * count
    after = [0] * count
    for node, preds in enumerate(predecessors):
        for p in preds:
            before[node] |= 1 << p
            after[p] |= 1 << node

    size = [_weight(mask, node_bytes) for mask in lower_sets]
    time = [_weight(mask, node_cost) for mask in lower_sets]
    boundaries: list[int] = []
    beyond: list[int] = []
    for mask in lower_sets:
        boundary = successors = 0
        rest = mask
        while rest:
            low = rest & -rest
            rest ^= low
            outside = after[low.bit_length() - 1] & ~mask
            if outside:
                boundary |= low
                successors |= outside
        partners = 0
        rest = successors
        while rest:
            low = rest & -rest
            rest ^= low
            partners |= before[low.bit_length() - 1]
        boundaries.append(boundary)
        beyond.append(_weight(successors, node_bytes) + _weight(partners & ~mask, node_bytes))

    sources: list[int] = []
    targets: list[int] = []
    costs: list[int] = []
    cached: list[int] = []
    peaks: list[int] = []
    last = len(lower_sets) - 1
    kept_memo: list[dict[int, tuple[int, int]]] = [{} for _ in lower_sets]
    for i, lower in enumerate(lower_sets):
        outside = ~lower
        for j in range(i + 1, last + 1):
            if lower & ~lower_sets[j]:
                continue
            # Few different parts of a boundary occur, so their weights are looked up.
            kept = boundaries[j] & outside
            memo = kept_memo[j]
            weights = memo.get(kept)
            if weights is None:
                weights = memo[kept] = (_weight(kept, node_bytes), _weight(kept, node_cost))
            sources.append(i)
            targets.append(j)
            costs.append(0 if zero_last and j == last else time[j] - time[i] - weights[1])
            cached.append(weights[0])
            peaks.append(2 * (size[j] - size[i]) + beyond[j])
    return EdgeTable.from_lists(
        len(lower_sets), sources, targets, [0] * len(sources), costs, cached, peaks
    )
