"""Stage simulation on joint forward-and-backward graphs: the reference in pure Python.

A *stage* (L -> L') runs the forward ops of V' = L' minus L and, on the way back, the backward ops
R(L) minus R(L'), with recomputation of what it did not keep. Its peak beyond the cache depends on
L and L' alone (DESIGN: liveness inside the DP), so it is simulated once for each pair and variant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memfit._core.python_pareto import EdgeTable

__all__ = ["Cut", "StageCost", "StageProblem", "simulate_stage", "stage_edges", "stage_keep"]


@dataclass(frozen=True)
class StageProblem:
    """A training graph, flattened. Values are numbered 0 … len(value_bytes) - 1.

    Resident values and tangents are left out of all lists.

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
    forward_producer: list[int] = field(init=False)
    forward_readers: list[list[int]] = field(init=False)
    backward_readers: list[list[int]] = field(init=False)
    backward_writers: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.value_bytes)
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
    """A lower set L, with what the way back leaves at it.

    Attributes:
        lower: bitmask of the forward ops in L.
        finished: bitmask of R(L), the backward ops that have run when the way back reaches L.
        boundary: forward values of L that a forward op outside L reads.
        needed_below: forward values made outside L that a backward op outside R(L) reads.
        base_bytes: bytes alive at the cut on the way back beyond the cache and `needed_below`:
            gradients that cross it, finished gradients, forward outputs made outside L.
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
            if producer >= 0:
                if lower >> producer & 1:
                    if any(not lower >> r & 1 for r in problem.forward_readers[s]):
                        boundary.add(s)
                elif problem.outlives[s]:
                    base += size
                elif any(not finished >> r & 1 for r in problem.backward_readers[s]):
                    needed.append(s)
            elif any(finished >> w & 1 for w in problem.backward_writers[s]) and (
                problem.outlives[s] or _touched_below(problem, s, finished)
            ):
                base += size
        return cls(lower, finished, frozenset(boundary), tuple(needed), base)


def _touched_below(problem: StageProblem, s: int, finished: int) -> bool:
    ops = problem.backward_readers[s] + problem.backward_writers[s]
    return any(not finished >> op & 1 for op in ops)


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage costs.

    Attributes:
        cost: cost of its recomputations.
        cached_bytes: bytes that it adds to the cache.
        peak_bytes: its peak beyond the cache, over its forward and its backward part.
    """

    cost: int
    cached_bytes: int
    peak_bytes: int


def bits(mask: int) -> list[int]:
    """Positions of the set bits, ascending."""
    result = []
    while mask:
        low = mask & -mask
        result.append(low.bit_length() - 1)
        mask ^= low
    return result


def stage_keep(problem: StageProblem, lower: Cut, upper: Cut, variant: int) -> set[int]:
    """Values of V' that the stage keeps for the way back.

    Kept are: the boundary of L'; forward outputs; outputs of ops that must not run again, where
    anything may read them later; small values that a backward op reads; and the values that the
    variant flags, where a backward op reads them.
    """
    flags = problem.keep_flags[variant]
    size = problem.value_bytes
    keep: set[int] = set()
    for v in bits(upper.lower & ~lower.lower):
        outputs = problem.forward_outputs[v]
        fixed = not problem.forward_recomputable[v]
        boundary_bytes = 0
        for s in outputs:
            later = problem.backward_readers[s] or problem.forward_readers[s]
            if s in upper.boundary or problem.outlives[s] or (fixed and later):
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


def simulate_stage(
    problem: StageProblem,
    lower: Cut,
    upper: Cut,
    variant: int,
    emit: Callable[[int, bool], None] | None = None,
) -> StageCost:
    """Simulate one stage, every value freed after its last use, recomputation just in time.

    Args:
        problem: the graph.
        lower: the cut L.
        upper: the cut L', a strict superset.
        variant: which values to keep beyond the boundary.
        emit: called for each op of the way back in order: (forward op, True) for a
            recomputation, (backward op, False) for a backward op.
    """
    size = problem.value_bytes
    ops = bits(upper.lower & ~lower.lower)
    keep = stage_keep(problem, lower, upper, variant)
    inside = {s for v in ops for s in problem.forward_outputs[v]}
    forward_peak = _forward_peak(problem, ops, inside, keep)

    backward = bits(lower.finished & ~upper.finished)
    again = _recomputed(problem, backward, lower.needed_below, inside, keep)
    uses: dict[int, int] = {}
    for v in again:
        for s in problem.forward_inputs[v]:
            uses[s] = uses.get(s, 0) + 1
    for b in backward:
        for s in (*problem.backward_inputs[b], *problem.backward_outputs[b]):
            uses[s] = uses.get(s, 0) + 1

    below = frozenset(lower.needed_below)

    def pinned(s: int) -> bool:
        if problem.outlives[s] or s in below:
            return True
        producer = problem.forward_producer[s]
        if producer < 0:
            return _touched_below(problem, s, lower.finished)
        if lower.lower >> producer & 1:
            return (
                s not in lower.boundary
                or any(lower.lower >> r & 1 for r in problem.forward_readers[s])
                or any(not lower.finished >> r & 1 for r in problem.backward_readers[s])
            )
        return False

    current = upper.base_bytes
    live: set[int] = set()
    for s in upper.needed_below:
        if s not in inside:
            current += size[s]
            live.add(s)
    for s in keep:
        if s in uses or pinned(s):
            current += size[s]
            live.add(s)
    # What the cache holds is counted in m; freeing it here makes `current` fall below its start.
    for s in uses:
        producer = problem.forward_producer[s]
        if producer >= 0:
            if lower.lower >> producer & 1:
                live.add(s)
        elif any(upper.finished >> w & 1 for w in problem.backward_writers[s]):
            live.add(s)
    peak = current
    done: set[int] = set()

    def release(s: int) -> None:
        nonlocal current
        uses[s] -= 1
        if uses[s] == 0 and s in live and not pinned(s):
            current -= size[s]
            live.discard(s)

    def recompute(v: int) -> None:
        nonlocal current, peak
        done.add(v)
        if emit is not None:
            emit(v, True)
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
        while stack:
            s = stack.pop()
            if s in inside and s not in keep:
                v = problem.forward_producer[s]
                if v not in done and v not in todo:
                    todo.add(v)
                    stack.extend(problem.forward_inputs[v])
        for v in sorted(todo):
            recompute(v)

    for b in backward:
        provide(problem.backward_inputs[b])
        if emit is not None:
            emit(b, False)
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
    cost = sum(problem.forward_cost[v] for v in again)
    return StageCost(cost, sum(size[s] for s in keep), max(forward_peak, peak))


def _forward_peak(
    problem: StageProblem, ops: Sequence[int], inside: set[int], keep: set[int]
) -> int:
    size = problem.value_bytes
    uses: dict[int, int] = {}
    for v in ops:
        for s in problem.forward_inputs[v]:
            uses[s] = uses.get(s, 0) + 1
    current = peak = 0
    for v in ops:
        current += sum(size[s] for s in problem.forward_outputs[v])
        peak = max(peak, current + problem.forward_workspace[v])
        for s in problem.forward_inputs[v]:
            uses[s] -= 1
            if uses[s] == 0 and s in inside and s not in keep:
                current -= size[s]
        for s in problem.forward_outputs[v]:
            if s not in uses and s not in keep:
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


def stage_edges(
    problem: StageProblem,
    cuts: Sequence[Cut],
    progress: Callable[[float], None] | None = None,
) -> EdgeTable:
    """All stages between nested cuts, one edge for each variant.

    Args:
        problem: the graph.
        cuts: in topological order (by size): the empty set first, V last. A pair is a stage when
            L is a strict subset of L' and R(L') a subset of R(L).
        progress: called with the share done.
    """
    sources: list[int] = []
    targets: list[int] = []
    variants: list[int] = []
    costs: list[int] = []
    cached: list[int] = []
    peaks: list[int] = []
    for i, lower in enumerate(cuts):
        if progress is not None:
            progress(i / len(cuts))
        for j in range(i + 1, len(cuts)):
            upper = cuts[j]
            if lower.lower & ~upper.lower or upper.finished & ~lower.finished:
                continue
            if lower.lower == upper.lower:
                continue
            for variant in range(len(problem.keep_flags)):
                stage = simulate_stage(problem, lower, upper, variant)
                sources.append(i)
                targets.append(j)
                variants.append(variant)
                costs.append(stage.cost)
                cached.append(stage.cached_bytes)
                peaks.append(stage.peak_bytes)
    return EdgeTable.from_lists(len(cuts), sources, targets, variants, costs, cached, peaks)
