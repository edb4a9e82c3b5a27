"""Values that part a graph in two: articulation points."""

from __future__ import annotations

from memfit.cuts.choose import passing_values
from memfit.cuts.functions import Functions, functions_of
from memfit.cuts.negligible import negligible_bytes
from memfit.graph.training_graph import TrainingGraph

__all__ = ["articulation_cuts", "articulations"]


def articulations(graph: TrainingGraph, functions: Functions) -> list[tuple[int, int]]:
    """(end, f) where of the first `end` functions later ones read function f alone.

    Functions are ops with their bookkeeping. Values that are small beside what is computed until
    they are last read (a causal mask that every layer reads) do not count.
    """
    passing = passing_values(graph, negligible_bytes(graph))
    heads = set(functions.heads)
    last_reader = [
        max(
            (
                reader
                for s in graph.ops[v].outputs
                if not passing[s]
                for reader in graph.consumers[s]
                if reader in heads
            ),
            default=-1,
        )
        for v in functions.heads
    ]
    found = []
    open_functions: set[int] = set()
    for f, v in enumerate(functions.heads):
        open_functions = {p for p in open_functions if last_reader[p] > v}
        if last_reader[f] > v:
            open_functions.add(f)
        if len(open_functions) == 1:
            found.append((f + 1, next(iter(open_functions))))
    return found


def articulation_cuts(graph: TrainingGraph) -> list[int]:
    """Prefixes of the program order with exactly one op in their boundary, as bitmasks."""
    functions = functions_of(graph)
    return [functions.widened((1 << end) - 1) for end, _ in articulations(graph, functions)]
