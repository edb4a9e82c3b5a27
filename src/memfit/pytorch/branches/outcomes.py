"""Which way the branches of a step went: one graph for each, a few at most."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from memfit.errors import CaptureError
from memfit.pytorch.branches.ops import ASSERTION, NUMBERS, OUTCOME, OtherOutcome, frames_text
from memfit.pytorch.branches.seen import Reader, Seen, recorded
from memfit.pytorch.compat.dynamo import user_frames
from memfit.pytorch.compat.eager import tree_leaves
from memfit.pytorch.compat.outcomes import Checks, outcomes_can_be_known, outcomes_known
from memfit.pytorch.failures.first_run import random_states, random_states_kept, set_random_states
from memfit.pytorch.failures.source_files import is_users
from memfit.pytorch.opaque.module_state import ModuleState

__all__ = ["MOST_WAYS", "Outcomes", "Restart", "Way"]

MOST_WAYS = 4
"""Graphs of a step with inputs of the same shapes, one for each way that its branches go."""

logger = logging.getLogger("memfit")
_CHECKS = Checks(OUTCOME, NUMBERS, ASSERTION, frames_text)


@dataclass(frozen=True, eq=False)
class Way:
    """One way that the branches of a step go.

    Attributes:
        seen: the numbers that decide it.
        pinned: whole numbers are taken for constants.
    """

    seen: Seen
    pinned: bool = False
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reader", Reader(self.seen))

    def known(self) -> AbstractContextManager[None]:
        """Inside, branches are traced as they went."""
        return outcomes_known(self.reader.take, _CHECKS, pinned=self.pinned)


class Outcomes:
    """The ways of one step.

    Attributes:
        met: a branch on data was met.
        error: what tracing said of the first one. Not the error that it raised, whose frames hold
            a whole graph in a way that garbage collection cannot see.

    Args:
        step: the step.
        name: of the model, for messages.
    """

    def __init__(self, step: nn.Module, name: str) -> None:
        self._step = step
        self._name = name
        self._ways: dict[Hashable, list[Way]] = {}
        self._pinned = False
        self._may_pin = True
        self._told: set[str] = set()
        self.met = False
        self.error: CaptureError | None = None

    def ways(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Way | None]:
        """The ways to try for a call, that of the last one first; None: without any."""
        known = self._ways.get(_form(args, kwargs), ()) if self.met else ()
        return tuple(known) or (None,)

    @property
    def may_pin(self) -> bool:
        """Whether whole numbers could be constants that are none yet."""
        return self.met and self._may_pin

    def learn(
        self,
        error: Exception,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        sample: tuple[Sequence[Any], Mapping[str, Any]],
    ) -> bool:
        """See which way a call goes, by a run without gradients that leaves no trace.

        Args:
            error: what tracing raised.
            args, kwargs: what the step is called with.
            sample: such that it can run with, which may have other shapes.

        Returns:
            Whether there is something new to trace by.
        """
        if not outcomes_can_be_known():
            return False
        state = ModuleState(self._step)
        try:
            with torch.no_grad(), random_states_kept(), recorded() as seen:
                self._step(*sample[0], **sample[1])
        except Exception as reason:  # the caller tells what tracing raised
            logger.debug("a plain run of the step fails: %s", reason)
            return False
        finally:
            state.put_back()
        known = self._ways.setdefault(_form(args, kwargs), [])
        if not seen:
            return False
        if any(way.seen == seen for way in known):  # knowing the numbers was not enough
            known.clear()
            self._pinned = self._may_pin and _whole_numbers(seen)
            if not self._pinned:
                known.append(Way(dict(seen)))
                return False
            self._may_pin = False
        if len(known) >= MOST_WAYS:
            return False
        self.met = True
        if self.error is None:
            self.error = CaptureError(str(error))
            self.error.frames = user_frames(error)
        known.insert(0, Way(dict(seen), self._pinned))
        return True

    def went(self, way: Way, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A call went a known way, which is tried first the next time."""
        known = self._ways.get(_form(args, kwargs), [])
        if known and known[0] is not way and way in known:
            known.remove(way)
            known.insert(0, way)

    def forget(self) -> None:
        """Drop all ways: steps are traced anew."""
        self._ways.clear()

    def plainly(
        self, other: OtherOutcome, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, bool]:
        """Run a step that goes a new way as plain PyTorch, and see which.

        Args:
            other: what ended it as it was planned.
            args, kwargs: what the step is called with.

        Returns:
            What it gives, and whether there are too many ways.
        """
        if not self.met:
            self._tell(other, "so do all like it")
            return self._step(*args, **kwargs), False
        known = self._ways.setdefault(_form(args, kwargs), [])
        with recorded() as seen:
            result = self._step(*args, **kwargs)
        new = all(way.seen != seen for way in known)
        full = len(known) >= MOST_WAYS or not new
        if not full:
            known.insert(0, Way(dict(seen), self._pinned))
        then = f"so do all that go another way than the {MOST_WAYS} that are planned"
        self._tell(other, then if full else "the next one like it has a plan of its own")
        return result, full

    def _tell(self, other: OtherOutcome, then: str) -> None:
        where = _where(other)
        text = (
            "a step of %s goes another way%s than it was planned for, and runs as plain PyTorch, "
            "without a plan; %s"
        )
        if where + then not in self._told:
            self._told.add(where + then)
            logger.warning(text, self._name, where, then)

    def error_of(self, other: OtherOutcome) -> Exception:
        """What tracing would say of a branch if its outcome were not known."""
        if not other.frames and self.error is not None and self.error.frames:
            return self.error
        error = CaptureError(str(other))
        error.frames = other.frames
        return error

    @contextmanager
    def paused(self, way: Way | None) -> Iterator[None]:
        """Inside, tracing is not by what was seen."""
        if way is None:
            yield
            return
        way.reader.paused = True
        try:
            yield
        finally:
            way.reader.paused = False

    @staticmethod
    def known(way: Way | None) -> AbstractContextManager[None]:
        """Inside, branches are traced as a way goes."""
        return way.known() if way is not None else nullcontext()


class Restart:
    """What to go back to where a step ends early: random states, and what modules hold.

    Args:
        modules: the state of those that a step may change before it ends.
    """

    def __init__(self, modules: Sequence[ModuleState]) -> None:
        self._states = random_states()
        self._modules = modules

    def back(self) -> None:
        """Make all as it was."""
        set_random_states(self._states)
        for state in self._modules:
            state.put_back()


def _where(other: OtherOutcome) -> str:
    found = [f"{file}:{line}" for file, line in other.frames if is_users(file)]
    return f" at {found[-1]}" if found else ""


def _whole_numbers(seen: Seen) -> bool:
    numbers = [value for read in seen.values() for value in read]
    return any(isinstance(x, int) and not isinstance(x, bool) for x in numbers)


def _form(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """Shapes and types of what a call is given, and its plain values."""
    return tuple(_about(x) for x in tree_leaves((tuple(args), dict(kwargs))))


def _about(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device, value.requires_grad
    return value if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__
