"""Families of lower sets, as bitmasks over forward ops (bit v is forward op v).

A lower set is closed under predecessors. Every family holds the empty set and V, and is sorted by
number of ops and then by mask, so that a subset always comes before its supersets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memfit import _core
from memfit.errors import TooManyLowerSetsError, UsageError
from memfit.graph.training_graph import TrainingGraph

__all__ = [
    "FAMILIES",
    "ancestor_sets",
    "boundary",
    "choose_family",
    "is_lower_set",
    "lower_sets",
]

FAMILIES = ("all", "pruned+prefix", "pruned", "prefix")
"""From the largest to the smallest in what they can express.

`all`: every lower set. `pruned`: {L^v}, each op with all its ancestors (Kusumoto et al. 2019,
section 4.3). `prefix`: the prefixes of the program order. `pruned+prefix`: both.
"""


def boundary(graph: TrainingGraph, lower: int) -> int:
    """The ops of a lower set that an op outside it reads, as a bitmask."""
    after = graph.successor_masks
    outside = ~lower
    result = 0
    rest = lower
    while rest:
        low = rest & -rest
        rest ^= low
        if after[low.bit_length() - 1] & outside:
            result |= low
    return result


def is_lower_set(graph: TrainingGraph, mask: int) -> bool:
    """Whether no op of `mask` reads an op outside it."""
    return not mask >> graph.forward_count and all(
        not before & ~mask for v, before in enumerate(graph.predecessor_masks) if mask >> v & 1
    )


def ancestor_sets(predecessors: Sequence[Sequence[int]]) -> list[int]:
    """L^v for each op v: v and all its ancestors; predecessors come before their op."""
    result: list[int] = []
    for v, before in enumerate(predecessors):
        mask = 1 << v
        for p in before:
            mask |= result[p]
        result.append(mask)
    return result


def _pruned(predecessors: Sequence[Sequence[int]], useful: Sequence[bool]) -> set[int]:
    return {mask for mask, use in zip(ancestor_sets(predecessors), useful, strict=True) if use}


def _prefixes(useful: Sequence[bool]) -> set[int]:
    return {(2 << v) - 1 for v, use in enumerate(useful) if use}


def _all(predecessors: Sequence[Sequence[int]], limit: int, useful: Sequence[bool]) -> set[int]:
    """The lower sets that useful ops and their ancestors make up."""
    if all(useful):
        return set(_core.enumerate_lower_sets(predecessors, limit))
    # The order among useful ops alone: each one's nearest useful ancestors.
    ops = [v for v, use in enumerate(useful) if use]
    number = {v: i for i, v in enumerate(ops)}
    nearest: list[frozenset[int]] = []
    for before in predecessors:
        found: set[int] = set()
        for p in before:
            found |= {p} if useful[p] else nearest[p]
        nearest.append(frozenset(found))
    masks = _core.enumerate_lower_sets([sorted(number[p] for p in nearest[v]) for v in ops], limit)
    closures = ancestor_sets(predecessors)
    result: set[int] = set()
    for mask in masks:
        whole = 0
        while mask:
            low = mask & -mask
            mask ^= low
            whole |= closures[ops[low.bit_length() - 1]]
        result.add(whole)
    return result


def lower_sets(
    predecessors: Sequence[Sequence[int]],
    family: str,
    limit: int,
    useful: Sequence[bool] | None = None,
) -> list[int]:
    """A family of lower sets, by number of ops and then by mask.

    Args:
        predecessors: for each op those that it reads from, all of them before it.
        family: a name of `FAMILIES`.
        limit: largest number of lower sets of the family `all`.
        useful: for each op, whether a lower set may be made for its sake; all by default.
            `pruned` then has L^v for useful v only, `prefix` the prefixes that end in a useful op,
            `all` the unions of L^v over sets of useful v.

    Raises:
        TooManyLowerSetsError: the family `all` has more than `limit` lower sets; found out without
            building them.
        UsageError: an unknown family.
    """
    count = len(predecessors)
    wanted = [True] * count if useful is None else useful
    makers: dict[str, Callable[[], set[int]]] = {
        "all": lambda: _all(predecessors, limit, wanted),
        "pruned+prefix": lambda: _pruned(predecessors, wanted) | _prefixes(wanted),
        "pruned": lambda: _pruned(predecessors, wanted),
        "prefix": lambda: _prefixes(wanted),
    }
    if family not in makers:
        raise UsageError(f"unknown family {family!r}; known families: auto, {', '.join(FAMILIES)}")
    masks = makers[family]() | {0, (1 << count) - 1}
    return sorted(masks, key=lambda mask: (mask.bit_count(), mask))


def choose_family(
    predecessors: Sequence[Sequence[int]],
    wanted: str,
    limit: int,
    useful: Sequence[bool] | None = None,
) -> tuple[str, list[int]]:
    """The wanted family or, where it has too many lower sets, the next smaller one.

    Args:
        predecessors, limit, useful: see `lower_sets`.
        wanted: a name of `FAMILIES`, or `auto` for `all`.

    Returns:
        The family's name and its lower sets.

    Raises:
        UsageError: an unknown family.
    """
    family = "all" if wanted == "auto" else wanted
    try:
        return family, lower_sets(predecessors, family, limit, useful)
    except TooManyLowerSetsError:
        smaller = FAMILIES[FAMILIES.index(family) + 1]
        return smaller, lower_sets(predecessors, smaller, limit, useful)
