"""Stages of a joint graph: which backward ops belong to which cut, and stages as schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memfit._core import simulate_piece
from memfit._core.problem import Cut, PieceCost, StageStep, piece_keep
from memfit.cuts.blocks import Blocks
from memfit.graph.plain import store_all_order
from memfit.graph.plan import Stage
from memfit.graph.schedule import OpOrder, Schedule, make_schedule

__all__ = ["Piece", "StagePath", "StageSpace"]


@dataclass(frozen=True)
class StagePath:
    """Consecutive stages from the empty set to V over the cuts of a graph's blocks.

    Attributes:
        space: the blocks and cuts.
        steps: the stages.
    """

    space: StageSpace
    steps: Sequence[StageStep]

    def order(self) -> OpOrder:
        """The stages as an order of computations; without forward ops, that of the program."""
        if not self.steps:
            return store_all_order(self.space.blocks.graph)
        forward: list[int] = []
        keep: set[int] = set()
        back: list[list[int]] = []
        for step in self.steps:
            pieces = self.space.pieces(step)
            for piece in pieces:
                forward.extend(piece.forward)
                keep |= piece.keep
            back.append(_way_back(pieces))
        backward = [op for order in reversed(back) for op in order]
        return OpOrder(forward, backward, keep)

    def schedule(self) -> Schedule:
        """The stages as a schedule."""
        return make_schedule(self.space.blocks.graph, *self.order())

    def stages(self) -> tuple[Stage, ...]:
        """The stages, for people."""
        result = []
        ops = self.space.blocks.graph.ops
        for step in self.steps:
            pieces = self.space.pieces(step)
            result.append(
                Stage(
                    forward_ops=sum(len(piece.forward) for piece in pieces),
                    first_op=ops[pieces[0].forward[0]].name,
                    last_op=ops[pieces[-1].forward[-1]].name,
                    kept_bytes=sum(piece.cost.cached_bytes for piece in pieces),
                    recompute_cost=sum(piece.cost.cost for piece in pieces),
                )
            )
        return tuple(result)


@dataclass(frozen=True)
class StageSpace:
    """What stages are made of.

    Attributes:
        blocks: the graph, cut into blocks.
        cuts: for each block its cuts, both ends included.
    """

    blocks: Blocks
    cuts: Sequence[Sequence[Cut]]
    _known: dict[tuple[int, ...], Piece] = field(default_factory=dict, repr=False, compare=False)

    def pieces(self, step: StageStep) -> list[Piece]:
        """The pieces of a stage, from the lowest to the top one, with what each is asked for."""
        i, a, j, b, variant = step
        found: list[Piece] = []
        passed = False
        for k in range(j, i - 1, -1):
            lower = a if k == i else 0
            upper = b if k == j else len(self.cuts[k]) - 1
            key = (k, lower, upper, variant, k > i, k < j, passed)
            piece = self._known.get(key)
            if piece is None:
                piece = self._known[key] = self._piece(
                    k, lower, upper, variant, open_below=k > i, open_above=k < j, passed=passed
                )
            passed = piece.cost.asks
            found.append(piece)
        return found[::-1]

    def _piece(
        self,
        k: int,
        lower: int,
        upper: int,
        variant: int,
        *,
        open_below: bool,
        open_above: bool,
        passed: bool,
    ) -> Piece:
        block = self.blocks.blocks[k]
        low, high = self.cuts[k][lower], self.cuts[k][upper]
        way_back: tuple[list[int], list[int], list[int]] = ([], [], [])

        def emit(op: int, again: bool, when: int) -> None:
            way_back[when].append(block.forward.start + op if again else block.backward[op])

        cost = simulate_piece(
            block.problem,
            low,
            high,
            variant,
            open_below=open_below,
            open_above=open_above,
            passed=passed,
            emit=emit,
        )
        keep = piece_keep(block.problem, low, high, variant, open_above)
        return Piece(
            cost=cost,
            forward=block.ids(high.lower & ~low.lower),
            keep=frozenset(block.values[s] for s in keep),
            way_back=way_back,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a stage.

    Attributes:
        cost: what it costs.
        forward: ids of its forward ops.
        keep: ids of the values that it keeps.
        way_back: ids of its ops on the way back: those for the pieces above; its own before the
            pieces below provide their interface, and after.
    """

    cost: PieceCost
    forward: list[int]
    keep: frozenset[int]
    way_back: tuple[list[int], list[int], list[int]]


def _way_back(pieces: Sequence[Piece]) -> list[int]:
    """The ops of a stage on the way back, of its pieces from the lowest to the top one."""
    order: list[int] = []
    for k in range(len(pieces) - 1, -1, -1):
        _, before, after = pieces[k].way_back
        order += before
        if pieces[k].cost.asks and not pieces[k].cost.joins:
            # The group below, from the lowest piece that joins in.
            low = k
            while low > 0 and pieces[low - 1].cost.passed and (low == k or pieces[low].cost.joins):
                low -= 1
            for piece in pieces[low:k]:
                order += piece.way_back[0]
        order += after
    return order
