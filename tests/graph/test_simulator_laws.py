"""The quick peak of an order of computations is that of its simulated schedule."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from memfit.cuts.lower_sets import lower_sets
from memfit.graph.plain import store_all_order
from memfit.graph.schedule import OpOrder, make_schedule
from memfit.graph.simulator import peak_of_order, simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.strategies.canonical import canonical_order

MakeGraph = Callable[[Random, int], TrainingGraph]


def test_the_peak_of_an_order_is_that_of_its_schedule(joint_graph: MakeGraph) -> None:
    recomputed = 0
    for seed in range(300):
        random = Random(seed)
        graph = joint_graph(random, random.randint(1, 9))
        prefixes = lower_sets(graph.forward_predecessors, "prefix", 1 << 10)
        some = sorted(random.sample(prefixes[1:-1], random.randint(0, len(prefixes) - 2)))
        orders = [
            store_all_order(graph),
            canonical_order(graph, [*some, prefixes[-1]]),
            canonical_order(graph, [*some, prefixes[-1]], recompute="needed"),
        ]
        # Ops that run again for nothing, anything kept.
        extra = list(orders[1].backward)
        for _ in range(random.randint(0, 4)):
            extra.insert(random.randint(0, len(extra)), random.randrange(graph.forward_count))
        keep = {v for v in range(len(graph.values)) if random.random() < 0.5}
        orders.append(OpOrder(orders[1].forward, extra, keep))
        for order in orders:
            schedule = make_schedule(graph, *order)
            recomputed += len(schedule.recomputed_ops)
            assert peak_of_order(graph, order) == simulate(graph, schedule).peak_bytes, seed
    assert recomputed > 1000


def test_the_peak_of_nothing_is_what_is_resident(joint_graph: MakeGraph) -> None:
    graph = joint_graph(Random(1), 3)
    assert peak_of_order(graph, OpOrder([], [], set())) == graph.resident_bytes
