"""The one place that picks the native or the pure-Python core; both give the same answers.

The environment variable `MEMFIT_CORE` set to `native` or `python` forces one of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memfit._core import reference
from memfit._core.problem import Cut, StageProblem
from memfit._core.reference.stage import simulate_piece
from memfit._core.slots import NOTHING, Front
from memfit._version import __version__
from memfit.errors import UsageError

if TYPE_CHECKING:
    from memfit._core.problem import ChainUnit
    from memfit._core.reference.canonical import CanonicalTable
    from memfit._core.reference.chain import ChainTable
    from memfit._core.reference.nested import NestedTable
    from memfit._core.reference.stage_dp import BlockTable, StageTable

__all__ = [
    "BlockTable",
    "CanonicalTable",
    "ChainTable",
    "NestedTable",
    "StageTable",
    "block_table",
    "build_info",
    "canonical_table",
    "chain_table",
    "core_compiler",
    "core_name",
    "enumerate_lower_sets",
    "nested_table",
    "simulate_piece",
    "stage_table",
]

_WANTED = os.environ.get("MEMFIT_CORE", "").strip().lower()
_fast: Any = None
_why_not = ""
if _WANTED not in ("", "native", "python"):
    raise UsageError(f"MEMFIT_CORE is {_WANTED!r}; set it to native or python, or leave it unset")
if _WANTED != "python":
    try:
        from memfit._core import native as _fast
    except ImportError as error:
        if _WANTED == "native":
            raise
        _why_not = str(error)

_told = False


def _tell_once() -> None:
    """Say, at the first use, that the slow core is in use though nobody asked for it."""
    global _told
    if _fast is None and not _WANTED and not _told:
        _told = True
        logging.getLogger("memfit").warning(
            "planning with the pure-Python core, which is slow: the native core is not there (%s); "
            "install memfit again on a machine with a C++20 compiler",
            _why_not,
        )


def core_name() -> str:
    """The core in use: `native` or `python`."""
    return "python" if _fast is None else "native"


def core_compiler() -> str | None:
    """The compiler that built the native core; None for the Python core."""
    return None if _fast is None else str(_fast.COMPILER)


def build_info() -> dict[str, str | None]:
    """Which core memfit runs on.

    Returns:
        `version`; `core`, which is `native` or `python`; and `compiler`, the one that built the
        native core, or None.
    """
    return {"version": __version__, "core": core_name(), "compiler": core_compiler()}


if not TYPE_CHECKING:
    BlockTable = reference.stage_dp.BlockTable if _fast is None else _fast.BlockTable
    StageTable = reference.stage_dp.StageTable if _fast is None else _fast.StageTable
    ChainTable = reference.chain.ChainTable if _fast is None else _fast.ChainTable
    NestedTable = reference.nested.NestedTable if _fast is None else _fast.NestedTable
    CanonicalTable = reference.canonical.CanonicalTable if _fast is None else _fast.CanonicalTable


def enumerate_lower_sets(predecessors: Sequence[Sequence[int]], limit: int) -> list[int]:
    """All lower sets of an acyclic graph, the empty and the full one included.

    Args:
        predecessors: for each node, the nodes that it needs.
        limit: the most lower sets to enumerate.

    Returns:
        Bitmasks over the nodes, ordered by number of nodes and then by mask.

    Raises:
        TooManyLowerSetsError: there are more than `limit`; found out after about as many.
    """
    _tell_once()
    core = reference.lower_sets if _fast is None else _fast
    found: list[int] = core.enumerate_lower_sets(predecessors, limit)
    return found


def canonical_table(
    predecessors: Sequence[Sequence[int]],
    node_bytes: Sequence[int],
    node_cost: Sequence[int],
    lower_sets: Sequence[int],
    connected: bool,
    progress: Callable[[float], None] | None = None,
) -> CanonicalTable:
    """The stages between nested lower sets under the formulas of Kusumoto et al. 2019, section 3.

    With V' = L' minus L, the stage from L to L' costs T(V' minus boundary(L')), adds
    M(boundary(L') minus L) to the cache and peaks, beyond the cache, at
    2 M(V') + M(δ+(L') minus L') + M(δ-(δ+(L')) minus L').

    A stage whose V' falls into parts X and Y without an edge between them can be split, at L + X,
    into two that together cost and cache the same and neither of which peaks higher. So over all
    lower sets, connected stages suffice, of which there are far fewer.

    Args:
        predecessors: for each node, the nodes that it needs, all of them smaller.
        node_bytes: size of each node's value in bytes.
        node_cost: cost of each node.
        lower_sets: bitmasks in topological order (by size): the empty set first, V last.
        connected: only stages whose V' hangs together; needs the family of all lower sets.
        progress: called with the share done.
    """
    _tell_once()
    core = reference.canonical if _fast is None else _fast
    table: CanonicalTable = core.canonical_table(
        predecessors, node_bytes, node_cost, lower_sets, connected, progress
    )
    return table


def block_table(
    problem: StageProblem,
    cuts: Sequence[Cut],
    progress: Callable[[float], None] | None = None,
) -> BlockTable:
    """All pieces of stages within a block, simulated; see `memfit._core.reference.stage_dp`."""
    _tell_once()
    core = reference.stage_dp if _fast is None else _fast
    table: BlockTable = core.block_table(problem, cuts, progress)
    return table


def stage_table(
    tables: Sequence[BlockTable],
    base_bytes: Sequence[int],
    total_cost: int,
    slots: int,
    progress: Callable[[float], None] | None = None,
) -> StageTable:
    """The whole trade-off of a graph cut into blocks; see `memfit._core.reference.stage_dp`.

    Args:
        tables: for each block in forward order, its pieces; alike blocks may share one.
        base_bytes: for each block, bytes alive at its upper end on the way back beyond the cache.
        total_cost: the cost of one forward pass.
        slots: most labels of a state; costs are told apart by total_cost / slots, about.
        progress: called with the share done.
    """
    _tell_once()
    core = reference.stage_dp if _fast is None else _fast
    table: StageTable = core.stage_table(tables, base_bytes, total_cost, slots, progress)
    return table


def nested_table(
    problem: StageProblem,
    cuts: Sequence[Cut],
    base_bytes: int = 0,
    after: Front = ((0,), (NOTHING,)),
    progress: Callable[[float], None] | None = None,
) -> NestedTable:
    """Nested strategies over the cuts of a block; see `memfit._core.reference.nested`.

    Args:
        problem: the block.
        cuts: increasing lower sets, both ends of the block included, at which no backward op below
            reads what is made above.
        base_bytes: bytes alive at the block's upper end on the way back beyond the cache.
        after: costs and needs of the first pass over the blocks after this one.
        progress: called with the share done.
    """
    _tell_once()
    core = reference.nested if _fast is None else _fast
    table: NestedTable = core.nested_table(problem, cuts, base_bytes, after, progress=progress)
    return table


def chain_table(
    unit: ChainUnit,
    steps: int,
    after: Front | None,
    most_levels: int,
    parts: int = 1,
    first: ChainUnit | None = None,
) -> ChainTable:
    """Nested strategies over a chain of alike steps; see `memfit._core.reference.chain`.

    Args:
        unit: one step.
        steps: number of steps, the first one included.
        after: costs and needs of the first pass over what comes after the chain; None where only
            reversals are asked for.
        most_levels: number of levels of memory.
        parts: levels that one checkpoint takes.
        first: the first step, where it is not like the others.
    """
    _tell_once()
    core = reference.chain if _fast is None else _fast
    table: ChainTable = core.chain_table(unit, steps, after, most_levels, parts, first)
    return table
