"""One program: planned by every planner at several budgets, against plain PyTorch."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

import memfit
from memfit.errors import ExecutionError, InfeasibleBudgetError, MemfitError, UsageError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.registry import PLANNERS
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.executors import MakeBackend
from memfit.pytorch.options import step_options
from programs.compare import Difference, compare, same_bits
from programs.exchange import Capture, recording
from programs.program import Program, in_float64
from programs.trial import Seen, Trial, quiet

__all__ = ["BUDGETS", "Finding", "Pair", "Verdict", "cause_of", "check", "pairs_for"]

SMALLEST = "smallest"
BUDGETS = ("100%", "70%", "45%", SMALLEST)
OTHERS = tuple(p for p in PLANNERS if p != "store-all")
SHARES = {"exact": 0.4, "nested": 0.4, "refined": 0.25}  # of the slow ones
ROUNDING = {"float32": 1e-3, "float64": 1e-9, "bfloat16": 0.2}
EXACT = 1e-9  # relative, in float64

Pair = tuple[str, str]


@dataclass(frozen=True)
class Finding:
    """Something that is not right.

    Attributes:
        kind: `wrong`, `over budget`, `raw error`, `minimum`, `plan` or `evaluation`.
        cause: one line; alike for findings of one cause.
        planner: the planner.
        budget: the budget asked for.
        detail: more lines for people.
    """

    kind: str
    cause: str
    planner: str = ""
    budget: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of a program.

    Attributes:
        status: `right`, `found`, `refused`, or `unfit` where plain PyTorch fails.
        cause: why it was refused or unfit.
        message: the error's own message.
        findings: what is not right.
        runs: number of plans that ran.
        infeasible: number of budgets that a planner could not meet.
        rounded: largest relative difference from eager that rounding explains.
    """

    status: str
    cause: str = ""
    message: str = ""
    findings: tuple[Finding, ...] = ()
    runs: int = 0
    infeasible: int = 0
    rounded: float = 0.0


@dataclass
class _Progress:
    findings: list[Finding] = field(default_factory=list)
    runs: int = 0
    infeasible: int = 0
    rounded: float = 0.0
    wide: bool | None = None  # whether float64 explains differences


def cause_of(error: BaseException) -> str:
    """An error's type and message without names and numbers, to count by."""
    text = " ".join(str(error).split())
    text = re.sub(r" at <random_program_\d+>:\d+|<random_program_\d+>:\d+", "", text)
    text = re.sub(r"0x[0-9a-f]+|\b\d[\d.,e+-]*\b", "N", text)
    text = re.sub(r"\b[a-z]\w*_\d+\b|\b[vxbmps]\d+\b", "V", text)
    return f"{type(error).__name__}: {text[:200]}"


def pairs_for(seed: int, others: int = 3) -> tuple[Pair, ...]:
    """What a program is planned by: `auto`, and others in turn."""
    random = Random(seed * 31 + 7)
    chosen = [("auto", SMALLEST), ("auto", random.choice(BUDGETS[1:3]))]
    rest = [(p, b) for p in OTHERS for b in BUDGETS]
    weights = [SHARES.get(p, 1.0) for p, _ in rest]
    chosen += random.choices(rest, weights, k=others)
    return tuple(dict.fromkeys(chosen))


def check(
    program: Program,
    pairs: Sequence[Pair] | None = None,
    *,
    measured: bool = False,
    fresh: bool = False,
) -> Verdict:
    """Run a program.

    Args:
        program: the program.
        pairs: planners and budgets; those that `pairs_for` gives by default.
        measured: costs and peaks are measured.
        fresh: one pair is run by a fitted module of its own, too.
    """
    with quiet():
        try:
            trial = Trial(program)
            eager = trial.run(trial.plain)
            _check_sane(eager)
            evaluated = _tried(trial.evaluate)
        except Exception as error:
            return Verdict("unfit", cause_of(error))
        return _Check(program, eager, evaluated, measured).all(
            pairs_for(program.seed) if pairs is None else pairs, fresh
        )


def _check_sane(seen: Seen) -> None:
    for step in seen:
        if not any(n.startswith("gradient") and t is not None for n, t in step.items()):
            raise ValueError("no gradient")
        for name, t in step.items():
            if t is not None and t.is_floating_point() and not bool(t.isfinite().all()):
                raise ValueError(f"{name.split()[0]} is not finite")


def _tried(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception:
        return None


class _Check:
    def __init__(self, program: Program, eager: Seen, evaluated: Any, measured: bool) -> None:
        self.program = program
        self.eager = eager
        self.evaluated = evaluated
        self.measured = measured
        self.cost = "measured" if measured else "analytic"
        self.done = _Progress()
        self.met: set[str] = set()  # planners that have run at their smallest budget
        # AOTAutograd remembers positions of saved tensors whose sizes depend on data: where other
        # graphs cannot take the place of the first, each pair is fitted anew.
        self.exchangeable = True

    def all(self, pairs: Sequence[Pair], fresh: bool) -> Verdict:
        torch._dynamo.reset()
        trial = Trial(self.program)
        with recording() as captures_of:
            fitted = memfit.fit(
                trial.model,
                trial.loss,
                budget="100%",
                planner="auto",
                cost=self.cost,
                fullgraph=True,
                accumulate=self.program.accumulate,
            )
            try:
                seen = trial.run(fitted)
            except MemfitError as error:
                return self._refused(error)
            except Exception as error:
                self._raw(error, "auto", "100%")
                return self._verdict()
            self._compare(seen, "auto", "100%", None)
            captures = captures_of(fitted)
            if not captures:
                return self._verdict()
            self._evaluate(trial, fitted)
            kept = self._keeping_everything(trial, fitted, captures)
            for planner, budget in pairs:
                if self.exchangeable:
                    self._pair(trial, fitted, captures, planner, budget, kept)
                else:
                    self._fresh(planner, budget)
        if fresh and pairs:
            self._fresh(*Random(self.program.seed).choice(list(pairs)))
        return self._verdict()

    def _verdict(self) -> Verdict:
        done = self.done
        status = "found" if done.findings else "right"
        return Verdict(
            status, "", "", tuple(done.findings), done.runs, done.infeasible, done.rounded
        )

    def _refused(self, error: MemfitError) -> Verdict:
        if "\n" in str(error) or isinstance(error, (InfeasibleBudgetError, ExecutionError)):
            self._find("raw error", cause_of(error), "auto", "100%", str(error))
            return self._verdict()
        return Verdict("refused", cause_of(error), str(error))

    def _find(self, kind: str, cause: str, planner: str, budget: str, detail: str = "") -> None:
        self.done.findings.append(Finding(kind, cause, planner, budget, detail))

    def _raw(self, error: Exception, planner: str, budget: str) -> None:
        lines = "".join(traceback.format_exception(error)[-4:])
        self._find("raw error", cause_of(error), planner, budget, lines[-3000:])

    def _unplanned(self, error: UsageError, planner: str, budget: str) -> None:
        if planner == "revolve":  # the graph is no chain
            self.done.infeasible += 1
        else:
            self._raw(error, planner, budget)

    def _evaluate(self, trial: Trial, fitted: Any) -> None:
        if self.evaluated is None:
            return
        try:
            ours = trial.evaluate(fitted)
        except Exception as error:
            self._raw(error, "eval()", "")
            return
        if not all(same_bits(a, b) for a, b in zip(ours, self.evaluated, strict=True)):
            self._find("evaluation", "outputs in eval() differ", "eval()", "")

    def _keeping_everything(
        self, trial: Trial, fitted: Any, captures: Sequence[Capture]
    ) -> Seen | None:
        try:
            for capture in captures:
                capture.exchange(self._decide(trial, capture.graph, "store-all", "100%"))
            return trial.run(fitted)
        except Exception as error:
            self._raw(error, "store-all", "100%")
            return None

    def _decide(self, trial: Trial, graph: TrainingGraph, planner: str, budget: str | int) -> Plan:
        options = step_options(
            "memfit.fit", {"budget": budget, "planner": planner, "cost": self.cost}
        )
        return MakeBackend.of(trial.model, options).fresh.decide(graph)

    def _smallest(self, trial: Trial, graph: TrainingGraph, planner: str) -> Plan:
        try:
            return self._decide(trial, graph, planner, 1)
        except InfeasibleBudgetError as error:
            minimum = error.minimum_bytes
        try:
            plan = self._decide(trial, graph, planner, minimum)
        except InfeasibleBudgetError:
            self._find("minimum", f"{planner} fails at the minimum it names", planner, str(minimum))
            raise
        for less in (1, Random(self.program.seed).randint(2, max(2, minimum // 10))):
            try:
                self._decide(trial, graph, planner, max(1, minimum - less))
            except InfeasibleBudgetError as error:
                if error.minimum_bytes == minimum:
                    continue
                self._find("minimum", f"{planner} names two minima", planner, str(minimum))
            else:
                self._find("minimum", f"{planner} meets less than its minimum", planner,
                           f"{minimum} - {less}")  # fmt: skip
            break
        return plan

    def _pair(
        self,
        trial: Trial,
        fitted: Any,
        captures: Sequence[Capture],
        planner: str,
        budget: str,
        kept: Seen | None,
    ) -> None:
        try:
            if budget == SMALLEST:
                if planner in self.met:
                    return
                self.met.add(planner)
                plans = [self._smallest(trial, c.graph, planner) for c in captures]
            else:
                plans = [self._decide(trial, c.graph, planner, budget) for c in captures]
            for capture, plan in zip(captures, plans, strict=True):
                capture.exchange(plan)
            self.done.runs += 1
            seen = trial.run(fitted)
        except InfeasibleBudgetError:
            self.done.infeasible += 1
            if budget != SMALLEST:  # then it runs with the least that it can
                self._pair(trial, fitted, captures, planner, SMALLEST, kept)
            return
        except UsageError as error:
            self._unplanned(error, planner, budget)
            return
        except Exception:
            self.exchangeable = False
            self._fresh(planner, budget)
            return
        if any(plan.peak_bytes > plan.budget_bytes for plan in plans):
            self._find("plan", "the plan's own peak is over its budget", planner, budget)
        if kept is not None:
            difference = compare(seen, kept)
            if difference is not None:
                self._find("wrong", f"not the bits of keeping everything: {_kind(difference)}",
                           planner, budget, str(difference))  # fmt: skip
                return
        self._compare(seen, planner, budget, None)
        if self.measured and not self.program.objective.startswith("sum"):
            self._measure(trial, fitted, captures[0].graph, plans[0], planner, budget)

    def _measure(
        self,
        trial: Trial,
        fitted: Any,
        graph: TrainingGraph,
        plan: Plan,
        planner: str,
        budget: str,
    ) -> None:
        trial.reset()
        given = trial.given(0)
        if self.program.accumulate:
            return
        measured = measure_step(lambda: trial.step(fitted, given), warmup=0)
        total = measured.peak_bytes + graph.resident_bytes
        if total > plan.budget_bytes:
            over = 100 * (total / plan.budget_bytes - 1)
            self._find(
                "over budget",
                "the measured peak is over the budget",
                planner,
                budget,
                f"{over:.2f}%: measured {total}, planned {plan.peak_bytes}, budget "
                f"{plan.budget_bytes}, resident {graph.resident_bytes}",
            )

    def _compare(self, seen: Seen, planner: str, budget: str, wide: bool | None) -> None:
        difference = compare(seen, self.eager)
        if difference is None:
            return
        limit = ROUNDING[self.program.dtype]
        exact = [n for n in difference.bits if "random state" in n]
        if exact or difference.relative == float("inf"):
            self._find("wrong", f"not plain PyTorch's: {_kind(difference)}", planner, budget,
                       str(difference))  # fmt: skip
            return
        if self.program.dtype == "float64" and "bfloat16" not in str(self.program.statements):
            right = difference.relative < EXACT
        else:
            right = self._right_in_float64()
        if not right:
            self._find("wrong", f"not plain PyTorch's beyond rounding: {_kind(difference)}",
                       planner, budget, str(difference))  # fmt: skip
        elif difference.relative > limit:
            self._find("suspect", f"rounding explains much: {_kind(difference)}", planner, budget,
                       str(difference))  # fmt: skip
        else:
            self.done.rounded = max(self.done.rounded, difference.relative)

    def _right_in_float64(self) -> bool:
        """Whether the program is right where rounding is small; found out once."""
        if self.done.wide is None:
            with quiet():  # the program in hand goes on in its own type
                self.done.wide = _right_in_float64(in_float64(self.program))
        return self.done.wide

    def _fresh(self, planner: str, budget: str) -> None:
        """The pair as users run it: a fitted module of its own."""
        torch._dynamo.reset()
        trial = Trial(self.program)
        given: str | int = 1 if budget == SMALLEST else budget
        for _ in range(2):
            fitted = memfit.fit(trial.model, trial.loss, budget=given, planner=planner,
                                cost=self.cost, accumulate=self.program.accumulate,
                                fullgraph=True)  # fmt: skip
            try:
                seen = trial.run(fitted)
            except InfeasibleBudgetError as error:
                if budget != SMALLEST:
                    return
                given = error.minimum_bytes
            except UsageError as error:
                self._unplanned(error, planner, budget)
                return
            except Exception as error:
                self._raw(error, planner, f"{budget}, fitted anew")
                return
            else:
                self.done.runs += 1
                self._compare(seen, planner, f"{budget}, fitted anew", None)
                return
        self._find("minimum", f"{planner} fails at the minimum it names", planner, str(given))


def _right_in_float64(program: Program) -> bool:
    trial = Trial(program)
    try:
        eager = trial.run(trial.plain)
    except Exception:
        return True  # it does not run in this type; what rounding hides stays hidden
    trial = Trial(program)
    fitted = memfit.fit(
        trial.model,
        trial.loss,
        budget="100%",
        cost="analytic",
        accumulate=program.accumulate,
        fullgraph=True,
    )
    try:
        seen = trial.run(fitted)
    except MemfitError:
        return False
    difference = compare(seen, eager)
    return difference is None or difference.relative < EXACT


def _kind(difference: Difference) -> str:
    """What differs, without names."""
    names = {re.sub(r"step \d, | of input x\d+| [\w.]+$", "", n).strip() for n in difference.bits}
    missing = ", missing or of another shape" if difference.relative == float("inf") else ""
    return ", ".join(sorted(names)) + missing
