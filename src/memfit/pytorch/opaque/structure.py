"""What a module is given, as its tensors and the structure that they are in.

Tracing runs this code, too, so it is plain Python without generators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memfit.pytorch.layouts.sparse import (
    SparseGiven,
    Untouchable,
    form_of,
    is_sparse,
    made_of,
)
from memfit.pytorch.layouts.sparse import parts as sparse_tensors

__all__ = ["CannotBeParted", "Made", "parted", "sparse_parts", "together"]

CONSTANTS = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.layout)


_NO_OBJECTS: Mapping[int, Any] = {}

Made = tuple[tuple[type, tuple[str, ...]], ...]
"""Classes of objects, each with the names of their attributes."""


class CannotBeParted(TypeError):
    """There is something that is neither a tensor nor a constant, nor made of such."""


def parted(
    value: Any, objects: dict[int, Any], made: Made = (), found: list[Any] | None = None
) -> tuple[list[torch.Tensor], Any]:
    """The tensors of what is given to a call, and the structure that they are in.

    Args:
        value: a tensor, a NumPy array, a constant, or a tuple, list, dictionary, named tuple or
            dataclass of such (outputs of `transformers` among them).
        objects: gets other objects, such as a configuration, by their `id`.
        made: classes of objects that the step makes anew (a cache of keys and values), with the
            names of their attributes, by which they are taken apart.
        found: gets these objects, those inside of them left aside.

    Raises:
        CannotBeParted: there is something else in it.
    """
    tensors: list[torch.Tensor] = []
    return tensors, _structure(value, tensors, objects, made, found)


def _structure(
    value: Any,
    tensors: list[torch.Tensor],
    objects: dict[int, Any],
    made: Made,
    found: list[Any] | None,
) -> Any:
    if type(value) is SparseGiven or type(value) is Untouchable:
        return _sparse(value.form, value.parts, tensors)
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            if value.requires_grad or not is_sparse(value):
                raise CannotBeParted("a tensor that is not dense")
            return _sparse(form_of(value), sparse_tensors(value), tensors)
        tensors.append(value)
        return ("tensor", len(tensors) - 1)
    if isinstance(value, CONSTANTS):
        return ("constant", type(value).__name__, value)  # 1 is no True
    kind = type(value)
    if kind.__name__ == "ndarray":
        tensors.append(torch.from_numpy(value))
        return ("array", len(tensors) - 1)
    if hasattr(kind, "__dataclass_fields__"):
        fields = []
        for name in kind.__dataclass_fields__:
            fields.append((name, _structure(getattr(value, name), tensors, objects, made, found)))
        return ("fields", kind, tuple(fields))
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        fields = []
        for name in kind._fields:
            fields.append((name, _structure(getattr(value, name), tensors, objects, made, found)))
        return ("fields", kind, tuple(fields))
    if isinstance(value, (tuple, list)):
        parts = []
        for part in value:
            parts.append(_structure(part, tensors, objects, made, found))
        return ("list" if isinstance(value, list) else "tuple", tuple(parts))
    if isinstance(value, dict):
        entries = []
        for key, part in value.items():
            entries.append((key, _structure(part, tensors, objects, made, found)))
        return ("dict", tuple(entries))
    if isinstance(value, type):
        return ("constant", "type", value)
    for one, names in made:
        if kind is one:
            if found is not None:
                found.append(value)
            attributes = []
            for name in names:
                if hasattr(value, name):
                    part = getattr(value, name)
                    attributes.append((name, _structure(part, tensors, objects, made, None)))
            return ("made", kind, tuple(attributes))
    objects[id(value)] = value
    return ("object", id(value))


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


def together(
    structure: Any,
    tensors: Sequence[Any],
    objects: Mapping[int, Any] = _NO_OBJECTS,
    handed: list[Any] | None = None,
) -> Any:
    """The value of a structure with other tensors, and with the objects that were found in it.

    Args:
        structure: from `parted`.
        tensors: those in it.
        objects: by their `id`.
        handed: gets the objects that are made, those inside of them left aside.
    """
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
        return objects[structure[1]]
    if kind == "fields":
        values = {}
        for name, part in structure[2]:
            values[name] = together(part, tensors, objects, handed)
        return structure[1](**values)
    if kind == "made":
        made = object.__new__(structure[1])
        if handed is not None:
            handed.append(made)
        for name, part in structure[2]:
            setattr(made, name, together(part, tensors, objects))
        return made
    if kind == "dict":
        values = {}
        for key, part in structure[1]:
            values[key] = together(part, tensors, objects, handed)
        return values
    parts = []
    for part in structure[1]:
        parts.append(together(part, tensors, objects, handed))
    return parts if kind == "list" else tuple(parts)
