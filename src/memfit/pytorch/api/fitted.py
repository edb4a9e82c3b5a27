"""FittedModule: a model that trains within a budget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from memfit.errors import UsageError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.base import Progress
from memfit.pytorch.arguments import Fitted
from memfit.pytorch.backend import StepBackend
from memfit.pytorch.compat.eager import why_not_compiled
from memfit.pytorch.execute.accumulate import hand_out
from memfit.pytorch.failures.second_use import refuse_second_use
from memfit.pytorch.planning.sizes import Example, plan_ahead
from memfit.pytorch.ranks.replication import Parallel, Replication, replication_of
from memfit.pytorch.step_call import StepModule, compile_step

__all__ = ["FittedModule"]

logger = logging.getLogger("memfit")


def _guard(result: Any, given: Any) -> None:
    """Hook the tensors of a result that were made by the step, not handed through."""
    known = {id(t) for t in torch.utils._pytree.tree_leaves(given)}
    for t in torch.utils._pytree.tree_leaves(result):
        made = isinstance(t, torch.Tensor) and t.grad_fn is not None and id(t) not in known
        if made and t.requires_grad:
            t.register_hook(refuse_second_use)
        elif isinstance(t, nn.Parameter):
            hand_out(t)


class FittedModule(Fitted, nn.Module):
    """A model whose training step is planned at its first call; made by `memfit.fit`.

    It shares the model's parameters, buffers and submodules, so that `state_dict`, `parameters`,
    `to`, `train` and optimizers work as on the model itself. Other attributes are read from the
    model and written to it. In `eval()` or under `torch.no_grad()` it runs the plain model.

    Attributes:
        plan: the plan of the newest training call, None before the first.
        graph: the graph that this plan is for.
        plans: all plans so far, one for each input shape, in the order in which they were made.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Any] | None,
        make_backend: Callable[[nn.Module, Replication], StepBackend],
        parallel: Parallel | None = None,
        shapes: Sequence[Example] = (),
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self._make_backend = make_backend
        self._parallel = parallel or Parallel()
        self._shapes = tuple(shapes)
        self._progress = progress
        self._told: set[str] = set()
        self._replication: Replication | None = None
        self._takes_apart = True
        self._call: Callable[..., Any] | None = None
        self._backend: StepBackend | None = None
        self.__dict__["_loss_fn"] = loss_fn  # not a submodule: the model's are shared as they are
        self.__dict__["_model"] = model  # from here on, new attributes are the model's
        self._share()

    def _share(self) -> None:
        model = self.__dict__["_model"]
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[name] = model.__dict__[name]

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        model = self.__dict__.get("_model")
        return True if model is None else bool(model.training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "_model" in self.__dict__:
            self.__dict__["_model"].training = mode

    @property
    def plan(self) -> Plan | None:
        """The plan of the newest training call."""
        return self._backend.current.plan if self._backend and self._backend.current else None

    @property
    def graph(self) -> TrainingGraph | None:
        """The graph that this plan is for."""
        return self._backend.current.graph if self._backend and self._backend.current else None

    @property
    def plans(self) -> list[Plan]:
        """All plans so far, one for each input shape."""
        return [made.plan for made in self._backend.compiled] if self._backend else []

    def train(self, mode: bool = True) -> FittedModule:
        """Set training mode on the model."""
        self.__dict__["_model"].train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs, or the loss where `fit` was given one (the target comes last).

        Raises:
            InfeasibleBudgetError: at the first call, when no plan fits the budget.
            CaptureError: at the first call, when the model cannot be captured.
        """
        model = self.__dict__["_model"]
        if self._loss_fn is not None and len(args) < 2:
            raise UsageError(
                f"a module fitted with a loss takes its inputs and the target, got {len(args)} "
                "positional arguments; call fitted(*inputs, target)"
            )
        if not (torch.is_grad_enabled() and self.training):
            return StepModule(model, self._loss_fn)(*args, **kwargs)
        reason = why_not_compiled()
        if reason is not None:
            self._tell_plain(reason)
            return StepModule(model, self._loss_fn)(*args, **kwargs)
        replication = replication_of(model, self._parallel)
        if self._backend is not None and self._backend.stored_were_used:
            self._takes_apart, self._call = False, None
        if self._backend is not None and self._backend.layouts_differ:
            self._call = None
        if self._call is None or replication != self._replication:
            self._replication = replication
            self._backend = self._make_backend(model, replication)
            self._backend.takes_apart = self._takes_apart
            self._call = None
            call = compile_step(StepModule(model, self._loss_fn), self._backend)
            self._backend.sample = (args, kwargs)
            self._plan_ahead(call, self._backend)
            self._backend.sample = None
            self._call = call
        if self._backend is not None:
            self._backend.check_accumulation(model)
        result = self._call(*args, **kwargs)
        _guard(result, (args, kwargs))
        return result

    def _tell_plain(self, reason: str) -> None:
        """Say, once, that a step runs without a plan."""
        if reason not in self._told:
            self._told.add(reason)
            logger.warning(
                "a step of %s runs as plain PyTorch, without a plan, and may be over the budget: "
                "%s",
                type(self.__dict__["_model"]).__name__,
                reason,
            )

    def _plan_ahead(self, call: Callable[..., Any], backend: StepBackend) -> None:
        if not self._shapes:
            return
        first = next(self.parameters(), None)
        device = first.device if first is not None else torch.device("cpu")
        plan_ahead(call, self._shapes, backend.count, device, self._progress)

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise UsageError(
            "nn.DataParallel makes copies of a fitted module on several devices, which have no "
            "plan; use one process for each device and DistributedDataParallel"
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_model" not in self.__dict__:
                raise
            return getattr(self.__dict__["_model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        model = self.__dict__.get("_model")
        if model is None or name in self.__dict__ or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:  # what the model's forward reads, or a trainer's note
            setattr(model, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self.__dict__["_model"], name)

    def __getstate__(self) -> Mapping[str, Any]:
        state = dict(self.__dict__)
        state["_call"] = state["_backend"] = state["_replication"] = state["_progress"] = None
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._share()
