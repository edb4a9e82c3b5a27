"""Enumeration of lower sets: the reference in pure Python."""

from __future__ import annotations

from collections.abc import Sequence

from memfit.errors import TooManyLowerSetsError

__all__ = ["enumerate_lower_sets"]


def enumerate_lower_sets(predecessors: Sequence[Sequence[int]], limit: int) -> list[int]:
    """All lower sets of an acyclic graph, as bitmasks, by number of nodes and then by mask.

    A lower set of the first k nodes of a topological order is one of the whole graph too, so the
    sets are built node by node and their number only grows: the limit is met early, and at most
    twice as many sets as the limit allows are ever made.

    Args:
        predecessors: for each node its predecessors, all of them smaller than the node.
        limit: largest number of lower sets, the empty set and V included.

    Raises:
        TooManyLowerSetsError: there are more than `limit`.
        ValueError: a predecessor does not come before its node.
    """
    sets = [0]
    for node, before in enumerate(predecessors):
        needed = 0
        for p in before:
            if not 0 <= p < node:
                raise ValueError(f"predecessor {p} of node {node} does not come before it")
            needed |= 1 << p
        bit = 1 << node
        sets += [s | bit for s in sets if s & needed == needed]
        if len(sets) > limit:
            raise TooManyLowerSetsError(limit)
    if len(sets) > limit:
        raise TooManyLowerSetsError(limit)
    sets.sort(key=lambda s: (s.bit_count(), s))
    return sets
