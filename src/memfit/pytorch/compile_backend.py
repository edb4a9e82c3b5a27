"""`torch.compile(model, backend="memfit", options={"budget": "6GiB"})`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import fx

from memfit.errors import UsageError
from memfit.graph import TrainingGraph, ValueKind
from memfit.plan import Plan
from memfit.planners.base import PlannerOptions
from memfit.planners.registry import get_planner
from memfit.pytorch.api import COSTS, EXECUTORS, Settings
from memfit.pytorch.backend import StepBackend
from memfit.pytorch.compat import check_torch_version
from memfit.pytorch.compat_inductor import (
    compile_code_id,
    ending_break,
    plain_inductor,
    register_backend,
)
from memfit.pytorch.step_budget import BudgetWarning, StepBudget
from memfit.units import parse_budget, parse_bytes

__all__ = ["memfit_backend", "plans", "register"]

_DEFAULTS: dict[str, Any] = {
    "budget": None,
    "planner": "auto",
    "mode": "auto",
    "cost": "measured",
    "executor": "eager-graph",
    "optimizer_bytes": 0,
    "time_limit_s": None,
}


@dataclass
class _Call:
    """What belongs to one call of `torch.compile`, known by its dict of options."""

    options: Mapping[str, Any]
    settings: Settings
    optimizer_bytes: int
    budget: StepBudget
    backends: list[StepBackend]


_calls: dict[int, _Call] = {}


def _settings(options: Mapping[str, Any]) -> tuple[Settings, int]:
    known = ", ".join(_DEFAULTS)
    unknown = [name for name in options if name not in _DEFAULTS]
    if unknown:
        raise UsageError(f"unknown option {unknown[0]!r} of backend memfit; known options: {known}")
    given = {**_DEFAULTS, **options}
    if given["budget"] is None:
        raise UsageError(
            'backend memfit has no budget; write torch.compile(model, backend="memfit", '
            'options={"budget": "6GiB"})'
        )
    for name, allowed in (("executor", EXECUTORS), ("cost", COSTS)):
        if given[name] not in allowed:
            raise UsageError(f"unknown {name} {given[name]!r}; known {name}s: {', '.join(allowed)}")
    get_planner(given["planner"])
    optimizer_bytes = given["optimizer_bytes"]
    limit = given["time_limit_s"]
    if limit is not None and not limit >= 0:
        raise UsageError(f"time_limit_s is {limit!r}; give seconds, 0 or more, or None")
    settings = Settings(
        budget=parse_budget(given["budget"]),
        planner=given["planner"],
        options=PlannerOptions(mode=given["mode"], time_limit_s=limit),
        cost=given["cost"],
        optimizer=None,
        executor=given["executor"],
    )
    return settings, parse_bytes(optimizer_bytes) if optimizer_bytes else 0


def _call_of(options: Mapping[str, Any]) -> _Call:
    call = _calls.get(id(options))
    if call is None:
        settings, optimizer_bytes = _settings(options)
        call = _Call(options, settings, optimizer_bytes, StepBudget(), [])
        _calls[id(options)] = call  # holds the dict, so that its id stays its own
    return call


def memfit_backend(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The backend that `torch.compile` calls, once for each graph that Dynamo makes.

    All graphs compiled with one dict of options belong to one training step and share its budget.
    Graphs without a backward pass run plainly.

    Args:
        module: Dynamo's graph.
        example_inputs: its inputs; parameters and buffers among them.
        options: `budget` (required), `planner`, `mode`, `cost`, `time_limit_s`, `executor` as for
            `memfit.fit`; `optimizer_bytes`, the size of the optimizer's state, counted into the
            budget. Parameters that no graph reads are not known here, and not counted.
        mode: must be left out; `torch.compile`'s modes are Inductor's.

    Raises:
        UsageError: an option is unknown, or wrong. Dynamo wraps it into its own error.
        InfeasibleBudgetError: no plan fits; wrapped as well.
    """
    check_torch_version()
    if mode is not None:
        raise UsageError(
            f'backend memfit has no mode {mode!r}; choose options={{"executor": "inductor"}} '
            "instead"
        )
    call = _call_of(options if options is not None else {})
    if any(isinstance(x, torch.SymInt) for x in example_inputs):
        warnings.warn(
            "a graph with dynamic shapes runs without a plan, so that its budget is not kept; pass "
            "dynamic=False to torch.compile for a plan for each shape",
            BudgetWarning,
            stacklevel=2,
        )
        return plain_inductor(module, example_inputs)
    return _backend(call, module, example_inputs)(module, example_inputs)


def _backend(call: _Call, module: fx.GraphModule, example_inputs: Sequence[Any]) -> StepBackend:
    key = compile_code_id() or len(call.budget.shares)
    line = ending_break(module)
    first = next((x for x in example_inputs if isinstance(x, torch.Tensor)), None)
    settings = replace(call.settings, device=first.device if first is not None else None)

    def decide(graph: TrainingGraph) -> Plan:
        budget_bytes = settings.resolve(graph)
        return call.budget.plan(key, graph, budget_bytes, line, settings.decide_within)

    resident = {ValueKind.OPTIMIZER: call.optimizer_bytes}
    name = "the compiled graph"
    backend = settings.backend_for(
        decide=decide,
        resident=resident,
        name=name,
        optimizer_bytes=call.optimizer_bytes,
        held=call.budget.held_for(key),
    )
    call.backends.append(backend)
    return backend


def plans(options: Mapping[str, Any]) -> list[Plan]:
    """The plans made so far with this very dict of options, in the order of compilation."""
    call = _calls.get(id(options))
    if call is None:
        return []
    return [compiled.plan for backend in call.backends for compiled in backend.compiled]


def _reset() -> None:
    """Forget all graphs; `torch.compiler.reset` calls it."""
    _calls.clear()


memfit_backend.reset = _reset  # type: ignore[attr-defined]


def register() -> None:
    """Make `backend="memfit"` known where memfit is not installed (run from a checkout).

    PyTorch finds installed backends by their entry point.
    """
    if not entry_points(group="torch_dynamo_backends", name="memfit"):
        register_backend("memfit", memfit_backend)


register()
