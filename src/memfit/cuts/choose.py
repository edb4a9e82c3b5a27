"""Where a joint graph is cut into blocks.

An *articulation* is a forward op v such that every later forward op depends on v and every earlier
one leads to it: each lower set then holds, or is held by, the ops up to v. Ops whose outputs are
negligible do not count. Nearly as good is an op that makes all large values which cross from the
ops up to it to later ones. The graph is cut after ops of either sort, so that no large value
crosses two cuts. Blocks that are very large all the same, such as the steps of a recurrent layer,
are cut further where the fewest bytes cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memfit.cuts.backward import BackwardRanks, barred_ends
from memfit.graph.training_graph import TrainingGraph

__all__ = ["ChosenCuts", "articulations", "choose_cuts", "passing_values"]

# Values of at most this share of what is computed in between may pass over whole blocks.
_PASSING_SHARE = 64
_PASSING_SHARE_IN_LARGE = 16

_LARGE_BLOCK = 256
_WINDOW = 96


def articulations(graph: TrainingGraph, useful: Sequence[bool]) -> list[int]:
    """The useful forward ops that every useful one leads to or depends on, ascending.

    Args:
        graph: the graph.
        useful: for each forward op, whether it counts.
    """
    count = graph.forward_count
    # Nearest useful ancestor by position, and nearest useful descendant.
    latest = [-1] * count
    for v, before in enumerate(graph.forward_predecessors):
        for p in before:
            latest[v] = max(latest[v], p if useful[p] else latest[p])
    earliest = [count] * count
    for v in range(count - 1, -1, -1):
        for s in graph.forward_successors[v]:
            earliest[v] = min(earliest[v], s if useful[s] else earliest[s])
    # Every useful op after v depends on v where none has all its ancestors before v.
    reach = [count] * (count + 1)
    for v in range(count - 1, -1, -1):
        reach[v] = min(reach[v + 1], latest[v] if useful[v] else count)
    found = []
    furthest = -1
    for v in range(count):
        if useful[v]:
            if furthest <= v <= reach[v + 1]:
                found.append(v)
            furthest = max(furthest, earliest[v])
    return found


@dataclass(frozen=True)
class ChosenCuts:
    """Where to cut.

    Attributes:
        cuts: the last op of each block but the last, ascending.
        passing: for each value, whether it may pass over whole blocks.
        partial: number of the cuts that are no articulations.
    """

    cuts: list[int]
    passing: list[bool]
    partial: int


@dataclass(frozen=True)
class _Crossing:
    """What crosses from the ops up to each one to later ones, passing values left out.

    Attributes:
        passing: for each value, whether it may pass over whole blocks.
        reach: for each op, the last reader of anything made up to it.
        alone: for each op, whether all that crosses is its own.
        crossing_bytes: for each op, bytes that cross.
    """

    passing: list[bool]
    reach: list[int]
    alone: list[bool]
    crossing_bytes: list[int]


def _crossing(graph: TrainingGraph, negligible_bytes: int, share: int) -> _Crossing:
    count = graph.forward_count
    last_reader = [-1] * len(graph.values)
    produced = [0]
    for v, op in enumerate(graph.forward_ops):
        for s in op.inputs:
            last_reader[s] = v
        produced.append(produced[-1] + sum(graph.values[s].size_bytes for s in op.outputs))
    passing = [False] * len(graph.values)
    reach = [-1] * count
    alone = [False] * count
    crossing_bytes = [0] * count
    # Number and bytes of what ends at each op.
    ending = [(0, 0)] * (count + 1)
    number = size = 0
    for v, op in enumerate(graph.forward_ops):
        number, size = number - ending[v][0], size - ending[v][1]
        own = 0
        for s in op.outputs:
            bytes_, end = graph.values[s].size_bytes, last_reader[s]
            between = produced[max(end, v + 1)] - produced[v + 1]
            passing[s] = bytes_ <= negligible_bytes or bytes_ * share <= between
            if passing[s] or end <= v:
                continue
            reach[v] = max(reach[v], end)
            own += 1
            size += bytes_
            ending[end] = ending[end][0] + 1, ending[end][1] + bytes_
        alone[v] = own > 0 and number == 0
        number += own
        crossing_bytes[v] = size
        if v:
            reach[v] = max(reach[v], reach[v - 1])
    return _Crossing(passing, reach, alone, crossing_bytes)


def passing_values(graph: TrainingGraph, negligible_bytes: int) -> list[bool]:
    """For each value, whether it is small beside what is computed between its making and its last
    forward reader, as a causal mask that every layer reads: no reason against a cut in between.

    Args:
        graph: the graph.
        negligible_bytes: values of at most this size always are.
    """
    return _crossing(graph, negligible_bytes, _PASSING_SHARE).passing


def choose_cuts(
    graph: TrainingGraph,
    useful: Sequence[bool],
    links: Sequence[bool],
    backward: BackwardRanks,
    negligible_bytes: int,
) -> ChosenCuts:
    """Where to cut a graph into blocks.

    Args:
        graph: the graph.
        useful: for each forward op, whether a cut after it may help.
        links: for each forward op, whether a cut after the next one is no worse.
        backward: which backward ops belong where.
        negligible_bytes: values of at most this size may always pass.
    """
    count = graph.forward_count
    dominating = set(articulations(graph, useful))
    barred = barred_ends(graph, backward)
    allowed = [u and not (x or b) for u, x, b in zip(useful, links, barred, strict=True)]
    crossing = _crossing(graph, negligible_bytes, _PASSING_SHARE)

    def good(crossing: _Crossing) -> list[int]:
        cuts: list[int] = []
        for v in range(count - 1):
            fits = not cuts or crossing.reach[cuts[-1]] <= v
            if allowed[v] and fits and (v in dominating or crossing.alone[v]):
                cuts.append(v)
        return cuts

    cuts = good(crossing)
    gaps = zip([-1, *cuts], [*cuts, count - 1], strict=True)
    if any(end - begin > _LARGE_BLOCK for begin, end in gaps):
        crossing = _crossing(graph, negligible_bytes, _PASSING_SHARE_IN_LARGE)
        cuts = _cut_large(good(crossing), allowed, crossing, count)
    return ChosenCuts(cuts, crossing.passing, sum(v not in dominating for v in cuts))


def _cut_large(
    cuts: Sequence[int], allowed: Sequence[bool], crossing: _Crossing, count: int
) -> list[int]:
    """The cuts, and more of them in large blocks, where the fewest bytes cross."""
    result: list[int] = []
    for end in (*cuts, count - 1):
        last = result[-1] if result else -1
        while end - last > _LARGE_BLOCK:
            first = max(last + 1, crossing.reach[last] if last >= 0 else 0)
            # What crosses here must have been read by the block's end.
            places = [
                v
                for v in range(first, min(max(last + _WINDOW, first + 1), end))
                if allowed[v] and crossing.reach[v] <= end
            ]
            if not places:
                places = [v for v in range(first, end) if allowed[v] and crossing.reach[v] <= end][
                    :1
                ]
            if not places:
                break
            last = min(places, key=lambda v: (crossing.crossing_bytes[v], -v))
            result.append(last)
        if end < count - 1 and (not result or crossing.reach[result[-1]] <= end):
            result.append(end)
    return result
