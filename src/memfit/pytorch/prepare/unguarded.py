"""What a traced step depends on without being looked at again: functions of classes, global hooks.

Dynamo guards what it read while it traced, and traces anew where that has changed. Two things it
takes for granted: the functions of classes (a method that is replaced on its class, or given other
code by a notebook that reloads what was edited), and the hooks that are for all modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from operator import attrgetter
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from memfit.pytorch.compat.eager import GLOBAL_MODULE_HOOKS

__all__ = ["Unguarded"]

_CODE = attrgetter("__code__")
_ALWAYS = frozenset({"__call__", "_call_impl", "_wrapped_call_impl"})  # Dynamo goes past them
_LEFT_ALONE = frozenset({"builtins", "collections", "torch"})  # whose classes nobody writes to


class Unguarded:
    """Numbers the states that a step's surroundings have been in.

    Args:
        roots: the objects whose methods the step runs; a module stands for all modules in it.
    """

    def __init__(self, *roots: object) -> None:
        self._roots = roots
        self._current = 0
        self._seen: dict[int, _Snapshot] = {}
        self.look_again(frozenset())

    def look_again(self, traced: Set[CodeType]) -> None:
        """Take in what the step consists of; to be called when it was traced in this state.

        Args:
            traced: the code that was traced so far.
        """
        self._traced = traced
        self._seen[self._current] = _Snapshot(self._roots, traced)

    def state(self) -> int:
        """The number of the present state; a state that comes back has the number that it had."""
        if not self._seen[self._current].holds():
            known = (number for number, snapshot in self._seen.items() if snapshot.holds())
            self._current = next(known, len(self._seen))
            if self._current not in self._seen:
                self.look_again(self._traced)
        return self._current


class _Snapshot:
    """What code that was traced depends on, as it was then."""

    def __init__(self, roots: Iterable[object], traced: Set[CodeType]) -> None:
        classes = dict.fromkeys(_classes(roots))
        found = [
            (vars(kind).get, name, functions)
            for kind in classes
            for name, member in vars(kind).items()
            if (functions := _functions(member))
            and (name in _ALWAYS or not traced.isdisjoint(map(_CODE, functions)))
        ]
        self._members = [(get, name) for get, name, _ in found]
        self._functions = [function for *_, functions in found for function in functions]
        # A new attribute may hide one that is inherited.
        self._sizes = [vars(kind).__len__ for kind in classes]
        self._values = self._now()

    def holds(self) -> bool:
        """Whether everything is as it was."""
        return bool(self._now() == self._values)

    def _now(self) -> Any:
        return (
            [get(name) for get, name in self._members],
            list(map(_CODE, self._functions)),
            [size() for size in self._sizes],
            [tuple(hooks) for hooks in GLOBAL_MODULE_HOOKS],
        )


def _classes(roots: Iterable[object]) -> Iterator[type]:
    """The classes of some objects, of the modules in them and of what these hold directly."""
    for root in roots:
        modules = root.modules() if isinstance(root, nn.Module) else [root]
        for module in modules:
            yield from _lineage(type(module))
            for held in getattr(module, "__dict__", {}).values():
                kind = held if isinstance(held, type) else type(held)
                if kind.__module__.partition(".")[0] not in _LEFT_ALONE:
                    yield from _lineage(kind)


def _lineage(kind: type) -> Iterator[type]:
    return (base for base in kind.__mro__ if base.__module__ != "builtins")


def _functions(member: object) -> list[FunctionType]:
    """The Python functions that a member of a class consists of."""
    if isinstance(member, property):
        parts: Iterable[object] = (member.fget, member.fset, member.fdel)
    else:
        parts = (getattr(member, "__func__", member),)  # of class methods and static methods
    return [part for part in parts if isinstance(part, FunctionType)]
