"""What a module is given and returns, as its tensors and the structure that they are in.

Tracing runs this code, too, so it is plain Python without generators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from memfit.pytorch.layouts.sparse import (
    SparseGiven,
    Untouchable,
    form_of,
    is_sparse,
    made_of,
)
from memfit.pytorch.layouts.sparse import parts as sparse_tensors

__all__ = ["CannotBeParted", "parted", "sparse_parts", "together"]

_CONSTANTS = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.layout)
_LASTING = (type, FunctionType, BuiltinFunctionType, ModuleType, nn.Module)


class CannotBeParted(TypeError):
    """There is something that is neither a tensor nor a constant, nor made of such."""


def parted(value: Any, objects: dict[int, Any] | None = None) -> tuple[list[torch.Tensor], Any]:
    """The tensors of a value, and its structure.

    Args:
        value: a tensor, a NumPy array, a constant, or a tuple, list, dictionary, named tuple or
            dataclass of such (outputs of `transformers` among them).
        objects: gets other objects, such as a configuration, by their `id`; where it is None,
            they are taken apart by their attributes, too (a cache of keys and values).

    Raises:
        CannotBeParted: there is something else in it.
    """
    tensors: list[torch.Tensor] = []
    return tensors, _structure(value, tensors, objects, ())


def _structure(
    value: Any,
    tensors: list[torch.Tensor],
    objects: dict[int, Any] | None,
    inside: tuple[int, ...],
) -> Any:
    if type(value) is SparseGiven or type(value) is Untouchable:
        return _sparse(value.form, value.parts, tensors)
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            if objects is None or value.requires_grad or not is_sparse(value):
                raise CannotBeParted("a tensor that is not dense")
            return _sparse(form_of(value), sparse_tensors(value), tensors)
        tensors.append(value)
        return ("tensor", len(tensors) - 1)
    if isinstance(value, _CONSTANTS):
        return ("constant", type(value).__name__, value)  # 1 is no True
    kind = type(value)
    if kind.__name__ == "ndarray":
        tensors.append(torch.from_numpy(value))
        return ("array", len(tensors) - 1)
    if hasattr(kind, "__dataclass_fields__"):
        found = []
        for name in kind.__dataclass_fields__:
            found.append((name, _structure(getattr(value, name), tensors, objects, inside)))
        return ("fields", kind, tuple(found))
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        found = []
        for name in kind._fields:
            found.append((name, _structure(getattr(value, name), tensors, objects, inside)))
        return ("fields", kind, tuple(found))
    if isinstance(value, (tuple, list)):
        parts = []
        for part in value:
            parts.append(_structure(part, tensors, objects, inside))
        return ("list" if isinstance(value, list) else "tuple", tuple(parts))
    if isinstance(value, dict):
        found = []
        for key, part in value.items():
            found.append((key, _structure(part, tensors, objects, inside)))
        return ("dict", tuple(found))
    if objects is not None:
        objects[id(value)] = value
        return ("object", id(value))
    if isinstance(value, (*_LASTING, Enum)):
        return ("constant", kind.__name__, value)
    return ("made", kind, _attributes(value, tensors, inside))


def _sparse(form: Any, found: Sequence[torch.Tensor], tensors: list[torch.Tensor]) -> Any:
    places = []
    for part in found:
        places.append(len(tensors))
        tensors.append(part)
    return ("sparse", form, tuple(places))


def sparse_parts(structure: Any) -> set[int]:
    """Which tensors of a structure are parts of sparse ones."""
    if not isinstance(structure, tuple):
        return set()
    if len(structure) == 3 and structure[0] == "sparse":
        return set(structure[2])
    return set().union(*map(sparse_parts, structure))


def _attributes(value: Any, tensors: list[torch.Tensor], inside: tuple[int, ...]) -> Any:
    """The attributes of an object that is made in each call."""
    kind = type(value)
    slots = any(getattr(one, "__slots__", ()) for one in kind.__mro__)
    new: Any = kind.__new__
    if new is not object.__new__ or slots or not hasattr(value, "__dict__"):
        raise CannotBeParted(f"a {kind.__name__}, which is neither a tensor nor a constant")
    if id(value) in inside:
        raise CannotBeParted(f"a {kind.__name__} that holds itself")
    found = []
    for name, part in vars(value).items():
        found.append((name, _structure(part, tensors, None, (*inside, id(value)))))
    return tuple(found)


def together(
    structure: Any, tensors: Sequence[Any], objects: Mapping[int, Any] | None = None
) -> Any:
    """The value of a structure with other tensors, and with the objects that were found in it."""
    kind = structure[0]
    if kind == "tensor":
        return tensors[structure[1]]
    if kind == "array":
        return tensors[structure[1]].numpy()
    if kind == "sparse":
        return made_of(structure[1], [tensors[i] for i in structure[2]])
    if kind == "constant":
        return structure[2]
    if kind == "object":
        return (objects or {})[structure[1]]
    if kind == "fields":
        values = {}
        for name, part in structure[2]:
            values[name] = together(part, tensors, objects)
        return structure[1](**values)
    if kind == "made":
        made = object.__new__(structure[1])
        for name, part in structure[2]:
            setattr(made, name, together(part, tensors, objects))
        return made
    if kind == "dict":
        values = {}
        for key, part in structure[1]:
            values[key] = together(part, tensors, objects)
        return values
    parts = []
    for part in structure[1]:
        parts.append(together(part, tensors, objects))
    return parts if kind == "list" else tuple(parts)
