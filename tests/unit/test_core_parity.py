"""The native core gives the same answers as the pure-Python reference."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
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
from memfit.errors import TooManyLowerSetsError

if TYPE_CHECKING:
    from memfit._core import native_core as native
else:
    try:
        from memfit._core import native_core as native
    except ImportError:
        native = None

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
    weights = list(range(nodes))
    sets = wanted[::7] + wanted[-1:]
    ours = native.canonical_edges(predecessors, weights, weights[::-1], sets)
    reference = python_canonical.canonical_edges(predecessors, weights, weights[::-1], sets)
    assert edges_of(ours) == edges_of(reference)


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
@given(st.randoms(use_true_random=False), st.integers(1, 8), st.booleans())
def test_canonical_edges(random: Random, nodes: int, zero_last: bool) -> None:
    predecessors = random_predecessors(random, nodes)
    sets = python_lower_sets.enumerate_lower_sets(predecessors, 1 << nodes)
    node_bytes = [random.randint(0, 10**12) for _ in range(nodes)]
    node_cost = [random.randint(0, 10) for _ in range(nodes)]
    arguments = (predecessors, node_bytes, node_cost, sets, zero_last)
    ours = native.canonical_edges(*arguments)
    assert ours.states == len(sets)
    assert edges_of(ours) == edges_of(python_canonical.canonical_edges(*arguments))


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
    with pytest.raises(ValueError, match=r"2\*\*61"):
        native.canonical_edges([[], [0]], [half, half], [1, 1], [0, 1, 3])
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
    table = _core.canonical_edges([[], [0]], [5, 7], [1, 1], [0, 1, 3])
    assert isinstance(table, _core.EdgeTable)
    # In two stages: 2 * 5 + 7, then 5 cached and 2 * 7; in one stage: 2 * (5 + 7).
    assert table.smallest_budget() == (19, [0, 2])
    assert table.shortest(18) is None
