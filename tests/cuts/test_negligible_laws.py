"""Cuts that are left out as no better than others change no trade-off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from memfit.cuts import blocks as blocks_module
from memfit.cuts import choose as cutting
from memfit.cuts.negligible import links, useful_ops, without_links
from memfit.graph.published import bare_graph
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.liveness import table as liveness_table
from memfit.planners.liveness.table import Effort, LivenessTable, build_table

MakeGraph = Callable[[Random, int], TrainingGraph]


def table_of(graph: TrainingGraph) -> LivenessTable:
    effort = Effort(cuts=400, steps=1 << 40, states=1 << 20)
    return build_table(graph, family="all", max_lower_sets=400, effort=effort, progress=None)


def mostly_unread(random: Random, graph: TrainingGraph) -> TrainingGraph:
    """A graph of the same shape whose backward pass reads few values, so that there are links."""
    share = random.choice([0.15, 0.5])
    count = graph.forward_count
    most_bytes, most_cost = random.choice([3, 10, 10**6]), random.choice([1, 3, 20])
    before = graph.forward_predecessors
    return bare_graph(
        before,
        [random.randint(1, most_bytes) for _ in range(count)],
        [random.randint(0, most_cost) for _ in range(count)],
        [sorted(s for s in {*b, v} if random.random() < share) for v, b in enumerate(before)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("cut", [pytest.param(False, marks=pytest.mark.slow), True])
def test_no_trade_off_loses_by_cuts_left_out(
    joint_graph: MakeGraph, full_graph: MakeGraph, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = blocks_module.choose_cuts

    def where_to_cut(
        graph: TrainingGraph, useful: Sequence[bool], _: Sequence[bool], *rest: Any
    ) -> cutting.ChosenCuts:
        # The same blocks with links and without, or none.
        chosen = choose(graph, useful, links(graph, useful), *rest)
        return chosen if cut else replace(chosen, cuts=[], partial=0)

    monkeypatch.setattr(blocks_module, "choose_cuts", where_to_cut)
    fewer = 0
    for seed in range(3000):
        random = Random(seed)
        if seed % 3:
            graph = mostly_unread(random, full_graph(random, random.randint(3, 10)))
        else:
            graph = joint_graph(random, random.randint(3, 10))
        if not any(links(graph, useful_ops(graph))):
            continue
        coarse = table_of(graph)
        with monkeypatch.context() as patched:
            patched.setattr(liveness_table, "links", lambda graph, useful: [False] * len(useful))
            fine = table_of(graph)
        fewer += coarse.cut_count < fine.cut_count
        assert coarse.lower_sets == fine.lower_sets or cut, seed
        assert coarse.stages.curve() == fine.stages.curve(), seed
    assert fewer > 300


def chain(sizes: list[int], reads: list[list[int]]) -> TrainingGraph:
    return bare_graph([[v - 1] if v else [] for v in range(len(sizes))], sizes, [1] * 5, reads)


def test_links() -> None:
    def of(sizes: list[int], reads: list[list[int]]) -> list[int]:
        graph = chain(sizes, reads)
        return [v for v, link in enumerate(links(graph, useful_ops(graph))) if link]

    nothing: list[list[int]] = [[], [], [], [], []]
    # What the last op makes is kept by no cut; the last op but one leads only there.
    assert of([8, 8, 8, 8, 8], nothing) == [0, 1, 2]
    assert of([8, 8, 9, 8, 8], nothing) == [0, 2]  # the next one makes more of it
    assert of([8, 8, 8, 8, 8], [[], [], [1], [], []]) == [0, 2]  # the backward pass reads it


def test_prefixes_that_end_in_a_link_are_left_out() -> None:
    linked = [False, True, False, False]
    assert without_links([0b0000, 0b0001, 0b0011, 0b0111, 0b1111], linked) == [0, 1, 7, 15]
    # 1 without 0: a stage may have kept what 1 makes already.
    assert without_links([0b0000, 0b0010, 0b0011, 0b1111], linked) == [0, 2, 3, 15]
