"""The one module that imports private or experimental PyTorch names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import DispatchKey
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch._functorch._aot_autograd.descriptors import SavedForBackwardsAOTOutput

from memfit.errors import UnsupportedTorchError

__all__ = [
    "BackendCompilerFailed",
    "TorchDynamoException",
    "aot_backend",
    "backward_keeps_graph",
    "check_torch_version",
    "saved_output_description",
    "whole_ops",
]

SUPPORTED = ((2, 11), (2, 13))
Backend = Callable[[torch.fx.GraphModule, Sequence[Any]], Callable[..., Any]]


def check_torch_version() -> None:
    """Refuse a PyTorch that memfit was not written against.

    Raises:
        UnsupportedTorchError: the version is outside of `SUPPORTED`.
    """
    version = tuple(int(p) for p in torch.__version__.split("+")[0].split(".")[:2])
    low, high = SUPPORTED
    if not low <= version <= high:
        raise UnsupportedTorchError(
            f"torch {torch.__version__} is not supported; memfit runs with torch "
            f"{low[0]}.{low[1]} to {high[0]}.{high[1]}; install one of these"
        )


def saved_output_description(index: int) -> Any:
    """AOTAutograd's description of the index-th value that the forward graph saves."""
    return SavedForBackwardsAOTOutput(index)


def aot_backend(partition: Callable[..., Any]) -> Backend:
    """A Dynamo backend that runs AOTAutograd's graphs as they are, split by `partition`."""
    return aot_autograd(  # type: ignore[no-any-return]
        fw_compiler=boxed_nop,
        bw_compiler=boxed_nop,
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )


_WHOLE = ("upsample_", "_upsample_", "dropout", "hardshrink", "softshrink")
_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)


@contextmanager
def whole_ops() -> Iterator[None]:
    """Trace ops that AOTAutograd would take apart into other arithmetic as eager runs them.

    PyTorch registers Python decompositions of interpolation, dropout and others for tracing; they
    compute other bits than eager's kernels, and are slower. While this is on, tracing sees the
    same C++ paths as eager.
    """
    removed: list[tuple[Any, DispatchKey, Any]] = []
    namespace = torch.ops.aten
    for name in dir(namespace):
        if not name.startswith(_WHOLE):
            continue
        packet = getattr(namespace, name)
        for overload in getattr(packet, "overloads", list)():
            op = getattr(packet, overload)
            for key in _KEYS:
                if key in op.py_kernels:
                    removed.append((op, key, op.py_kernels.pop(key)))
            op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, key, kernel in removed:
            op.py_kernels[key] = kernel
            op._dispatch_cache.clear()


def backward_keeps_graph() -> bool:
    """Whether the running backward pass was asked to keep its graph (`retain_graph=True`)."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())
