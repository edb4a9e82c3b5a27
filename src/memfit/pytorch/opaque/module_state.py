"""What a forward pass may change about modules: buffers, tensors and plain values they hold."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memfit.pytorch.compat.fake import FakeTensor
from memfit.pytorch.layouts.sparse import same

__all__ = ["ModuleState", "held_tensors", "kept"]

_COLLECTIONS = (list, dict, set)


def held_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Buffers of a module and of those inside, and other tensors they hold that are not trained."""
    return _held(_inside(module))


def _inside(module: nn.Module) -> list[nn.Module]:
    """A module and those inside, in the time of a few attributes each: this runs in every step."""
    found = {module: None}
    todo = [module]
    while todo:
        for child in todo.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                todo.append(child)
    return list(found)


def _held(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    plain = torch.Tensor
    for m in modules:
        for buffer in m._buffers.values():
            if buffer is not None:
                found[id(buffer)] = buffer
        for value in vars(m).values():
            if type(value) is plain and not value.requires_grad:
                found[id(value)] = value
    return [x for x in found.values() if not isinstance(x, FakeTensor)]


class ModuleState:
    """The state of a module and of those inside, at one moment.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = _inside(module)
        with torch.no_grad():
            self._tensors = [(x, x.detach().clone()) for x in _held(self._modules)]
        self._values = [
            {
                name: copy.copy(value) if isinstance(value, _COLLECTIONS) else value
                for name, value in vars(m).items()
                if name[:1] != "_" and name != "forward"
            }
            for m in self._modules
        ]

    def put_back(self) -> None:
        """Make it the state again."""
        with torch.no_grad():
            for tensor, old in self._tensors:
                if not same(tensor, old):
                    tensor.copy_(old)
        for m, values in zip(self._modules, self._values, strict=True):
            held = vars(m)
            for name in [n for n in held if n not in values and n[:1] != "_"]:
                if name != "forward":
                    del held[name]
            for name, old in values.items():
                _put(held, name, old)


def _put(held: dict[str, Any], name: str, old: Any) -> None:
    now: Any = held.get(name)
    if type(now) is not type(old) or not isinstance(old, _COLLECTIONS):
        held[name] = old
    elif isinstance(now, list):
        now[:] = old
    else:
        now.clear()
        now.update(old)


@contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """Inside, a module may run once more: afterwards its state is what it was."""
    state = ModuleState(module)
    try:
        yield
    finally:
        state.put_back()
