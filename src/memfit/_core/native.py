"""The native core under the signatures of the Python reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import memfit._core._native as _native
from memfit._core.problem import (
    ChainUnit,
    Cut,
    StagedCost,
    StageProblem,
    StageStep,
    Stretch,
    TopStage,
    Tree,
)
from memfit._core.slots import MANTISSA_BITS, NOTHING, Front
from memfit.errors import TooManyLowerSetsError

__all__ = [
    "COMPILER",
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
BlockTable = _native.BlockTable
CanonicalTable = _native.CanonicalTable
ChainTable = _native.ChainTable

_WORD_BITS = 64


def _width(bits: int) -> int:
    """Bytes of one bit set of `bits` bits: whole words, one at least."""
    return max(1, -(-bits // _WORD_BITS)) * (_WORD_BITS // 8)


def _pack(masks: Sequence[int], bits: int) -> bytes:
    width = _width(bits)
    return b"".join(mask.to_bytes(width, "little") for mask in masks)


def enumerate_lower_sets(predecessors: Sequence[Sequence[int]], limit: int) -> list[int]:
    """See `memfit._core.reference.lower_sets.enumerate_lower_sets`."""
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
    """See `memfit._core.reference.canonical.canonical_table`; `threads` 0 means one a CPU core."""
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


def _problem(problem: StageProblem) -> _native.StageProblem:
    return _native.StageProblem(
        **{f.name: getattr(problem, f.name) for f in dataclasses.fields(problem) if f.init}
    )


def block_table(
    problem: StageProblem,
    cuts: Sequence[Cut],
    progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> BlockTable:
    """See `memfit._core.reference.stage_dp.block_table`; `threads` 0 means one a CPU core."""
    return _native.block_table(
        _problem(problem),
        len(cuts),
        _pack([cut.lower for cut in cuts], len(problem.forward_inputs)),
        _pack([cut.finished for cut in cuts], len(problem.backward_inputs)),
        [sorted(cut.boundary) for cut in cuts],
        [list(cut.needed_below) for cut in cuts],
        [cut.base_bytes for cut in cuts],
        threads,
        progress,
    )


class StageTable:
    """See `memfit._core.reference.stage_dp.StageTable`."""

    def __init__(self, table: _native.StageTable) -> None:
        self._table = table

    @property
    def exact(self) -> bool:
        """Whether no cost was rounded."""
        return self._table.exact

    def curve(self) -> list[tuple[int, int]]:
        """(cost, budget): each cost that some budget calls for, ascending, with the least one."""
        return self._table.curve()

    def smallest_budget(self) -> int:
        """The smallest budget that some path fits."""
        return self._table.smallest_budget()

    def path(self, budget_bytes: int) -> list[StageStep] | None:
        """The stages of least cost within a budget; None if none fit."""
        found = self._table.path(budget_bytes)
        return None if found is None else [StageStep(*step) for step in found]


def stage_table(
    tables: Sequence[BlockTable],
    base_bytes: Sequence[int],
    total_cost: int,
    slots: int,
    progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> StageTable:
    """See `memfit._core.reference.stage_dp.stage_table`; `threads` 0 means one a CPU core."""
    return StageTable(_native.stage_table(tables, base_bytes, total_cost, slots, threads, progress))


class NestedTable:
    """See `memfit._core.reference.nested.NestedTable`."""

    def __init__(self, table: _native.NestedTable) -> None:
        self._table = table

    def front(self) -> Front:
        """Costs and needs of first passes from the block's lower end on."""
        return self._table.front()

    def reversal_front(self) -> Front:
        """Costs and needs of reversing the whole block."""
        return self._table.reversal_front()

    def stretch(self) -> Stretch:
        """The whole block as one stretch."""
        found = self._table.stretch()
        staged = tuple(StagedCost(*staged) for staged in found[9])
        return Stretch(*found[:9], staged=staged)

    def curve(self) -> list[tuple[int, int]]:
        """(cost, budget): each cost that some budget calls for, ascending, with the least one."""
        return [(cost, max(0, need)) for cost, need in zip(*self.front(), strict=True)]

    def smallest_budget(self) -> int:
        """The smallest budget that some strategy fits."""
        return max(0, self.front()[1][-1])

    def path(self, label: int) -> tuple[list[TopStage], int]:
        """The stages of a label of `front`, and the label of what comes after the block."""
        stages, after = self._table.path(label)
        return [
            TopStage(i, k, option if option >= 0 else _tree(t)) for i, k, option, t in stages
        ], after

    def tree(self, label: int) -> Tree:
        """How a label of `reversal_front` reverses the block."""
        return _tree(self._table.tree(label))


def _tree(numbers: Sequence[int]) -> Tree:
    """A tree from its numbers, parents first (`native/src/nested.hpp`)."""
    done: list[Tree] = []
    # Last ones first: parts are made before the whole; of two, what (i, k) is made by first.
    for at in range(len(numbers) - 4, -1, -4):
        i, k, j, option = numbers[at : at + 4]
        if option == -2:
            done.append(Tree.leaf(i, j))
            continue
        rest = done.pop()
        done.append(Tree(i, k, j, done.pop() if option < 0 else option, rest))
    return done[0]


def nested_table(
    problem: StageProblem,
    cuts: Sequence[Cut],
    base_bytes: int = 0,
    after: Front = ((0,), (NOTHING,)),
    mantissa_bits: int = MANTISSA_BITS,
    progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> NestedTable:
    """See `memfit._core.nested_table`; `threads` 0 means one a CPU core."""
    table = _native.nested_table(
        _problem(problem),
        len(cuts),
        _pack([cut.lower for cut in cuts], len(problem.forward_inputs)),
        _pack([cut.finished for cut in cuts], len(problem.backward_inputs)),
        [sorted(cut.boundary) for cut in cuts],
        [list(cut.needed_below) for cut in cuts],
        [cut.base_bytes for cut in cuts],
        base_bytes,
        (list(after[0]), list(after[1])),
        mantissa_bits,
        threads,
        progress,
    )
    return NestedTable(table)


def _unit(unit: ChainUnit) -> _native.UnitTuple:
    numbers = (
        unit.held_bytes,
        unit.sweep_cost,
        unit.sweep_bytes,
        unit.lent_bytes,
        unit.first_bytes,
    )
    leaf = (list(unit.leaf[0]), list(unit.leaf[1]))
    return numbers, leaf, list(unit.staged), list(unit.top)


def chain_table(
    unit: ChainUnit,
    steps: int,
    after: Front | None,
    most_levels: int,
    parts: int = 1,
    first: ChainUnit | None = None,
) -> ChainTable:
    """See `memfit._core.chain_table`."""
    return _native.chain_table(
        _unit(unit),
        steps,
        None if after is None else (list(after[0]), list(after[1])),
        most_levels,
        parts,
        None if first is None else _unit(first),
    )
