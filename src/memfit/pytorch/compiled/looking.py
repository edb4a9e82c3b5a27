"""When to look at what code outside of the graphs holds: once for each sequence of graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from memfit.pytorch.compat.autograd import before_backward

__all__ = ["Looking"]

Look = Callable[[Sequence[Any]], None]


def _longer(sequence: int, part: int) -> int:
    return hash((sequence, part))


class Looking:
    """Looks at the backward pass of a step whose sequence of graphs has not been looked at.

    From the first graph that makes the sequence another one until the backward pass of a graph
    begins. In all other steps nothing is watched.

    Attributes:
        looked: whether the present step is one that is looked at.
    """

    def __init__(self) -> None:
        self.looked = False
        self._known: set[int] = set()  # sequences of graphs, and what they begin with
        self._so_far = 0
        self._enough = False
        self._end: Callable[[], None] | None = None

    def ran(self, part: int, look: Callable[[], Look | None], *, new: bool = False) -> None:
        """A graph has run.

        Args:
            part: which one.
            look: gives what looks at the roots of a backward pass; None once that is gone.
            new: its plan is not settled yet.
        """
        self._so_far = _longer(self._so_far, part)
        if self._so_far not in self._known and (new or not self._enough):
            self.watch(look)

    def watch(self, look: Callable[[], Look | None]) -> None:
        """Look from now on, whatever the sequence."""
        self.looked = True
        if self._end is not None:
            return

        def watch(roots: Sequence[Any]) -> None:
            call = look()
            if call is not None:
                call(roots)
            else:
                end()

        self._end = end = before_backward(watch)

    def stop(self) -> None:
        """The backward pass of a graph begins, or the step is over."""
        if self._end is not None:
            self._end()
            self._end = None

    def restart(self) -> None:
        """A new step begins."""
        self.stop()
        self._so_far, self.looked = 0, False

    def learn(self, parts: Sequence[int], *, enough: bool = False) -> None:
        """A sequence needs no looking at any more; nor do others, where these are enough."""
        self._enough = enough
        self._known.update(accumulate(parts, _longer, initial=0))

    def forget(self, parts: Sequence[int]) -> None:
        """A sequence was not looked at, because longer ones begin like it."""
        *_, whole = accumulate(parts, _longer, initial=0)
        self._known.discard(whole)
