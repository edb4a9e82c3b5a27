"""The native core under the signatures of the Python reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import memfit._core._native as _native
from memfit._core.python_stage import Cut, StageProblem
from memfit.errors import TooManyLowerSetsError

__all__ = [
    "COMPILER",
    "VERSION",
    "CanonicalTable",
    "EdgeTable",
    "canonical_table",
    "enumerate_lower_sets",
    "stage_edges",
]

COMPILER = _native.compiler
VERSION = _native.version
EdgeTable = _native.EdgeTable
CanonicalTable = _native.CanonicalTable

_WORD_BITS = 64


def _width(bits: int) -> int:
    """Bytes of one bit set of `bits` bits: whole words, one at least."""
    return max(1, -(-bits // _WORD_BITS)) * (_WORD_BITS // 8)


def _pack(masks: Sequence[int], bits: int) -> bytes:
    width = _width(bits)
    return b"".join(mask.to_bytes(width, "little") for mask in masks)


def enumerate_lower_sets(predecessors: Sequence[Sequence[int]], limit: int) -> list[int]:
    """See `memfit._core.python_lower_sets.enumerate_lower_sets`."""
    data = _native.enumerate_lower_sets(predecessors, limit)
    if data is None:
        raise TooManyLowerSetsError(limit)
    width = _width(len(predecessors))
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]


def canonical_table(
    predecessors: Sequence[Sequence[int]],
    node_bytes: Sequence[int],
    node_cost: Sequence[int],
    lower_sets: Sequence[int],
    connected: bool,
    progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> CanonicalTable:
    """See `memfit._core.python_canonical.canonical_table`; `threads` 0 means one a CPU core."""
    return _native.canonical_table(
        predecessors,
        node_bytes,
        node_cost,
        _pack(lower_sets, len(predecessors)),
        len(lower_sets),
        connected,
        threads,
        progress,
    )


def stage_edges(
    problem: StageProblem,
    cuts: Sequence[Cut],
    progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> EdgeTable:
    """See `memfit._core.python_stage.stage_edges`; `threads` 0 means one a CPU core."""
    native = _native.StageProblem(
        problem.value_bytes,
        problem.outlives,
        problem.forward_inputs,
        problem.forward_outputs,
        problem.forward_cost,
        problem.forward_workspace,
        problem.forward_recomputable,
        problem.backward_inputs,
        problem.backward_outputs,
        problem.backward_workspace,
        problem.keep_flags,
        problem.always_keep_bytes,
        problem.auxiliary_share,
    )
    return _native.stage_edges(
        native,
        len(cuts),
        _pack([cut.lower for cut in cuts], len(problem.forward_inputs)),
        _pack([cut.finished for cut in cuts], len(problem.backward_inputs)),
        [sorted(cut.boundary) for cut in cuts],
        [list(cut.needed_below) for cut in cuts],
        [cut.base_bytes for cut in cuts],
        threads,
        progress,
    )
