"""The native core gives the same answers as the pure-Python reference."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memfit
from memfit import _core
from memfit._core import python_canonical, python_lower_sets, python_stage
from memfit._core.python_pareto import EdgeTable
from memfit._core.python_stage import Cut, StageProblem
from memfit.errors import InfeasibleBudgetError, TooManyLowerSetsError
from memfit.graph import TrainingGraph
from memfit.graph_io import bare_graph
from memfit.planners import PlannerOptions, get_planner

if TYPE_CHECKING:
    from memfit._core import native_core as native
else:
    try:
        from memfit._core import native_core as native
    except ImportError:
        native = None

CanonicalArguments = tuple[list[list[int]], list[int], list[int], list[int], bool]
"""Predecessors, sizes in bytes, costs, lower sets, only connected stages."""

LARGEST_SUM = 2**60 - 1
"""The most that sizes or costs may add up to."""

needs_native = pytest.mark.skipif(native is None, reason="native core is not built")


def edges_of(table: Any) -> list[tuple[int, ...]]:
    """All edges of a table of either core."""
    return [tuple(table.edge(i)) for i in range(len(table))]


def answer(function: Callable[[], Any]) -> Any:
    """What the function returns, or the kind of error that it raises."""
    try:
        return function()
    except (ValueError, IndexError, TooManyLowerSetsError) as error:
        return type(error)


def random_predecessors(random: Random, nodes: int) -> list[list[int]]:
    return [sorted(random.sample(range(v), random.randint(0, min(v, 3)))) for v in range(nodes)]


def random_canonical(random: Random, nodes: int) -> CanonicalArguments:
    """A graph with few or many edges, perhaps none, and sizes and costs full of ties or zeros, of
    everyday size, or as large as they may be; all of its lower sets, or some."""
    degree = random.choice([0, 1, 2, 2, 3, 3])
    predecessors = [
        sorted(random.sample(range(v), random.randint(0, min(v, degree)))) for v in range(nodes)
    ]

    def amounts() -> list[int]:
        most = random.choice([0, 2, 30, 10**4, 10**12, LARGEST_SUM // max(1, nodes)])
        return [random.choice([0, most, random.randint(0, most)]) for _ in range(nodes)]

    sets = python_lower_sets.enumerate_lower_sets(predecessors, 1 << nodes)
    connected = random.random() < 0.5
    if not connected and random.random() < 0.5:
        sets = [s for s in sets if s in (0, sets[-1]) or random.random() < 0.5]
    return predecessors, amounts(), amounts(), sets, connected


def assert_same_answers(
    arguments: CanonicalArguments, threads: Sequence[int], random: Random, tries: int = 8
) -> None:
    """All that can be asked of a table of stages, of the native core and of the reference; `tries`
    is the number of budgets taken from the curve."""
    reference = python_canonical.canonical_table(*arguments)
    curve, least = reference.curve(), reference.smallest_budget()
    assert curve[-1][1] == least
    chosen = [budget for _, budget in random.sample(curve, min(tries, len(curve)))]
    budgets = {least - 1, least, least + 1, 2 * least + 1, 2**62, 2**63 - 1, 0, -1, *chosen}
    budgets |= {b - 1 for b in chosen} | {random.randint(least, b) for b in chosen}
    paths = [(b, mode, reference.shortest(b, mode)) for b in budgets for mode in (False, True)]
    for count in threads:
        ours = native.canonical_table(*arguments, threads=count)
        assert ours.curve() == curve
        assert ours.smallest_budget() == least
        for budget, longest, path in paths:
            assert ours.shortest(budget, longest) == path, (budget, longest)


def random_problem(random: Random, ops: int) -> tuple[StageProblem, list[Cut]]:
    """A joint graph with multi-output ops, accumulated gradients, outputs and random costs; cuts
    are prefixes, ancestor sets and some of their unions."""
    producer: list[int] = []
    forward_inputs: list[list[int]] = []
    forward_outputs: list[list[int]] = []
    for v in range(ops):
        count = len(producer)
        forward_inputs.append(sorted(random.sample(range(count), random.randint(0, min(count, 3)))))
        forward_outputs.append([count + i for i in range(random.choice([1, 1, 1, 2]))])
        producer += [v] * len(forward_outputs[-1])
    size = [random.choice([0, 8, 500, *random.sample(range(10**6), 3)]) for _ in producer]
    outlives = [random.random() < 0.05 for _ in producer]
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
    full = (1 << ops) - 1
    masks = {0, full} | {(1 << v) - 1 for v in range(ops)}
    ancestors: list[int] = []
    for v in range(ops):
        mask = 1 << v
        for s in forward_inputs[v]:
            mask |= ancestors[producer[s]]
        ancestors.append(mask)
    masks |= set(ancestors) | {a | random.choice(ancestors) for a in ancestors}
    cuts = [
        Cut.of(problem, m, sum(1 << b for b, v in enumerate(forward_of) if not m >> v & 1))
        for m in sorted(masks, key=lambda m: (m.bit_count(), m))
    ]
    return problem, cuts


def random_columns(random: Random, states: int) -> list[list[int]]:
    """Edge columns; half of them full of ties, some with costs too far apart for one array."""
    ties = random.random() < 0.5
    cost = 3 if ties else random.choice([50, 10**9, 10**15])
    rows = [
        (
            i,
            j,
            v,
            random.randint(0, cost),
            random.randint(0, 3 if ties else 50),
            random.randint(0, 8 if ties else 99),
        )
        for i in range(states)
        for j in range(i + 1, states)
        for v in range(random.choice([0, 1, 2]))
    ]
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(6)]


@needs_native
@given(st.randoms(use_true_random=False), st.integers(0, 10), st.integers(0, 300))
def test_lower_sets(random: Random, nodes: int, limit: int) -> None:
    predecessors = random_predecessors(random, nodes)
    wanted = answer(lambda: python_lower_sets.enumerate_lower_sets(predecessors, limit))
    assert answer(lambda: native.enumerate_lower_sets(predecessors, limit)) == wanted


@needs_native
@pytest.mark.parametrize("nodes", [63, 64, 65, 130])
def test_lower_sets_across_word_boundaries(nodes: int) -> None:
    # Two chains side by side, joined at the end: (nodes // 2)**2 lower sets or so.
    predecessors = [[v - 2] if v >= 2 else [] for v in range(nodes - 1)]
    predecessors.append([nodes - 3, nodes - 2])
    wanted = python_lower_sets.enumerate_lower_sets(predecessors, 10_000)
    assert native.enumerate_lower_sets(predecessors, 10_000) == wanted


@needs_native
def test_too_many_lower_sets_are_found_out_at_once() -> None:
    antichain: list[list[int]] = [[] for _ in range(500)]
    with pytest.raises(TooManyLowerSetsError, match="more than 4096 lower sets"):
        native.enumerate_lower_sets(antichain, 4096)


@needs_native
@pytest.mark.parametrize("predecessors", [[[0]], [[1], []], [[], [-1]], [[], [7]]])
def test_nodes_out_of_order_are_refused_by_both(predecessors: list[list[int]]) -> None:
    for core in (python_lower_sets, native):
        with pytest.raises(ValueError, match="does not come before"):
            core.enumerate_lower_sets(predecessors, 100)


@needs_native
@settings(max_examples=400)
@given(st.randoms(use_true_random=False), st.integers(0, 8))
def test_canonical_tables(random: Random, nodes: int) -> None:
    assert_same_answers(random_canonical(random, nodes), (1, 2, 3), random)


@needs_native
def test_curves_of_thousands_of_small_graphs() -> None:
    # A stage that is wrongly taken for beaten by others shows in one curve of a hundred or so.
    for seed in range(4000):
        random = Random(seed)
        nodes = random.randint(3, 8)
        predecessors = random_predecessors(random, nodes)
        sizes, costs = (
            [random.randint(0, most) for _ in range(nodes)]
            for most in (random.choice([3, 30, 1000]), random.choice([2, 10, 1000]))
        )
        sets = python_lower_sets.enumerate_lower_sets(predecessors, 1 << nodes)
        connected = random.random() < 0.5
        if not connected:
            sets = [s for s in sets if s in (0, sets[-1]) or random.random() < 0.5]
        if len(sets) > 80:
            continue
        arguments = (predecessors, sizes, costs, sets, connected)
        ours = native.canonical_table(*arguments, threads=1)
        assert ours.curve() == python_canonical.canonical_table(*arguments).curve(), seed


@needs_native
@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("nodes", [63, 64, 65, 130])
def test_canonical_tables_across_word_boundaries(nodes: int, connected: bool) -> None:
    # Two chains side by side that meet at every third node.
    predecessors = [[p for p in (v - 2, v - 1 - v % 3) if 0 <= p < v] for v in range(nodes)]
    predecessors = [sorted(set(before)) for before in predecessors]
    sets = python_lower_sets.enumerate_lower_sets(predecessors, 1000)
    assert len(sets) > nodes + 1
    random = Random(nodes)
    # Costs with few different sums keep the reference quick; times 10**9 they call for sparse
    # fronts.
    sizes = [random.randint(0, 50) for _ in range(nodes)]
    costs = [random.choice([0, 0, 0, 0, 1, 2]) for _ in range(nodes)]
    for unit in (1, 10**9):
        times = [unit * cost for cost in costs]
        assert_same_answers((predecessors, sizes, times, sets, connected), (1, 2), random, 2)


@needs_native
def test_wide_fronts_are_the_same_on_any_number_of_threads() -> None:
    # Three chains side by side: 9**3 lower sets. Costs of 10**9 are too far apart for arrays over
    # them; those of 10**3 are not.
    predecessors = [[v - 3] if v >= 3 else [] for v in range(24)]
    sets = python_lower_sets.enumerate_lower_sets(predecessors, 1000)
    for cost in (10**3, 10**9):
        random = Random(cost)
        sizes = [random.randint(1, 10**6) for _ in predecessors]
        costs = [random.randint(1, cost) for _ in predecessors]
        assert_same_answers((predecessors, sizes, costs, sets, True), (1, 2, 3), random, 2)


@needs_native
@pytest.mark.parametrize("nodes", [1, 12])
def test_graphs_without_edges(nodes: int) -> None:
    empty: list[list[int]] = [[] for _ in range(nodes)]
    sets = python_lower_sets.enumerate_lower_sets(empty, 1 << nodes)
    sizes = [5] * nodes
    assert_same_answers((empty, sizes, sizes, sets, True), (1, 3), Random(nodes))
    table = native.canonical_table(empty, sizes, sizes, sets, True)
    # Every node is computed again, by itself at the best.
    assert (table.curve(), table.smallest_budget()) == ([(5 * nodes, 10)], 10)


@needs_native
def test_no_nodes_at_all() -> None:
    for connected in (True, False):
        arguments: CanonicalArguments = ([], [], [], [0], connected)
        assert_same_answers(arguments, (1, 2), Random(0))
        table = native.canonical_table(*arguments)
        assert (table.curve(), table.smallest_budget(), table.shortest(0)) == ([(0, 0)], 0, [])


@needs_native
@given(st.randoms(use_true_random=False), st.integers(1, 7))
def test_connected_stages_need_every_lower_set_in_both_cores(random: Random, nodes: int) -> None:
    predecessors = random_predecessors(random, nodes)
    sets = python_lower_sets.enumerate_lower_sets(predecessors, 1 << nodes)
    if len(sets) > 2:
        del sets[random.randrange(1, len(sets) - 1)]
        for core in (python_canonical, native):
            with pytest.raises(ValueError, match="need the family of all lower sets"):
                core.canonical_table(predecessors, [1] * nodes, [1] * nodes, sets, True)


@needs_native
@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.integers(1, 9))
def test_paths(random: Random, states: int) -> None:
    columns = random_columns(random, states)
    reference = EdgeTable.from_lists(states, *columns)
    ours = native.EdgeTable.from_lists(states, *columns)
    assert (len(ours), ours.states) == (len(reference), reference.states)
    smallest = answer(reference.smallest_budget)
    assert answer(ours.smallest_budget) == smallest
    least = smallest[0] if isinstance(smallest, tuple) else 50
    for budget in (least - 1, least, least + 1, least + random.randint(2, 60), 10_000):
        for longest in (False, True):
            for quantum in (1, 3, 1000):
                wanted = reference.shortest(budget, longest, quantum)
                assert ours.shortest(budget, longest, quantum) == wanted


@needs_native
def test_paths_of_a_large_table_with_wide_costs() -> None:
    random = Random(7)
    states = 60
    rows = [
        (i, j, v, random.randint(0, 10**6) * (j - i), random.randint(0, 10**9), 10**9 * (j - i))
        for i in range(states)
        for j in range(i + 1, states)
        for v in range(2)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    reference = EdgeTable.from_lists(states, *columns)
    ours = native.EdgeTable.from_lists(states, *columns)
    budget, path = ours.smallest_budget()
    assert (budget, path) == reference.smallest_budget()
    for factor in (1.0, 1.1, 1.5, 2.0):
        for longest in (False, True):
            found = ours.shortest(int(budget * factor), longest, 1000)
            assert found is not None
            assert found == reference.shortest(int(budget * factor), longest, 1000)


@needs_native
@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.integers(1, 10), st.integers(0, 3))
def test_stages(random: Random, ops: int, threads: int) -> None:
    problem, cuts = random_problem(random, ops)
    reference = python_stage.stage_edges(problem, cuts)
    ours = native.stage_edges(problem, cuts, threads=threads)
    assert ours.states == len(cuts)
    assert edges_of(ours) == edges_of(reference)


@needs_native
def test_stages_across_word_boundaries() -> None:
    problem, cuts = random_problem(Random(3), 70)
    chosen = [cuts[0], *cuts[5:-1:12], cuts[-1]]
    wanted = edges_of(python_stage.stage_edges(problem, chosen))
    assert len(wanted) > 100
    for threads in (1, 2, 5):
        assert edges_of(native.stage_edges(problem, chosen, threads=threads)) == wanted


def column(**changed: list[int]) -> list[list[int]]:
    """Columns of a two-state table with one edge, some of them changed."""
    columns = {
        "sources": [0],
        "targets": [1],
        "variants": [0],
        "costs": [1],
        "cached": [1],
        "peaks": [1],
    }
    return list({**columns, **changed}.values())


@needs_native
@pytest.mark.parametrize(
    ("states", "columns"),
    [
        (0, column()),
        (2, column(targets=[2])),
        (2, column(targets=[0])),
        (2, column(sources=[1])),
        (2, column(costs=[-1])),
        (2, column(cached=[-1])),
        (2, column(peaks=[-1])),
        (2, column(variants=[-1])),
        (2, column(peaks=[1, 2])),
        (3, [[1, 0], [2, 1], [0, 0], [0, 0], [0, 0], [0, 0]]),
    ],
)
def test_bad_tables_are_refused_by_both(states: int, columns: list[list[int]]) -> None:
    for table in (EdgeTable, native.EdgeTable):
        with pytest.raises(ValueError, match=r"\w"):
            table.from_lists(states, *columns)


@needs_native
def test_sums_that_would_overflow_are_refused() -> None:
    half = 2**61
    chain = [[0, 1], [1, 2], [0, 0], [half, half], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match=r"2\*\*62"):
        native.EdgeTable.from_lists(3, *chain)
    problem, cuts = random_problem(Random(1), 3)
    huge = StageProblem(
        **{
            name: getattr(problem, name)
            for name in StageProblem.__dataclass_fields__
            if StageProblem.__dataclass_fields__[name].init and name != "value_bytes"
        },
        value_bytes=[half] * len(problem.value_bytes),
    )
    with pytest.raises(ValueError, match=r"2\*\*62"):
        native.stage_edges(huge, cuts)


@needs_native
@pytest.mark.parametrize("numbers", [[2**60], [2**59, 2**59], [-1], [2**62, 2**62], [5, -6]])
def test_sizes_and_costs_out_of_range_are_refused(numbers: list[int]) -> None:
    chain = [[v - 1] if v else [] for v in range(len(numbers))]
    sets = [(1 << v) - 1 for v in range(len(numbers) + 1)]
    ones = [1] * len(numbers)
    for sizes, costs in ((numbers, ones), (ones, numbers)):
        with pytest.raises(ValueError, match=r"add up below 2\*\*60"):
            native.canonical_table(chain, sizes, costs, sets, True)


@needs_native
def test_sizes_and_costs_at_the_limit() -> None:
    third = LARGEST_SUM // 3
    assert 3 * third == LARGEST_SUM
    diamond = [[], [0], [0], [1, 2]]
    sets = python_lower_sets.enumerate_lower_sets(diamond, 100)
    for amounts in ([third, third, third, 0], [0, 0, 0, LARGEST_SUM], [LARGEST_SUM, 0, 0, 0]):
        for connected in (True, False):
            assert_same_answers((diamond, amounts, amounts, sets, connected), (1, 2), Random(0))


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node_bytes": [1]}, "one number for each node"),
        ({"node_cost": [1, 1, 1]}, "one number for each node"),
        ({"lower_sets": []}, "there must be lower sets"),
        ({"lower_sets": [1, 3]}, "begin with the empty set"),
        ({"lower_sets": [0, 1]}, "end with all nodes"),
        ({"lower_sets": [0, 3, 1]}, "sorted by size"),
        ({"lower_sets": [0, 2, 3]}, "is no lower set"),
        ({"lower_sets": [0, 5, 3]}, "is no lower set"),
        ({"lower_sets": [0, 1, 1, 3], "connected": True}, "occurs twice"),
        ({"predecessors": [[], [1]]}, "does not come before its node"),
        ({"predecessors": [[1], []]}, "does not come before its node"),
        ({"predecessors": [[], [-1]]}, "does not come before its node"),
    ],
)
def test_wrong_families_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {
        "predecessors": [[], [0]],
        "node_bytes": [1, 1],
        "node_cost": [1, 1],
        "lower_sets": [0, 1, 3],
        "connected": False,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        native.canonical_table(**arguments)


@needs_native
def test_edge_indices_out_of_range_are_refused_by_both() -> None:
    for table in (EdgeTable.from_lists(2, *column()), native.EdgeTable.from_lists(2, *column())):
        for index in (-1, 1):
            with pytest.raises(IndexError):
                table.edge(index)


@needs_native
def test_other_threads_run_while_stages_are_simulated() -> None:
    problem, cuts = random_problem(Random(2), 160)
    shares: list[float] = []
    ran = threading.Event()
    stop = threading.Event()

    def count() -> None:
        stop.wait(0.01)
        ran.set()

    worker = threading.Thread(target=count)
    worker.start()
    native.stage_edges(problem, cuts, shares.append, threads=1)
    worker.join()
    assert ran.is_set()
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


@needs_native
def test_an_error_in_the_progress_callback_stops_the_simulation() -> None:
    problem, cuts = random_problem(Random(2), 200)

    def fail(share: float) -> None:
        raise KeyError(share)

    with pytest.raises(KeyError):
        native.stage_edges(problem, cuts, fail, threads=1)


def many_stages(nodes: int) -> CanonicalArguments:
    """No edges, and stages between any two nested sets of nodes."""
    empty: list[list[int]] = [[] for _ in range(nodes)]
    sets = native.enumerate_lower_sets(empty, 1 << nodes)
    return empty, [1] * nodes, [1] * nodes, sets, False


def long_chain(nodes: int) -> CanonicalArguments:
    """As many sizes of lower sets as nodes, with one lower set each."""
    chain = [[v - 1] if v else [] for v in range(nodes)]
    sets = [(1 << v) - 1 for v in range(nodes + 1)]
    return chain, [1] * nodes, [1] * nodes, sets, False


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
def test_progress_of_a_canonical_table(threads: int) -> None:
    shares: list[float] = []
    ran = threading.Event()
    worker = threading.Timer(0.01, ran.set)
    worker.start()
    native.canonical_table(*many_stages(15), shares.append, threads=threads)
    # The worker could run only because the interpreter's lock was free.
    assert ran.is_set()
    worker.join()
    assert shares
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_the_progress_callback_stops_a_canonical_table(threads: int) -> None:
    def fail(share: float) -> None:
        raise KeyError(share)

    with pytest.raises(KeyError):
        native.canonical_table(*many_stages(15), fail, threads=threads)


@needs_native
@pytest.mark.skipif(sys.platform == "win32", reason="signals to oneself are POSIX")
@pytest.mark.parametrize(("make", "nodes"), [(many_stages, 16), (long_chain, 3000)])
def test_ctrl_c_stops_a_canonical_table_within_a_second(
    make: Callable[[int], CanonicalArguments], nodes: int
) -> None:
    arguments = make(nodes)
    struck: list[float] = []

    def strike() -> None:
        struck.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.2, strike)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        native.canonical_table(*arguments, threads=1)
    assert time.monotonic() - struck[0] < 1
    timer.join()


def test_a_machine_with_a_compiler_has_the_native_core() -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler on this machine")
    if os.environ.get("MEMFIT_CORE") == "python":
        pytest.skip("MEMFIT_CORE=python")
    info = memfit.build_info()
    assert info["core"] == "native"
    assert info["compiler"]
    assert info["version"] == memfit.__version__ == native.VERSION


def run_python(code: str, core: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "MEMFIT_CORE"}
    if core is not None:
        environment["MEMFIT_CORE"] = core
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_the_python_core_can_be_forced_and_then_says_nothing() -> None:
    code = (
        "from memfit import _core; print(_core.core_name()); "
        "print(_core.enumerate_lower_sets([[], [0]], 9))"
    )
    done = run_python(code, "python")
    assert done.stdout.split("\n") == ["python", "[0, 1, 3]", ""]
    assert done.stderr == ""


def test_a_missing_native_core_is_said_once_at_the_first_use() -> None:
    code = (
        "import sys; sys.modules['memfit._core._native'] = None\n"
        "from memfit import _core; print(_core.core_name(), flush=True)\n"
        "_core.enumerate_lower_sets([[]], 9); _core.enumerate_lower_sets([[]], 9)"
    )
    done = run_python(code, None)
    assert done.stdout == "python\n"
    assert len(done.stderr.splitlines()) == 1
    assert "pure-Python core" in done.stderr


def test_an_unknown_core_is_refused() -> None:
    done = run_python("from memfit import _core", "fortran")
    assert done.returncode == 1
    assert "MEMFIT_CORE is 'fortran'; set it to native or python" in done.stderr


def test_importing_memfit_does_not_import_torch() -> None:
    code = (
        "import sys, memfit, memfit.planners.registry; memfit.build_info(); memfit.Plan; "
        "print('torch' in sys.modules)"
    )
    assert run_python(code, None).stdout == "False\n"


def test_the_function_plan_survives_the_import_of_the_module_plan() -> None:
    code = (
        "import memfit, memfit.plan\n"
        "from memfit.plan import Plan\n"
        "print('plan' in vars(memfit), memfit.Plan is Plan)"
    )
    assert run_python(code, None).stdout == "False True\n"


def test_both_cores_behind_one_name(core: str) -> None:
    assert _core.core_name() == core
    table = _core.canonical_table([[], [0]], [5, 7], [1, 1], [0, 1, 3], True)
    # In two stages: 2 * 5 + 7, then 5 cached and 2 * 7; in one stage: 2 * (5 + 7).
    assert table.smallest_budget() == 19
    assert table.curve() == [(1, 19)]
    assert table.shortest(19) == table.shortest(19, longest=True) == [1, 2]
    assert table.shortest(18) is None
    # With room for it, one stage caches nothing but computes the first node again.
    assert table.shortest(24) == [1, 2]
    assert table.shortest(24, longest=True) == [2]


def random_graph(seed: int) -> TrainingGraph:
    """Up to 10 ops, in a chain, in some branches or apart."""
    random = Random(seed)
    n = random.randint(1, 10)
    before = [
        sorted({p for p in (v - 1, random.randrange(v)) if random.random() < 0.7}) if v else []
        for v in range(n)
    ]
    largest = random.choice([2, 100, 10**9])
    sizes, costs = ([random.randint(0, largest) for _ in range(n)] for _ in range(2))
    reads = [sorted(s for s in {*before[v], v} if random.random() < 0.7) for v in range(n)]
    return bare_graph(before, sizes, costs, reads)


def planned(seed: int) -> list[Any]:
    """What the paper's planners say of a random graph at a random budget, in each mode."""
    graph = random_graph(seed)
    random = Random(seed)
    total = sum(value.size_bytes for value in graph.values)
    share = random.random()
    budget = int(total * share * 2)
    answers: list[Any] = []
    for planner in ("exact", "approximate"):
        for mode in ("time", "memory"):
            options = PlannerOptions(mode=mode, max_lower_sets=100 if seed % 5 == 0 else None)
            try:
                plan = get_planner(planner)(graph, budget, options)
            except InfeasibleBudgetError as error:
                answers.append(str(error))
                continue
            data = json.loads(plan.to_json())
            del data["seconds"]
            assert data["provenance"].pop("core") == _core.core_name()
            answers.append(data)
    return answers


@needs_native
def test_both_cores_give_the_same_plans_of_a_thousand_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for core in (native, None):
        monkeypatch.setattr(_core, "_fast", core)
        monkeypatch.setattr(_core, "_told", True)
        found.append([planned(seed) for seed in range(1000)])
    for seed, (ours, reference) in enumerate(zip(*found, strict=True)):
        assert ours == reference, seed
    plans = [answer for answers in found[0] for answer in answers]
    infeasible = sum(isinstance(answer, str) for answer in plans)
    assert 400 < infeasible < 2000
    assert any(plan["provenance"]["notes"] for plan in plans if isinstance(plan, dict))
