"""Stage simulation on joint forward-and-backward graphs: the reference in pure Python.

A *stage* (L -> L') runs the forward ops of V' = L' minus L and, on the way back, the backward ops
R(L) minus R(L'), with recomputation of what it did not keep. Its peak beyond the cache depends on
L and L' alone (liveness inside the dynamic program), so it is simulated once for each pair and
variant.

A graph is cut into *blocks*, at lower sets that hold or are held by every other one
(`memfit.cuts.blocks`), and a stage over several blocks into *pieces*, one a block. A piece is
*open* above where the stage goes on beyond its block, and open below where it began before it. An
open end keeps nothing: the few large values that cross it (its *interface*) are computed again from
below. A piece is simulated by itself; `memfit._core.reference.stage_dp` puts pieces together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memfit._core.problem import (
    Cut,
    PieceCost,
    StageProblem,
    _touched_below,
    bits,
    needed_ops,
    piece_keep,
    provided,
)

__all__ = ["simulate_piece"]

_NOTHING = -(1 << 62)


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
        def maker(s: int) -> int | None:
            v = problem.forward_producer[s]
            return v if s in inside and s not in keep and v not in done else None

        todo = needed_ops(wanted, maker, problem.forward_inputs.__getitem__)
        reads = {*wanted, *(s for v in todo for s in problem.forward_inputs[v])}
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
    def maker(s: int) -> int | None:
        return problem.forward_producer[s] if s in inside and s not in keep else None

    wanted = [s for b in backward for s in problem.backward_inputs[b]]
    return sorted(needed_ops([*wanted, *below], maker, problem.forward_inputs.__getitem__))
