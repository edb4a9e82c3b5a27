"""Nested strategies over a chain of cuts, and the whole trade-off they allow: the reference.

Cuts 0 … n are increasing lower sets. To *reverse* the ops between cuts i and j with what cut i
holds at hand is either a leaf (compute what its backward ops need again, then run these) or a split
at k: a sweep from i holds what k needs, (k, j) is reversed, then (i, k), the one as a stage that
kept something for it or, when what k held is given up, by reversing it in turn. On top, the first
pass of the step takes the place of the sweep: stages end where its checkpoints are.

A label of (i, j) is (cost still to come, bytes needed beyond what the cache holds at i), so that no
budget enters (docs/adr/0004). Splits add costs and take the larger need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from memfit._core.problem import Cut, StageProblem, Stretch, TopStage, Tree, always_kept
from memfit._core.reference.sweeps import idle_values, simulate_stretch
from memfit._core.slots import MANTISSA_BITS, NOTHING, Front

__all__ = ["NestedTable", "nested_table"]


_NESTED = -1


class Label(NamedTuple):
    """A strategy from one cut on; `NestedLabel` of the native core.

    Attributes:
        need: bytes that it needs.
        cost: its cost.
        k: the cut at which its first part ends.
        option: the variant of that part; `_NESTED` where it is reversed in parts of its own.
        below: the label of these.
        after: the label of what comes after the cut.
    """

    need: int
    cost: int
    k: int
    option: int
    below: int
    after: int


def slot_of(cost: int, mantissa_bits: int) -> int:
    """Number of the slot of a cost; monotone, with slots that grow with the cost."""
    shift = max(0, cost.bit_length() - mantissa_bits)
    return (shift << mantissa_bits) + (cost >> shift)


class LabelBuilder:
    """Collects the labels of one state; of those of a slot the one with the least need."""

    def __init__(self, mantissa_bits: int) -> None:
        self._bits = mantissa_bits
        self._best: dict[int, Label] = {}

    def add(self, label: Label) -> None:
        """A label; of equal ones the first stays."""
        slot = slot_of(label.cost, self._bits)
        known = self._best.get(slot)
        if known is None or label[:2] < known[:2]:
            self._best[slot] = label

    def add_one(self, floor: int, cost: int, shift: int, after: Front, k: int, option: int) -> None:
        """Labels of a way on to one other state, whose needs grow by `shift`."""
        for at, (more, need) in enumerate(zip(*after, strict=True)):
            self.add(Label(max(floor, need + shift), cost + more, k, option, 0, at))
            if need + shift <= floor:
                break

    def add_both(
        self,
        floor: int,
        cost: int,
        below: Front,
        below_shift: int,
        after: Front,
        after_shift: int,
        k: int,
    ) -> None:
        """Labels of a split: costs of the two parts add up, the larger need counts."""
        a = b = 0
        while True:
            here = below[1][a] + below_shift
            there = after[1][b] + after_shift
            need = max(floor, here, there)
            self.add(Label(need, cost + below[0][a] + after[0][b], k, _NESTED, a, b))
            if need == floor:
                break
            a, b = a + (here == need), b + (there == need)
            if a == len(below[0]) or b == len(after[0]):
                break

    def take(self) -> list[Label]:
        """The labels by rising cost and falling need."""
        result: list[Label] = []
        for slot in sorted(self._best):
            label = self._best[slot]
            if not result or label.need < result[-1].need:
                result.append(label)
        return result


def front_of(labels: Sequence[Label]) -> Front:
    """Costs and needs of labels."""
    return [label.cost for label in labels], [label.need for label in labels]


class NestedTable:
    """Nested strategies of one block; those of any budget are read off it."""

    def __init__(
        self,
        problem: StageProblem,
        cuts: Sequence[Cut],
        base_bytes: int,
        after: Front,
        mantissa_bits: int = MANTISSA_BITS,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        last = len(cuts) - 1
        always = always_kept(problem)
        self._last = last
        self._bits = mantissa_bits
        self._after = after
        self._base_bytes = base_bytes
        self._cut_bytes = [cut.base_bytes for cut in cuts]
        self._idle = idle_values(problem, cuts, always)
        self._stretch: dict[tuple[int, int], Stretch] = {}
        self._labels: dict[tuple[int, int], list[Label]] = {}
        self._fronts: dict[tuple[int, int], Front] = {}
        for i in range(last - 1, -1, -1):
            if progress is not None:
                progress(1 - (i + 1) / last)
            for j in range(i + 1, last + 1):
                self._stretch[i, j] = simulate_stretch(problem, cuts[i], cuts[j], always)
            for j in range(i + 1, last + 1):
                labels = self._reversal(i, j)
                self._labels[i, j] = labels
                self._fronts[i, j] = front_of(labels)
        self._top: list[list[Label]] = [[] for _ in cuts]
        self._top_fronts: list[Front] = [([], []) for _ in cuts]
        self._top_fronts[last] = after
        for i in range(last - 1, -1, -1):
            self._top[i] = self._first_pass(i)
            self._top_fronts[i] = front_of(self._top[i])

    def _reversal(self, i: int, j: int) -> list[Label]:
        builder = LabelBuilder(self._bits)
        whole = self._stretch[i, j]
        builder.add(Label(whole.leaf_bytes, whole.leaf_cost, j, _NESTED, 0, 0))
        # Alive while (i, k) is swept: gradients at j, what is always kept and not dead by now.
        start = self._cut_bytes[j] + whole.always_bytes - whole.dead_bytes
        for k in range(i + 1, j):
            part = self._stretch[i, k]
            after = self._fronts[k, j]
            builder.add_both(
                start + part.sweep_bytes,
                part.sweep_cost,
                self._fronts[i, k],
                0,
                after,
                part.always_bytes + part.held_bytes - self._idle_bytes(i, k, j),
                k,
            )
            for variant, staged in enumerate(part.staged):
                builder.add_one(
                    max(start + staged.sweep_bytes, staged.backward_bytes),
                    staged.sweep_cost + staged.cost,
                    staged.cached_bytes,
                    after,
                    k,
                    variant,
                )
        return builder.take()

    def _idle_bytes(self, i: int, k: int, j: int) -> int:
        """Bytes in the boundary of k, made from i on, that reversing (k, j) can do without."""
        return sum(v.size_bytes for v in self._idle[k] if v.made >= i and v.reader >= j)

    def _first_pass(self, i: int) -> list[Label]:
        builder = LabelBuilder(self._bits)
        base = self._base_bytes
        for k in range(i + 1, self._last + 1):
            part, after = self._stretch[i, k], self._top_fronts[k]
            for variant, staged in enumerate(part.staged):
                floor = max(staged.forward_bytes, staged.backward_bytes + base)
                builder.add_one(floor, staged.cost, staged.cached_bytes, after, k, variant)
            builder.add_both(
                part.first_bytes,
                0,
                self._fronts[i, k],
                base,
                after,
                part.always_bytes + part.held_bytes,
                k,
            )
        return builder.take()

    def front(self) -> Front:
        """The front of the first pass from the block's lower end on."""
        return self._top_fronts[0]

    def reversal_front(self) -> Front:
        """The front of reversing the whole block."""
        return self._fronts[0, self._last]

    def stretch(self) -> Stretch:
        """The whole block as one stretch."""
        return self._stretch[0, self._last]

    def curve(self) -> list[tuple[int, int]]:
        """(cost, budget): each cost that some budget calls for, ascending, with the least one."""
        return [(cost, max(0, need)) for cost, need in zip(*self.front(), strict=True)]

    def smallest_budget(self) -> int:
        """The smallest budget that some strategy fits; 0 for a block without ops."""
        return max(0, self.front()[1][-1])

    def path(self, label: int) -> tuple[list[TopStage], int]:
        """The stages of a label of `front`, and the label of what comes after the block."""
        stages: list[TopStage] = []
        i, at = 0, label
        while i < self._last:
            found = self._top[i][at]
            nested = found.option == _NESTED
            how = self._tree(i, found.k, found.below) if nested else found.option
            stages.append(TopStage(i, found.k, how))
            i, at = found.k, found.after
        return stages, at

    def tree(self, label: int) -> Tree:
        """How a label of `reversal_front` reverses the block."""
        return self._tree(0, self._last, label)

    def _tree(self, i: int, j: int, label: int) -> Tree:
        _, _, k, option, below, after = self._labels[i, j][label]
        if k == j:
            return Tree.leaf(i, j)
        how = self._tree(i, k, below) if option == _NESTED else option
        return Tree(i, k, j, how, self._tree(k, j, after))


def nested_table(
    problem: StageProblem,
    cuts: Sequence[Cut],
    base_bytes: int = 0,
    after: Front = ((0,), (NOTHING,)),
    mantissa_bits: int = MANTISSA_BITS,
    progress: Callable[[float], None] | None = None,
) -> NestedTable:
    """See `memfit._core.nested_table`."""
    return NestedTable(problem, cuts, base_bytes, after, mantissa_bits, progress)
