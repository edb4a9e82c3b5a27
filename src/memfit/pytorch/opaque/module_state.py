"""What a forward pass may change about modules: buffers, tensors and plain values they hold."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memfit.errors import ExecutionError
from memfit.pytorch.compat.fake import FakeTensor
from memfit.pytorch.layouts.sparse import same

__all__ = ["ModuleState", "Versions", "held_tensors", "kept"]

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


class Versions:
    """Which tensors that modules hold have been written to since a moment.

    Args:
        module: the module that holds them, itself or inside.
    """

    def __init__(self, module: nn.Module) -> None:
        self._found = {id(x): (weakref.ref(x), _version(x)) for x in held_tensors(module)}

    def note(self, tensors: Iterable[torch.Tensor]) -> None:
        """These were seen to change, even if not by their versions (`.data` leaves them)."""
        for x in tensors:
            self._found.pop(id(x), None)

    def written(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor has been written to, or was not held then."""
        known = self._found.get(id(tensor))
        return known is None or known[0]() is not tensor or _version(tensor) != known[1]


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class ModuleState:
    """The state of a module and of those inside, at one moment.

    Args:
        module: the module.
        versions: what has not been written to since then is not copied, for it is not expected to
            be: most buffers never are, and copies of all in each step would be over the budget.
    """

    def __init__(self, module: nn.Module, versions: Versions | None = None) -> None:
        self._modules = _inside(module)
        held = _held(self._modules)
        copied = [x for x in held if versions is None or versions.written(x)]
        with torch.no_grad():
            self._tensors = [(x, x.detach().clone()) for x in copied]
        known = set(map(id, copied))
        self._others = [(x, _version(x)) for x in held if id(x) not in known]
        self._values = [
            {
                name: copy.copy(value) if isinstance(value, _COLLECTIONS) else value
                for name, value in vars(m).items()
                if name[:1] != "_" and name != "forward"
            }
            for m in self._modules
        ]

    def changed(self) -> list[torch.Tensor]:
        """Tensors that are copied here and hold something else now."""
        return [x for x, old in self._tensors if not same(x, old)]

    def put_back(self) -> None:
        """Make it the state again.

        Raises:
            ExecutionError: something was written to that never was before.
        """
        for tensor, version in self._others:
            if _version(tensor) != version:
                raise ExecutionError(
                    f"a tensor of shape {tuple(tensor.shape)} that a module holds, which no step "
                    "wrote to before, was written to in a step that had to be begun again; its "
                    "content is lost: load it again, and train on (from now on it is kept)"
                )
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
def kept(module: nn.Module, versions: Versions | None = None) -> Iterator[None]:
    """Inside, a module may run once more: afterwards its state is what it was."""
    state = ModuleState(module, versions)
    try:
        yield
    finally:
        state.put_back()
