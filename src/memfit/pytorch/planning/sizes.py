"""Input shapes of a fitted module: those given ahead, and those met in training."""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memfit.errors import CaptureError, UsageError
from memfit.planners.base import Progress
from memfit.pytorch.compat.eager import tree_leaves, tree_map_only
from memfit.pytorch.options import MAX_SHAPES

__all__ = [
    "WARN_AT",
    "WARN_AT_SAME",
    "Example",
    "PlannedAhead",
    "ShapeCount",
    "in_planning_order",
    "parse_shapes",
    "plan_ahead",
    "shapes_text",
]

WARN_AT = 16
"""Number of different input shapes met in training at which a warning names the remedy."""

WARN_AT_SAME = 4
"""Number of compilations for the same shapes at which a warning says what else may change."""

_STEPS_REMEMBERED = 9
_REMEDY = (
    "pad the inputs to a few sizes (for instance to multiples of 64), or plan the sizes ahead with "
    "memfit.fit(..., shapes=[...])"
)
_REMEDY_SAME = (
    "what changes may be a Python number that forward is given or that a module counts (give it as "
    "a tensor, or keep it in a buffer), a dtype, a branch that is taken, or what requires gradients"
)
logger = logging.getLogger("memfit")


@dataclass(frozen=True)
class Example:
    """The inputs of one call, of which only shapes, strides, types and plain values matter."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among them."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def on(self, device: torch.device) -> Example:
        """The same with memory for tensors on device `meta`, which have none."""

        def real(t: torch.Tensor) -> torch.Tensor:
            if t.device.type != "meta":
                return t
            made = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device).zero_()
            return made.requires_grad_(t.requires_grad)

        args, kwargs = tree_map_only(torch.Tensor, real, (self.args, dict(self.kwargs)))
        return Example(args, kwargs)


class PlannedAhead(Exception):
    """A step has been captured and planned, and is not to run."""


class ShapeCount:
    """How many shapes one fitted module has met, and how long its steps take.

    Args:
        name: of the model, for messages.
        most: shapes allowed.
    """

    def __init__(self, name: str, most: int = MAX_SHAPES) -> None:
        self.most = most
        self.ahead = False
        self.capture_s = 0.0
        self._name = name
        self._total = self._met = 0
        self._times: Counter[str] = Counter()
        self._told = self._told_same = False
        self._began: float | None = None
        self._compiled = True
        self._steps: deque[float] = deque(maxlen=_STEPS_REMEMBERED)

    def call(self) -> None:
        """A call begins, which may compile."""
        now = time.perf_counter()
        if self._began is not None and not self._compiled:
            self._steps.append(now - self._began)
        self._began = now
        self._compiled = False

    def compilation(self, inputs: str) -> None:
        """A new shape is about to be compiled.

        Raises:
            CaptureError: there have been too many.
        """
        self._compiled = True
        before = self._times[inputs]
        if self._total >= self.most:
            what, remedy = f"is called with its input shape number {self._total + 1}", _REMEDY
            if before > 1:
                what, remedy = f"has been captured {before} times for the same shapes", _REMEDY_SAME
            raise CaptureError(
                f"{self._name} {what} ({inputs}), and the limit is {self.most}; each is captured "
                f"and planned by itself; {remedy}; or raise the limit with "
                "memfit.fit(..., max_shapes=...)"
            )
        self._total += 1
        self._times[inputs] += 1
        if self.ahead:
            return
        if before + 1 >= WARN_AT_SAME and not self._told_same:
            self._told_same = True
            logger.warning(
                "%s has been captured and planned %d times for inputs of the same shapes (%s), "
                "which takes seconds each time and is an error after %d times; %s",
                self._name,
                before + 1,
                inputs,
                self.most,
                _REMEDY_SAME,
            )
        self._met += before == 0
        if self._met >= WARN_AT and not self._told:
            self._told = True
            logger.warning(
                "%s has been called with %d different input shapes that were not planned ahead, "
                "the newest %s; each is captured and planned by itself, which takes seconds, and "
                "after %d shapes it is an error; %s",
                self._name,
                self._met,
                inputs,
                self.most,
                _REMEDY,
            )

    def captured(self) -> None:
        """The step has been captured."""
        self.capture_s = time.perf_counter() - (self._began or time.perf_counter())

    @property
    def step_s(self) -> float | None:
        """Seconds from one call to the next, median of the last ones; None before two calls."""
        return statistics.median(self._steps) if self._steps else None


def parse_shapes(shapes: Sequence[Any] | None, most: int) -> tuple[Example, ...]:
    """The argument `shapes` of `memfit.fit`.

    Raises:
        UsageError: an entry does not describe a call, or there are more than `most`.
    """
    if shapes is None:
        return ()
    if isinstance(shapes, (str, bytes, torch.Tensor)) or not isinstance(shapes, Sequence):
        raise UsageError(
            f"shapes is a {type(shapes).__name__}; give a list with the inputs of one call in each "
            "entry, such as shapes=[(torch.empty(8, n, device='meta'),) for n in (64, 128)]"
        )
    if len(shapes) > most:
        raise UsageError(
            f"shapes has {len(shapes)} entries, and at most {most} input shapes are planned; give "
            "fewer, or raise max_shapes"
        )
    return tuple(_example(i, entry) for i, entry in enumerate(shapes))


def _example(index: int, entry: Any) -> Example:
    if isinstance(entry, torch.Tensor):
        found = Example((entry,), {})
    elif isinstance(entry, Mapping):
        found = Example((), dict(entry))
    elif isinstance(entry, (tuple, list)):
        pair = (
            len(entry) == 2
            and isinstance(entry[0], (tuple, list))
            and isinstance(entry[1], Mapping)
        )
        found = Example(tuple(entry[0]), dict(entry[1])) if pair else Example(tuple(entry), {})
    else:
        found = Example((), {})
    if not found.tensors or not all(isinstance(name, str) for name in found.kwargs):
        raise UsageError(
            f"shapes[{index}] is {_short(entry)}, which has no tensors; give the inputs of one "
            "call as the fitted module takes them (with a loss, the target last): a tuple of "
            "tensors, or (args, kwargs); tensors on device 'meta' stand for the model's device "
            "and take no memory"
        )
    return found


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 60 else text[:57] + "..."


def in_planning_order(examples: Sequence[Example]) -> list[Example]:
    """The largest, the smallest, then from large to small.

    An impossible budget shows at the first; ops are measured at both ends, and times between them
    are interpolated.
    """

    def size(example: Example) -> tuple[int, int]:
        # Among batches of equally many tokens, attention makes the longest the largest.
        return example.size_bytes, max((n for t in example.tensors for n in t.shape), default=0)

    falling = sorted(examples, key=size, reverse=True)
    return [*falling[:1], *falling[1:][-1:], *falling[1:-1]]


def plan_ahead(
    call: Callable[..., Any],
    examples: Sequence[Example],
    count: ShapeCount,
    device: torch.device,
    progress: Progress | None = None,
) -> None:
    """Have a compiled step captured and planned for each example, without running it.

    Raises:
        InfeasibleBudgetError, CaptureError: for one of them, which a note on the error names.
    """
    order = in_planning_order(examples)
    count.ahead = True
    try:
        for index, example in enumerate(order):
            if progress is not None:
                progress("planning input shapes ahead", index / len(order))
            given = example.on(device)
            try:
                call(*given.args, **given.kwargs)
            except PlannedAhead:
                pass
            except Exception as error:
                error.add_note(f"while planning ahead for inputs of {shapes_text(given.tensors)}")
                raise
        if progress is not None:
            progress("planning input shapes ahead", 1.0)
    finally:
        count.ahead = False


def shapes_text(tensors: Sequence[torch.Tensor]) -> str:
    """Shapes for people: `8x128, 8x128`."""
    shown = ["x".join(str(int(n)) for n in t.shape) or "scalar" for t in tensors[:6]]
    return ", ".join(shown) + (f" and {len(tensors) - 6} more" if len(tensors) > 6 else "")
