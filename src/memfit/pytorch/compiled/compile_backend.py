"""`torch.compile(model, backend="memfit", options={"budget": "6GiB"})`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import fx

from memfit.errors import MemfitError, UsageError
from memfit.graph.plan import Plan
from memfit.pytorch.arguments import short
from memfit.pytorch.capture.given import unread_bytes
from memfit.pytorch.capture.stored_outputs import take_apart
from memfit.pytorch.compat.dynamo import (
    FrameTraced,
    arguments_traced,
    ending_break,
    register_backend,
    shown_by_dynamo,
    stored_outputs,
    tracing_for,
    without_dropped_writes,
)
from memfit.pytorch.compiled.left import Left
from memfit.pytorch.compiled.planned_graph import PlannedGraph, SymbolicGraph
from memfit.pytorch.compiled.runs import StepRuns
from memfit.pytorch.compiled.specialise import has_symbols
from memfit.pytorch.options import step_options
from memfit.pytorch.planning.fresh import Fresh

__all__ = ["memfit_backend", "plans", "register"]

_WITHOUT = ("plan", "loops", "fullgraph", "overlap", "same_plan", "shapes", "max_shapes")


@dataclass
class _Call:
    """What belongs to one call of `torch.compile`, known by its dict of options.

    Attributes:
        options: the dict.
        content: what it held then.
        step: the step that all graphs belong to.
        graphs: the graphs.
    """

    options: Mapping[str, Any]
    content: Mapping[str, Any]
    step: StepRuns
    graphs: list[PlannedGraph | SymbolicGraph] = field(default_factory=list)

    @property
    def stored_were_used(self) -> bool:
        """Whether a loss has read what forward stores and a plan had no gradient of."""
        planned = (graph for graph in self.graphs if isinstance(graph, PlannedGraph))
        return any(graph.stored is not None and graph.stored.used for graph in planned)


# A call goes when the last of its graphs does, and its dict with it, whose id is then free.
_calls: WeakValueDictionary[int, _Call] = WeakValueDictionary()


def _fresh(options: Mapping[str, Any]) -> Fresh:
    made = step_options("backend memfit", options, without=_WITHOUT, budget=False)
    if made.planning.budget is None:
        raise UsageError(
            'backend memfit has no budget; write torch.compile(model, backend="memfit", '
            'options={"budget": "6GiB"})'
        )
    return Fresh(made)


def _call_of(options: Mapping[str, Any]) -> _Call:
    call = _calls.get(id(options))
    if call is None or call.content != options:  # a dict may be changed and used again
        call = _Call(options, dict(options), StepRuns(_fresh(options)))
        _calls[id(options)] = call
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
    Graphs without a backward pass run plainly. Of a graph with symbolic sizes, a copy is planned
    and compiled for each combination of sizes that it is called with.

    Args:
        module: Dynamo's graph.
        example_inputs: its inputs; parameters and buffers among them.
        options: `budget` (required), `planner`, `mode`, `cost`, `time_limit_s`, `executor`,
            `accumulate`, `optimizer` or `optimizer_bytes`, `progress` as for `memfit.fit`.
            Parameters that no graph reads are not known here, and not counted; inputs that are not
            read are counted where the function is one graph.
        mode: must be left out; `torch.compile`'s modes are Inductor's.

    Raises:
        UsageError: an option is unknown, or wrong.
        InfeasibleBudgetError: no plan fits.
        ExecutionError: Inductor cannot generate code.
    """
    try:
        return _compiled(module, example_inputs, options if options is not None else {}, mode)
    except MemfitError as error:
        raise shown_by_dynamo(error) from None


def _compiled(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    options: Mapping[str, Any],
    mode: str | None,
) -> Callable[..., Any]:
    if mode is not None:
        raise UsageError(
            f'backend memfit has no mode {mode!r}; choose options={{"executor": "inductor"}} '
            "instead"
        )
    if not isinstance(options, Mapping):
        raise UsageError(
            f"options of backend memfit is {short(options)}; give a dictionary, such as "
            '{"budget": "6GiB"}'
        )
    without_dropped_writes()
    call = _call_of(options)
    line = ending_break(module)
    # What a graph before a break does not read may be read by one after it.
    unread = 0 if line else unread_bytes(arguments_traced(), example_inputs)
    graph: PlannedGraph | SymbolicGraph
    if has_symbols(module):
        graph = SymbolicGraph(call.step, module, line, unread, call)
    else:
        if not call.stored_were_used:
            take_apart(module, stored_outputs(module))
        call.step.begin()
        graph = PlannedGraph(call.step, module, example_inputs, line, unread, call)
    call.graphs.append(graph)
    return graph


def plans(options: Mapping[str, Any]) -> list[Plan]:
    """The plans that the graphs compiled with this very dict of options follow.

    One for each graph and combination of sizes, in the order in which these were first compiled.
    A plan that was exchanged for another is no longer there.
    """
    call = _calls.get(id(options))
    if call is None:
        return []
    planned: list[PlannedGraph] = []
    for graph in call.graphs:
        planned.extend([graph] if isinstance(graph, PlannedGraph) else graph.variants.values())
    return [graph.plan for graph in planned if graph.plan is not None]


def _reset() -> None:
    """Forget all graphs; `torch.compiler.reset` calls it."""
    for call in _calls.values():
        call.step.close()
    _calls.clear()


memfit_backend.reset = _reset  # type: ignore[attr-defined]


def register() -> None:
    """Make `backend="memfit"` known where memfit is not installed (run from a checkout).

    PyTorch finds installed backends by their entry point.
    """
    if not entry_points(group="torch_dynamo_backends", name="memfit"):
        register_backend("memfit", memfit_backend)


def _given_up(frame: FrameTraced) -> None:
    """Dynamo leaves a call to plain PyTorch, perhaps with graphs of what is called inside."""
    if not torch.is_grad_enabled() or isinstance(frame.error, MemfitError):
        return
    try:
        call = _call_of(frame.options)
    except MemfitError:  # told where there is a graph
        return
    call.step.leave(Left.of(frame), call)


register()
tracing_for(memfit_backend, _given_up)
