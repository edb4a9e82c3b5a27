"""What nested strategies are made of: sweeps, leaves and what a cut holds; the reference.

A *sweep* runs forward ops of a stretch once more, from what is held at its lower cut, to hold
values at its upper one: its boundary, or what a stage of some variant keeps. What no strategy gives
up between its first computation and the way back (*always kept*) is never computed again for its
own sake: forward outputs, outputs of ops that must not run again, small values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from memfit._core.python_stage import (
    Cut,
    StageProblem,
    _forward_bytes,
    bits,
    piece_keep,
    simulate_piece,
)

__all__ = [
    "Stretch",
    "always_kept",
    "dead_bytes",
    "idle_values",
    "simulate_stretch",
    "sweep",
]


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
        staged: for each variant, (cost, cached, peak forward, peak backward, cost and peak of the
            sweep) where a stage keeps what the variant says.
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
    staged: tuple[tuple[int, int, int, int, int, int], ...]


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

    needed: set[int] = set()
    stack = list(wanted)
    while stack:
        s = stack.pop()
        if made_here(s) and problem.forward_producer[s] not in needed:
            needed.add(problem.forward_producer[s])
            stack.extend(problem.forward_inputs[problem.forward_producer[s]])
    order = sorted(needed)
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


def idle_values(
    problem: StageProblem, cuts: Sequence[Cut], always: list[bool]
) -> list[list[tuple[int, int, int]]]:
    """For each cut, (place where made, place of the next reader above, bytes) of boundary values.

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
                found.append((forward[producer], min(above), problem.value_bytes[s]))
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
            (piece.cost, piece.cached_bytes, piece.forward_bytes, piece.backward_bytes, *again)
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
