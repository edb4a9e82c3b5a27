"""What a call gives back: its result, and what it changed of the objects that it was given.

Putting it together is traced, and so plain Python without generators; taking it apart is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from memfit.pytorch.layouts.sparse import Untouchable
from memfit.pytorch.opaque.structure import CONSTANTS, CannotBeParted

__all__ = ["given_back", "made_within", "parted_result"]

_LASTING = (type, FunctionType, BuiltinFunctionType, ModuleType, nn.Module, Enum)


def parted_result(
    value: Any,
    given: Sequence[torch.Tensor] = (),
    handed: Sequence[Any] = (),
    objects: dict[int, Any] | None = None,
    lasts: Callable[[Any], bool] = lambda _: False,
) -> tuple[list[torch.Tensor], Any]:
    """The tensors of what a call gives back, and the structure that they are in.

    Args:
        value: the result: what `structure.parted` takes, and objects that are taken apart by their
            attributes.
        given: tensors that the call was given; in `handed` they are themselves, for nothing is
            gained by a copy. In the result they are outputs: their gradients are then added up
            inside, in the order of plain PyTorch.
        handed: objects that were made for the call; what they are now is given back, too.
        objects: others, by their `id`; gets those that last.
        lasts: whether an object was there before the step, and is no part of the result.

    Raises:
        CannotBeParted: there is something else in it.
    """
    one = _Parting(handed, {} if objects is None else objects, lasts)
    found = one.structure(value, ())
    if handed:
        one.know("given", given)
        found = ("result", found, tuple(one.attributes(x, (id(x),)) for x in handed))
    return one.tensors, found


class _Parting:
    def __init__(
        self,
        handed: Sequence[Any],
        objects: dict[int, Any],
        lasts: Callable[[Any], bool],
    ) -> None:
        self.tensors: list[torch.Tensor] = []
        self._known: dict[int, tuple[str, int]] = {}
        self.know("handed", handed)
        self._objects = objects
        self._lasts = lasts

    def know(self, kind: str, values: Sequence[Any]) -> None:
        """From here on, these are themselves, by their number."""
        self._known |= {id(x): (kind, i) for i, x in enumerate(values)}

    def structure(self, value: Any, inside: tuple[int, ...]) -> Any:
        kind = type(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, CONSTANTS):
            return ("constant", kind.__name__, value)
        if kind.__name__ == "ndarray":
            self.tensors.append(torch.from_numpy(value))
            return ("array", len(self.tensors) - 1)
        names = getattr(kind, "__dataclass_fields__", None)
        if names is None and isinstance(value, tuple):
            names = getattr(kind, "_fields", None)
        if names is not None:
            fields = [(name, self.structure(getattr(value, name), inside)) for name in names]
            return ("fields", kind, tuple(fields))
        if isinstance(value, (tuple, list)):
            parts = tuple([self.structure(part, inside) for part in value])
            return ("list" if isinstance(value, list) else "tuple", parts)
        if isinstance(value, dict):
            entries = [(key, self.structure(part, inside)) for key, part in value.items()]
            return ("dict", tuple(entries))
        if id(value) in self._known:
            return self._known[id(value)]
        if isinstance(value, _LASTING):
            return ("constant", kind.__name__, value)
        if id(value) in self._objects or self._lasts(value):
            self._objects[id(value)] = value
            return ("object", id(value))
        if id(value) in inside:
            raise CannotBeParted(f"a {kind.__name__} that holds itself")
        return self.attributes(value, (*inside, id(value)))

    def _tensor(self, value: torch.Tensor) -> Any:
        if value.layout is not torch.strided:
            raise CannotBeParted("a tensor that is not dense")
        if id(value) not in self._known:
            self._known[id(value)] = ("tensor", len(self.tensors))
            self.tensors.append(value)
        return self._known[id(value)]

    def attributes(self, value: Any, inside: tuple[int, ...]) -> Any:
        """An object that is made in each call, by its attributes."""
        kind = type(value)
        if not _can_be_made(value):
            raise CannotBeParted(f"a {kind.__name__}, which is neither a tensor nor a constant")
        found = [(name, self.structure(part, inside)) for name, part in vars(value).items()]
        return ("made", kind, tuple(found))


def _can_be_made(value: Any) -> bool:
    """Whether an object is no more than its attributes."""
    kind = type(value)
    new: Any = kind.__new__
    slots = any(getattr(one, "__slots__", ()) for one in kind.__mro__)
    return new is object.__new__ and not slots and hasattr(value, "__dict__")


def made_within(value: Any, lasts: Callable[[Any], bool]) -> list[Any]:
    """The objects in a value that the step has made, those inside of others among them.

    Args:
        value: the arguments of a call.
        lasts: whether an object was there before.
    """
    if type(value) is Untouchable or isinstance(value, (torch.Tensor, *CONSTANTS, *_LASTING)):
        return []
    parts: Sequence[Any] = ()
    if hasattr(type(value), "__dataclass_fields__"):
        parts = [getattr(value, name) for name in type(value).__dataclass_fields__]
    elif isinstance(value, (tuple, list)):
        parts = value
    elif isinstance(value, dict):
        parts = list(value.values())
    elif _can_be_made(value) and not lasts(value):
        return [value, *made_within(list(vars(value).values()), lasts)]
    return [x for part in parts for x in made_within(part, lasts)]


class Parts:
    """What a result is made of.

    Attributes:
        tensors: those that the call made.
        objects: by their `id`.
        given: the tensors that the caller gave.
        handed: the caller's own objects in the place of those that were made for the call.
    """

    def __init__(
        self,
        tensors: Sequence[Any],
        objects: Mapping[int, Any],
        given: Sequence[Any],
        handed: Sequence[Any],
    ) -> None:
        self.tensors, self.objects = tensors, objects
        self.given, self.handed = given, handed


def given_back(
    structure: Any,
    tensors: Sequence[Any],
    objects: Mapping[int, Any],
    given: Sequence[Any],
    handed: Sequence[Any],
) -> Any:
    """The result of a call; the caller's objects are changed as the call changed its own.

    Args:
        structure: from `parted_result`.
        tensors, objects, given, handed: see `Parts`.
    """
    parts = Parts(tensors, objects, given, handed)
    if structure[0] != "result":
        return _value(structure, parts, None)
    for i in range(len(handed)):
        _value(structure[2][i], parts, handed[i])
    return _value(structure[1], parts, None)


def _value(structure: Any, parts: Parts, old: Any) -> Any:
    """The value of a structure: the old one, changed, where that is of the same kind."""
    kind = structure[0]
    if kind == "tensor":
        return parts.tensors[structure[1]]
    if kind == "given":
        return parts.given[structure[1]]
    if kind == "handed":
        return parts.handed[structure[1]]
    if kind == "array":
        return parts.tensors[structure[1]].numpy()
    if kind == "constant":
        return structure[2]
    if kind == "object":
        return parts.objects[structure[1]]
    if kind == "fields":
        values = {}
        for name, part in structure[2]:
            values[name] = _value(part, parts, None)
        return structure[1](**values)
    if kind == "made":
        made = old if type(old) is structure[1] else object.__new__(structure[1])
        for name, part in structure[2]:
            before = getattr(old, name, None) if old is made else None
            setattr(made, name, _value(part, parts, before))
        return made
    if kind == "dict":
        entries = {}
        for key, part in structure[1]:
            before = old[key] if type(old) is dict and key in old else None
            entries[key] = _value(part, parts, before)
        if type(old) is not dict:
            return entries
        old.clear()
        old.update(entries)
        return old
    found = []
    for i, part in enumerate(structure[1]):
        before = old[i] if type(old) is list and i < len(old) else None
        found.append(_value(part, parts, before))
    if kind == "tuple":
        return tuple(found)
    return found  # a new list: Dynamo returns none that got an object newer than its owner
