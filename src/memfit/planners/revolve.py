"""Binomial checkpointing of chains after Griewank and Walther 2000 (revolve), for comparison.

The graph is cut where one op alone leads on; the stretches between are the steps of a chain.
Revolve takes them for alike: with s slots for checkpoints it sets these by binomial coefficients,
which is optimal where steps cost and hold the same. Everything that a step being reversed needs is
computed again from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from memfit._core.problem import TopStage, Tree
from memfit.cuts.articulations import articulation_cuts
from memfit.cuts.backward import BackwardStages, barred_ends, rank_backward
from memfit.cuts.blocks import blocks_at
from memfit.cuts.negligible import slight_bytes
from memfit.errors import UsageError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.planners.base import PlannerOptions
from memfit.planners.candidate import Candidate, infeasible
from memfit.strategies.binomial import advances, split
from memfit.strategies.nested import CutLine, NestedPath

__all__ = ["chain_line", "plan", "revolve_path"]

_MOST_WORK = 10
_JUDGED_OPS = 1000  # numbers of slots are tried whose schedules' ops come to about so many


def chain_line(graph: TrainingGraph) -> CutLine:
    """The steps of a graph as a chain: its cuts at single ops.

    Raises:
        UsageError: the graph has no forward ops, or no cut at a single op.
    """
    stages = BackwardStages(graph)
    ranks = rank_backward(graph, stages.paired, stages.constant)
    barred = barred_ends(graph, ranks)
    whole = (1 << graph.forward_count) - 1
    masks = [m for m in articulation_cuts(graph) if m != whole and not barred[m.bit_length() - 1]]
    if not masks:
        raise UsageError(
            f"planner revolve is for chains, and {graph.name} has no place where a single op leads "
            "on; take planner nested"
        )
    reads = [v.kind is ValueKind.ACTIVATION for v in graph.values]
    count = graph.forward_count
    flags = [
        flag and bool(readers) and readers[-1] >= count
        for flag, readers in zip(reads, graph.consumers, strict=True)
    ]
    small = [False] * len(graph.values)
    blocks = blocks_at(graph, [], [flags], slight_bytes(graph), ranks, small)
    (block,) = blocks.blocks
    cuts = tuple(block.cut(mask) for mask in (0, *masks, whole))
    return CutLine(graph, blocks.blocks, (cuts,))


def _reversal(first: int, steps: int, slots: int) -> Tree:
    """Revolve's way back over some steps with so many slots free."""
    done: list[Tree] = []
    todo: list[tuple[int, int, int, int]] = [(first, steps, slots, 0)]
    while todo:
        i, n, s, k = todo.pop()
        if n == 1:
            done.append(Tree.leaf(i, i + 1))
        elif k == 0:
            k = split(n, s)
            todo += [(i, n, s, k), (i + k, n - k, s - 1, 0), (i, k, s, 0)]
        else:
            rest = done.pop()
            done.append(Tree(i, i + k, i + n, done.pop(), rest))
    return done[0]


def revolve_path(line: CutLine, slots: int) -> NestedPath:
    """Revolve's strategy with so many slots, 1 or more, beside the chain's input."""
    steps = line.starts[-1]
    top: list[TopStage] = []
    at, free = 0, slots
    while steps - at > 1:
        k = split(steps - at, free)
        top.append(TopStage(at, at + k, _reversal(at, k, free)))
        at, free = at + k, free - 1
    top.append(TopStage(at, at + 1, 0))
    return NestedPath(line, top)


@dataclass(frozen=True)
class _Slots:
    """Numbers of slots to choose from."""

    least: int
    most: int


def _candidate(line: CutLine, slots: int) -> Candidate:
    """Revolve's strategy with so many slots."""
    path = revolve_path(line, slots)
    return Candidate(line.graph, lambda: path.schedule, lambda _: path.stages())


def _range(steps: int) -> _Slots:
    least = 1
    while steps > 1 and advances(steps, least) > _MOST_WORK * steps:
        least += 1
    return _Slots(least, max(1, steps - 1))


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """Revolve's schedule with as many slots as the budget has room for.

    The number of slots is what is left of the budget, with the fewest slots, over the largest
    checkpoint, and less where the simulated peak says so, or where that costs less: steps are not
    all alike. On small graphs all numbers are tried. Numbers with which more than 10 times the
    forward steps would run again are left out.

    Raises:
        InfeasibleBudgetError: the fewest slots do not fit.
        UsageError: the graph is no chain.
    """
    began = time.perf_counter()
    line = chain_line(graph)
    steps = line.starts[-1]
    choice = _range(steps)
    smallest = _candidate(line, choice.least)
    minimum = smallest.peak_bytes
    if minimum > budget_bytes:
        detail = "revolve takes all steps of the chain for alike"
        raise infeasible(smallest, budget_bytes, detail=detail)
    largest = max(_held_bytes(graph, edge) for edge in line.edges) or 1
    most = min(choice.most, choice.least + (budget_bytes - minimum) // largest)
    tries = max(1, _JUDGED_OPS // len(graph.ops))
    fitting = {choice.least: smallest}
    for slots in range(most, choice.least, -1):
        if most - slots >= tries and len(fitting) > 1:
            break
        more = _candidate(line, slots)
        if more.peak_bytes <= budget_bytes:
            fitting[slots] = more
    slots = min(fitting, key=lambda slots: (fitting[slots].overhead, -slots))
    return fitting[slots].plan(
        budget_bytes,
        planner="revolve",
        family="articulation",
        smallest_bytes=minimum,
        lower_sets=steps + 1,
        began=began,
        provenance={"steps": steps, "slots": slots},
    )


def _held_bytes(graph: TrainingGraph, values: Sequence[int]) -> int:
    return sum(graph.values[v].size_bytes for v in values)
