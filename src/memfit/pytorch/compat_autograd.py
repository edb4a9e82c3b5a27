"""Private names of the autograd engine: where a gradient that a node returns will go."""

from __future__ import annotations

import torch

__all__ = ["accumulating_leaf"]


def accumulating_leaf(position: int, count: int) -> torch.Tensor | None:
    """The leaf into whose `.grad` the engine will add a gradient of the running autograd node.

    Args:
        position: which of the node's differentiable inputs, counting tensors only.
        count: how many inputs the caller believes the node has.

    Returns:
        The leaf. None where the running backward pass does not add to a leaf's `.grad` there: an
        input that is no leaf, `torch.autograd.grad`, `backward(inputs=...)` without it, or a node
        with other inputs than the caller believes.
    """
    node = torch._C._current_autograd_node()
    edges = () if node is None else node.next_functions
    if len(edges) != count:
        return None
    target = edges[position][0]
    leaf = getattr(target, "variable", None)
    if not isinstance(leaf, torch.Tensor):
        return None
    try:
        runs = torch._C._will_engine_execute_node(target)
    except RuntimeError:  # what the engine says of leaves that autograd.grad was asked for
        return None
    return leaf if runs else None
