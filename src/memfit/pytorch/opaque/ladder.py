"""Where a step cannot be captured as it is: the smallest module around what cannot be traced runs
as one op, and capture is tried again."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from memfit.errors import MemfitError
from memfit.pytorch.compat.dynamo import user_frames
from memfit.pytorch.failures.first_run import random_states_kept
from memfit.pytorch.failures.told import first_line
from memfit.pytorch.opaque.blocks import blocks_of
from memfit.pytorch.opaque.module_state import ModuleState
from memfit.pytorch.opaque.structure import __file__ as structure_file
from memfit.pytorch.opaque.unit import CannotBeOpaque, Unit
from memfit.pytorch.opaque.unit import __file__ as unit_file

__all__ = ["Ladder"]

MOST_RUNGS = 32
"""Kinds of modules of a step that are made opaque one after the other, before it is given up."""

logger = logging.getLogger("memfit")


class Function(nn.Module):
    """A function in the place of a module, such as a loss.

    Args:
        function: the function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)


class Ladder:
    """The opaque modules of one step.

    Args:
        step: the step; has an attribute `loss_fn`.
        thrifty: opaque modules compute their blocks again.
    """

    def __init__(self, step: nn.Module, *, thrifty: bool = False) -> None:
        self._step = step
        self._thrifty = thrifty
        self._units: dict[nn.Module, Unit] = {}
        self._refused: set[type[nn.Module]] = set()
        self._newest: type[nn.Module] | None = None
        self._rungs = 0

    @property
    def modules(self) -> list[nn.Module]:
        """Those that are opaque."""
        return list(self._units)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, tracing meets an op for each opaque module."""
        for unit in self._units.values():
            unit.install()
        try:
            yield
        finally:
            for unit in self._units.values():
                unit.remove()

    def climb(self, error: Exception, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Make the module that an error is about opaque.

        Args:
            error: what tracing raised.
            args, kwargs: what to call the step with.

        Returns:
            Whether there is such a module, which was not opaque before, and the step ran plainly
            to see what it does.
        """
        if any(_backward_hooks(m) for m in self._step.modules()):
            return False  # seeing what a module does would call them
        frames = user_frames(error)
        if isinstance(error, MemfitError) and not frames:
            return False
        unseen = [unit for unit in self._units.values() if unit.unseen]
        if unseen:  # Dynamo does not pass on what it was told
            known = sum(len(unit.calls) for unit in unseen)
            for unit in unseen:
                unit.unseen = False
            return self._observed(args, kwargs) and sum(len(u.calls) for u in unseen) > known
        if frames and frames[-1][0] in (unit_file, structure_file):
            self._refuse(self._newest)  # it is called in a way that is not taken
        while self._rungs < MOST_RUNGS:
            self._rungs += 1
            kind = self._blamed(frames)
            if kind is None:
                return False
            self._newest = kind
            for name, module in self._step.named_modules():
                if isinstance(module, kind):
                    self._units.setdefault(module, self._unit(name, module))
            if self._observed(args, kwargs):
                self._tell(kind, frames, error)
                return True
            self._refuse(kind)
        return False

    def _unit(self, name: str, module: nn.Module) -> Unit:
        return Unit(_named(name, module), module, thrifty=self._thrifty)

    def save(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """From here on, opaque modules compute their blocks again in their backward passes.

        Args:
            args, kwargs: what to call the step with.

        Returns:
            Whether there are opaque modules that did not, and have blocks.
        """
        if self._thrifty or not any(blocks_of(module) for module in self._units):
            return False
        self._thrifty = True
        names = {module: unit.name for module, unit in self._units.items()}
        self._units = {m: Unit(name, m, thrifty=True) for m, name in names.items()}
        logger.warning(
            "%s: blocks inside are computed again, one by one, in the backward pass, as the budget "
            "has no room for what they keep",
            ", ".join(list(names.values())[:3]),
        )
        return self._observed(args, kwargs)

    def _refuse(self, kind: type[nn.Module] | None) -> None:
        if kind is not None:
            self._refused.add(kind)
            for module in [m for m in self._units if isinstance(m, kind)]:
                del self._units[module]

    def _blamed(self, frames: Sequence[tuple[str, int]]) -> type[nn.Module] | None:
        """The class of modules whose code was being traced, innermost first, that may be opaque."""
        inside = {m for module in self._units for m in module.modules()}
        kinds = {
            kind: None
            for module in self._step.modules()
            if module is not self._step and module not in inside
            for kind in type(module).__mro__
            if issubclass(kind, nn.Module) and kind is not nn.Module
        }
        for file, line in reversed(frames):
            for kind in kinds:
                own, first, last = _lines(kind)
                if file == own and first <= line <= last and kind not in self._refused:
                    return kind
        if not frames:  # something about the step as a whole
            whole = type(self._step.model)
            return whole if whole not in self._refused and self._step.model not in inside else None
        loss = getattr(self._step, "loss_fn", None)
        if loss is None or isinstance(loss, nn.Module) or Function in self._refused:
            return None
        self._step.loss_fn = Function(loss)
        return Function

    def _observed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Run the step plainly, and see what the opaque modules do; whether that went well."""
        # With gradients where it asks for some itself, which takes the memory of a plain step.
        return any(self._ran(args, kwargs, gradients) for gradients in (False, True))

    def _ran(self, args: Sequence[Any], kwargs: Mapping[str, Any], gradients: bool) -> bool:
        state = ModuleState(self._step)
        for unit in self._units.values():
            unit.observing = True
        try:
            with self.installed(), torch.set_grad_enabled(gradients), random_states_kept():
                self._step(*args, **kwargs)
        except CannotBeOpaque as reason:
            logger.debug("%s", reason)
            return False
        except Exception as reason:  # the caller tells what tracing raised
            logger.debug("a plain run of the step fails: %s", reason)
            return False
        finally:
            for unit in self._units.values():
                unit.observing = False
            state.put_back()
        for module in [m for m, unit in self._units.items() if not unit.calls]:
            del self._units[module]  # inside another one, or not called
        return bool(self._units)

    def _tell(
        self, kind: type[nn.Module], frames: Sequence[tuple[str, int]], error: Exception
    ) -> None:
        units = [unit for module, unit in self._units.items() if isinstance(module, kind)]
        saved = sum(call.taken.saved_bytes for unit in units for _, call in unit.calls)
        names = ", ".join(unit.name for unit in units[:3])
        names += f" and {len(units) - 3} more" if len(units) > 3 else ""
        where = f" at {frames[-1][0]}:{frames[-1][1]}" if frames else ""
        logger.warning(
            "cannot be traced%s (%s): %s; each runs as one op, kept or run again as a whole; "
            "together they keep %d bytes for the backward pass; to have an error instead: "
            "fullgraph=True",
            where,
            first_line(error, most=120),
            names,
            saved,
        )


def _backward_hooks(module: nn.Module) -> bool:
    return bool(module._backward_hooks or module._backward_pre_hooks)


@cache
def _lines(kind: type[nn.Module]) -> tuple[str, int, int]:
    """File of a class, its first line and its last."""
    try:
        lines, first = inspect.getsourcelines(kind)
        return inspect.getsourcefile(kind) or "", first, first + len(lines) - 1
    except (OSError, TypeError):
        code = getattr(kind.forward, "__code__", None)
        if code is None:
            return "", 0, 0
        last = max((line or 0 for _, _, line in code.co_lines()), default=0)
        return str(code.co_filename), int(code.co_firstlineno), last


def _named(path: str, module: nn.Module) -> str:
    path = "" if path == "model" else path.removeprefix("model.")
    return f"{path} ({type(module).__name__})" if path else f"the {type(module).__name__}"
