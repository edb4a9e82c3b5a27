"""What a module is given and returns, as its tensors and the structure that they are in.

Tracing runs this code, too, so it is plain Python without generators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["CannotBeParted", "parted", "together"]

_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)


class CannotBeParted(TypeError):
    """There is something that is neither a tensor nor a constant, nor made of such."""


def parted(value: Any, objects: dict[int, Any] | None = None) -> tuple[list[torch.Tensor], Any]:
    """The tensors of a value, and its structure.

    Args:
        value: a tensor, a NumPy array, a constant, or a tuple, list, dictionary, named tuple or
            dataclass of such (outputs of `transformers` among them).
        objects: gets other objects, such as a configuration, by their `id`; where it is None,
            there may be none.

    Raises:
        CannotBeParted: there is something else in it.
    """
    tensors: list[torch.Tensor] = []
    return tensors, _structure(value, tensors, objects)


def _structure(value: Any, tensors: list[torch.Tensor], objects: dict[int, Any] | None) -> Any:
    if isinstance(value, torch.Tensor):
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
            found.append((name, _structure(getattr(value, name), tensors, objects)))
        return ("fields", kind, tuple(found))
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        found = []
        for name in kind._fields:
            found.append((name, _structure(getattr(value, name), tensors, objects)))
        return ("fields", kind, tuple(found))
    if isinstance(value, (tuple, list)):
        parts = []
        for part in value:
            parts.append(_structure(part, tensors, objects))
        return ("list" if isinstance(value, list) else "tuple", tuple(parts))
    if isinstance(value, dict):
        found = []
        for key, part in value.items():
            found.append((key, _structure(part, tensors, objects)))
        return ("dict", tuple(found))
    if objects is not None:
        objects[id(value)] = value
        return ("object", id(value))
    raise CannotBeParted(f"a {kind.__name__}, which is neither a tensor nor a constant")


def together(
    structure: Any, tensors: Sequence[Any], objects: Mapping[int, Any] | None = None
) -> Any:
    """The value of a structure with other tensors, and with the objects that were found in it."""
    kind = structure[0]
    if kind == "tensor":
        return tensors[structure[1]]
    if kind == "array":
        return tensors[structure[1]].numpy()
    if kind == "constant":
        return structure[2]
    if kind == "object":
        return (objects or {})[structure[1]]
    if kind == "fields":
        values = {}
        for name, part in structure[2]:
            values[name] = together(part, tensors, objects)
        return structure[1](**values)
    if kind == "dict":
        values = {}
        for key, part in structure[1]:
            values[key] = together(part, tensors, objects)
        return values
    parts = []
    for part in structure[1]:
        parts.append(together(part, tensors, objects))
    return parts if kind == "list" else tuple(parts)
