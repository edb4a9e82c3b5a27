"""A method that trains within a plan, put in place of a module's plain one and taken off again.

For trainers that call a module of their own and would not take another in its place: the module,
its parameters and the keys of its `state_dict` stay what they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, Unpack

import torch
from torch import nn

from memfit.errors import UsageError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch.api.entry import fit
from memfit.pytorch.api.fitted import FittedModule
from memfit.pytorch.options import StepKeywords, step_options

__all__ = ["PlanHolder", "PlannedMethod"]


class _Computation(nn.Module):
    """What a method computes, as a module that has the parameters of `owner`."""

    def __init__(
        self,
        owner: nn.Module,
        method: Callable[..., Any],
        reduce: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__()
        self.owner = owner
        self._method = method
        self._reduce = reduce

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The method's result, reduced to what the caller needs."""
        result = self._method(*args, **kwargs)
        return result if self._reduce is None else self._reduce(result)


class PlannedMethod:
    """A method of a module, planned; `install` puts it in place and `remove` takes it off.

    In place, a call with gradients enabled and the module in training mode runs the plan; every
    other call, and a call on a copy of the module, runs the plain method. Hooks of the module run
    outside of the plan, as before.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str = "forward",
        *,
        owner: nn.Module | None = None,
        reduce: Callable[[Any], Any] | None = None,
        wrap: Callable[[Any], Any] | None = None,
        **options: Unpack[StepKeywords],
    ) -> None:
        """
        Args:
            module: whose method it is.
            name: the method.
            owner: whose parameters and buffers the budget counts; `module` by default.
            reduce: takes of the method's result what is needed, inside the plan. What it leaves
                out gets no gradient and is freed at once.
            wrap: makes of that what the caller expects, outside of the plan.
            options: for `memfit.fit` (`budget`, `optimizer`, `planner`, …).

        Raises:
            UsageError: the module has no such method, or an option is wrong.
        """
        step_options("memfit.fit", options)
        method = getattr(module, name, None) if isinstance(name, str) else None
        if not callable(method):
            raise UsageError(
                f"{type(module).__name__} has no method {name!r}; name the one that training calls"
            )
        self._module = module
        self._name = name
        self._own = module.__dict__.get(name)
        # A class of its own, because reports and errors name the class of what is planned.
        kind = type(type(module).__name__, (_Computation,), {})
        self._fitted: FittedModule = fit(kind(owner or module, method, reduce), **options)
        self._planned = self._bound(method, wrap)

    def _bound(self, method: Callable[..., Any], wrap: Callable[[Any], Any] | None) -> MethodType:
        module, name, fitted = self._module, self._name, self._fitted

        def planned(instance: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if instance is not module:  # a deep copy takes this function with it
                return getattr(type(instance), name)(instance, *args, **kwargs)
            if not (torch.is_grad_enabled() and module.training):
                return method(*args, **kwargs)
            result = fitted(*args, **kwargs)
            return result if wrap is None else wrap(result)

        # The name makes a pickled module refer to the method of its class; trainers read the
        # signature to see which columns of a data set the model takes.
        planned.__name__ = name
        planned.__doc__ = method.__doc__
        given = inspect.signature(method)
        instance = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [instance, *given.parameters.values()]
        planned.__signature__ = given.replace(parameters=parameters)  # type: ignore[attr-defined]
        return MethodType(planned, module)

    @property
    def plan(self) -> Plan | None:
        """The newest plan; None before the first training step."""
        return self._fitted.plan

    @property
    def graph(self) -> TrainingGraph | None:
        """The graph that the newest plan is for."""
        return self._fitted.graph

    def install(self) -> None:
        """Put the planned method in place of the plain one."""
        self._module.__dict__[self._name] = self._planned

    def remove(self) -> None:
        """Put back what was there before, unless somebody else has replaced it since."""
        if self._module.__dict__.get(self._name) is not self._planned:
            return
        if self._own is None:
            del self._module.__dict__[self._name]
        else:
            self._module.__dict__[self._name] = self._own


class PlanHolder:
    """What a trainer's callback that plans a method tells of it."""

    _planned: PlannedMethod | None = None

    @property
    def plan(self) -> Plan | None:
        """The newest plan; None before the first training step."""
        return self._planned.plan if self._planned else None

    @property
    def graph(self) -> TrainingGraph | None:
        """The graph that the newest plan is for."""
        return self._planned.graph if self._planned else None

    def _remove(self) -> None:
        if self._planned is not None:
            self._planned.remove()
