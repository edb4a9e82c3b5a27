"""Which values and cuts nested strategies decide about."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from memfit.cuts.blocks import Block
from memfit.cuts.negligible import negligible_bytes
from memfit.graph.training_graph import TrainingGraph

__all__ = ["crossing_bytes", "even_variants", "thinned"]


def crossing_bytes(graph: TrainingGraph, stops: Sequence[int]) -> int:
    """Bytes of forward values that cross from the ops up to the middle one of `stops` to later
    ones."""
    stop, count = stops[len(stops) // 2], graph.forward_count
    return sum(
        graph.values[s].size_bytes
        for op in graph.forward_ops[: stop + 1]
        for s in op.outputs
        if any(stop < reader < count for reader in graph.consumers[s])
    )


def even_variants(graph: TrainingGraph, shares: Sequence[float]) -> list[list[bool]]:
    """What a stage keeps beyond its boundary, for each variant, as in `keep_variants`; but values
    that are equally dear by the byte are kept together, so that alike steps stay alike."""
    start, least = graph.forward_count, negligible_bytes(graph)
    wanted: dict[float, list[int]] = {}
    for op in graph.forward_ops:
        written = sum(graph.values[v].size_bytes for v in op.outputs)
        for v in op.outputs:
            size, readers = graph.values[v].size_bytes, graph.consumers[v]
            if size > least and readers and readers[-1] >= start:
                wanted.setdefault(op.cost / max(1, written), []).append(v)
    sizes = {dear: sum(graph.values[v].size_bytes for v in same) for dear, same in wanted.items()}
    total = sum(sizes.values())
    variants: list[list[bool]] = []
    for share in (1.0, *shares, -1.0):
        flags = [False] * len(graph.values)
        running = 0
        for dear in sorted(wanted):
            running += sizes[dear]
            for v in wanted[dear]:
                flags[v] = running > share * total
        if flags not in variants:
            variants.append(flags)
    return variants


def thinned(graph: TrainingGraph, block: Block, places: Sequence[int], most: int) -> list[int]:
    """Of windows of about equal bytes, the place that the fewest bytes cross."""
    first = block.forward.start
    ops = [graph.ops[v] for v in block.forward]
    made = [sum(graph.values[s].size_bytes for s in op.outputs) for op in ops]
    all_bytes = sum(made) or 1
    count = graph.forward_count
    crossing = [0] * (len(ops) + 1)
    for v, op in enumerate(ops):
        for s in op.outputs:
            end = max((r for r in graph.consumers[s] if r < count), default=-1) - first
            if end > v:
                crossing[v] += graph.values[s].size_bytes
                crossing[min(end, len(ops))] -= graph.values[s].size_bytes
    crossing = list(itertools.accumulate(crossing))
    shares = [sofar / all_bytes for sofar in itertools.accumulate(made)]
    best: dict[int, int] = {}
    for v in places:
        window = min(most - 1, int(shares[v] * most))
        if window not in best or crossing[v] <= crossing[best[window]]:
            best[window] = v
    chosen = set(best.values())
    # Windows without a place leave room for the next best.
    for v in sorted(set(places) - chosen, key=lambda v: crossing[v])[: most - len(chosen)]:
        chosen.add(v)
    return sorted(chosen)
