"""Laws of canonical strategies and of the planners that search them."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit import _core
from memfit._core.reference.canonical import canonical_edges
from memfit.cuts.lower_sets import FAMILIES, ancestor_sets, boundary, is_lower_set, lower_sets
from memfit.errors import InfeasibleBudgetError
from memfit.graph.graph_file import graph_from_json, graph_to_json
from memfit.graph.plain import store_all_schedule
from memfit.graph.published import bare_graph
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners import PlannerOptions, get_planner
from memfit.strategies.canonical import canonical_schedule, canonical_stages
from memfit.strategies.formulas import (
    cached_bytes,
    formula_overhead,
    formula_peak_bytes,
    formula_stages,
    node_bytes,
    node_costs,
)

randoms = st.randoms(use_true_random=False)


def random_bare_graph(random: Random, most: int = 9) -> TrainingGraph:
    """One value an op, gradients as large as values."""
    n = random.randint(1, most)
    before = [sorted(random.sample(range(v), random.randint(0, min(v, 2)))) for v in range(n)]
    reads = [sorted(s for s in {*before[v], v} if random.random() < 0.7) for v in range(n)]
    sizes = [random.randint(0, 30) for _ in range(n)]
    return bare_graph(before, sizes, [random.choice([0, 1, 10]) for _ in range(n)], reads)


def random_joint_graph(random: Random) -> TrainingGraph:
    """As captured graphs are: ops with several outputs or none, ops that must not run again,
    forward outputs, workspace, parameters and their gradients, backward ops that name no forward
    op, and backward ops that depend on nothing of the forward pass."""
    values: list[Value] = [Value("parameter", 5, ValueKind.PARAMETER)]
    ops: list[Op] = []
    forward_values: list[int] = []

    def new(kind: ValueKind, is_output: bool = False) -> int:
        values.append(Value(f"x{len(values)}", random.randint(0, 30), kind, is_output))
        return len(values) - 1

    for v in range(random.randint(1, 8)):
        count = random.randint(0, min(3, len(forward_values)))
        reads = sorted(random.sample(forward_values, count))
        outputs = tuple(
            new(ValueKind.ACTIVATION, random.random() < 0.1)
            for _ in range(random.choice([0, 1, 1, 1, 2]))
        )
        forward_values += outputs
        ops.append(
            Op(
                f"f{v}", "f", Phase.FORWARD, (0, *reads), outputs, random.randint(0, 9),
                random.randint(0, 20), recomputable=bool(outputs) and random.random() < 0.8,
            )
        )  # fmt: skip
    written = [new(ValueKind.TANGENT)]
    closed: set[int] = set()
    for b in range(random.randint(1, 10)):
        tangents = random.sample(written, random.randint(0, min(2, len(written))))
        reads = random.sample(forward_values, random.randint(0, min(2, len(forward_values))))
        closed |= set(tangents)
        partial = [v for v in written[1:] if v not in closed]
        outputs = tuple(
            random.choice(partial)
            if partial and random.random() < 0.3
            else new(ValueKind.GRADIENT, random.random() < 0.2)
            for _ in range(random.choice([1, 1, 2]))
        )
        outputs = tuple(dict.fromkeys(outputs))
        written += [v for v in outputs if v not in written]
        ops.append(
            Op(
                f"b{b}", "b", Phase.BACKWARD, tuple(sorted({*tangents, *reads})), outputs,
                random.randint(0, 9), random.randint(0, 20),
            )
        )  # fmt: skip
    return TrainingGraph(tuple(values), tuple(ops))


def random_sequence(random: Random, graph: TrainingGraph) -> list[int]:
    family = lower_sets(graph.forward_predecessors, "all", 1 << graph.forward_count)
    sequence = [0]
    while sequence[-1] != family[-1]:
        now = sequence[-1]
        sequence.append(random.choice([s for s in family if s & now == now and s != now]))
    return sequence[random.randint(0, 1) :]


def weight(graph: TrainingGraph, mask: int) -> int:
    return sum(size for v, size in enumerate(node_bytes(graph)) if mask >> v & 1)


@given(randoms)
def test_any_sequence_gives_a_valid_schedule(random: Random) -> None:
    graph = random_joint_graph(random)
    sequence = random_sequence(random, graph)
    whole = canonical_schedule(graph, sequence)
    needed = canonical_schedule(graph, sequence, recompute="needed")
    for schedule in (whole, needed):
        schedule.validate(graph)
    # Computing less again never costs more, and one stage alone computes nothing again.
    assert needed.overhead(graph) <= whole.overhead(graph)
    stages = canonical_stages(graph, sequence, whole)
    assert sum(stage.forward_ops for stage in stages) == graph.forward_count
    assert sum(stage.recompute_cost for stage in stages) == whole.overhead(graph)
    only = canonical_schedule(graph, [(1 << graph.forward_count) - 1])
    assert only.recomputed_ops == ()


@given(randoms)
def test_each_stage_but_the_last_runs_again_what_the_formula_counts(random: Random) -> None:
    graph = random_bare_graph(random)
    sequence = random_sequence(random, graph)
    stages = canonical_stages(graph, sequence, canonical_schedule(graph, sequence))
    sets = [0, *(s for s in sequence if s)]
    costs = node_costs(graph)
    for i, stage in enumerate(stages[:-1]):
        again = sets[i + 1] & ~sets[i] & ~boundary(graph, sets[i + 1])
        assert stage.recompute_cost == sum(c for v, c in enumerate(costs) if again >> v & 1)
    assert stages[-1].recompute_cost == 0


@given(randoms)
def test_forward_values_cross_to_the_backward_pass_only_at_boundaries(random: Random) -> None:
    graph = random_bare_graph(random)
    sequence = random_sequence(random, graph)
    allowed = 0
    for lower, upper in zip([0, *sequence], sequence, strict=False):
        allowed |= boundary(graph, upper) if upper != sequence[-1] else upper & ~lower
    kept = canonical_schedule(graph, sequence).kept(graph)
    assert all(allowed >> v & 1 for v in kept)


@given(randoms)
def test_edges_add_up_to_the_formulas(random: Random) -> None:
    graph = random_bare_graph(random)
    sequence = [0, *(s for s in random_sequence(random, graph) if s)]
    table = canonical_edges(
        graph.forward_predecessors, node_bytes(graph), node_costs(graph), sequence
    )
    ends = zip(table.sources, table.targets, strict=True)
    by_ends = dict(
        zip(ends, zip(table.costs, table.cached_bytes, table.peak_bytes, strict=True), strict=True)
    )
    cost = cached = peak = 0
    stages = formula_stages(graph, sequence)
    for i, stage in enumerate(stages):
        step_cost, step_cached, step_peak = by_ends[i, i + 1]
        assert (stage.overhead, stage.cached_bytes, stage.peak_bytes) == by_ends[i, i + 1]
        peak = max(peak, cached + step_peak)
        cost += step_cost
        cached += step_cached
    assert len(stages) == len(sequence) - 1
    assert cost == formula_overhead(graph, sequence)
    assert cached == cached_bytes(graph, sequence)
    assert peak == formula_peak_bytes(graph, sequence)


@given(randoms)
def test_simulated_peak_is_within_the_formula_with_gradients_of_the_boundary(
    random: Random,
) -> None:
    """Stage i holds no more than M(U_{i-1}) + 2 M(V_i) + M(boundary of L_{i-1}).

    The paper's formula lacks the last term: backward ops of V_i write the gradients of the boundary
    of L_{i-1} while all of V_i may be alive, see the next test.
    """
    graph = random_bare_graph(random)
    sequence = [0, *(s for s in random_sequence(random, graph) if s)]
    union = bound = 0
    for lower, upper in pairwise(sequence):
        stage = weight(graph, union) + 2 * weight(graph, upper & ~lower)
        bound = max(bound, stage + weight(graph, boundary(graph, lower)))
        union |= boundary(graph, upper)
    assert simulate(graph, canonical_schedule(graph, sequence)).peak_bytes <= bound


def test_the_papers_formula_is_no_bound_of_the_simulated_peak() -> None:
    """a -> b, a byte each, in two stages: while b's backward op reads a and b and the gradient of b
    and writes that of a, four bytes are alive, whatever is freed when. The formula gives three."""
    graph = bare_graph([[], [0]], [1, 1], [1, 1], [[], [0, 1]])
    sequence = [0b01, 0b11]
    assert formula_peak_bytes(graph, sequence) == 3
    assert simulate(graph, canonical_schedule(graph, sequence)).peak_bytes == 4


@given(randoms, st.sampled_from(["all", "pruned", "prefix", "pruned+prefix"]))
def test_overhead_never_rises_with_the_budget(random: Random, family: str) -> None:
    graph = random_bare_graph(random)
    plan = get_planner("exact")
    options = PlannerOptions(mode="time", family=family)
    with pytest.raises(InfeasibleBudgetError) as caught:
        plan(graph, -1, options)
    smallest = caught.value.minimum_bytes
    most = 4 * weight(graph, (1 << graph.forward_count) - 1) + 1
    overheads = [
        plan(graph, budget, options).formula_overhead or 0
        for budget in sorted({smallest, most, *(random.randint(smallest, most) for _ in range(4))})
    ]
    assert overheads == sorted(overheads, reverse=True)


class Family:
    """The stages between the lower sets of one family."""

    def __init__(self, graph: TrainingGraph, family: str) -> None:
        self.graph = graph
        self.sets = lower_sets(graph.forward_predecessors, family, 1 << 10)
        self.table = _core.canonical_table(
            graph.forward_predecessors,
            node_bytes(graph),
            node_costs(graph),
            self.sets,
            connected=family == "all",
        )

    def total(self, budget: int, longest: bool) -> tuple[int, int] | None:
        """Overhead and cached bytes of the best path, which fits the budget."""
        path = self.table.shortest(budget, longest)
        if path is None:
            return None
        sequence = [self.sets[state] for state in path]
        assert formula_peak_bytes(self.graph, sequence) <= budget
        return formula_overhead(self.graph, sequence), cached_bytes(self.graph, sequence)


@given(randoms)
def test_relabelling_changes_nothing(random: Random) -> None:
    graph = random_bare_graph(random)
    relabelled = relabel(random, graph)
    for family in ("all", "pruned"):
        one, other = (Family(g, family) for g in (graph, relabelled))
        smallest = one.table.smallest_budget()
        assert other.table.smallest_budget() == smallest
        assert other.table.curve() == one.table.curve()
        for budget in (smallest - 1, smallest, smallest + random.randint(1, 100)):
            for longest in (False, True):
                assert one.total(budget, longest) == other.total(budget, longest)


def relabel(random: Random, graph: TrainingGraph) -> TrainingGraph:
    """The same graph in another topological order."""
    n = graph.forward_count
    order: list[int] = []
    while len(order) < n:
        ready = [
            v
            for v in range(n)
            if v not in order and all(p in order for p in graph.forward_predecessors[v])
        ]
        order.append(random.choice(ready))
    place = {v: i for i, v in enumerate(order)}
    return bare_graph(
        [sorted(place[p] for p in graph.forward_predecessors[v]) for v in order],
        [graph.values[v].size_bytes for v in order],
        [graph.ops[v].cost for v in order],
        [[] for _ in order],
    )


@given(randoms)
def test_larger_families_are_never_worse(random: Random) -> None:
    """Exact <= approximate, in the smallest budget and in the least overhead at each budget."""
    graph = random_bare_graph(random)
    families = {name: Family(graph, name) for name in FAMILIES}
    for large, small in [
        ("all", "pruned+prefix"), ("pruned+prefix", "pruned"), ("pruned+prefix", "prefix"),
    ]:  # fmt: skip
        smallest = families[small].table.smallest_budget()
        assert families[large].table.smallest_budget() <= smallest
        for budget in (smallest, smallest + random.randint(1, 100)):
            better, worse = (families[name].total(budget, False) for name in (large, small))
            assert better is not None
            assert worse is not None
            assert better <= worse


@given(randoms, st.sampled_from(["exact", "approximate", "chen", "store-all"]))
def test_auto_accepts_every_budget_from_the_smallest_on(random: Random, planner: str) -> None:
    graph = random.choice([random_bare_graph, random_joint_graph])(random)
    plan = get_planner(planner)
    options = PlannerOptions(mode="auto")
    with pytest.raises(InfeasibleBudgetError) as caught:
        plan(graph, graph.resident_bytes - 1, options)
    smallest = caught.value.minimum_bytes
    for budget in (smallest, smallest + random.randint(0, 30), smallest * 3):
        found = plan(graph, budget, options)
        found.schedule.validate(graph)
        assert found.peak_bytes <= budget
        assert found.peak_bytes == simulate(graph, found.schedule).peak_bytes
        assert found.smallest_feasible_budget_bytes <= budget


@given(randoms, st.sampled_from(["exact", "approximate"]))
def test_auto_fails_at_one_byte_less_where_the_formula_needs_more(
    random: Random, planner: str
) -> None:
    graph = random_bare_graph(random)
    plan = get_planner(planner)

    def smallest(mode: str) -> int:
        with pytest.raises(InfeasibleBudgetError) as caught:
            plan(graph, -1, PlannerOptions(mode=mode))
        return caught.value.minimum_bytes

    least = smallest("auto")
    if least <= smallest("time"):
        with pytest.raises(InfeasibleBudgetError) as caught:
            plan(graph, least - 1, PlannerOptions(mode="auto"))
        assert caught.value.minimum_bytes == least


@given(randoms)
def test_families_hold_lower_sets_only_and_both_ends(random: Random) -> None:
    graph = random.choice([random_bare_graph, random_joint_graph])(random)
    useful = [random.random() < 0.7 for _ in range(graph.forward_count)]
    whole = (1 << graph.forward_count) - 1
    before = graph.forward_predecessors
    every = lower_sets(before, "all", 1 << 10)
    assert every == sorted(
        (s for s in range(whole + 1) if is_lower_set(graph, s)), key=lambda s: (s.bit_count(), s)
    )
    for family in FAMILIES:
        for flags in (None, useful):
            found = lower_sets(before, family, 1 << 10, flags)
            assert (found[0], found[-1]) == (0, whole)
            assert len(set(found)) == len(found)
            assert set(found) <= set(every)
    unions = {0}
    for v, closure in enumerate(ancestor_sets(before)):
        if useful[v]:
            unions |= {union | closure for union in unions}
    assert set(lower_sets(before, "all", 1 << 10, useful)) == unions | {whole}


@given(randoms)
def test_graphs_survive_json(random: Random) -> None:
    graph = random_joint_graph(random)
    again = graph_from_json(graph_to_json(graph))
    assert again == graph
    assert again.fingerprint == graph.fingerprint


@given(randoms)
def test_the_plain_step_recomputes_nothing(random: Random) -> None:
    graph = random_joint_graph(random)
    found = get_planner("store-all")(graph, 1 << 40, PlannerOptions())
    assert found.schedule == store_all_schedule(graph)
    assert (found.overhead, found.schedule.recomputed_ops) == (0, ())
