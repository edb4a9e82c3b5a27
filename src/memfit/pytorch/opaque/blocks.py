"""The blocks inside an opaque module: each is computed again, one at a time, in its backward pass.

So what autograd keeps of the module is what enters its blocks. Blocks are the modules that repeat:
what a list or a sequence holds, down to those that hold no such list.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from memfit.pytorch.opaque.module_state import kept

__all__ = ["blocks_of", "computed_again"]

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of a module, none where nothing in it repeats or has parts."""
    found: list[nn.Module] = []
    for child in module.children():
        if _holds_a_list(child):
            found += blocks_of(child)
        elif any(True for _ in child.children()):
            found.append(child)
    return found


def _holds_a_list(module: nn.Module) -> bool:
    """Whether it is, or holds, a list of modules that have parts themselves."""
    return any(
        isinstance(m, _LISTS)
        and sum(any(True for _ in child.children()) for child in m.children()) > 1
        for m in module.modules()
    )


@contextmanager
def computed_again(blocks: list[nn.Module]) -> Iterator[None]:
    """Inside, each block keeps what it is given, and is computed again in the backward pass."""
    before = [(block, vars(block).get("forward")) for block in blocks]
    for block in blocks:
        vars(block)["forward"] = _again(block, block.forward)
    try:
        yield
    finally:
        for block, own in before:
            vars(block).pop("forward", None)
            if own is not None:
                vars(block)["forward"] = own


def _again(block: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        return checkpoint(
            own, *args, use_reentrant=False, context_fn=lambda: _contexts(block), **kwargs
        )

    return forward


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Around the first run and around the second: random numbers are drawn again, buffers stay.

    PyTorch's own generators are set by `checkpoint`.
    """
    states: list[tuple[Any, Any]] = []

    @contextmanager
    def first() -> Iterator[None]:
        states.append(_states())
        yield

    @contextmanager
    def second() -> Iterator[None]:
        now = _states()
        _set_states(states[0])
        try:
            with kept(block):
                yield
        finally:
            _set_states(now)

    return first(), second()


def _states() -> tuple[Any, Any]:
    numpy = getattr(sys.modules.get("numpy"), "random", None)
    return random.getstate(), numpy.get_state() if numpy is not None else None


def _set_states(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    numpy = getattr(sys.modules.get("numpy"), "random", None)
    if numpy is not None and states[1] is not None:
        numpy.set_state(states[1])
