"""Laws of cutting a graph into blocks, and of the fronts over their cuts."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from memfit._core.slots import NOTHING, Front, FrontBuilder, last_front, need_at, slot_shift
from memfit.cuts.backward import BackwardStages
from memfit.cuts.blocks import Block, Blocks, cut_graph
from memfit.cuts.lower_sets import lower_sets
from memfit.cuts.negligible import links, negligible_bytes, useful_ops
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.planners.liveness.table import keep_variants

MakeGraph = Callable[[Random, int], TrainingGraph]
Step = tuple[int, int, int, int]
"""A stage: cost, cached bytes, peak bytes, next state."""


def cut(graph: TrainingGraph) -> Blocks:
    stages = BackwardStages(graph)
    return cut_graph(
        graph,
        useful_ops(graph),
        links(graph, useful_ops(graph)),
        keep_variants(graph),
        negligible_bytes(graph),
        paired=stages.paired,
        constant=stages.constant,
    )


def ran_above(blocks: Blocks, i: int) -> set[int]:
    """Ids of the ops of the blocks above the i-th."""
    return {op for block in blocks.blocks[i + 1 :] for op in (*block.forward, *block.backward)}


def alive_between(graph: TrainingGraph, above: set[int]) -> int:
    """Bytes of gradients and forward outputs alive on the way back once the ops `above` have run,
    of those that they made."""
    total = 0
    for s, value in enumerate(graph.values):
        if value.kind not in (ValueKind.ACTIVATION, ValueKind.GRADIENT):
            continue
        makers = [i for i, op in enumerate(graph.ops) if s in op.outputs]
        users = {i for i, op in enumerate(graph.ops) if s in op.inputs or s in op.outputs}
        if value.kind is ValueKind.ACTIVATION:
            total += value.size_bytes * (value.is_output and makers[0] in above)
        elif any(m in above for m in makers) and (value.is_output or users - above):
            total += value.size_bytes
    return total


def test_blocks_partition_the_ops_and_only_interfaces_and_small_values_cross(
    joint_graph: MakeGraph,
) -> None:
    several = 0
    for seed in range(600):
        random = Random(seed)
        graph = joint_graph(random, random.randint(1, 20))
        blocks = cut(graph)
        several += len(blocks.blocks) > 2
        forward = [v for block in blocks.blocks for v in block.forward]
        assert forward == list(range(graph.forward_count)), seed
        backward = sorted(b for block in blocks.blocks for b in block.backward)
        assert backward == list(range(graph.forward_count, len(graph.ops))), seed
        for i, block in enumerate(blocks.blocks):
            assert blocks.base_bytes[i] == alive_between(graph, ran_above(blocks, i)), seed
            assert_ends_are_known(graph, block, seed)


def assert_ends_are_known(graph: TrainingGraph, block: Block, seed: int) -> None:
    """What crosses the ends of a block is its interface, or always kept."""
    ops = {*block.forward, *block.backward}
    problem = block.problem
    for local, s in enumerate(block.values):
        if graph.values[s].kind is not ValueKind.ACTIVATION:
            continue
        producer = graph.producer[s]
        assert producer is not None
        assert problem.from_below[local] == (producer < block.forward.start), seed
        readers = [r for r in graph.consumers[s] if r < graph.forward_count]
        assert problem.read_above[local] == any(r >= block.forward.stop for r in readers), seed
        crosses = problem.from_below[local] or problem.read_above[local]
        named = (
            problem.always_keep[local],
            local in problem.interface_below or local in problem.interface_above,
        )
        assert sorted(named) == [False, crosses], seed
        if problem.from_below[local] and problem.read_above[local]:
            assert problem.always_keep[local], seed
        assert ops & {producer, *graph.consumers[s]}, seed


def test_the_way_back_through_a_block_agrees_with_that_through_the_graph(
    joint_graph: MakeGraph,
) -> None:
    inner = 0
    for seed in range(400):
        random = Random(seed)
        graph = joint_graph(random, random.randint(1, 10))
        stages = BackwardStages(graph)
        for block in cut(graph).blocks:
            for lower in lower_sets(block.predecessors, "all", 5000):
                if lower in (0, (1 << len(block.forward)) - 1):
                    continue
                inner += 1
                whole = (1 << block.forward.start) - 1 | lower << block.forward.start
                finished = stages.finished(whole)
                ran = [finished >> (b - graph.forward_count) & 1 for b in block.backward]
                assert block.finished(lower) == sum(r << b for b, r in enumerate(ran)), seed
    assert inner > 1000


def random_fronts(random: Random, most_cost: int) -> tuple[list[list[Step]], int]:
    """Stages by state, of which the last one has none, and the most that a way costs."""
    states = random.randint(2, 6)
    stages = [
        [
            (random.randint(0, most_cost), random.randint(0, 9), random.randint(0, 20), j)
            for j in range(i + 1, states)
            for _ in range(random.randint(int(j == i + 1), 2))
        ]
        for i in range(states - 1)
    ]
    return [*stages, []], sum(max(c for c, *_ in some) for some in stages)


def ways(stages: list[list[Step]], state: int = 0) -> set[tuple[int, int]]:
    """Cost and need of all ways from a state to the last one."""
    if state == len(stages) - 1:
        return {(0, NOTHING)}
    return {
        (cost + more, max(peak, cached + need))
        for cost, cached, peak, to in stages[state]
        for more, need in ways(stages, to)
    }


def front_of(stages: list[list[Step]], shift: int) -> Front:
    fronts: dict[int, Front] = {len(stages) - 1: last_front()}
    for i in reversed(range(len(stages) - 1)):
        builder = FrontBuilder(shift)
        for cost, cached, peak, to in stages[i]:
            builder.add(cost, cached, peak, fronts[to])
        fronts[i] = builder.take()
    return fronts[0]


def test_fronts_are_exact_with_a_slot_a_cost_and_never_wrong_with_fewer() -> None:
    coarser = 0
    for seed in range(500):
        random = Random(seed)
        stages, total = random_fronts(random, random.choice([0, 3, 100, 10**15]))
        every = ways(stages)
        best = [
            (cost, need)
            for cost, need in sorted(every)
            if not any((c, n) != (cost, need) and c <= cost and n <= need for c, n in every)
        ]
        assert slot_shift(total, total + 1) == 0
        assert list(zip(*front_of(stages, 0), strict=True)) == best, seed
        for slots in (1, 2, 5, 20):
            shift = slot_shift(total, slots)
            assert total >> shift < slots
            assert shift == 0 or total >> (shift - 1) >= slots
            costs, needs = front_of(stages, shift)
            labels = list(zip(costs, needs, strict=True))
            coarser += labels != best
            assert set(labels) <= every, seed
            assert len(labels) <= slots
            assert list(costs) == sorted(set(costs))
            assert list(needs) == sorted(set(needs), reverse=True)
    assert coarser > 200


def test_need_at() -> None:
    front: Front = ([2, 5], [9, 4])
    assert [need_at(front, cost) for cost in (1, 2, 4, 5, 100)] == [None, 9, 9, 4, 4]
