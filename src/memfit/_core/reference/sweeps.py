"""What nested strategies are made of: sweeps, leaves and what a cut holds; the reference.

A *sweep* runs forward ops of a stretch once more, from what is held at its lower cut, to hold
values at its upper one: its boundary, or what a stage of some variant keeps. What no strategy gives
up between its first computation and the way back (*always kept*) is never computed again for its
own sake: forward outputs, outputs of ops that must not run again, small values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from memfit._core.problem import (
    Cut,
    IdleValue,
    StagedCost,
    StageProblem,
    Stretch,
    bits,
    dead_bytes,
    needed_ops,
    piece_keep,
)
from memfit._core.reference.stage import _forward_bytes, simulate_piece

__all__ = ["idle_values", "simulate_stretch", "sweep"]


def sweep(
    problem: StageProblem,
    lower: Cut,
    upper: Cut,
    targets: Iterable[int],
    always: list[bool],
    *,
    lend: bool = False,
) -> tuple[int, int]:
    """(cost, peak bytes) of computing `targets` again, which the stretch makes.

    Args:
        problem: the block.
        lower, upper: the cuts.
        targets: values to hold at the end; those that are always kept are left out.
        always: `always_kept` of the problem.
        lend: whether values that cross the block's lower end count, and are freed on the way.
    """
    size = problem.value_bytes
    span = upper.lower & ~lower.lower
    wanted = {s for s in targets if not always[s]}

    def made_here(s: int) -> bool:
        producer = problem.forward_producer[s]
        return producer >= 0 and bool(span >> producer & 1) and not always[s]

    def maker(s: int) -> int | None:
        return problem.forward_producer[s] if made_here(s) else None

    order = sorted(needed_ops(wanted, maker, problem.forward_inputs.__getitem__))
    uses: dict[int, int] = {}
    for v in order:
        for s in problem.forward_inputs[v]:
            uses[s] = uses.get(s, 0) + 1
    lent = {s for s in problem.interface_below if lend and s in uses}
    current = peak = sum(size[s] for s in lent)
    for v in order:
        double = 0
        for s in problem.forward_outputs[v]:
            if always[s]:
                double += size[s]
            else:
                current += size[s]
        peak = max(peak, current + double + problem.forward_workspace[v])
        for s in problem.forward_inputs[v]:
            uses[s] -= 1
            if uses[s] == 0 and ((made_here(s) and s not in wanted) or s in lent):
                current -= size[s]
        for s in problem.forward_outputs[v]:
            if not always[s] and s not in uses and s not in wanted:
                current -= size[s]
    return sum(problem.forward_cost[v] for v in order), peak


def idle_values(
    problem: StageProblem, cuts: Sequence[Cut], always: list[bool]
) -> list[list[IdleValue]]:
    """For each cut, boundary values that may be out of memory for a while.

    Places are numbers of the cuts right below. Such a value need not be held while what lies
    between the cut and that reader is reversed, though it is used below the cut again. Values
    that are always kept, and those that nothing below the cut uses, are left out.
    """
    forward = [0] * len(problem.forward_inputs)
    backward = [0] * len(problem.backward_inputs)
    for at, (a, b) in enumerate(pairwise(cuts)):
        for v in bits(b.lower & ~a.lower):
            forward[v] = at
        for r in bits(a.finished & ~b.finished):
            backward[r] = at
    result = []
    for at, cut in enumerate(cuts):
        found = []
        for s in sorted(cut.boundary):
            producer = problem.forward_producer[s]
            if producer < 0 or always[s]:
                continue
            places = [forward[r] for r in problem.forward_readers[s]]
            places += [backward[r] for r in problem.backward_readers[s]]
            used = problem.used_below[s] or any(place < at for place in places)
            above = [place for place in places if place >= at]
            if used and above and min(above) > at:
                size = problem.value_bytes[s]
                found.append(IdleValue(forward[producer], min(above), size))
        result.append(found)
    return result


def simulate_stretch(problem: StageProblem, lower: Cut, upper: Cut, always: list[bool]) -> Stretch:
    """Simulate everything that a nested strategy does between two cuts."""
    size = problem.value_bytes
    ops = bits(upper.lower & ~lower.lower)
    inside = {s for v in ops for s in problem.forward_outputs[v]}
    kept = {s for s in inside if always[s]}
    held = {s for s in upper.boundary if s in inside and not always[s]}
    dead = dead_bytes(problem, lower, upper)
    bare = replace(upper, boundary=frozenset())
    plain = replace(
        problem,
        keep_flags=[[False] * len(size)],
        auxiliary_share=0,
        cached_below=[()],
    )
    leaf = simulate_piece(plain, lower, bare, 0)
    sweep_cost, sweep_bytes = sweep(problem, lower, upper, held, always)
    lent_bytes = sweep(problem, lower, upper, held, always, lend=True)[1]
    staged = []
    for variant in range(len(problem.keep_flags)):
        piece = simulate_piece(problem, lower, upper, variant)
        keep = piece_keep(problem, lower, upper, variant)
        again = sweep(problem, lower, upper, keep, always)
        staged.append(
            StagedCost(
                piece.cost, piece.cached_bytes, piece.forward_bytes, piece.backward_bytes, *again
            )
        )
    return Stretch(
        always_bytes=sum(size[s] for s in kept),
        held_bytes=sum(size[s] for s in held),
        dead_bytes=dead,
        first_bytes=_forward_bytes(problem, ops, inside, kept | held, frozenset()),
        sweep_cost=sweep_cost,
        sweep_bytes=sweep_bytes,
        lent_bytes=lent_bytes,
        leaf_cost=leaf.cost,
        leaf_bytes=leaf.backward_bytes - dead,
        staged=tuple(staged),
    )
