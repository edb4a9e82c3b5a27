"""Stages of canonical strategies under the paper's formulas: the reference in pure Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from memfit._core.reference.canonical_dp import EdgeTable

__all__ = ["CanonicalTable", "canonical_edges", "canonical_table"]


def _weight(mask: int, weights: Sequence[int]) -> int:
    total = 0
    while mask:
        low = mask & -mask
        total += weights[low.bit_length() - 1]
        mask ^= low
    return total


class CanonicalTable:
    """The whole trade-off of a family of lower sets; plans for any budget are read off it.

    A path is a list of states (positions in the list of lower sets), the first one left out.
    """

    def __init__(self, edges: EdgeTable) -> None:
        self._edges = edges

    def curve(self) -> list[tuple[int, int]]:
        """(cost, budget): each cost that some budget calls for, ascending, with the least one."""
        return self._edges.curve()

    def smallest_budget(self) -> int:
        """The smallest budget that some path fits, in bytes; 0 for an empty graph."""
        return self._edges.smallest_budget()[0]

    def shortest(self, budget_bytes: int, longest: bool = False) -> list[int] | None:
        """The best path within a budget, None if there is none; see `EdgeTable.shortest`."""
        path = self._edges.shortest(budget_bytes, longest)
        return None if path is None else [self._edges.targets[e] for e in path]


def canonical_table(
    predecessors: Sequence[Sequence[int]],
    node_bytes: Sequence[int],
    node_cost: Sequence[int],
    lower_sets: Sequence[int],
    connected: bool,
    progress: Callable[[float], None] | None = None,
) -> CanonicalTable:
    """See `memfit._core.canonical_table`."""
    return CanonicalTable(
        canonical_edges(predecessors, node_bytes, node_cost, lower_sets, connected, progress)
    )


def canonical_edges(
    predecessors: Sequence[Sequence[int]],
    node_bytes: Sequence[int],
    node_cost: Sequence[int],
    lower_sets: Sequence[int],
    connected: bool = False,
    progress: Callable[[float], None] | None = None,
) -> EdgeTable:
    """The stages L -> L' between lower sets, by Eq. (1) and (2) of Kusumoto et al. 2019.

    With V' = L' minus L: cost = T(V' minus boundary(L')); cached bytes = M(boundary(L') minus L);
    peak bytes beyond the cache = 2 M(V') + M(delta+(L') minus L') + M(delta-(delta+(L')) minus L').

    Args:
        predecessors: for each node its predecessors.
        node_bytes: M, in bytes.
        node_cost: T.
        lower_sets: bitmasks by number of nodes, the empty set first and V last; state numbers of
            the result are positions in this list.
        connected: only stages whose V' hangs together; needs the family of all lower sets.
        progress: called with the share done.

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

    growth = _Growth(before, after, lower_sets) if connected else None
    sources: list[int] = []
    targets: list[int] = []
    costs: list[int] = []
    cached: list[int] = []
    peaks: list[int] = []
    last = len(lower_sets) - 1
    kept_memo: list[dict[int, tuple[int, int]]] = [{} for _ in lower_sets]
    for i, lower in enumerate(lower_sets):
        if progress is not None:
            progress(i / len(lower_sets))
        outside = ~lower
        upper: Iterable[int] = range(i + 1, last + 1)
        if growth is not None:
            upper = growth.from_state(i)
        for j in upper:
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
            costs.append(time[j] - time[i] - weights[1])
            cached.append(weights[0])
            peaks.append(2 * (size[j] - size[i]) + beyond[j])
    return EdgeTable.from_lists(
        len(lower_sets), sources, targets, [0] * len(sources), costs, cached, peaks
    )


class _Growth:
    """Finds connected stages by adding, again and again, a node that reads from what was added."""

    def __init__(
        self, before: Sequence[int], after: Sequence[int], lower_sets: Sequence[int]
    ) -> None:
        self.before, self.after, self.lower_sets = before, after, lower_sets
        self.number = {mask: i for i, mask in enumerate(lower_sets)}
        self.needed: list[int] = []
        for node, mask in enumerate(before):
            whole = 1 << node
            while mask:
                low = mask & -mask
                mask ^= low
                whole |= self.needed[low.bit_length() - 1]
            self.needed.append(whole)

    def from_state(self, state: int) -> list[int]:
        """The states L' for which L' minus L hangs together, ascending."""
        lower = self.lower_sets[state]
        found: set[int] = set()
        stack = [
            lower | 1 << node
            for node, before in enumerate(self.before)
            if not lower >> node & 1 and not before & ~lower
        ]
        while stack:
            mask = stack.pop()
            number = self.number.get(mask)
            if number is None:
                raise ValueError("connected stages need the family of all lower sets")
            if number in found:
                continue
            found.add(number)
            rest = mask & ~lower
            readers = 0
            while rest:
                low = rest & -rest
                rest ^= low
                readers |= self.after[low.bit_length() - 1]
            readers &= ~mask
            while readers:
                low = readers & -readers
                readers ^= low
                stack.append(mask | self.needed[low.bit_length() - 1])
        return sorted(found)
