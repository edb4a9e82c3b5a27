"""Private names of PyTorch's loop operators, and of tracing one graph while another is traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._guards import TracingContext, tracing
from torch._higher_order_ops.scan import scan_op
from torch._higher_order_ops.while_loop import while_loop_op
from torch._subclasses.fake_tensor import FakeTensorMode

from memfit.pytorch.compat.eager import aot_backend

with warnings.catch_warnings():  # Dynamo imports it when it traces a loop; it warns of itself
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.utils.mkldnn

__all__ = [
    "fake_mode_of",
    "scan_op",
    "traced_joint",
    "while_loop_op",
]


class _Traced(Exception):
    """Ends a compilation that is only there for its joint graph."""


def fake_mode_of(value: Any) -> FakeTensorMode:
    """The mode that a fake tensor belongs to."""
    return value.fake_mode


@contextmanager
def _own_tracing(mode: FakeTensorMode) -> Iterator[None]:
    with tracing(TracingContext(mode)):
        yield


def traced_joint(
    module: fx.GraphModule, examples: Sequence[torch.Tensor]
) -> tuple[fx.GraphModule, int] | None:
    """The joint forward-and-backward graph of a module, and its number of forward outputs.

    Args:
        module: a graph of PyTorch calls.
        examples: fake tensors, one for each input, that require gradients where one is wanted.

    Returns:
        None where no output depends on a tensor that requires gradients.
    """
    found: list[tuple[fx.GraphModule, int]] = []

    def partition(joint: fx.GraphModule, _: Any, *, num_fwd_outputs: int, **__: Any) -> Any:
        found.append((joint, num_fwd_outputs))
        raise _Traced

    compile_with: Callable[..., Any] = aot_backend(partition)
    try:
        with _own_tracing(fake_mode_of(examples[0])), torch.enable_grad():
            compile_with(module, list(examples))
    except _Traced:
        return found[0]
    return None
