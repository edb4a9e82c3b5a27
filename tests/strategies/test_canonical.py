"""Canonical schedules, step by step, on graphs that can be checked by eye."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memfit.errors import GraphError
from memfit.graph.published import bare_graph
from memfit.graph.schedule import Schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners.candidate import Candidate
from memfit.strategies.canonical import canonical_schedule, canonical_stages
from memfit.strategies.formulas import (
    FormulaStage,
    cached_bytes,
    formula_overhead,
    formula_peak_bytes,
    formula_peaks,
    formula_stages,
    peaks_of,
)

# a -> b -> c -> d, of 1, 2, 4 and 8 bytes; backward ops read their op's input and output.
CHAIN = bare_graph(
    [[], [0], [1], [2]],
    [1, 2, 4, 8],
    [10, 20, 40, 80],
    [[0], [0, 1], [1, 2], [2, 3]],
    targets=["a", "b", "c", "d"],
    names=["a", "b", "c", "d"],
)


def steps(graph: TrainingGraph, schedule: Schedule) -> list[str]:
    """Ops by name in order, `'` for each time that they ran before, `|` before the way back."""
    names = [graph.ops[s.op].name + "'" * s.copy for s in schedule.steps]
    return [*names[: schedule.backward_start], "|", *names[schedule.backward_start :]]


def test_two_stages_of_a_chain() -> None:
    sequence = [0b0011, 0b1111]
    schedule = canonical_schedule(CHAIN, sequence)
    assert steps(CHAIN, schedule) == [
        "a", "b", "c", "d", "|",
        "d.seed", "d.backward", "c.backward", "a'", "b.backward", "a.backward",
    ]  # fmt: skip
    assert schedule.kept(CHAIN) == {1, 2, 3}
    assert schedule.overhead(CHAIN) == 10
    assert formula_overhead(CHAIN, sequence) == 10 + 40 + 80
    assert cached_bytes(CHAIN, sequence) == 2
    # 2 (1 + 2) + 4; then 2 kept and 2 (4 + 8).
    assert formula_peaks(CHAIN, sequence) == [10, 26]
    assert formula_peak_bytes(CHAIN, sequence) == 26
    assert formula_stages(CHAIN, sequence) == [
        FormulaStage(overhead=10, cached_bytes=2, peak_bytes=10),
        FormulaStage(overhead=40 + 80, cached_bytes=0, peak_bytes=24),
    ]
    first, second = canonical_stages(CHAIN, sequence, schedule)
    assert (first.forward_ops, first.first_op, first.last_op) == (2, "a", "b")
    assert (first.kept_bytes, first.recompute_cost) == (2, 10)
    assert (second.kept_bytes, second.recompute_cost) == (12, 0)
    # b, c, d and the gradients of c and d: 2 + 4 + 8 + 4 + 8, at d's backward op.
    assert simulate(CHAIN, schedule).peak_bytes == 26
    assert Candidate(CHAIN, lambda: schedule).binding_op == "d.backward"


def test_the_formulas_of_stages_whose_boundaries_overlap() -> None:
    # a is read by b, by c and by e; d is read by e only.
    graph = bare_graph(
        [[], [0], [0, 1], [], [0, 2, 3]], [1, 2, 4, 8, 16], [10, 20, 40, 80, 160], [[]] * 5
    )
    stages = formula_stages(graph, [0b00001, 0b00111, 0b11111])
    assert stages == [
        # Keeps a. b, c and e read it; beside them they read b, c and d, which are yet to come.
        FormulaStage(0, 1, 2 * 1 + (2 + 4 + 16) + (2 + 4 + 8)),
        # a stays in the boundary but is cached already. e reads c, and d beside it.
        FormulaStage(20, 4, 2 * (2 + 4) + 16 + 8),
        FormulaStage(80 + 160, 0, 2 * (8 + 16)),
    ]
    assert peaks_of(stages) == [38, 1 + 36, 1 + 4 + 48]
    assert formula_peaks(graph, [0b00001, 0b00111, 0b11111]) == peaks_of(stages)


def test_the_empty_set_may_come_first() -> None:
    assert canonical_schedule(CHAIN, [0, 0b0011, 0b1111]) == canonical_schedule(
        CHAIN, [0b0011, 0b1111]
    )


@pytest.mark.parametrize(
    ("sequence", "rule"),
    [
        ([], "do not end in the whole graph"),
        ([0b0011], "do not end in the whole graph"),
        ([0b0111, 0b0011, 0b1111], "do not increase"),
        ([0b0011, 0b0011, 0b1111], "do not increase"),
        ([0b0101, 0b1111], "is no lower set"),
    ],
)
def test_bad_sequences(sequence: list[int], rule: str) -> None:
    for function in (
        canonical_schedule, formula_stages, formula_overhead, cached_bytes, formula_peak_bytes
    ):  # fmt: skip
        with pytest.raises(GraphError, match=rule):
            function(CHAIN, sequence)


def test_ops_that_must_not_run_again_are_kept() -> None:
    ops = list(CHAIN.ops)
    ops[0] = replace(ops[0], recomputable=False)
    graph = TrainingGraph(CHAIN.values, tuple(ops), "unit")
    schedule = canonical_schedule(graph, [0b0011, 0b1111])
    schedule.validate(graph)
    assert schedule.recomputed_ops == ()
    assert schedule.kept(graph) == {0, 1, 2, 3}


def test_forward_outputs_are_kept() -> None:
    values = (replace(CHAIN.values[0], is_output=True), *CHAIN.values[1:])
    graph = TrainingGraph(values, CHAIN.ops, "unit")
    assert canonical_schedule(graph, [0b0011, 0b1111]).recomputed_ops == ()


def test_a_backward_op_that_reads_what_an_earlier_stage_drops_waits_for_that_stage() -> None:
    # d's backward op reads a, which the first stage drops: the pairing does not hold here.
    graph = bare_graph(
        [[], [0], [1], [2]], [1, 2, 4, 8], [1, 1, 1, 1], [[0], [0], [1], [0]], names=list("abcd")
    )
    schedule = canonical_schedule(graph, [0b0011, 0b1111])
    schedule.validate(graph)
    assert steps(graph, schedule) == [
        "a", "b", "c", "d", "|",
        "d.seed", "a'", "d.backward", "c.backward", "b.backward", "a.backward",
    ]  # fmt: skip
    assert 0 not in schedule.kept(graph)


def test_only_what_is_needed_is_computed_again_when_asked_for() -> None:
    # No backward op reads a or b.
    graph = bare_graph([[], [0], [1]], [1, 1, 1], [1, 1, 1], [[], [], [2]], names=list("abc"))
    sequence = [0b011, 0b111]
    whole = canonical_schedule(graph, sequence)
    assert [graph.ops[op].name for op in whole.recomputed_ops] == ["a"]
    assert canonical_schedule(graph, sequence, recompute="needed").recomputed_ops == ()


def joint_graph() -> TrainingGraph:
    """a -> b -> c as captured from a program: backward ops name no forward op, a constant is made
    at the beginning of the backward pass and read at its end, c has an auxiliary output."""
    kinds = {"a": "A", "b": "A", "c": "A", "aux": "A", "t": "T", "k": "G", "gb": "G", "ga": "G"}
    kinds["gp"] = "G"
    kind = {"A": ValueKind.ACTIVATION, "G": ValueKind.GRADIENT, "T": ValueKind.TANGENT}
    names = list(kinds)
    values = tuple(Value(n, 1, kind[k], is_output=n == "gp") for n, k in kinds.items())
    ops = []
    for name, phase, inputs, outputs in [
        ("A", Phase.FORWARD, [], ["a"]),
        ("B", Phase.FORWARD, ["a"], ["b"]),
        ("C", Phase.FORWARD, ["b"], ["c", "aux"]),
        ("K", Phase.BACKWARD, [], ["k"]),
        ("C'", Phase.BACKWARD, ["b", "aux", "t"], ["gb"]),
        ("B'", Phase.BACKWARD, ["a", "gb"], ["ga"]),
        ("A'", Phase.BACKWARD, ["a", "k", "ga"], ["gp"]),
    ]:
        read = tuple(names.index(n) for n in inputs)
        written = tuple(names.index(n) for n in outputs)
        ops.append(Op(name, name, phase, read, written, 1))
    return TrainingGraph(values, tuple(ops))


@pytest.mark.parametrize(
    ("sequence", "way_back"),
    [
        ([0b111], ["C'", "B'", "K", "A'"]),
        # Cut after b: C' needs only b of the first stage, so it runs before a is there again.
        ([0b011, 0b111], ["C'", "A~", "B'", "K", "A'"]),
        # Cut after a, which is kept: B' needs nothing else of the first stage.
        ([0b001, 0b111], ["C'", "B'", "K", "A'"]),
        ([0b001, 0b011, 0b111], ["C'", "B'", "K", "A'"]),
    ],
)
def test_stages_of_a_captured_graph(sequence: list[int], way_back: list[str]) -> None:
    graph = joint_graph()
    schedule = canonical_schedule(graph, sequence)
    schedule.validate(graph)
    back = schedule.steps[schedule.backward_start :]
    assert [graph.ops[s.op].name + "~" * s.copy for s in back] == way_back


def test_a_graph_without_forward_ops() -> None:
    values = (Value("t", 3, ValueKind.TANGENT), Value("g", 5, ValueKind.GRADIENT, True))
    graph = TrainingGraph(values, (Op("b", "b", Phase.BACKWARD, (0,), (1,), 1),))
    schedule = canonical_schedule(graph, [0])
    schedule.validate(graph)
    assert simulate(graph, schedule).peak_bytes == 8
    assert (formula_overhead(graph, [0]), formula_peak_bytes(graph, [0])) == (0, 0)
    assert (formula_stages(graph, [0]), peaks_of([])) == ([], [])
    assert canonical_stages(graph, [0], schedule) == ()


def test_a_graph_without_ops() -> None:
    graph = TrainingGraph((), ())
    schedule = canonical_schedule(graph, [])
    assert schedule.steps == ()
    assert Candidate(graph, lambda: schedule).binding_op is None
