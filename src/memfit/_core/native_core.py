"""The native core under the signatures of the Python reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import memfit._core._native as _native
from memfit._core.python_chain import ChainTable, chain_table
from memfit._core.python_nested import NestedTable, nested_table
from memfit._core.python_stage import Cut, StageProblem
from memfit.errors import TooManyLowerSetsError

__all__ = [
    "COMPILER",
    "VERSION",
    "BlockTable",
    "CanonicalTable",
    "ChainTable",
    "NestedTable",
    "StageTable",
    "block_table",
    "canonical_table",
    "chain_table",
    "enumerate_lower_sets",
    "nested_table",
    "stage_table",
]

COMPILER = _native.compiler
VERSION = _native.version
BlockTable = _native.BlockTable
StageTable = _native.StageTable
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


def block_table(
    problem: StageProblem,
    cuts: Sequence[Cut],
    progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> BlockTable:
    """See `memfit._core.python_blocks.block_table`; `threads` 0 means one a CPU core."""
    native = _native.StageProblem(
        **{f.name: getattr(problem, f.name) for f in dataclasses.fields(problem) if f.init}
    )
    return _native.block_table(
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


def stage_table(
    tables: Sequence[BlockTable],
    base_bytes: Sequence[int],
    total_cost: int,
    slots: int,
    progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> StageTable:
    """See `memfit._core.python_blocks.stage_table`; `threads` 0 means one a CPU core."""
    return _native.stage_table(tables, base_bytes, total_cost, slots, threads, progress)
