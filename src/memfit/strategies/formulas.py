"""What canonical strategies cost by the paper's formulas."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from memfit._core.problem import bits
from memfit.graph.training_graph import TrainingGraph
from memfit.strategies.canonical import chain_pairs

__all__ = [
    "FormulaStage",
    "cached_bytes",
    "formula_overhead",
    "formula_peak_bytes",
    "formula_peaks",
    "formula_stages",
    "node_bytes",
    "node_costs",
    "peaks_of",
]


def node_bytes(graph: TrainingGraph) -> list[int]:
    """M of each forward op: bytes of its outputs."""
    return [sum(graph.values[v].size_bytes for v in op.outputs) for op in graph.forward_ops]


def node_costs(graph: TrainingGraph) -> list[int]:
    """T of each forward op, in the graph's cost unit; 0 for ops that never run again."""
    return [op.cost if op.recomputable else 0 for op in graph.forward_ops]


@dataclass(frozen=True, slots=True)
class FormulaStage:
    """What the paper's formulas say of a stage L -> L'.

    Attributes:
        overhead: T(V' minus boundary(L')), Eq. (1).
        cached_bytes: M(boundary(L') minus L), what the stage adds to M(U).
        peak_bytes: Eq. (2) without M(U): 2 M(V') + M(delta+(L') minus L')
            + M(delta-(delta+(L')) minus L').
    """

    overhead: int
    cached_bytes: int
    peak_bytes: int


def formula_stages(graph: TrainingGraph, lower_sets: Sequence[int]) -> list[FormulaStage]:
    """The paper's formulas for each stage, in bytes, resident values left out."""
    sizes, costs = node_bytes(graph), node_costs(graph)
    before, after = graph.predecessor_masks, graph.successor_masks
    result = []
    edge = 0
    for lower, upper in chain_pairs(graph, lower_sets):
        inside = upper & ~lower
        # A boundary only loses old ops where L grows.
        edge = sum(1 << v for v in bits(edge | inside) if after[v] & ~upper)
        readers = partners = 0
        for v in bits(edge):
            readers |= after[v]
        readers &= ~upper
        for v in bits(readers):
            partners |= before[v]
        result.append(
            FormulaStage(
                _weight(inside & ~edge, costs),
                _weight(edge & inside, sizes),
                2 * _weight(inside, sizes)
                + _weight(readers, sizes)
                + _weight(partners & ~upper, sizes),
            )
        )
    return result


def formula_overhead(graph: TrainingGraph, lower_sets: Sequence[int]) -> int:
    """Eq. (1): the sum of T(V_i minus boundary(L_i)) over every stage, the last one too."""
    return sum(stage.overhead for stage in formula_stages(graph, lower_sets))


def cached_bytes(graph: TrainingGraph, lower_sets: Sequence[int]) -> int:
    """The paper's m: M of the union of all boundaries."""
    return sum(stage.cached_bytes for stage in formula_stages(graph, lower_sets))


def formula_peaks(graph: TrainingGraph, lower_sets: Sequence[int]) -> list[int]:
    """Eq. (2) for each stage, in bytes, resident values left out.

    M(U_{i-1}) + 2 M(V_i) + M(delta+(L_i) minus L_i) + M(delta-(delta+(L_i)) minus L_i), where U_i
    is the union of the first i boundaries.
    """
    return peaks_of(formula_stages(graph, lower_sets))


def peaks_of(stages: Sequence[FormulaStage]) -> list[int]:
    """The peak of each stage of a strategy with what the stages before it cache."""
    cached = itertools.accumulate((stage.cached_bytes for stage in stages), initial=0)
    return [m + stage.peak_bytes for m, stage in zip(cached, stages, strict=False)]


def formula_peak_bytes(graph: TrainingGraph, lower_sets: Sequence[int]) -> int:
    """Eq. (2): the largest of `formula_peaks`; 0 for a graph without forward ops."""
    return max(formula_peaks(graph, lower_sets), default=0)


def _weight(mask: int, weights: Sequence[int]) -> int:
    return sum(weights[v] for v in bits(mask))
