"""Where graphs are cut into blocks, on graphs that can be drawn."""

from __future__ import annotations

from collections.abc import Sequence

from memfit.cuts.backward import BackwardStages
from memfit.cuts.blocks import Blocks, cut_graph
from memfit.cuts.choose import articulations
from memfit.cuts.negligible import useful_ops
from memfit.graph.published import bare_graph
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners.liveness.table import keep_variants

MB = 1_000_000


def drawn(
    before: Sequence[Sequence[int]],
    sizes: Sequence[int] | None = None,
    costs: Sequence[int] | None = None,
    reads: Sequence[Sequence[int]] | None = None,
) -> TrainingGraph:
    """A graph of one value an op; its backward ops read what their forward ops touch."""
    n = len(before)
    return bare_graph(
        before,
        sizes or [MB] * n,
        costs or [1] * n,
        reads or [[*b, v] for v, b in enumerate(before)],
    )


def cut(graph: TrainingGraph, negligible_bytes: int = 0) -> Blocks:
    """The blocks; stages keep none or all of what the backward pass reads."""
    stages = BackwardStages(graph)
    return cut_graph(
        graph,
        useful_ops(graph),
        [False] * graph.forward_count,
        keep_variants(graph, ()),
        negligible_bytes,
        paired=stages.paired,
        constant=stages.constant,
    )


def parts(blocks: Blocks) -> list[list[int]]:
    return [list(block.forward) for block in blocks.blocks]


# 0 - 1 - 2 - 3
def test_a_chain_falls_into_its_ops() -> None:
    graph = drawn([[], [0], [1], [2]])
    assert articulations(graph, [True] * 4) == [0, 1, 2, 3]
    blocks = cut(graph)
    assert parts(blocks) == [[0], [1], [2], [3]]
    assert blocks.partial_ends == 0
    # Ops: forward 0 to 3, seed 4, backward of 3, 2, 1, 0 are 5 to 8.
    assert [block.backward for block in blocks.blocks] == [(8,), (7,), (6,), (4, 5)]
    # One gradient crosses each end but the last.
    assert blocks.base_bytes == (MB, MB, MB, 0)
    middle = blocks.blocks[1]
    # Values 0 to 3 and their gradients 4 to 7; it touches 0, 1 and the gradients of both.
    assert middle.values == (0, 1, 4, 5)
    assert list(middle.problem.interface_below) == [0]
    assert list(middle.problem.interface_above) == [1]
    assert list(middle.problem.from_below) == [True, False, False, False]
    assert list(middle.problem.read_above) == [False, True, False, False]
    assert list(middle.problem.begun_above) == [False, False, False, True]
    # Value 0 and its gradient are touched below, too.
    assert list(middle.problem.used_below) == [True, False, True, False]


#     .-------.
#    /         \
#   0 - 1 - 2 - 3 - 4 - 5 - 6
#                \         /
#                 `-------'
def test_a_residual_block_is_not_cut_inside() -> None:
    graph = drawn([[], [0], [1], [0, 2], [3], [4], [3, 5]])
    # Every lower set is a prefix, but 0 and 3 are large and pass over the ends inside.
    assert articulations(graph, [True] * 7) == [0, 1, 2, 3, 4, 5, 6]
    assert parts(cut(graph)) == [[0], [1, 2, 3], [4, 5, 6]]


#       1 - 2
#      /     \
#   0 <       > 5 - 6
#      \     /
#       3 - 4
def test_a_fork_is_cut_where_it_begins_and_where_it_is_joined() -> None:
    graph = drawn([[], [0], [1], [0], [3], [2, 4], [5]])
    assert articulations(graph, [True] * 7) == [0, 5, 6]
    # Where ops 3 and 4 do not count, nothing branches off.
    assert articulations(graph, [v not in (3, 4) for v in range(7)]) == [0, 1, 2, 5, 6]
    blocks = cut(graph)
    assert parts(blocks) == [[0], [1, 2, 3, 4, 5], [6]]
    assert blocks.partial_ends == 0
    inside = blocks.blocks[1]
    assert inside.predecessors == ((), (0,), (), (2,), (1, 3))
    assert inside.closure([3]) == 0b01100
    assert inside.ids(0b01100) == [3, 4]
    # Nothing has run at the upper end, everything at the lower one.
    assert inside.finished(0b11111) == 0
    assert inside.finished(0) == 0b11111
    # At {1, 2} the backward ops of 3, 4 and 5 have run.
    ran = [inside.backward[b] for b in range(5) if inside.finished(0b00011) >> b & 1]
    assert {graph.ops[op].forward_op for op in ran} == {3, 4, 5}


#   0 - 1 - 2 - 3 - 4 - 5 - 6
#    \   \             /   /
#     \   `-----------'   /
#      `-----------------'
def test_long_skips_of_a_u_shape_leave_no_cut_between_their_ends() -> None:
    graph = drawn([[], [0], [1], [2], [3], [1, 4], [0, 5]])
    assert articulations(graph, [True] * 7) == [0, 1, 2, 3, 4, 5, 6]
    # 0 is large and read at 6, so that no cut lies between; the first cut is after 0 itself.
    assert parts(cut(graph)) == [[0], [1, 2, 3, 4, 5, 6]]


#   0 - 1 - 2 - 3 - 4       0 also makes a mask of 1% that op 4 reads, and one of a half for op 3
#   :...........:...:
def masked() -> TrainingGraph:
    sizes = [MB] * 5
    values = [Value(f"v{i}", size, ValueKind.ACTIVATION) for i, size in enumerate(sizes)]
    values += [
        Value("mask", MB // 100, ValueKind.ACTIVATION),
        Value("tangent", 0, ValueKind.TANGENT),
    ]
    mask, tangent = 5, 6
    ops = [
        Op(f"f{i}", "f", Phase.FORWARD, (i - 1,) if i else (), (i, mask) if i == 0 else (i,), 1)
        for i in range(4)
    ]
    ops.append(Op("f4", "f", Phase.FORWARD, (3, mask), (4,), 1))
    ops.append(Op("b4", "b", Phase.BACKWARD, (4, mask, tangent), (), 1, forward_op=4))
    return TrainingGraph(tuple(values), tuple(ops))


def test_small_values_that_pass_over_blocks_are_always_kept() -> None:
    graph = masked()
    blocks = cut(graph)
    assert parts(blocks) == [[0], [1], [2], [3], [4]]
    for block in (blocks.blocks[0], blocks.blocks[4]):
        at = block.values.index(5)
        assert block.problem.always_keep[at]
        assert at not in block.problem.interface_above
        assert at not in block.problem.interface_below
    # The blocks between know nothing of it.
    assert all(5 not in block.values for block in blocks.blocks[1:4])
    # What crosses one end alone is not kept: it is the interface.
    first = blocks.blocks[0]
    assert not first.problem.always_keep[first.values.index(0)]
    large = TrainingGraph(
        (*graph.values[:5], Value("mask", MB // 2, ValueKind.ACTIVATION), *graph.values[6:]),
        graph.ops,
    )
    assert parts(cut(large)) == [[0], [1, 2, 3, 4]]


def test_negligible_values_that_cross_an_end_are_always_kept() -> None:
    graph = masked()
    for limit, kept in ((MB // 100, True), (MB // 100 - 1, False)):
        # Read at 1, right above the end, the mask is small for what lies between only if
        # negligible: nothing does.
        ops = list(graph.ops)
        ops[1] = Op("f1", "f", Phase.FORWARD, (0, 5), (1,), 1)
        ops[4] = Op("f4", "f", Phase.FORWARD, (3,), (4,), 1)
        ops[5] = Op("b4", "b", Phase.BACKWARD, (4, 6), (), 1, forward_op=4)
        first = cut(TrainingGraph(graph.values, tuple(ops)), limit).blocks[0]
        assert list(first.forward) == [0]
        at = first.values.index(5)
        assert first.problem.always_keep[at] is kept
        assert (at in first.problem.interface_above) is not kept


#   0 - 1 - 2 - 3 - 4 - 5 - 6       the backward op of 1 reads what 4 makes
def test_no_cut_above_a_backward_op_and_below_what_it_reads() -> None:
    before: list[list[int]] = [[], [0], [1], [2], [3], [4], [5]]
    reads = [[*b, v] for v, b in enumerate(before)]
    reads[1].append(4)
    blocks = cut(drawn(before, reads=reads))
    assert parts(blocks) == [[0], [1, 2, 3, 4], [5], [6]]


#   0 ---- 2 - 3        1 reads nothing, so that {1} is a lower set: the end after 0 parts it from 0
#     1 --'
def test_an_op_that_makes_all_that_crosses_is_cut_after_though_not_all_depends_on_it() -> None:
    graph = drawn([[], [], [0, 1], [2]])
    assert articulations(graph, [True] * 4) == [2, 3]
    blocks = cut(graph)
    assert parts(blocks) == [[0], [1, 2], [3]]
    assert blocks.partial_ends == 1


#        .---.         .---.
#   0 - 1 - 2 - 3 - 4 - 5 - 6 - 7        twice the same
def test_equal_blocks_have_equal_signatures() -> None:
    before: list[list[int]] = [[], [0], [1], [1, 2], [3], [4], [4, 5], [6]]
    graph = drawn(before)
    blocks = cut(graph).blocks
    assert [list(block.forward) for block in blocks] == [[0], [1], [2, 3], [4], [5, 6], [7]]
    names = [block.signature for block in blocks]
    assert names[1] == names[3]
    assert names[2] == names[4]
    assert len(set(names)) == 4  # the first and the last have an end of the graph
    # Other sizes, costs or reads make another block.
    larger = cut(drawn(before, sizes=[MB] * 5 + [2 * MB] * 3)).blocks
    assert larger[2].signature == names[2] != larger[4].signature
    dearer = cut(drawn(before, costs=[1] * 5 + [2] * 3)).blocks
    assert dearer[2].signature == names[2] != dearer[4].signature
    reads = [[*b, v] for v, b in enumerate(before)]
    reads[5] = [4]
    other = cut(drawn(before, reads=reads)).blocks
    assert other[2].signature == names[2] != other[4].signature


def test_finished_gradients_and_outputs_count_at_the_ends() -> None:
    # 0 - 1 - 2, where 1 also makes an output; each has a parameter gradient.
    values = [Value(f"v{i}", MB, ValueKind.ACTIVATION) for i in range(3)]
    values.append(Value("output", 5, ValueKind.ACTIVATION, is_output=True))
    values += [Value(f"g{i}", 10 * (i + 1), ValueKind.GRADIENT) for i in range(2)]
    values += [Value(f"w{i}", 100 * (i + 1), ValueKind.GRADIENT, is_output=True) for i in range(3)]
    values.append(Value("tangent", 1, ValueKind.TANGENT))
    ops = [
        Op("f0", "f", Phase.FORWARD, (), (0,), 1),
        Op("f1", "f", Phase.FORWARD, (0,), (1, 3), 1),
        Op("f2", "f", Phase.FORWARD, (1,), (2,), 1),
        Op("b2", "b", Phase.BACKWARD, (1, 2, 9), (5, 8), 1, forward_op=2),
        Op("b1", "b", Phase.BACKWARD, (0, 1, 5), (4, 7), 1, forward_op=1),
        Op("b0", "b", Phase.BACKWARD, (0, 4), (6,), 1, forward_op=0),
    ]
    blocks = cut(TrainingGraph(tuple(values), tuple(ops)))
    assert parts(blocks) == [[0], [1], [2]]
    # After 1: gradient 5 on its way, w2. After 0: gradient 4, w2, w1 and the output made above.
    assert blocks.base_bytes == (10 + 300 + 200 + 5, 20 + 300, 0)


def test_no_forward_ops() -> None:
    blocks = cut(TrainingGraph((), ()))
    assert (blocks.blocks, blocks.base_bytes, blocks.partial_ends) == ((), (), 0)
