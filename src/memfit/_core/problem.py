"""What the planning problems are made of, for either core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from memfit._core.slots import Front

__all__ = [
    "ChainUnit",
    "Cut",
    "FirstStep",
    "IdleValue",
    "PieceCost",
    "StageProblem",
    "StageStep",
    "StagedCost",
    "Stretch",
    "SweptStep",
    "TopStage",
    "Tree",
    "always_kept",
    "bits",
    "dead_bytes",
    "piece_keep",
    "provided",
]


@dataclass(frozen=True)
class StageProblem:
    """One block of a training graph, flattened. Values are numbered 0 … len(value_bytes) - 1.

    Resident values and tangents are left out of all lists. A value that no op of the block makes is
    a gradient made elsewhere or, with `from_below`, a forward value made below the block.

    Attributes:
        value_bytes: size of each value.
        outlives: for each value, whether it stays alive to the end of the step (forward outputs,
            finished parameter gradients).
        forward_inputs, forward_outputs, forward_cost, forward_workspace: by forward op.
        forward_recomputable: whether the op may run again.
        backward_inputs, backward_outputs, backward_workspace: by backward op.
        keep_flags: for each variant, for each value, whether a stage of that variant keeps it when
            a backward op reads it.
        always_keep_bytes: values read by a backward op are kept when they are at most this large.
        auxiliary_share: so are outputs of an op that keeps another output for the boundary, when
            they are at most this share of it, in 1/1024.
        from_below: forward values made below the block.
        read_above: forward values that something above the block reads.
        used_below: values that something below the block may still need: a forward or a backward
            op there reads or writes it.
        begun_above: gradients that backward ops above the block write first.
        always_keep: values that every stage keeps: they pass over whole blocks, or are negligible
            and cross the block's end.
        interface_below: values that cross the block's lower end and are not always kept.
        interface_above: values that cross its upper end and are not always kept.
        cached_below: for each variant, those of `interface_below` that an open stage keeps anyway.
    """

    value_bytes: Sequence[int]
    outlives: Sequence[bool]
    forward_inputs: Sequence[Sequence[int]]
    forward_outputs: Sequence[Sequence[int]]
    forward_cost: Sequence[int]
    forward_workspace: Sequence[int]
    forward_recomputable: Sequence[bool]
    backward_inputs: Sequence[Sequence[int]]
    backward_outputs: Sequence[Sequence[int]]
    backward_workspace: Sequence[int]
    keep_flags: Sequence[Sequence[bool]]
    always_keep_bytes: int = 1024
    auxiliary_share: int = 128
    from_below: Sequence[bool] = ()
    read_above: Sequence[bool] = ()
    used_below: Sequence[bool] = ()
    begun_above: Sequence[bool] = ()
    always_keep: Sequence[bool] = ()
    interface_below: Sequence[int] = ()
    interface_above: Sequence[int] = ()
    cached_below: Sequence[Sequence[int]] = ()
    forward_producer: list[int] = field(init=False, compare=False)
    forward_readers: list[list[int]] = field(init=False, compare=False)
    backward_readers: list[list[int]] = field(init=False, compare=False)
    backward_writers: list[list[int]] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        count = len(self.value_bytes)
        for name in ("from_below", "read_above", "used_below", "begun_above", "always_keep"):
            if not getattr(self, name):
                object.__setattr__(self, name, [False] * count)
        if not self.cached_below:
            object.__setattr__(self, "cached_below", [()] * len(self.keep_flags))
        producer = [-1] * count
        readers: list[list[int]] = [[] for _ in range(count)]
        backward_readers: list[list[int]] = [[] for _ in range(count)]
        writers: list[list[int]] = [[] for _ in range(count)]
        for op, outputs in enumerate(self.forward_outputs):
            for s in outputs:
                producer[s] = op
            for s in self.forward_inputs[op]:
                readers[s].append(op)
        for op, outputs in enumerate(self.backward_outputs):
            for s in outputs:
                writers[s].append(op)
            for s in self.backward_inputs[op]:
                backward_readers[s].append(op)
        object.__setattr__(self, "forward_producer", producer)
        object.__setattr__(self, "forward_readers", readers)
        object.__setattr__(self, "backward_readers", backward_readers)
        object.__setattr__(self, "backward_writers", writers)


@dataclass(frozen=True)
class Cut:
    """A lower set L of a block, with what the way back leaves at it.

    Attributes:
        lower: bitmask of the block's forward ops in L.
        finished: bitmask of the block's backward ops in R(L): those that have run when the way back
            reaches L.
        boundary: forward values of L that a forward op outside L reads.
        needed_below: forward values of the block made outside L that a backward op outside R(L)
            reads.
        base_bytes: bytes alive at the cut on the way back beyond the cache and `needed_below`, less
            those at the block's upper end: gradients that cross it, finished gradients, forward
            outputs made outside L.
    """

    lower: int
    finished: int
    boundary: frozenset[int]
    needed_below: tuple[int, ...]
    base_bytes: int

    @classmethod
    def of(cls, problem: StageProblem, lower: int, finished: int) -> Cut:
        """The cut of a lower set and its R(L)."""
        boundary: set[int] = set()
        needed: list[int] = []
        base = 0
        for s, producer in enumerate(problem.forward_producer):
            size = problem.value_bytes[s]
            if problem.from_below[s] or (producer >= 0 and lower >> producer & 1):
                if problem.read_above[s] or any(
                    not lower >> r & 1 for r in problem.forward_readers[s]
                ):
                    boundary.add(s)
            elif producer >= 0:
                if problem.outlives[s]:
                    base += size
                elif any(not finished >> r & 1 for r in problem.backward_readers[s]):
                    needed.append(s)
            else:
                begun = problem.begun_above[s]
                if (begun or any(finished >> w & 1 for w in problem.backward_writers[s])) and (
                    problem.outlives[s] or _touched_below(problem, s, finished)
                ):
                    base += size
                if begun:
                    base -= size
        return cls(lower, finished, frozenset(boundary), tuple(needed), base)


def _touched_below(problem: StageProblem, s: int, finished: int) -> bool:
    ops = problem.backward_readers[s] + problem.backward_writers[s]
    return problem.used_below[s] or any(not finished >> op & 1 for op in ops)


@dataclass(frozen=True, slots=True)
class PieceCost:
    """What a piece of a stage costs. Bytes are beyond the cache.

    Attributes:
        cost: cost of its recomputations.
        cached_bytes: bytes that it adds to the cache.
        forward_bytes: its peak on the way forward, beyond what the pieces below it keep.
        standing_bytes: bytes that it has kept and that are alive on the way back before it is
            computed again.
        pass_bytes: its peak while the interface above it is computed again.
        held_bytes: bytes that it has alive from then until its own backward ops run, the interface
            above it left out.
        before_bytes: its peak while its own backward ops run that need nothing of the interface
            below; relative to `Cut.base_bytes` at the upper end of the block.
        start_bytes: bytes alive right before the first one that needs it; relative likewise.
        backward_bytes: its peak from there on, the interface below included; relative likewise.
            Where it needs nothing of that interface, the peak of all its backward ops.
        asks: whether it needs the interface below it computed again.
        passed: whether it computes the interface above it again for the pieces above.
        joins: whether it needs the interface below it for that already.
    """

    cost: int
    cached_bytes: int
    forward_bytes: int
    standing_bytes: int
    pass_bytes: int
    held_bytes: int
    before_bytes: int
    start_bytes: int
    backward_bytes: int
    asks: bool
    passed: bool
    joins: bool


def bits(mask: int) -> list[int]:
    """Positions of the set bits, ascending."""
    if not mask:
        return []
    # In one pass over the digits from the first one on: masks may be long, and stand far up.
    first = (mask & -mask).bit_length() - 1
    return [at for at, bit in enumerate(bin(mask >> first)[:1:-1], first) if bit == "1"]


def needed_ops(
    values: Iterable[int],
    maker: Callable[[int], int | None],
    inputs: Callable[[int], Iterable[int]],
) -> set[int]:
    """The ops that have to run for some values: their makers, those of what these read, and so on.

    Args:
        values: the values.
        maker: the op that makes a value; None where it is there.
        inputs: what an op reads.
    """
    found: set[int] = set()
    stack = list(values)
    while stack:
        op = maker(stack.pop())
        if op is not None and op not in found:
            found.add(op)
            stack.extend(inputs(op))
    return found


def piece_keep(
    problem: StageProblem, lower: Cut, upper: Cut, variant: int, open_above: bool = False
) -> set[int]:
    """Values of V' that a stage keeps for the way back.

    Kept are: the boundary of L', its interface left out where the stage goes on above; forward
    outputs; outputs of ops that must not run again, where anything may read them later; small
    values that a backward op reads; values that are always kept; and the values that the variant
    flags, where a backward op reads them.
    """
    flags = problem.keep_flags[variant]
    size = problem.value_bytes
    passing = frozenset(problem.interface_above) if open_above else frozenset()
    keep: set[int] = set()
    for v in bits(upper.lower & ~lower.lower):
        outputs = problem.forward_outputs[v]
        fixed = not problem.forward_recomputable[v]
        boundary_bytes = 0
        for s in outputs:
            later = (
                problem.backward_readers[s] or problem.forward_readers[s] or problem.read_above[s]
            )
            if (
                (s in upper.boundary and s not in passing)
                or problem.outlives[s]
                or problem.always_keep[s]
                or (fixed and later)
            ):
                keep.add(s)
                boundary_bytes += size[s]
        for s in outputs:
            if problem.backward_readers[s] and (
                flags[s]
                or size[s] <= problem.always_keep_bytes
                or size[s] * 1024 <= problem.auxiliary_share * boundary_bytes
            ):
                keep.add(s)
    return keep


def provided(problem: StageProblem, variant: int) -> frozenset[int]:
    """Values that a piece which is open below finds computed again, not in the cache."""
    return frozenset(problem.interface_below) - frozenset(problem.cached_below[variant])


class StageStep(NamedTuple):
    """A stage: block and cut where it begins, block and cut where it ends, variant."""

    first_block: int
    first_cut: int
    last_block: int
    last_cut: int
    variant: int


class Tree(NamedTuple):
    """How the stretch between two cuts is reversed.

    Attributes:
        start, middle, end: cuts; the stretch is computed again up to the middle one.
        how: the part below the middle is reversed: a variant, or a tree.
        rest: how the part above it is; None for a leaf, which is reversed at once (`leaf`).
    """

    start: int
    middle: int
    end: int
    how: int | Tree
    rest: Tree | None

    @classmethod
    def leaf(cls, start: int, end: int) -> Tree:
        """A stretch that is reversed at once."""
        return cls(start, end, end, -1, None)


class TopStage(NamedTuple):
    """A stage of the first pass: where it begins and ends; a variant, or how it is reversed."""

    start: int
    end: int
    how: int | Tree


class SweptStep(NamedTuple):
    """A stage of one step of a chain, on the way back, its sweep included.

    Attributes:
        cost: of its recomputations.
        cached_bytes: bytes that it adds to the cache.
        backward_bytes, sweep_bytes: its peaks on the way back and in the sweep.
    """

    cost: int
    cached_bytes: int
    backward_bytes: int
    sweep_bytes: int


class FirstStep(NamedTuple):
    """A stage of one step of a chain in the first pass.

    Attributes:
        cost: of its recomputations.
        cached_bytes: bytes that it adds to the cache.
        forward_bytes, backward_bytes: its peaks on the way forward and on the way back.
    """

    cost: int
    cached_bytes: int
    forward_bytes: int
    backward_bytes: int


class IdleValue(NamedTuple):
    """A boundary value that need not be held for a while (`sweeps.idle_values`).

    Attributes:
        made: place where it is made.
        reader: place of its next reader above.
        size_bytes: its size.
    """

    made: int
    reader: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ChainUnit:
    """One step of a chain. Bytes are beyond what the cache holds below the stretch at hand.

    Attributes:
        held_bytes: what holding the interface between two steps takes.
        sweep_cost: cost of computing the next interface again.
        sweep_bytes: peak of that, over one step.
        lent_bytes: the same in the midst of a sweep, with the interface that it starts from.
        first_bytes: peak of the first pass over a step that keeps its interface.
        leaf: costs and needs of reversing one step.
        staged: for each variant a stage of one step, its sweep included.
        top: for each variant such a stage in the first pass.
    """

    held_bytes: int
    sweep_cost: int
    sweep_bytes: int
    lent_bytes: int
    first_bytes: int
    leaf: Front
    staged: Sequence[SweptStep] = ()
    top: Sequence[FirstStep] = ()


class StagedCost(NamedTuple):
    """What a stage between two cuts costs in a nested strategy. Bytes are beyond the cache.

    Attributes:
        cost: cost of its recomputations.
        cached_bytes: bytes that it adds to the cache.
        forward_bytes, backward_bytes: its peaks on the way forward and on the way back.
        sweep_cost: cost of computing again what it keeps.
        sweep_bytes: peak of that.
    """

    cost: int
    cached_bytes: int
    forward_bytes: int
    backward_bytes: int
    sweep_cost: int
    sweep_bytes: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """What the ops between two cuts cost in a nested strategy. Bytes are beyond the cache.

    Attributes:
        always_bytes: bytes of its values that are always kept.
        held_bytes: bytes of its other values that the upper cut's boundary holds.
        dead_bytes: bytes of the upper cut's boundary, made below the lower cut, that nothing below
            the upper one needs.
        first_bytes: peak of its first computation where only the above are kept.
        sweep_cost, sweep_bytes: cost and peak of computing the boundary again, what is always kept
            left out.
        lent_bytes: the same peak where the lower interface is freed on the way, and counts.
        leaf_cost, leaf_bytes: cost and peak of its backward ops from the lower cut alone; None
            where the pair of cuts is no stage.
        staged: for each variant, a stage that keeps what the variant says.
    """

    always_bytes: int
    held_bytes: int
    dead_bytes: int
    first_bytes: int
    sweep_cost: int
    sweep_bytes: int
    lent_bytes: int
    leaf_cost: int
    leaf_bytes: int
    staged: tuple[StagedCost, ...]


def always_kept(problem: StageProblem) -> list[bool]:
    """For each value, whether every strategy keeps it from its first computation on."""
    result = []
    for s, producer in enumerate(problem.forward_producer):
        if producer < 0:
            result.append(False)
            continue
        fixed = not problem.forward_recomputable[producer]
        later = problem.backward_readers[s] or problem.forward_readers[s] or problem.read_above[s]
        small = problem.value_bytes[s] <= problem.always_keep_bytes
        result.append(
            problem.outlives[s]
            or problem.always_keep[s]
            or bool(fixed and later)
            or bool(small and problem.backward_readers[s])
        )
    return result


def dead_bytes(problem: StageProblem, lower: Cut, upper: Cut) -> int:
    """Bytes of the upper cut's boundary, made below the lower cut, that nothing below it needs."""
    total = 0
    for s in upper.boundary:
        producer = problem.forward_producer[s]
        if not (problem.from_below[s] or (producer >= 0 and lower.lower >> producer & 1)):
            continue
        if problem.outlives[s] or problem.used_below[s]:
            continue
        if any(upper.lower >> r & 1 for r in problem.forward_readers[s]):
            continue
        if any(not upper.finished >> r & 1 for r in problem.backward_readers[s]):
            continue
        total += problem.value_bytes[s]
    return total
