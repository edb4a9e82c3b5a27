"""Private or experimental names of torch.distributed, kept in one place beside `compat`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from memfit.pytorch.compat.eager import boxed_nop

__all__ = [
    "active_ddp",
    "boxed",
    "default_store",
    "distributed_ready",
    "is_subclass",
    "without_autocast",
]


def distributed_ready() -> bool:
    """Whether a process group has been set up in this process."""
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())


def active_ddp() -> Any:
    """The DistributedDataParallel module whose forward pass is running, or None."""
    if not distributed_ready():
        return None
    return torch.nn.parallel.DistributedDataParallel._get_active_ddp_module()


def default_store() -> Any:
    """The key-value store through which the process group was set up."""
    return torch.distributed.distributed_c10d._get_default_store()


def is_subclass(tensor: Any) -> bool:
    """Whether AOTAutograd takes the tensor apart into inner tensors (DTensor, for one)."""
    return bool(is_traceable_wrapper_subclass(tensor))


def without_autocast() -> Any:
    """A context in which autocast is off, as AOTAutograd runs its own graphs."""
    return torch._C._DisableAutocast()


def boxed(graph: torch.fx.GraphModule, inputs: Sequence[Any] = ()) -> Callable[[list[Any]], Any]:
    """The graph as a function of a list of arguments, which it empties, so that they can go."""
    run: Callable[[list[Any]], Any] = boxed_nop(graph, list(inputs))
    return run
