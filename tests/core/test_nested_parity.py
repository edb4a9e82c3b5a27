"""The native core finds the nested strategies of the Python reference, ties included."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from memfit._core.problem import ChainUnit
from memfit._core.reference import chain as python_chain
from memfit._core.reference import nested as python_nested
from memfit._core.slots import NOTHING
from memfit.cuts.backward import BackwardStages, barred_ends, rank_backward
from memfit.cuts.blocks import blocks_at
from memfit.planners.nested.cuts import even_variants

if TYPE_CHECKING:
    from memfit._core import native
else:
    try:
        from memfit._core import native
    except ImportError:
        native = None

pytestmark = pytest.mark.skipif(native is None, reason="native core is not built")


def lists(front: Any) -> list[list[int]]:
    return [list(part) for part in front]


@pytest.mark.slow
def test_nested_tables_of_random_graphs(joint_graph: Any) -> None:
    compared = nested = 0
    for seed in range(250):
        random = Random(seed)
        graph = joint_graph(random, random.randint(1, 12))
        stages = BackwardStages(graph)
        ranks = rank_backward(graph, stages.paired, stages.constant)
        flags = even_variants(graph, random.choice([(), (0.5,)]))
        small = [False] * len(graph.values)
        (block,) = blocks_at(graph, [], flags, random.choice([0, 8, 900]), ranks, small).blocks
        barred = barred_ends(graph, ranks)
        count = graph.forward_count
        inner = [(2 << v) - 1 for v in range(count - 1) if not barred[v] and random.random() < 0.8]
        cuts = tuple(block.cut(mask) for mask in (0, *inner, (1 << count) - 1))
        after = random.choice([((0,), (NOTHING,)), ((3, 9, 12), (50, 20, 4))])
        arguments = (block.problem, cuts, random.choice([0, 7]), after, random.choice([2, 8]))
        ours = native.nested_table(*arguments, threads=random.choice([1, 2]))
        reference = python_nested.nested_table(*arguments)
        assert lists(ours.front()) == lists(reference.front()), seed
        assert lists(ours.reversal_front()) == lists(reference.reversal_front()), seed
        assert ours.stretch() == reference.stretch(), seed
        for label in range(len(reference.front()[0])):
            stages_found, _ = reference.path(label)
            assert ours.path(label) == reference.path(label), seed
            nested += any(not isinstance(how, int) for _, _, how in stages_found)
        for label in range(len(reference.reversal_front()[0])):
            assert ours.tree(label) == reference.tree(label), seed
        compared += 1
    assert compared == 250
    assert nested > 40


def random_unit(random: Random) -> ChainUnit:
    def some(most: int) -> int:
        return random.randint(0, most)

    labels = random.randint(1, 4)
    leaf = (
        sorted(random.sample(range(1, 30), labels)),
        sorted(random.sample(range(60), labels), reverse=True),
    )
    stages = [
        [(some(9), some(20), some(40), some(40)) for _ in range(random.randint(0, 3))]
        for _ in range(2)
    ]
    held = random.randint(2, 9)
    return ChainUnit(held, some(5), some(40), some(40), some(40), leaf, *stages)


@pytest.mark.slow
def test_chains_of_random_steps() -> None:
    for seed in range(120):
        random = Random(seed)
        unit = random_unit(random)
        first = random.choice([None, random_unit(random)])
        after = random.choice([None, random_unit(random).leaf])
        steps, levels, parts = random.randint(1, 90), random.randint(1, 40), random.randint(1, 2)
        ours = native.chain_table(unit, steps, after, levels, parts, first)
        reference = python_chain.chain_table(unit, steps, after, levels, parts, first)
        assert list(ours.levels) == reference.levels
        for count in range(1, steps + 1):
            for s in range(levels):
                for bottom in (False, True):
                    cost = reference.reversal_cost(count, s, bottom)
                    assert ours.reversal_cost(count, s, bottom) == cost, seed
                    if cost is not None:
                        at = reference.split(count, s, bottom)
                        assert tuple(ours.split(count, s, bottom)) == at, seed
        assert lists(ours.front()) == lists(reference.front()), seed
        for level in reference.front()[2]:
            stages, label = ours.first_pass(level)
            assert ([tuple(s) for s in stages], label) == reference.first_pass(level), seed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": 0}, "no 0 parts"),
        ({"parts": 9}, "no 9 parts"),
        ({"steps": 0}, "between 1 and"),
        ({"most_levels": 1 << 29}, "between 1 and"),
        ({"after": ((), ())}, "must have a label"),
    ],
)
def test_the_native_core_refuses_bad_chains(change: dict[str, Any], message: str) -> None:
    unit = ChainUnit(4, 1, 0, 0, 0, ((1,), (0,)))
    arguments: dict[str, Any] = {"steps": 3, "after": None, "most_levels": 5, "parts": 1}
    with pytest.raises(ValueError, match=message):
        native.chain_table(unit, **{**arguments, **change})
