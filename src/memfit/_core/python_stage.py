"""Stage simulation on joint forward-and-backward graphs: the reference in pure Python.

A *stage* (L -> L') runs the forward ops of V' = L' minus L and, on the way back, the backward ops
R(L) minus R(L'), with recomputation of what it did not keep. Its peak beyond the cache depends on
L and L' alone (DESIGN: liveness inside the DP), so it is simulated once for each pair and variant.

A graph is cut into *blocks*, at lower sets that hold or are held by every other one
(`memfit.blocks`), and a stage over several blocks into *pieces*, one a block. A piece is *open*
above where the stage goes on beyond its block, and open below where it began before it. An open end
keeps nothing: the few large values that cross it (its *interface*) are computed again from below. A
piece is simulated by itself; `memfit._core.python_blocks` puts pieces together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Cut", "PieceCost", "StageProblem", "bits", "piece_keep", "provided", "simulate_piece"]

_NOTHING = -(1 << 62)


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
    result = []
    while mask:
        low = mask & -mask
        result.append(low.bit_length() - 1)
        mask ^= low
    return result


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


def simulate_piece(
    problem: StageProblem,
    lower: Cut,
    upper: Cut,
    variant: int,
    open_below: bool = False,
    open_above: bool = False,
    passed: bool = False,
    emit: Callable[[int, bool, int], None] | None = None,
) -> PieceCost:
    """Simulate one piece, every value freed after its last use, recomputation just in time.

    Args:
        problem: the block.
        lower: the cut L; the block's lower end if `open_below`.
        upper: the cut L', a strict superset; the block's upper end if `open_above`.
        variant: which values to keep beyond the boundary.
        open_below: the stage began below; the interface there is not in the cache.
        open_above: the stage goes on above; the interface there is not kept.
        passed: pieces above ask for the interface above, so it is computed again before they run
            their backward ops.
        emit: called for each op of the way back in order: (op, is it a recomputation, when it runs:
            0 for the pieces above, 1 before what the pieces below provide, 2 after it).
    """
    size = problem.value_bytes
    ops = bits(upper.lower & ~lower.lower)
    keep = piece_keep(problem, lower, upper, variant, open_above)
    inside = {s for v in ops for s in problem.forward_outputs[v]}
    lent_below = provided(problem, variant) if open_below else frozenset()
    forward_bytes = _forward_bytes(problem, ops, inside, keep, lent_below)

    asked: list[int] = []
    if open_above and passed:
        asked = [s for s in problem.interface_above if s in inside and s not in keep]
    backward = bits(lower.finished & ~upper.finished)
    again = _recomputed(problem, backward, (*lower.needed_below, *asked), inside, keep)
    uses: dict[int, int] = {}
    for v in again:
        for s in problem.forward_inputs[v]:
            uses[s] = uses.get(s, 0) + 1
    for b in backward:
        for s in (*problem.backward_inputs[b], *problem.backward_outputs[b]):
            uses[s] = uses.get(s, 0) + 1

    below = frozenset(lower.needed_below)

    def made_below(s: int) -> bool:
        producer = problem.forward_producer[s]
        return problem.from_below[s] or (producer >= 0 and bool(lower.lower >> producer & 1))

    def pinned(s: int, cut: Cut = lower) -> bool:
        if problem.outlives[s] or problem.used_below[s] or (s in below and cut is lower):
            return True
        producer = problem.forward_producer[s]
        if producer < 0 and not problem.from_below[s]:
            return _touched_below(problem, s, cut.finished)
        if problem.from_below[s] or cut.lower >> producer & 1:
            return (
                s not in cut.boundary
                or any(cut.lower >> r & 1 for r in problem.forward_readers[s])
                or any(not cut.finished >> r & 1 for r in problem.backward_readers[s])
            )
        return False

    live = {s for s in keep if s in uses or pinned(s)}
    # Kept for the pieces above alone: gone when these are done.
    lent = {s for s in keep - live if open_above and problem.read_above[s]}
    current = standing = sum(size[s] for s in live | lent)
    # What the cache holds is counted in m; freeing it here makes `current` fall below its start.
    for s in uses:
        if made_below(s) or (
            problem.forward_producer[s] < 0
            and (
                problem.begun_above[s]
                or any(upper.finished >> w & 1 for w in problem.backward_writers[s])
            )
        ):
            live.add(s)
    done: set[int] = set()
    peak = start = 0
    before = _NOTHING
    joins = False
    when = 0
    asks = any(s in uses for s in lent_below)
    # What the pieces below need later is alive from then on too.
    waiting = {s for s in lent_below if s in uses or problem.used_below[s]} if asks else set()

    def release(s: int) -> None:
        nonlocal current
        uses[s] -= 1
        if uses[s] == 0 and s in live and not pinned(s):
            live.discard(s)
            if not when and problem.read_above[s]:
                lent.add(s)  # the pieces above are still to read it
            else:
                current -= size[s]

    def recompute(v: int) -> None:
        nonlocal current, peak
        done.add(v)
        if emit is not None:
            emit(v, True, when)
        outputs = problem.forward_outputs[v]
        double = 0
        for s in outputs:
            if s in keep:
                double += size[s]
            else:
                current += size[s]
                live.add(s)
        peak = max(peak, current + double + problem.forward_workspace[v])
        for s in problem.forward_inputs[v]:
            release(s)
        for s in outputs:
            if s not in keep and s not in uses and not pinned(s):
                current -= size[s]
                live.discard(s)

    def provide(wanted: Sequence[int]) -> None:
        todo: set[int] = set()
        stack = list(wanted)
        reads = set(wanted)
        while stack:
            s = stack.pop()
            if s in inside and s not in keep:
                v = problem.forward_producer[s]
                if v not in done and v not in todo:
                    todo.add(v)
                    stack.extend(problem.forward_inputs[v])
                    reads.update(problem.forward_inputs[v])
        if reads & waiting:
            ask()
        for v in sorted(todo):
            recompute(v)

    def ask() -> None:
        """The pieces below provide their interface now."""
        nonlocal current, peak, before, start, when, joins
        if when:
            before, start, when = peak, current, 2
        else:
            joins = True
        current += sum(size[s] for s in waiting)
        waiting.clear()
        peak = current

    # The interface above is alive for the pieces above as long as these need it.
    for s in asked:
        uses[s] = uses.get(s, 0) + 1
    pass_bytes = held = standing
    if asked:
        peak = current
        provide(asked)
        pass_bytes = max(standing, peak)
        held = current - sum(size[s] for s in asked)
        for s in asked:
            release(s)
    # What lies in the cache for pieces above alone is dead by now.
    dead = sum(
        size[s]
        for s in upper.boundary
        if made_below(s) and s not in lent_below and not pinned(s, upper)
    )
    current += upper.base_bytes - dead - sum(size[s] for s in lent)
    for s in upper.needed_below:
        if s not in inside:
            current += size[s]
            live.add(s)
    peak = current
    when = 1
    for b in backward:
        provide(problem.backward_inputs[b])
        if emit is not None:
            emit(b, False, when)
        for s in problem.backward_outputs[b]:
            if s not in live:
                current += size[s]
                live.add(s)
        peak = max(peak, current + problem.backward_workspace[b])
        for s in problem.backward_inputs[b]:
            release(s)
        for s in problem.backward_outputs[b]:
            release(s)
    provide(lower.needed_below)
    return PieceCost(
        cost=sum(problem.forward_cost[v] for v in again),
        cached_bytes=sum(size[s] for s in keep),
        forward_bytes=forward_bytes,
        standing_bytes=standing,
        pass_bytes=pass_bytes,
        held_bytes=held,
        before_bytes=before,
        start_bytes=start,
        backward_bytes=peak,
        asks=asks,
        passed=bool(asked),
        joins=joins,
    )


def _forward_bytes(
    problem: StageProblem,
    ops: Sequence[int],
    inside: set[int],
    keep: set[int],
    lent_below: frozenset[int],
) -> int:
    size = problem.value_bytes
    uses: dict[int, int] = {}
    for v in ops:
        for s in problem.forward_inputs[v]:
            uses[s] = uses.get(s, 0) + 1
    current = peak = sum(size[s] for s in lent_below)
    for v in ops:
        current += sum(size[s] for s in problem.forward_outputs[v])
        peak = max(peak, current + problem.forward_workspace[v])
        for s in problem.forward_inputs[v]:
            uses[s] -= 1
            gone = uses[s] == 0 and not problem.read_above[s]
            if gone and (s in lent_below or (s in inside and s not in keep)):
                current -= size[s]
        for s in problem.forward_outputs[v]:
            if s not in uses and s not in keep and not problem.read_above[s]:
                current -= size[s]
    return peak


def _recomputed(
    problem: StageProblem,
    backward: Sequence[int],
    below: Sequence[int],
    inside: set[int],
    keep: set[int],
) -> list[int]:
    again: set[int] = set()
    stack = [s for b in backward for s in problem.backward_inputs[b]]
    stack.extend(below)
    while stack:
        s = stack.pop()
        if s in inside and s not in keep:
            v = problem.forward_producer[s]
            if v not in again:
                again.add(v)
                stack.extend(problem.forward_inputs[v])
    return sorted(again)
