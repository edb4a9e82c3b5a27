"""Sublinear memory after Chen et al. 2016 (arXiv 1604.06174), on general graphs.

Their segments are cut where one value alone leads on: here after prefixes of the program order of
which a single op is read outside (an op with its bookkeeping, see `memfit.cuts.functions`).
Segments are of about equal bytes; how many there are is searched for around the square root of the
number of ops, as their Algorithm 3 searches for its budget.
"""

from __future__ import annotations

import itertools
import math
import time
from functools import partial

from memfit.cuts.articulations import articulation_cuts, articulations
from memfit.cuts.functions import functions_of
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import PlannerOptions
from memfit.planners.candidate import Candidate, infeasible
from memfit.strategies.canonical import canonical_order, canonical_stages
from memfit.strategies.formulas import (
    cached_bytes,
    formula_overhead,
    formula_peak_bytes,
    node_bytes,
)

__all__ = ["plan", "segmentations"]

_REACH = 4


def segmentations(graph: TrainingGraph) -> list[tuple[int, ...]]:
    """Sequences of articulation cuts that end in V, for 1 to 4 √n segments of about equal bytes."""
    whole = (1 << graph.forward_count) - 1
    functions = functions_of(graph)
    sums = [0, *itertools.accumulate(functions.added(node_bytes(graph)))]
    ends = [end for end, _ in articulations(graph, functions)]
    cuts = {end: functions.widened((1 << end) - 1) for end in ends}
    found: dict[tuple[int, ...], None] = {}
    for segments in range(1, _REACH * math.isqrt(len(functions.heads)) + 2):
        sequence = []
        done = 0
        for end in ends:
            # A segment ends at the first cut at which it holds its share of the bytes.
            at = sums[end]
            if (at - done) * segments >= sums[-1] and cuts[end] != whole:
                sequence.append(cuts[end])
                done = at
        found[*sequence, whole] = None
    return list(found) if whole else [()]


def plan(graph: TrainingGraph, budget_bytes: int, options: PlannerOptions) -> Plan:
    """The segmentation with the least recomputation whose simulated peak fits the budget.

    Raises:
        InfeasibleBudgetError: no segmentation fits; names the smallest budget of one.
    """
    began = time.perf_counter()
    judged: list[tuple[Candidate, tuple[int, ...]]] = []
    sequences = segmentations(graph)
    for i, sequence in enumerate(sequences):
        if options.progress is not None:
            options.progress("trying segmentations", i / len(sequences))
        order = partial(canonical_order, graph, sequence)
        found = Candidate(graph, order, partial(canonical_stages, graph, sequence))
        judged.append((found, sequence))
    smallest, _ = min(judged, key=lambda one: one[0].peak_bytes)
    if smallest.peak_bytes > budget_bytes:
        raise infeasible(smallest, budget_bytes, detail="cuts at single ops only")
    fitting = [one for one in judged if one[0].peak_bytes <= budget_bytes]
    found, sequence = min(
        fitting, key=lambda one: (one[0].overhead, one[0].peak_bytes, len(one[1]))
    )
    return found.plan(
        budget_bytes,
        planner="chen",
        family="articulation",
        smallest_bytes=smallest.peak_bytes,
        lower_sets=len(articulation_cuts(graph)),
        began=began,
        formula_overhead=formula_overhead(graph, sequence),
        formula_peak_bytes=graph.resident_bytes + formula_peak_bytes(graph, sequence),
        formula_cached_bytes=cached_bytes(graph, sequence),
        provenance={"segmentations": len(sequences)},
    )
