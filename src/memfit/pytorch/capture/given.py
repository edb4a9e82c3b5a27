"""What the caller gives to a step: memory that is there all through it, whether it is read or not.

A graph has only what it reads, as large as it looks: not an input that `forward` ignores, nor the
rest of a storage of which an input is a part. The caller holds both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from memfit.pytorch.capture.storage_sizes import block_bytes
from memfit.pytorch.compat.eager import tree_leaves

__all__ = ["Given", "storages_of", "tensors_within", "unread_bytes"]

_MOST_OBJECTS = 10_000  # looked into: a data set that hangs on a batch is not searched
_OPAQUE = (str, bytes, int, float, complex, type(None), type, nn.Module)
_CODE = (FunctionType, MethodType, ModuleType)


def storages_of(tensors: Iterable[Any]) -> dict[int, int]:
    """Storages of the dense tensors among some values: identity -> bytes handed out for each."""
    found: dict[int, int] = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            found[storage._cdata] = block_bytes(int(storage.nbytes()), tensor.device)
    return found


def tensors_within(tree: Any) -> Iterator[torch.Tensor]:
    """All tensors in a tree of containers and, where a leaf is another object, in its attributes.

    Modules are not looked into: their parameters and buffers count as such.
    """
    stack = [tree]
    seen: set[int] = set()
    while stack and len(seen) < _MOST_OBJECTS:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            yield item
            continue
        if isinstance(item, (*_OPAQUE, *_CODE)) or id(item) in seen:
            continue
        seen.add(id(item))
        leaves = tree_leaves(item)
        if len(leaves) != 1 or leaves[0] is not item:
            stack.extend(leaves)
            continue
        if isinstance(item, (set, frozenset)):
            stack.extend(item)
        stack.extend(getattr(item, "__dict__", {}).values())
        for kind in type(item).__mro__:
            names = kind.__dict__.get("__slots__", ())
            names = (names,) if isinstance(names, str) else tuple(names)
            stack.extend(getattr(item, name, None) for name in names)


def unread_bytes(given: Any, read: Iterable[Any]) -> int:
    """Bytes of the tensors in the containers that PyTorch knows whose memory a graph is not given.

    Args:
        given: the containers.
        read: the inputs of the graph.
    """
    known = storages_of(read)
    return sum(size for s, size in storages_of(tree_leaves(given)).items() if s not in known)


@dataclass(frozen=True)
class Given:
    """The arguments of one call, and the model, whose parameters and buffers count apart."""

    model: nn.Module | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plain_bytes(self) -> int:
        """Bytes of the tensors in the containers that PyTorch knows: found quickly, at each call.

        Memory of the model among them counts, too.
        """
        return sum(storages_of(tree_leaves((self.args, dict(self.kwargs)))).values())

    def input_bytes(self, read: Sequence[Any], lasting: Collection[int]) -> int:
        """Bytes of all inputs, each memory once.

        Args:
            read: the inputs of Dynamo's graph: what it reads, and tensors that are no argument.
            lasting: positions of parameters and buffers among them.
        """
        own = storages_of(read[i] for i in lasting)
        if self.model is not None:
            own.update(storages_of([*self.model.parameters(), *self.model.buffers()]))
        others = (x for i, x in enumerate(read) if i not in lasting)
        given = storages_of([*tensors_within((self.args, dict(self.kwargs))), *others])
        return sum(size for storage, size in given.items() if storage not in own)
