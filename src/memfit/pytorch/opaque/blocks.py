"""The blocks inside an opaque module: each is computed again, one at a time, in its backward pass.

So what autograd keeps of the module is what enters its blocks. Blocks are the modules that repeat:
what a list or a sequence holds, down to those that hold no such list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from memfit.pytorch.failures.first_run import (
    RandomStates,
    random_states,
    random_states_kept,
    set_random_states,
)
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
def computed_again(blocks: list[nn.Module]) -> Iterator[list[RandomStates]]:
    """Inside, each block keeps what it is given, and is computed again in the backward pass.

    Yields:
        The random states that are kept for blocks that draw.
    """
    before = [(block, vars(block).get("forward")) for block in blocks]
    drawn: list[RandomStates] = []
    for block in blocks:
        vars(block)["forward"] = _again(block, block.forward, drawn)
    try:
        yield drawn
    finally:
        for block, own in before:
            vars(block).pop("forward", None)
            if own is not None:
                vars(block)["forward"] = own


def _again(
    block: nn.Module, own: Callable[..., Any], drawn: list[RandomStates]
) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        return checkpoint(
            own,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: _contexts(block, drawn),
            **kwargs,
        )

    return forward


def _contexts(
    block: nn.Module, drawn: list[RandomStates]
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Around the first run and around the second: random numbers are drawn again, buffers stay.

    A block that draws none keeps no state, which would be memory of each block.
    """
    states: list[RandomStates] = []

    @contextmanager
    def first() -> Iterator[None]:
        before = random_states()
        yield
        if random_states().differs(before):
            states.append(before)
            drawn.append(before)

    @contextmanager
    def second() -> Iterator[None]:
        around = random_states_kept() if states else nullcontext()
        with around, kept(block):
            for state in states:
                set_random_states(state)
            yield

    return first(), second()
