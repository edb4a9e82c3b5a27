"""Which values and cuts are worth a decision.

Views share their storage and are no values of a graph (they are merged when it is captured). Of
what is left, values that are negligible call for no cut, and neither do *links*. A link is an op
whose output is read by the next op alone, which reads nothing else and makes nothing larger of it.
A cut right after a link is no better than one after that next op:

- the stage up to there keeps no more bytes: the next op's outputs instead of the link's;
- it computes nothing more again, for nothing but the next op needs the link's output, and the stage
  above has one op less to compute again;
- the next op's backward, the last one above the cut, comes first below it, before anything is
  computed again, so that no more is alive beside it.

The last of these holds where the cut is a prefix of the program, and the first where no other cut
below has kept the link's output already. Such cuts are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from memfit.graph.training_graph import TrainingGraph, ValueKind

__all__ = ["links", "negligible_bytes", "slight_bytes", "useful_ops", "without_links"]

_NEGLIGIBLE_BYTES = 1024
_NEGLIGIBLE_SHARE = 10_000


def negligible_bytes(graph: TrainingGraph) -> int:
    """Size up to which a value is not worth a decision: 1 KiB, or 0.01% of all activations."""
    activations = sum(v.size_bytes for v in graph.values if v.kind is ValueKind.ACTIVATION)
    return min(_NEGLIGIBLE_BYTES, activations // _NEGLIGIBLE_SHARE)


def useful_ops(graph: TrainingGraph, threshold: int | None = None) -> list[bool]:
    """Forward ops after which a cut may help: something reads an output that is not negligible.

    Args:
        graph: the graph.
        threshold: bytes up to which a value is negligible; None: `negligible_bytes`.
    """
    if threshold is None:
        threshold = negligible_bytes(graph)
    return [
        any(graph.values[s].size_bytes > threshold and bool(graph.consumers[s]) for s in op.outputs)
        for op in graph.forward_ops
    ]


def links(graph: TrainingGraph, useful: Sequence[bool]) -> list[bool]:
    """Which forward ops are links to the next one.

    Args:
        graph: the graph.
        useful: `useful_ops` of it.
    """
    last = graph.forward_count - 1
    return [v < last and useful[v + 1] and _is_link(graph, v) for v in range(last + 1)]


def _is_link(graph: TrainingGraph, op_id: int) -> bool:
    values, count = graph.values, graph.forward_count
    op, reader = graph.ops[op_id], graph.ops[op_id + 1]
    read = [s for s in op.outputs if graph.consumers[s]]
    # What must not run again is kept whatever the cut.
    if not op.recomputable or len(read) != 1 or values[read[0]].is_output:
        return False
    alone = graph.consumers[read[0]] == (op_id + 1,) and all(
        r == read[0] or values[r].kind is not ValueKind.ACTIVATION for r in reader.inputs
    )
    # What the reader makes is kept at the end of a stage only where a later op reads it.
    kept = all(graph.consumers[r] and graph.consumers[r][0] < count for r in reader.outputs)
    made = sum(values[r].size_bytes for r in reader.outputs)
    return alone and kept and made <= values[read[0]].size_bytes


def without_links(lower_sets: Sequence[int], links: Sequence[bool]) -> list[int]:
    """A family of lower sets (bitmasks) less those that are no better than others of it.

    These are the prefixes that end in a link, where every lower set with the link holds them.
    """
    left_out = set()
    for v, link in enumerate(links):
        prefix = (2 << v) - 1
        if link and not any(mask >> v & 1 and prefix & ~mask for mask in lower_sets):
            left_out.add(prefix)
    return [mask for mask in lower_sets if mask not in left_out]


_SLIGHT_SHARE = 1_000


_MOST_SLIGHT_BYTES = 1024


def slight_bytes(graph: TrainingGraph) -> int:
    """Size up to which a value is kept whatever the strategy: all such together are at most a
    thousandth of all activations, and each at most 1 KiB."""
    sizes = sorted(v.size_bytes for v in graph.values if v.kind is ValueKind.ACTIVATION)
    room = sum(sizes) // _SLIGHT_SHARE
    threshold = 0
    for size, same in itertools.groupby(sizes):
        room -= size * len(list(same))
        if room < 0 or size > _MOST_SLIGHT_BYTES:
            break
        threshold = size
    return threshold
