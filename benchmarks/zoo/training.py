"""Trains one architecture plainly and within a budget, side by side."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import memfit
from benchmarks.zoo.rungs import stands_on
from benchmarks.zoo.step import Step, call, loss_of, packages_of, resident_bytes, seed
from benchmarks.zoo.verdicts import Seen, compare
from memfit.errors import InfeasibleBudgetError
from memfit.pytorch.cost.measure import measure_step, time_steps
from memfit.pytorch.step_call import StepModule

__all__ = ["PERCENT", "STEPS", "PlainFails", "row_of"]

PERCENT = 60
STEPS = 3
ROUNDS = 5
BATCH_SEED, STEP_SEED = 100, 200

State = dict[str, torch.Tensor]


class PlainFails(Exception):
    """The step fails without memfit, or gives a loss that is not finite."""


class Training:
    """One way to train a model, from a copy of its own.

    Args:
        step: the step.
        model: the copy, which `module` runs.
        module: what is called.
    """

    def __init__(self, step: Step, model: nn.Module, module: nn.Module) -> None:
        self.model, self.module = model, module
        self._batch = step.batch
        self._optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=step.learning_rate
        )

    def inputs(self, number: int) -> Any:
        """The batch of a step; each step has another one."""
        seed(BATCH_SEED + number)
        return self._batch()

    def clear(self, number: int = 0) -> None:
        """Before a step: no gradients, and the random numbers of that step to come."""
        self._optimizer.zero_grad(set_to_none=True)
        seed(STEP_SEED + number)

    def run(self, inputs: Any) -> torch.Tensor:
        """Forward and backward."""
        loss = loss_of(call(self.module, inputs))
        loss.backward()
        return loss.detach()

    def train(self, number: int, state: State | None = None) -> tuple[Seen, int, State]:
        """A whole step: what it computed, its peak above what was there, and where it began.

        Args:
            number: of the step.
            state: parameters and buffers to begin with; None leaves those of the step before.
        """
        inputs = self.inputs(number)
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        with torch.no_grad():
            for name in tensors.keys() & (state or {}).keys():
                if not torch.equal(tensors[name], (state or {})[name]):
                    tensors[name].copy_((state or {})[name])
        began = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        losses: list[torch.Tensor] = []
        if number == 0:
            self.clear(number)
            losses.append(self.run(inputs))
            peak = 0
        else:
            measured = measure_step(
                lambda: losses.append(self.run(inputs)), warmup=0, reset=lambda: self.clear(number)
            )
            peak = measured.peak_bytes
        gradients = {
            n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None
        }
        buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        self._optimizer.step()
        return Seen(losses[-1], gradients, buffers), peak, began


@contextmanager
def memfit_log() -> Iterator[list[str]]:
    """Inside, the lines that memfit logs are added to the list."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("memfit")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


@dataclass(frozen=True)
class Plain:
    """Plain PyTorch's training.

    Attributes:
        training: goes on with it.
        steps: what each step computed.
        states: parameters and buffers before each step.
        peak_bytes: the largest peak from the second step on.
    """

    training: Training
    steps: list[Seen]
    states: list[State]
    peak_bytes: int


def plain_training(step: Step) -> Plain:
    """Train with plain PyTorch.

    Raises:
        PlainFails: it fails by itself.
    """
    model = copy.deepcopy(step.model).train()
    training = Training(step, model, StepModule(model, step.loss_fn))
    try:
        steps = [training.train(number) for number in range(STEPS)]
    except Exception as error:
        raise PlainFails(f"{type(error).__name__}: {error}") from error
    if not all(bool(torch.isfinite(seen.loss)) for seen, _, _ in steps):
        raise PlainFails(f"the loss is {[float(seen.loss) for seen, _, _ in steps]}")
    seen, peaks, states = (list(one) for one in zip(*steps, strict=True))
    return Plain(training, seen, states, max(peaks))


def row_of(step: Step) -> dict[str, Any]:
    """The figures of an architecture; those of the plain step alone where memfit refuses it.

    Raises:
        PlainFails: plain PyTorch cannot train it.
    """
    plain = plain_training(step)
    resident = resident_bytes(step.model, plain.training.inputs(0))
    row: dict[str, Any] = {
        "packages": packages_of(step.model),
        "parameters": sum(p.numel() for p in step.model.parameters()),
        "resident_bytes": resident,
        "plain_peak_bytes": plain.peak_bytes,
        "share_budget_bytes": (resident + plain.peak_bytes) * PERCENT // 100,
    }
    with memfit_log() as log:
        try:
            return row | _fitted_figures(step, row["share_budget_bytes"], plain, log)
        except Exception as error:
            return row | {"outcome": "refused", **refusal(error), "log": list(dict.fromkeys(log))}


def refusal(error: BaseException) -> dict[str, str]:
    """The class of an error, its first line, and the first lines of what it came from."""
    lines = str(error).strip().splitlines() or [""]
    cause = error.__cause__
    of = f"{type(cause).__name__}: {str(cause).strip().splitlines()[:1]}" if cause else ""
    return {"error": type(error).__name__, "line": lines[0], "from": of}


def _fitted_figures(step: Step, budget_bytes: int, plain: Plain, log: list[str]) -> dict[str, Any]:
    began = time.perf_counter()
    budget = "60%"
    try:
        fitted = _fitted(step, budget_bytes)
        first = fitted.train(0)
    except InfeasibleBudgetError as error:
        budget, budget_bytes = "smallest feasible", error.minimum_bytes
        log.clear()
        fitted = _fitted(step, budget_bytes)
        first = fitted.train(0)
    seconds = time.perf_counter() - began
    steps = [first, *(fitted.train(number, plain.states[number]) for number in range(1, STEPS))]
    peak = max(peak for _, peak, _ in steps)
    comparison = compare([seen for seen, _, _ in steps], plain.steps)
    found = {
        "outcome": "trained",
        "budget": budget,
        "budget_bytes": budget_bytes,
        "fitted_peak_bytes": peak,
        "verdict": comparison.verdict,
        "difference": comparison.difference,
        "difference_in": comparison.where,
        "first_step_s": round(seconds, 2),
    }
    times = _times(plain.training, fitted)
    return found | _plan_figures(fitted, peak, log) | times


def _fitted(step: Step, budget_bytes: int) -> Training:
    model = copy.deepcopy(step.model).train()
    return Training(step, model, memfit.fit(model, step.loss_fn, budget=budget_bytes))


def _plan_figures(fitted: Training, peak: int, log: list[str]) -> dict[str, Any]:
    """What the plan says, and whether the measured peak keeps to its budget."""
    plan, graph = fitted.module.plan, fitted.module.graph
    if plan is None or graph is None:
        return {"held": False, **_stands(log, []), "log": list(dict.fromkeys(log))}
    return {
        "held": graph.resident_bytes + peak <= plan.budget_bytes,
        "graph_resident_bytes": graph.resident_bytes,
        "planned_peak_bytes": plan.peak_bytes,
        "smallest_budget_bytes": plan.smallest_feasible_budget_bytes,
        "captures": len(fitted.module.plans),
        "ops": len(graph.ops),
        "overhead_planned": round(plan.overhead_percent / 100, 4),
        **_stands(log, plan.notes),
        "log": list(dict.fromkeys(log)),
    }


def _stands(log: list[str], notes: Any) -> dict[str, Any]:
    stands = stands_on(log, notes)
    return {"rung": stands.rung, "opaque": list(stands.modules)}


def _times(plain: Training, fitted: Training) -> dict[str, Any]:
    """Processor times of both, of the same batch, in turn."""
    inputs = plain.inputs(STEPS)

    def timed(training: Training) -> Any:
        def run() -> None:
            training.clear()
            training.run(inputs)

        return run

    ways: Mapping[str, Any] = {"plain": timed(plain), "fitted": timed(fitted)}
    times = time_steps(ways, rounds=ROUNDS)
    return {
        "plain_ms": round(times["plain"].cpu_ns / 1e6, 2),
        "fitted_ms": round(times["fitted"].cpu_ns / 1e6, 2),
    }
