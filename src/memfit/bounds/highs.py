"""Solving a binary program with HiGHS; the only module that imports `highspy`."""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from memfit.bounds.program import BinaryProgram
from memfit.errors import UsageError

__all__ = ["Solved", "highs_version", "solve"]

_SLACK = 1e-4
"""HiGHS works in floating point: so many grains of its bound on the cost are not trusted."""

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Solved:
    """What is known of a program's optimum.

    Attributes:
        bound: no solution costs less, in the program's grains; None where there is no solution.
        closed: the solver proved that its solution is the best one, up to the gap asked for.
        solution: the best solution found; None if there is none.
    """

    bound: int | None
    closed: bool
    solution: tuple[bool, ...] | None


def _highspy() -> ModuleType:
    try:
        return importlib.import_module("highspy")
    except ImportError:
        raise UsageError(
            "a bound needs the solver HiGHS, and highspy is not installed; "
            'install it with: pip install "memfit[ilp]"'
        ) from None


def highs_version() -> str:
    """Version of HiGHS.

    Raises:
        UsageError: highspy is not installed.
    """
    return str(_quiet(_highspy()).version())


def _quiet(highspy: ModuleType) -> Any:
    """A solver that prints nothing; HiGHS prints a banner when its callbacks are first enabled."""

    class Quiet(highspy.Highs):  # type: ignore[name-defined, misc]
        def enableCallbacks(self) -> None:
            self.setOptionValue("output_flag", False)
            super().enableCallbacks()

    solver = Quiet()
    solver.setOptionValue("output_flag", False)
    return solver


def solve(
    program: BinaryProgram,
    time_limit_s: float,
    *,
    gap: float = 0.0,
    enough: int | None = None,
    waiting: Callable[[], None] | None = None,
) -> Solved:
    """Solve a program, or bound its optimum.

    Args:
        program: the program.
        time_limit_s: seconds after which the best bound so far is taken.
        gap: the search stops once the best solution costs so many grains more than the bound.
        enough: the search stops once the bound has reached this.
        waiting: called now and then while the solver runs, in this thread; the search stops where
            it raises.

    Raises:
        UsageError: highspy is not installed.
    """
    highspy = _highspy()
    if program.contradiction:
        return Solved(None, True, None)
    solver = _quiet(highspy)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("time_limit", max(0.0, time_limit_s))
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("mip_abs_gap", max(gap, 1.0 - 2 * _SLACK))
    solver.passModel(_model(highspy, program))
    _run(solver, enough, waiting)
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Solved(None, True, None)
    info = solver.getInfo()
    values = solver.getSolution().col_value
    found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    closed = status == highspy.HighsModelStatus.kOptimal
    dual = info.mip_dual_bound if program.costs else 0.0
    bound = 0 if math.isinf(dual) or math.isnan(dual) else max(0, math.ceil(dual - _SLACK))
    chosen = tuple(value > 0.5 for value in values) if found else None
    return Solved(bound, closed, chosen)


def _run(solver: Any, enough: int | None, waiting: Callable[[], None] | None) -> None:
    """Run in a thread of its own, so that an interrupt from the keyboard is not lost in HiGHS."""
    stop = threading.Event()

    def look(event: Any) -> None:
        if stop.is_set() or (
            enough is not None and event.data_out.mip_dual_bound >= enough - _SLACK
        ):
            event.interrupt()

    solver.cbMipInterrupt.subscribe(look)
    thread = threading.Thread(target=solver.run, name="HiGHS", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_LOOK_EVERY_S)
            if waiting is not None:
                waiting()
    except BaseException:
        stop.set()
        thread.join()
        raise
    finally:
        # The threads of its scheduler must not outlive the one that started them.
        type(solver).resetGlobalScheduler(True)


def _model(highspy: ModuleType, program: BinaryProgram) -> Any:
    lp = highspy.HighsLp()
    count = len(program.costs)
    lp.num_col_, lp.num_row_ = count, len(program.rows)
    lp.col_cost_ = [float(c) for c in program.costs]
    lp.col_lower_, lp.col_upper_ = [0.0] * count, [1.0] * count
    infinite = highspy.kHighsInf
    lp.row_lower_ = [-infinite if low is None else float(low) for _, low, _ in program.rows]
    lp.row_upper_ = [infinite if high is None else float(high) for _, _, high in program.rows]
    starts, index, value = [0], [], []
    for row, _, _ in program.rows:
        index += [x for x, _ in row]
        value += [float(c) for _, c in row]
        starts.append(len(index))
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = starts, index, value
    lp.integrality_ = [highspy.HighsVarType.kInteger] * count
    return lp
