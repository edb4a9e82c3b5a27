"""Stages over blocks, put together from pieces, and the best sequence of them: the reference.

States are the cuts of all blocks in forward order; the upper end of a block is the lower end of the
next. A stage begins in one block and ends in the same or a later one. What it costs follows from
its pieces in a few additions (`Stack`), so that a graph of many blocks takes the work of its parts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from memfit._core.problem import Cut, PieceCost, StageProblem, StageStep, provided
from memfit._core.reference.stage import simulate_piece
from memfit._core.slots import Front, FrontBuilder, last_front, need_at, slot_shift

__all__ = ["BlockTable", "StageTable", "block_table", "stage_table"]


_NONE = -(1 << 62)

_MOST_DULL = 16
"""After so many blocks in a row where no stage ends to any advantage, none further off is tried."""

_LONG = 64
_GRID = 8
_SLACK_SHIFT = 10
"""Stages over more than `_LONG` blocks begin and end where blocks do, every `_GRID` blocks, and
must be better by a 1024th of their peak."""


@dataclass(frozen=True)
class BlockTable:
    """All pieces of one block, simulated.

    Attributes:
        cuts: number of cuts, both ends included.
        inner: by lower cut, upper cut and variant: whole stages within the block.
        top: by upper cut and variant: from the open lower end. Where the upper cut keeps some of
            the interface there, the stage may as well be split at that end, and is left out.
        bottom: by lower cut, variant and whether the interface is asked for: to the open upper end.
        through: by variant and whether it is asked for: both ends open.
        sealed: for each variant, whether an open stage keeps the whole interface below anyway, so
            that it is no different from two stages.
    """

    cuts: int
    inner: dict[tuple[int, int, int], PieceCost]
    top: dict[tuple[int, int], PieceCost]
    bottom: dict[tuple[int, int, bool], PieceCost]
    through: dict[tuple[int, bool], PieceCost]
    sealed: tuple[bool, ...]


def block_table(
    problem: StageProblem,
    cuts: Sequence[Cut],
    progress: Callable[[float], None] | None = None,
) -> BlockTable:
    """Simulate all pieces of a block.

    Args:
        problem: the block.
        cuts: by number of ops, the lower end first, the upper end last. A pair is a stage where
            the one is a strict subset of the other and so are, the other way, their R(L).
        progress: called with the share done.
    """
    variants = range(len(problem.keep_flags))
    last = len(cuts) - 1
    lowest, highest = cuts[0], cuts[-1]
    inner: dict[tuple[int, int, int], PieceCost] = {}
    for a in range(last):
        if progress is not None:
            progress(a / last)
        for b in range(a + 1, last + 1):
            if _nested(cuts[a], cuts[b]):
                for v in variants:
                    inner[a, b, v] = simulate_piece(problem, cuts[a], cuts[b], v)
    return BlockTable(
        cuts=len(cuts),
        inner=inner,
        top={
            (b, v): simulate_piece(problem, lowest, cuts[b], v, open_below=True)
            for b in range(1, last + 1)
            for v in variants
            if not cuts[b].boundary & provided(problem, v)
        },
        bottom={
            (a, v, passed): simulate_piece(
                problem, cuts[a], highest, v, open_above=True, passed=passed
            )
            for a in range(last)
            for v in variants
            for passed in (False, True)
        },
        through={
            (v, passed): simulate_piece(
                problem, lowest, highest, v, open_below=True, open_above=True, passed=passed
            )
            for v in variants
            for passed in (False, True)
        },
        sealed=tuple(not provided(problem, v) for v in variants),
    )


def _nested(lower: Cut, upper: Cut) -> bool:
    return (
        lower.lower != upper.lower
        and not lower.lower & ~upper.lower
        and not upper.finished & ~lower.finished
    )


@dataclass(frozen=True)
class Stack:
    """The lower pieces of a stage over several blocks, from its top piece down.

    On the way back the top piece runs first. When it first needs its interface below, the pieces
    below compute that again, a row of neighbours, its *group*. Below them, each piece that is not
    asked, and each that asks only once its own backward ops run, has a group of its own. With t the
    top piece, the stage peaks on the way back at the largest of `settled`, `group`,
    t.before_bytes + `standing_bytes`, t.backward_bytes + `beside_top` and t.start_bytes +
    `pass_top`.

    Attributes:
        cost: cost of the recomputations.
        cached_bytes: bytes that the pieces keep.
        forward_bytes: peak on the way forward.
        asks: whether the lowest piece needs the interface below it computed again.
        standing_bytes: bytes that the pieces have standing.
        beside_top: bytes alive beside the top piece's own from when its group has run.
        pass_top: peak beyond the top piece's start while its group is computed again.
        settled: peak, but for the top piece, before the lowest group runs.
        group: peak, but for the top piece, from then on.
        group_start: bytes alive when the lowest group is computed again, in the piece that it is
            computed for; None where that is the top piece.
        group_standing: bytes that the lowest group's pieces have standing.
    """

    cost: int = 0
    cached_bytes: int = 0
    forward_bytes: int = 0
    asks: bool = False
    standing_bytes: int = 0
    beside_top: int = 0
    pass_top: int = _NONE
    settled: int = _NONE
    group: int = _NONE
    group_start: int | None = None
    group_standing: int = 0

    def below(self, piece: PieceCost, base_bytes: int) -> Stack:
        """The stack with one more piece below it; `piece` is passed where the stack asks.

        Args:
            piece: the piece.
            base_bytes: bytes alive at the upper end of the piece's block on the way back.
        """
        standing = piece.standing_bytes
        grown = replace(
            self,
            cost=self.cost + piece.cost,
            cached_bytes=self.cached_bytes + piece.cached_bytes,
            forward_bytes=max(piece.forward_bytes, piece.cached_bytes + self.forward_bytes),
            asks=piece.asks,
            standing_bytes=self.standing_bytes + standing,
        )
        grown = grown._joined(piece) if piece.passed else grown._apart(standing)
        own = piece.backward_bytes + base_bytes
        if piece.joins:
            return replace(grown, group=max(grown.group, own))
        before = _more(piece.before_bytes, base_bytes)
        return replace(
            grown,
            settled=max(grown.settled, grown.group, before),
            group=own,
            group_start=piece.start_bytes + base_bytes,
            group_standing=0,
        )

    def _apart(self, standing: int) -> Stack:
        """With a piece below that is computed again when its own turn comes."""
        return replace(
            self,
            beside_top=self.beside_top + standing,
            pass_top=_more(self.pass_top, standing),
            settled=_more(self.settled, standing),
            group=_more(self.group, standing),
        )

    def _joined(self, piece: PieceCost) -> Stack:
        """With a piece below that is computed again with the lowest group."""
        standing, held = piece.standing_bytes, piece.held_bytes
        first = piece.pass_bytes + self.group_standing
        of_top = self.group_start is None
        group = _more(self.group, held)
        if self.group_start is not None:
            group = max(group, self.group_start + first)
        return replace(
            self,
            beside_top=self.beside_top + (held if of_top else standing),
            pass_top=max(_more(self.pass_top, held), first)
            if of_top
            else _more(self.pass_top, standing),
            settled=_more(self.settled, standing),
            group=group,
            group_standing=self.group_standing + standing,
        )

    def stage(self, top: PieceCost, base_bytes: int) -> tuple[int, int, int]:
        """(cost, cached bytes, peak bytes) of the stage with this top piece."""
        backward = max(
            self.settled,
            self.group,
            top.before_bytes + base_bytes + self.standing_bytes,
            top.backward_bytes + base_bytes + self.beside_top,
            top.start_bytes + base_bytes + self.pass_top,
        )
        return (
            self.cost + top.cost,
            self.cached_bytes + top.cached_bytes,
            max(backward, self.forward_bytes, self.cached_bytes + top.forward_bytes),
        )


def _more(amount: int, by: int) -> int:
    return amount if amount <= _NONE else amount + by


class StageTable:
    """The whole trade-off of a graph cut into blocks; plans for any budget are read off it.

    Attributes:
        exact: whether every cost has a slot of its own.
    """

    def __init__(
        self,
        tables: Sequence[BlockTable],
        base_bytes: Sequence[int],
        total_cost: int,
        slots: int,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self._tables = tables
        self._base_bytes = base_bytes
        self._variants = range(len(tables[0].sealed)) if tables else range(0)
        self._shift = slot_shift(total_cost, slots)
        self.exact = self._shift == 0
        self._fronts: list[list[Front]] = [[([], [])] * (t.cuts - 1) for t in tables]
        self._fronts.append([last_front()])
        stacks: dict[tuple[int, int, bool], Stack] = {}
        for i in range(len(tables) - 1, -1, -1):
            if progress is not None:
                progress(1 - (i + 1) / len(tables))
            self._seal(stacks, i)
            for a in range(tables[i].cuts - 2, -1, -1):
                builder = FrontBuilder(self._shift)
                for cost, cached, peak, stage in self._stages(i, a, stacks):
                    builder.add(cost, cached, peak, self._front(stage))
                self._fronts[i][a] = builder.take()
            self._extend(stacks, i)

    def _seal(self, stacks: dict[tuple[int, int, bool], Stack], i: int) -> None:
        """Ends the stages that would go on from block i + 1 to block i to no purpose."""
        if i + 1 < len(self._tables):
            for key in [k for k in stacks if self._tables[i + 1].sealed[k[1]]]:
                del stacks[key]

    def _extend(self, stacks: dict[tuple[int, int, bool], Stack], i: int) -> None:
        for key, stack in stacks.items():
            piece = self._tables[i].through[key[1], stack.asks]
            stacks[key] = stack.below(piece, self._base_bytes[i])
        for v in self._variants:
            for asks in (False, True):
                stacks[i, v, asks] = Stack(asks=asks)

    def _front(self, stage: StageStep) -> Front:
        """The front of the state that a stage leads to."""
        j, b = stage.last_block, stage.last_cut
        return self._fronts[j + 1][0] if b == self._tables[j].cuts - 1 else self._fronts[j][b]

    def _stages(
        self, i: int, a: int, stacks: dict[tuple[int, int, bool], Stack]
    ) -> Iterator[tuple[int, int, int, StageStep]]:
        """(cost, cached bytes, peak bytes, stage) of the stages that begin at a cut.

        Args:
            i: block.
            a: cut of the block.
            stacks: for each later block, variant and asking: the pieces between it and block i.
        """
        table, base = self._tables[i], self._base_bytes[i]
        for b in range(a + 1, table.cuts):
            for v in self._variants:
                piece = table.inner.get((a, b, v))
                if piece is not None:
                    peak = max(piece.forward_bytes, piece.backward_bytes + base)
                    yield piece.cost, piece.cached_bytes, peak, StageStep(i, a, i, b, v)
        # By variant and asking, how many blocks in a row have had nothing to offer.
        dull = {(v, asks): 0 for v in self._variants for asks in (False, True)}
        for j in range(i + 1, len(self._tables)):
            far = j > i + _LONG
            if far and (a > 0 or i % _GRID):
                break
            if far and (j + 1) % _GRID:
                continue
            last = self._tables[j].cuts - 1
            for v, asks in tuple(dull):
                stack = stacks.get((j, v, asks))
                if stack is None:
                    del dull[v, asks]
                    continue
                whole = stack.below(table.bottom[a, v, stack.asks], base)
                useful = False
                for b in range(last if far else 1, last + 1):
                    top = self._tables[j].top.get((b, v))
                    if top is None or top.asks is not asks:
                        continue
                    stage = StageStep(i, a, j, b, v)
                    cost, cached, peak = whole.stage(top, self._base_bytes[j])
                    slack = peak >> _SLACK_SHIFT if far else 0
                    if not self._beaten(i, a, cost + self._front(stage)[0][0], peak + slack):
                        useful = True
                        yield cost, cached, peak, stage
                dull[v, asks] = 0 if useful else dull[v, asks] + 1
                if dull[v, asks] == _MOST_DULL:
                    del dull[v, asks]
            if not dull:
                break

    def _beaten(self, i: int, a: int, cost: int, need: int) -> bool:
        """Whether ending at the end of block i costs and needs no more."""
        table = self._tables[i]
        after = self._fronts[i + 1][0]
        for v in self._variants:
            piece = table.inner.get((a, table.cuts - 1, v))
            if piece is None:
                continue
            peak = max(piece.forward_bytes, piece.backward_bytes + self._base_bytes[i])
            later = need_at(after, cost - piece.cost)
            if later is not None and max(peak, piece.cached_bytes + later) <= need:
                return True
        return False

    def curve(self) -> list[tuple[int, int]]:
        """(cost, budget): each cost that some budget calls for, ascending, with the least one."""
        costs, needs = self._fronts[0][0]
        return [(cost, max(0, need)) for cost, need in zip(costs, needs, strict=True)]

    def smallest_budget(self) -> int:
        """The smallest budget that some path fits; 0 for a graph without forward ops."""
        return max(0, self._fronts[0][0][1][-1])

    def path(self, budget_bytes: int) -> list[StageStep] | None:
        """The stages of least cost within a budget; None if none fit.

        Of equal paths it is the one found from the first state on by taking, at each state, the
        first stage that leads on to the label, by block where it ends, then within its own block
        by cut and variant, in later ones by variant, whether the top piece asks, and cut.
        """
        costs, needs = self._fronts[0][0]
        at = next((k for k, need in enumerate(needs) if need <= budget_bytes), None)
        if budget_bytes < 0 or at is None:
            return None
        cost, need = costs[at], needs[at]
        i = a = 0
        path: list[StageStep] = []
        while i < len(self._tables):
            cost, need, stage = self._step(i, a, cost, need)
            path.append(stage)
            i, a = stage.last_block, stage.last_cut
            if a == self._tables[i].cuts - 1:
                i, a = i + 1, 0
        return path

    def _step(self, i: int, a: int, cost: int, need: int) -> tuple[int, int, StageStep]:
        stacks: dict[tuple[int, int, bool], Stack] = {}
        span = 1
        while True:
            for step, cached, peak, stage in self._stages(i, a, stacks):
                costs, needs = self._front(stage)
                k = bisect_right(costs, cost - step) - 1
                if k >= 0 and costs[k] == cost - step and max(peak, cached + needs[k]) == need:
                    return costs[k], needs[k], stage
            if i + span > len(self._tables):
                raise AssertionError("a label without a way on")
            # Few stages are long, so the stacks for longer ones are made when they are needed.
            span *= 4
            stacks = self._stacks_over(i, i + span)

    def _stacks_over(self, i: int, reach: int) -> dict[tuple[int, int, bool], Stack]:
        stacks: dict[tuple[int, int, bool], Stack] = {}
        for k in range(min(reach, len(self._tables)) - 1, i, -1):
            self._seal(stacks, k)
            self._extend(stacks, k)
        self._seal(stacks, i)
        return stacks


def stage_table(
    tables: Sequence[BlockTable],
    base_bytes: Sequence[int],
    total_cost: int,
    slots: int,
    progress: Callable[[float], None] | None = None,
) -> StageTable:
    """See `memfit._core.stage_table`."""
    return StageTable(tables, base_bytes, total_cost, slots, progress)
