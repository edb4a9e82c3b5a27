"""What a plain run of a step shows of the numbers that its code reads out of tensors."""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.overrides import TorchFunctionMode

from memfit.pytorch.compat.eager import TorchDispatchMode, tree_leaves
from memfit.pytorch.compat.symbols import sizes_depend_on_data
from memfit.pytorch.failures.source_files import is_users

__all__ = ["Reader", "Seen", "recorded"]

Site = tuple[str, str, str]
"""A file, the name of a function in it, and an op that it reads numbers by."""

Seen = Mapping[Site, Sequence[Any]]
"""The numbers that a function read in one step, in their order.

For an op that makes tensors whose sizes depend on data: the tensors' shapes."""

_READ = "aten::_local_scalar_dense"
_READING = frozenset({_READ, "aten::allclose", "aten::equal"})
_READERS = frozenset(
    {
        "__bool__",
        "__complex__",
        "__float__",
        "__getitem__",
        "__index__",
        "__int__",
        "__setitem__",
        "allclose",
        "equal",
        "is_nonzero",
        "item",
        "tolist",
    }
)


@contextmanager
def recorded() -> Iterator[Seen]:
    """Note the numbers that are read inside."""
    seen: dict[Site, list[Any]] = defaultdict(list)

    def note(op: str, value: Any, frame: FrameType | None) -> None:
        seen[(*_site(_functions(frame)), op)].append(value)

    calls = _Calls(note)
    with calls, _Ops(calls, note):
        yield seen


class _Calls(TorchFunctionMode):
    """The function of PyTorch that runs. Lists are read at once, without an op."""

    def __init__(self, note: Callable[..., None]) -> None:
        super().__init__()
        self._note = note
        self._running: list[Any] = []

    @property
    def reads(self) -> bool:
        """Whether what runs hands numbers to Python; others look at them for themselves."""
        if not self._running:
            return True
        function = self._running[-1]
        return inspect.isfunction(function) or getattr(function, "__name__", "") in _READERS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._running.append(func)
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._running.pop()
        if func is torch.Tensor.tolist:
            for value in _flat(result):
                self._note(_READ, value, sys._getframe(1))
        return result


class _Ops(TorchDispatchMode):
    def __init__(self, calls: _Calls, note: Callable[..., None]) -> None:
        super().__init__()
        self._calls = calls
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in _READING and self._calls.reads:
            self._note(name, result, sys._getframe(1))
        elif sizes_depend_on_data(func, args):
            shapes = [tuple(x.shape) for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
            self._note(name, shapes, sys._getframe(1))
        return result


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _functions(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_name
        frame = frame.f_back


def _site(functions: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The innermost function of the user's."""
    for file, name in functions:
        if is_users(file):
            return file, name
    return "", ""


class Reader:
    """Hands out the numbers that were seen, to traces that each read them from the first one on.

    Args:
        seen: the numbers.
    """

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._read: WeakKeyDictionary[Any, dict[Site, int]] = WeakKeyDictionary()
        self.paused = False

    def take(self, trace: Any, functions: Iterable[tuple[str, str]], op: str) -> Any:
        """The next number that a function reads.

        Args:
            trace: stands for the trace.
            functions: those that are being traced, innermost first.
            op: which reads it.

        Returns:
            None where no such was seen.
        """
        if self.paused:
            return None
        site = (*_site(functions), op)
        read = self._read.setdefault(trace, defaultdict(int))
        numbers = self._seen.get(site, ())
        place = read[site]
        if place >= len(numbers):
            return None
        read[site] = place + 1
        return numbers[place]
