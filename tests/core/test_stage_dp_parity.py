"""Both cores simulate the same pieces of stages, and put them together to the same trade-off."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

import pytest

from memfit._core.problem import Cut, PieceCost, StageProblem
from memfit._core.reference import stage_dp as python_blocks
from memfit._core.reference.stage_dp import BlockTable
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.liveness.table import Effort, LivenessTable, build_table

if TYPE_CHECKING:
    from memfit._core import native
else:
    try:
        from memfit._core import native
    except ImportError:
        native = None

needs_native = pytest.mark.skipif(native is None, reason="native core is not built")

MakeGraph = Callable[[Random, int], TrainingGraph]


def random_problem(random: Random, ops: int, ends: bool = False) -> tuple[StageProblem, list[Cut]]:
    """A joint graph with multi-output ops, accumulated gradients, outputs and random costs; cuts
    are prefixes, ancestor sets and some of their unions.

    With `ends` it is a block between others: some values come from below it, some are needed above
    it or below it, and some of the gradients are begun above.
    """
    below = random.randint(1, 3) if ends else 0
    producer = [-1] * below
    forward_inputs: list[list[int]] = []
    forward_outputs: list[list[int]] = []
    for v in range(ops):
        count = len(producer)
        forward_inputs.append(sorted(random.sample(range(count), random.randint(0, min(count, 3)))))
        forward_outputs.append([count + i for i in range(random.choice([1, 1, 1, 2]))])
        producer += [v] * len(forward_outputs[-1])
    size = [random.choice([0, 8, 500, *random.sample(range(10**6), 3)]) for _ in producer]
    outlives = [p >= 0 and random.random() < 0.05 for p in producer]
    gradient: dict[int, int] = {}
    backward_inputs: list[list[int]] = []
    backward_outputs: list[list[int]] = []
    forward_of: list[int] = []

    def new_gradient(bytes_: int, kept: bool) -> int:
        size.append(bytes_)
        outlives.append(kept)
        return len(size) - 1

    for v in reversed(range(ops)):
        for _ in range(random.choice([1, 1, 2])):
            values = forward_inputs[v] + forward_outputs[v]
            reads = {s for s in values if random.random() < 0.5}
            reads |= {gradient[s] for s in forward_outputs[v] if s in gradient}
            writes = []
            for s in forward_inputs[v]:
                if random.random() < 0.8:
                    if s not in gradient:
                        gradient[s] = new_gradient(size[s], False)
                    writes.append(gradient[s])
            if random.random() < 0.3:
                writes.append(new_gradient(random.randint(1, 10**5), random.random() < 0.7))
            backward_inputs.append(sorted(reads - set(writes)))
            backward_outputs.append(writes)
            forward_of.append(v)

    values = range(len(size))
    forward = range(len(producer))
    problem = StageProblem(
        value_bytes=size,
        outlives=outlives,
        forward_inputs=forward_inputs,
        forward_outputs=forward_outputs,
        forward_cost=[random.randint(0, 100) for _ in range(ops)],
        forward_workspace=[random.choice([0, random.randint(0, 10**6)]) for _ in range(ops)],
        forward_recomputable=[random.random() < 0.9 for _ in range(ops)],
        backward_inputs=backward_inputs,
        backward_outputs=backward_outputs,
        backward_workspace=[random.choice([0, random.randint(0, 10**6)]) for _ in forward_of],
        keep_flags=[
            [False for _ in values],
            [random.random() < 0.5 for _ in values],
            [True for _ in values],
        ],
        always_keep_bytes=random.choice([0, 1024]),
        auxiliary_share=random.choice([0, 128, 1024]),
    )
    if ends:
        problem = _between(random, problem, below, forward)
    full = (1 << ops) - 1
    masks = {0, full} | {(1 << v) - 1 for v in range(ops)}
    ancestors: list[int] = []
    for v in range(ops):
        mask = 1 << v
        for s in forward_inputs[v]:
            mask |= ancestors[producer[s]] if producer[s] >= 0 else 0
        ancestors.append(mask)
    masks |= set(ancestors) | {a | random.choice(ancestors) for a in ancestors}
    cuts = [
        Cut.of(problem, m, sum(1 << b for b, v in enumerate(forward_of) if not m >> v & 1))
        for m in sorted(masks, key=lambda m: (m.bit_count(), m))
    ]
    return problem, cuts


def _between(random: Random, problem: StageProblem, below: int, forward: range) -> StageProblem:
    """The problem with open ends; its first values come from below."""
    values = range(len(problem.value_bytes))
    from_below = [s < below for s in values]
    read_above = [s in forward and random.random() < 0.3 for s in values]
    always = [(s < below or read_above[s]) and random.random() < 0.3 for s in values]
    interface = [s for s in values if s < below and not always[s]]
    return dataclasses.replace(
        problem,
        from_below=from_below,
        read_above=read_above,
        used_below=[(s < below or s not in forward) and random.random() < 0.5 for s in values],
        begun_above=[s not in forward and random.random() < 0.3 for s in values],
        always_keep=always,
        interface_below=interface,
        interface_above=[s for s in values if read_above[s] and s >= below and not always[s]],
        cached_below=[[s for s in interface if random.random() < 0.2] for _ in problem.keep_flags],
    )


def assert_same_pieces(reference: BlockTable, ours: native.BlockTable) -> None:
    """All pieces of a block; of whole stages, what a stage is chosen by."""
    assert ours.cuts == reference.cuts
    last, variants = reference.cuts - 1, range(len(reference.sealed))
    of = dataclasses.astuple

    def short(piece: PieceCost | None) -> tuple[int, int, int, int] | None:
        if piece is None:
            return None
        return piece.cost, piece.cached_bytes, piece.forward_bytes, piece.backward_bytes

    for v in variants:
        for b in range(1, last + 1):
            top = reference.top.get((b, v))
            assert ours.top(b, v) == (None if top is None else of(top)), (b, v)
            for a in range(b):
                assert ours.inner(a, b, v) == short(reference.inner.get((a, b, v))), (a, b, v)
        for passed in (False, True):
            assert ours.through(v, passed) == of(reference.through[v, passed]), (v, passed)
            for a in range(last):
                assert ours.bottom(a, v, passed) == of(reference.bottom[a, v, passed]), (a, v)


@pytest.mark.sampled(2)
@needs_native
@pytest.mark.parametrize("ends", [False, True])
def test_pieces_of_random_blocks(ends: bool) -> None:
    open_pieces = 0
    for seed in range(120):
        random = Random(seed)
        problem, cuts = random_problem(random, random.randint(1, 10), ends)
        reference = python_blocks.block_table(problem, cuts)
        assert_same_pieces(
            reference, native.block_table(problem, cuts, threads=random.choice([1, 2, 3]))
        )
        open_pieces += sum(piece.joins for piece in reference.through.values())
    assert (open_pieces > 60) is ends


@needs_native
def test_pieces_across_word_boundaries() -> None:
    problem, cuts = random_problem(Random(3), 70, ends=True)
    chosen = [cuts[0], *cuts[5:-1:12], cuts[-1]]
    reference = python_blocks.block_table(problem, chosen)
    assert len(reference.inner) > 100
    for threads in (1, 2, 5):
        assert_same_pieces(reference, native.block_table(problem, chosen, threads=threads))


def searched(graph: TrainingGraph, cuts: int) -> LivenessTable:
    effort = Effort(cuts=cuts, steps=1 << 40, states=1 << 20)
    return build_table(graph, family="all", max_lower_sets=cuts, effort=effort, progress=None)


def both_tables(table: LivenessTable) -> tuple[list[BlockTable], list[native.BlockTable]]:
    """The pieces of all blocks of a graph, from each core."""
    parts = table.space.blocks.blocks
    problems = [(part.problem, cuts) for part, cuts in zip(parts, table.space.cuts, strict=True)]
    return (
        [python_blocks.block_table(*problem) for problem in problems],
        [native.block_table(*problem, threads=1) for problem in problems],
    )


def assert_same_trade_off(
    table: LivenessTable, slots: Sequence[int], threads: Sequence[int], points: int = 6
) -> int:
    """Curves, smallest budgets and paths; returns how many stages run over several blocks."""
    reference, ours = both_tables(table)
    for pieces, other in zip(reference, ours, strict=True):
        assert_same_pieces(pieces, other)
    bases, total = table.space.blocks.base_bytes, table.graph.forward_cost
    longer = 0
    for most in slots:
        wanted = python_blocks.stage_table(reference, bases, total, most)
        curve, least = wanted.curve(), wanted.smallest_budget()
        budgets = [b + d for _, b in curve[:: 1 + len(curve) // points] for d in (-1, 0, 1)]
        budgets += [least - 1, least, -1, 0, 2**62]
        paths = [(budget, wanted.path(budget)) for budget in budgets]
        longer += sum(i != j for _, path in paths for i, _, j, _, _ in path or ())
        for count in threads:
            found = native.stage_table(ours, bases, total, most, threads=count)
            assert found.exact is wanted.exact
            assert found.curve() == curve
            assert found.smallest_budget() == least
            for budget, path in paths:
                stages = found.path(budget)
                assert (None if stages is None else [tuple(s) for s in stages]) == path
    return longer


@pytest.mark.slow
@needs_native
def test_trade_offs_of_random_graphs(joint_graph: MakeGraph) -> None:
    longer = 0
    for seed in range(120):
        random = Random(seed)
        table = searched(joint_graph(random, random.randint(1, 14)), 40)
        longer += assert_same_trade_off(table, (1 << 13, 5, 1), (1, 2, 3), points=3)
    assert longer > 800


@needs_native
def test_trade_off_of_a_long_graph(joint_graph: MakeGraph) -> None:
    # Long enough for stages over more than four blocks, so that a path needs more stacks.
    table = searched(joint_graph(Random(14), 60), 10)
    assert len(table.space.blocks.blocks) > 15
    assert assert_same_trade_off(table, (1 << 13, 20), (1, 2, 3)) > 10


@needs_native
def test_no_blocks_at_all() -> None:
    for core in (python_blocks, native):
        table = core.stage_table([], [], 0, 8)
        assert (table.exact, table.curve(), table.smallest_budget()) == (True, [(0, 0)], 0)
        assert (table.path(0), table.path(5), table.path(-1)) == ([], [], None)


@needs_native
def test_sums_that_would_overflow_are_refused() -> None:
    problem, cuts = random_problem(Random(1), 3)
    huge = dataclasses.replace(problem, value_bytes=[2**59] * len(problem.value_bytes))
    with pytest.raises(ValueError, match=r"add up below 2\*\*60"):
        native.block_table(huge, cuts)


@needs_native
def test_other_threads_run_while_pieces_are_simulated() -> None:
    problem, cuts = random_problem(Random(2), 160)
    shares: list[float] = []
    ran = threading.Event()
    worker = threading.Timer(0.01, ran.set)
    worker.start()
    native.block_table(problem, cuts, shares.append, threads=1)
    # The worker could run only because the interpreter's lock was free.
    assert ran.is_set()
    worker.join()
    assert shares
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_in_the_progress_callback_stops_the_simulation(
    threads: int, error: type[BaseException]
) -> None:
    problem, cuts = random_problem(Random(2), 200)

    def fail(share: float) -> None:
        raise error(share)

    with pytest.raises(error):
        native.block_table(problem, cuts, fail, threads=threads)
