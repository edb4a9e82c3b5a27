"""Which core runs, and the lower sets that either gives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memfit
from memfit import _core
from memfit._core.reference import lower_sets as python_lower_sets
from memfit.errors import TooManyLowerSetsError

if TYPE_CHECKING:
    from memfit._core import native
else:
    try:
        from memfit._core import native
    except ImportError:
        native = None

needs_native = pytest.mark.skipif(native is None, reason="native core is not built")


def answer(function: Callable[[], Any]) -> Any:
    """What the function returns, or the kind of error that it raises."""
    try:
        return function()
    except (ValueError, TooManyLowerSetsError) as error:
        return type(error)


def random_predecessors(random: Random, nodes: int) -> list[list[int]]:
    return [sorted(random.sample(range(v), random.randint(0, min(v, 3)))) for v in range(nodes)]


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


def test_a_machine_with_a_compiler_has_the_native_core() -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler on this machine")
    if os.environ.get("MEMFIT_CORE") == "python":
        pytest.skip("MEMFIT_CORE=python")
    info = memfit.build_info()
    assert info["core"] == "native"
    assert info["compiler"]
    assert info["version"] == memfit.__version__


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
