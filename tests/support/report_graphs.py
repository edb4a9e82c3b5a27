"""Graphs and plans for report pages: a network with modules, and plans that are quick to make."""

from __future__ import annotations

import math
from dataclasses import replace

from memfit.graph.plan import Plan, PlanStatus, make_plan
from memfit.graph.published import bare_graph
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import Source, TrainingGraph, Value, ValueKind
from memfit.planners.chen import segmentations
from memfit.strategies.canonical import canonical_schedule, canonical_stages

__all__ = ["BLOCK_OPS", "LARGE", "SMALL", "network", "segmented_plan"]

SMALL, LARGE = 3, 357
"""Blocks of a network of 43 forward ops, and of one of 4,999."""

# Name in its block, target, what it reads (distance back), kilobytes, microseconds.
_BLOCK = (
    ("norm1", "aten.native_layer_norm", (1,), 64, 20),
    ("attn.q", "aten.mm", (1,), 64, 90),
    ("attn.k", "aten.mm", (2,), 64, 90),
    ("attn.v", "aten.mm", (3,), 64, 90),
    ("attn", "aten.bmm", (3, 2), 256, 120),
    ("attn", "aten.softmax", (1,), 256, 60),
    ("attn", "aten.bmm", (1, 3), 64, 120),
    ("attn.out", "aten.mm", (1,), 64, 90),
    ("", "aten.add", (1, 9), 64, 10),
    ("norm2", "aten.native_layer_norm", (1,), 64, 20),
    ("mlp.up", "aten.mm", (1,), 256, 300),
    ("mlp.act", "aten.gelu", (1,), 256, 50),
    ("mlp.down", "aten.mm", (1,), 64, 300),
    ("", "aten.add", (1, 5), 64, 10),
)
BLOCK_OPS = len(_BLOCK)


def network(blocks: int, *, modules: bool = True) -> TrainingGraph:
    """A transformer-like network: an embedding and `blocks` equal blocks, with parameters.

    Args:
        blocks: number of blocks.
        modules: whether ops know their module and source line.
    """
    before: list[list[int]] = [[]]
    sizes, costs, targets = [64 * 1024], [30_000], ["aten.embedding"]
    sources = ["embed (network.py:10)"]
    for block in range(blocks):
        for name, target, reads, kilobytes, microseconds in _BLOCK:
            at = len(before)
            before.append(sorted(at - back for back in reads))
            sizes.append(kilobytes * 1024)
            costs.append(microseconds * 1000)
            targets.append(target)
            path = f"blocks.{block}" + (f".{name}" if name else "")
            sources.append(f"{path} (network.py:{20 + len(sources) % BLOCK_OPS})")
    backward_reads = [[*reads, i] for i, reads in enumerate(before)]
    graph = bare_graph(before, sizes, costs, backward_reads, targets=targets, name=f"net-{blocks}")

    ops = graph.ops
    if modules:
        ops = tuple(
            replace(
                op,
                source=Source.of_text(sources[i if op.forward_op is None else op.forward_op]),
            )
            for i, op in enumerate(graph.ops)
        )
    weights = Value("weights", 4 << 20, ValueKind.PARAMETER)
    return TrainingGraph((*graph.values, weights), ops, "ns", graph.name)


def segmented_plan(graph: TrainingGraph) -> Plan:
    """Chen's plan of about √n segments; made at once, whatever the graph's size."""
    wanted = math.isqrt(graph.forward_count)
    sequence = min(segmentations(graph), key=lambda sets: abs(len(sets) - wanted))
    schedule = canonical_schedule(graph, sequence)
    peak = simulate(graph, schedule).peak_bytes
    return make_plan(
        graph,
        schedule,
        planner="chen",
        family="articulation",
        mode=None,
        status=PlanStatus.FEASIBLE,
        budget_bytes=peak + peak // 20,
        smallest_feasible_budget_bytes=peak,
        lower_sets=len(sequence),
        stages=canonical_stages(graph, sequence, schedule),
        seconds=0.0,
        notes=["made for a test"],
        provenance={"memfit": "0", "device": "cpu"},
    )
