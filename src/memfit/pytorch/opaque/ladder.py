"""Where a step cannot be captured as it is: the smallest module around what cannot be traced runs
as one op, and capture is tried again."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memfit.errors import CaptureError, MemfitError
from memfit.pytorch.compat.dynamo import user_frames
from memfit.pytorch.compat.eager import tree_leaves
from memfit.pytorch.failures.first_run import random_states_kept
from memfit.pytorch.failures.source_files import is_users
from memfit.pytorch.failures.told import first_line
from memfit.pytorch.layouts.sparse import Touched, Untouchable, apart, is_sparse
from memfit.pytorch.opaque.blocks import blocks_of
from memfit.pytorch.opaque.module_state import ModuleState, Versions
from memfit.pytorch.opaque.places import Place, place_of_module, places_at, sparse_embeddings
from memfit.pytorch.opaque.structure import __file__ as structure_file
from memfit.pytorch.opaque.unit import CannotBeOpaque, Unit, Watch
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
        self._watch = Watch(Versions(step))
        self._units: dict[Any, Unit] = {}  # by their places' keys
        self._refused: set[Any] = set()  # kinds of places
        self._newest: Any = None
        self._rungs = 0
        self._admitted: set[Any] = set()  # forms of arguments with sparse tensors
        self._touched: CaptureError | None = None

    def states(self) -> list[ModuleState]:
        """The state of the modules that what is opaque may change."""
        found = {id(unit.module): unit.module for unit in self._units.values()}
        return [ModuleState(module, self._watch.versions) for module in found.values()]

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

    def admit(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        sample: tuple[Sequence[Any], Mapping[str, Any]] | None,
    ) -> None:
        """Make the code opaque that looks at sparse tensors which a call hands to the step.

        Dynamo sees none of them: code that asks what they are would go another way.

        Args:
            args, kwargs: what the step is called with.
            sample: such that it can run with, where these only have the right shapes.
        """
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(x, torch.Tensor) and is_sparse(x) for x in leaves):
            return
        form = tuple(tuple(x.shape) if isinstance(x, torch.Tensor) else type(x) for x in leaves)
        if form not in self._admitted:
            self._admitted.add(form)
            self._observed(*(sample or (args, kwargs)))

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
            if self._observed(args, kwargs) and sum(len(u.calls) for u in unseen) > known:
                return True
            for unit in unseen:  # tracing calls it as no plain run does
                self._refuse(unit.place.kind)
        if frames and frames[-1][0] in (unit_file, structure_file):
            self._refuse(self._newest)  # it is called in a way that is not taken
        while self._rungs < MOST_RUNGS:
            self._rungs += 1
            places = self._blamed(frames, getattr(error, "module", ""))
            if not places:
                return False
            self._newest = kind = places[0].kind
            self._add(places)
            seen = self._observed(args, kwargs)
            if seen and any(unit.place.kind == kind for unit in self._units.values()):
                self._tell(kind, frames, error)
                return True
            self._refuse(kind)
        return False

    def save(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """From here on, opaque modules compute their blocks again in their backward passes.

        Args:
            args, kwargs: what to call the step with.

        Returns:
            Whether there are opaque modules that did not, and have blocks.
        """
        whole = [unit for unit in self._units.values() if unit.place.whole]
        if self._thrifty or not any(blocks_of(unit.module) for unit in whole):
            return False
        self._thrifty = True
        names = {unit.name: None for unit in whole}
        self._units = {
            k: Unit(unit.place, self._watch, thrifty=True) for k, unit in self._units.items()
        }
        logger.warning(
            "%s: blocks inside are computed again, one by one, in the backward pass, as the budget "
            "has no room for what they keep",
            ", ".join(list(names)[:3]),
        )
        return self._observed(args, kwargs)

    def _refuse(self, kind: Any) -> None:
        self._refused.add(kind)
        for key in [k for k, unit in self._units.items() if unit.place.kind == kind]:
            del self._units[key]

    def _blamed(self, frames: Sequence[tuple[str, int]], path: str) -> list[Place]:
        """The code that was being traced, innermost first, that may be opaque."""
        inside = {
            m for unit in self._units.values() if unit.place.whole for m in unit.module.modules()
        }
        around: list[Iterator[list[Place]]] = [iter([sparse_embeddings(self._step, path)])]
        around += [places_at(self._step, file, line) for file, line in reversed(frames)]
        for found in around:
            for places in found:
                free = [p for p in places if not ((p.whole or _bound(p)) and p.module in inside)]
                known = any(p.key in self._units for p in free)
                if free and not known and free[0].kind not in self._refused:
                    return free
        if not frames:  # something about the step as a whole
            whole = self._step.model
            taken = type(whole) in self._refused or whole in inside
            return [] if taken else [place_of_module("model", whole, type(whole))]
        loss = getattr(self._step, "loss_fn", None)
        if loss is None or isinstance(loss, nn.Module) or Function in self._refused:
            return []
        self._step.loss_fn = Function(loss)
        return [place_of_module("loss_fn", self._step.loss_fn, Function)]

    def _observed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Run the step plainly, and see what the opaque modules do; whether that went well."""
        # With gradients where it asks for some itself, which takes the memory of a plain step.
        for _ in range(MOST_RUNGS):
            self._touched = None
            if any(self._ran(args, kwargs, gradients) for gradients in (False, True)):
                return True
            error: CaptureError | None = self._touched
            places = self._blamed(error.frames, "") if error is not None else []
            if error is None or not places:
                return False
            self._add(places)
            if self._ran(args, kwargs, gradients=False):
                self._tell(places[0].kind, error.frames, error)
                return True
        return False

    def _add(self, places: Sequence[Place]) -> None:
        for place in places:
            self._units.setdefault(place.key, Unit(place, self._watch, thrifty=self._thrifty))

    def _ran(self, args: Sequence[Any], kwargs: Mapping[str, Any], gradients: bool) -> bool:
        state = ModuleState(self._step)
        before = gc.get_objects()  # they stay, so that none has the identity of another
        ids = set(map(id, before))
        self._watch.on = True
        for unit in self._units.values():
            unit.lasts = lambda x: id(x) in ids
        try:
            with self.installed(), torch.set_grad_enabled(gradients), random_states_kept():
                args, kwargs = apart((args, kwargs), Untouchable)
                self._step(*args, **kwargs)
        except Touched as reason:
            self._touched = CaptureError(f"{reason}: PyTorch's tracing takes no sparse tensors")
            stack = traceback.extract_tb(reason.__traceback__)
            frames = [(frame.filename, frame.lineno or 0) for frame in stack]
            self._touched.frames = [frame for frame in frames if is_users(frame[0])]
            return False
        except CannotBeOpaque as reason:
            logger.debug("%s", reason)
            return False
        except Exception as reason:  # the caller tells what tracing raised
            logger.debug("a plain run of the step fails: %s", reason)
            return False
        finally:
            del before
            self._watch.on = False
            for unit in self._units.values():
                unit.lasts = lambda _: True
            state.put_back()
        for key in [k for k, unit in self._units.items() if not unit.calls]:
            del self._units[key]  # inside another one, or not called
        return bool(self._units)

    def _tell(self, kind: Any, frames: Sequence[tuple[str, int]], error: Exception) -> None:
        units = [unit for unit in self._units.values() if unit.place.kind == kind]
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


def _bound(place: Place) -> bool:
    """Whether a place is a method of one module."""
    return isinstance(place.key, tuple)
