"""Backward passes that a plan cannot serve are refused before they begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from memfit.errors import ExecutionError
from memfit.pytorch.compat.eager import backward_keeps_graph

__all__ = ["on_backward", "refuse_second_use"]


def refuse_second_use(_: Any = None) -> None:
    """Hook on a planned step's outputs, called when the backward pass reaches them.

    Raises:
        ExecutionError: gradients are to be differentiated again, or the graph is to be kept.
    """
    if torch.is_grad_enabled():
        raise ExecutionError(
            "create_graph=True (double backward) is not supported by a fitted module: its "
            "backward pass is planned once and frees what it uses; call the plain model for "
            "steps that need second derivatives"
        )
    if backward_keeps_graph():
        raise ExecutionError(
            "retain_graph=True is not supported by a fitted module: its backward pass frees "
            "the kept activations as it goes; add the losses and call backward() once, or "
            "call the plain model for this step"
        )


def on_backward(results: Sequence[Any], given: Sequence[Any], begun: Callable[[], None]) -> None:
    """Guard a graph's results, and call `begun` when a backward pass that is served begins.

    Args:
        results: what the graph returned.
        given: what it was given; tensors handed through are left alone.
        begun: kept alive by the autograd nodes of the results, and freed with them.
    """
    known = {id(t) for t in given}

    def before(_: Any) -> None:
        refuse_second_use()
        begun()

    # A hook on the node, not on the tensor: Dynamo compiles anew for an input that has hooks.
    nodes = {
        t.grad_fn
        for t in results
        if isinstance(t, torch.Tensor) and t.grad_fn is not None and id(t) not in known
    }
    for node in nodes:
        node.register_prehook(before)
