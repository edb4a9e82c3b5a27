"""A training step, compiled: what a call goes through, and how its errors reach the caller."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from memfit.errors import CaptureError, InfeasibleBudgetError, MemfitError, UsageError
from memfit.pytorch.backend import StepBackend
from memfit.pytorch.branches.ops import OtherOutcome
from memfit.pytorch.branches.outcomes import Outcomes, Restart, Way
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.capture.given import Given
from memfit.pytorch.capture.stored_outputs import take_apart
from memfit.pytorch.compat.constants import constants_known
from memfit.pytorch.compat.dynamo import (
    code_not_traced,
    depends_on_data,
    stored_outputs,
    without_dropped_writes,
)
from memfit.pytorch.compat.eager import why_not_compiled
from memfit.pytorch.compat.symbols import DependsOnData
from memfit.pytorch.failures.first_run import FirstRun
from memfit.pytorch.failures.told import is_own_fault, told
from memfit.pytorch.layouts.sparse import apart
from memfit.pytorch.opaque.ladder import Ladder
from memfit.pytorch.planning.capture_only import CaptureEnds
from memfit.pytorch.planning.sizes import PlannedAhead
from memfit.pytorch.prepare.batch_norm import has_cumulative_average, traceable_cumulative_average
from memfit.pytorch.prepare.tracing import trace_settings
from memfit.pytorch.prepare.unguarded import Unguarded

__all__ = ["StepModule", "captured_graph", "compile_step", "no_leaf_warnings"]


class StepModule(nn.Module):
    """The computation that is planned: the model, and the loss where one is given."""

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`model(*args)`, or `loss_fn(model(*inputs), target)` with the target last in `args`."""
        if self.loss_fn is None:
            return self.model(*args, **kwargs)
        return self.loss_fn(self.model(*args[:-1], **kwargs), args[-1])


def compile_step(
    step: StepModule, backend: StepBackend, *, thrifty: bool = False
) -> Callable[..., Any]:
    """`step`, compiled by `backend` at its first call, with memfit's errors unwrapped.

    Args:
        step: the step.
        backend: plans and runs it.
        thrifty: opaque modules compute their blocks again.
    """
    compiled: dict[tuple[int, Way | None], Callable[..., Any]] = {}
    unguarded = Unguarded(step.model, step.loss_fn)  # for each state of what Dynamo does not guard
    averages = has_cumulative_average(step.model)
    first_run = FirstRun(step)
    constants: Callable[[], AbstractContextManager[Any]] = nullcontext
    ladder = Ladder(step, thrifty=thrifty)
    outcomes = Outcomes(step, type(step.model).__name__)
    outgrown: OtherOutcome | None = None  # a branch that goes too many ways

    def run(way: Way | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        averaging = traceable_cumulative_average() if averages else nullcontext()
        given = Given(step.model, args, kwargs)
        backend.compiling(given)
        place = unguarded.state(), way
        if place not in compiled:
            compiled[place] = _compiled(step, backend, partial(outcomes.paused, way))
        settings = trace_settings(backend.count.most)
        branches = outcomes.known(way)
        opaque = ladder.installed()
        with settings, averaging, constants(), branches, no_leaf_warnings(args, kwargs), opaque:
            if not backend.fullgraph:
                args, kwargs = apart((args, kwargs))
            result = compiled[place](*args, **kwargs)
        backend.called(given)
        return result

    def mended(error: Exception, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether there is another way to trace a step than that which ended in an error."""
        nonlocal averages, constants
        if backend.error is None and not averages and has_cumulative_average(step.model):
            averages = True  # since the last time
            return True
        reads_data = _reads_data(backend.error or error)
        if constants is nullcontext and reads_data:
            constants = constants_known
            return True
        sample = backend.sample or (args, kwargs)
        if backend.error is None and first_run.prepares(error, *sample):
            return True
        cause = backend.error or error
        by_numbers = reads_data or (outcomes.may_pin and code_not_traced(error))
        if by_numbers and backend.branches and outcomes.learn(cause, args, kwargs, sample):
            return True
        refused = isinstance(cause, MemfitError) and not isinstance(cause, CaptureError)
        if not (backend.fullgraph or refused) and ladder.climb(cause, *sample):
            return True
        if isinstance(cause, InfeasibleBudgetError) and ladder.save(*sample):
            backend.budget_bytes = cause.budget_bytes  # a share of the plain step stays that
            return True
        return False

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal outgrown
        if outgrown is not None:
            if not backend.fullgraph and ladder.climb(outcomes.error_of(outgrown), args, kwargs):
                compiled.clear()
                outcomes.forget()
            outgrown = None
        if not backend.fullgraph:
            ladder.admit(args, kwargs, backend.sample)
        before = len(backend.compiled)
        other: OtherOutcome | None = None
        for way in outcomes.ways(args, kwargs):
            may_end_early = backend.checked or not backend.compiled
            restart = Restart(ladder.states()) if may_end_early else None
            try:
                result = run(way, args, kwargs)
            except PlannedAhead:
                raise
            except Exception as error:
                inner = getattr(error, "inner_exception", error)
                if isinstance(inner, CaptureEnds):
                    raise CaptureEnds(inner.step) from None
                if isinstance(error, OtherOutcome):
                    other = error.with_traceback(None)  # which holds what the step has made
                    if restart is not None:
                        restart.back()
                    continue
                if mended(error, args, kwargs):
                    return call(*args, **kwargs)
                taken = args if step.loss_fn is None else args[:-1]
                cause = told(step.model, error, backend.error, taken, kwargs)
                backend.failed(cause)
                if cause is error:
                    raise
                raise cause from (error if is_own_fault(cause) else None)
            finally:
                backend.given, backend.error = Given(), None
            if way is not None:
                outcomes.went(way, args, kwargs)
            if len(backend.compiled) > before:
                unguarded.look_again(backend.traced)
            return result
        assert other is not None
        result, full = outcomes.plainly(other, args, kwargs)
        outgrown = other if full else None
        return result

    return call


def _reads_data(error: Exception) -> bool:
    if isinstance(error, MemfitError):
        return isinstance(error, DependsOnData)
    return depends_on_data(error)


def _compiled(
    step: StepModule, backend: StepBackend, paused: Callable[[], AbstractContextManager[None]]
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    # Dynamo limits compilations by code object: every fitted module has its own, and its own limit.
    run.__code__ = run.__code__.replace(co_name=f"run_{type(step.model).__name__}")

    def compile_graph(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        without_dropped_writes()
        if backend.takes_apart:
            take_apart(module, stored_outputs(module))
        with paused():
            return backend(module, example_inputs)

    return torch.compile(run, backend=compile_graph, fullgraph=True, dynamic=False)


@contextmanager
def no_leaf_warnings(*given: Any) -> Iterator[None]:
    """While Dynamo compiles, it reads `.grad` of inputs that others computed, which warns."""
    leaves = torch.utils._pytree.tree_leaves(given)
    if not any(isinstance(x, torch.Tensor) and not x.is_leaf for x in leaves):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        yield


def captured_graph(
    step: StepModule,
    backend: StepBackend,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    thrifty: bool = False,
) -> CapturedStep:
    """The step as captured, without running it; see `compile_step`.

    Raises:
        CaptureError: the model cannot be captured as one graph, or has nothing to train.
    """
    reason = why_not_compiled()
    if reason is not None:
        raise UsageError(f"{type(step.model).__name__} cannot be captured while {reason}; end that")
    captured: CapturedStep | None = None
    try:
        with torch.enable_grad():
            compile_step(step, backend, thrifty=thrifty)(*args, **kwargs)
    except CaptureEnds as ended:
        captured = ended.step
    if captured is None:
        raise CaptureError(
            f"{type(step.model).__name__} has no backward pass for these inputs: no output depends "
            "on a tensor that requires gradients; set requires_grad on what you train"
        )
    gc.collect()
    return captured
