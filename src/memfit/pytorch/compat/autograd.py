"""Private names of autograd: where the gradients of a node go, and what computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

__all__ = [
    "accumulating_leaf",
    "compiled_nodes",
    "leaves_behind",
    "notes_of_running_node",
    "wrap_backward",
]


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


def wrap_backward(
    results: Iterable[Any], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> bool:
    """Put another function in place of the backward of the compiled graph that made some tensors.

    AOTAutograd makes one autograd function of a graph. Its backward also unpacks what was saved,
    and compiles what was not compiled before.

    Returns:
        Whether it was found.
    """
    for tensor in results:
        node = tensor.grad_fn if isinstance(tensor, torch.Tensor) else None
        while node is not None:
            function = getattr(node, "_forward_cls", None)
            if function is not None and hasattr(function, "_aot_id"):
                function.backward = staticmethod(wrap(function.backward))
                return True
            node = node.next_functions[0][0] if node.next_functions else None  # of a view
    return False


def compiled_nodes(results: Sequence[Any]) -> set[Any]:
    """The autograd nodes that AOTAutograd made for a step, found behind what the step returned.

    Outputs that are views of others have nodes of their own in front of them.
    """
    found: set[Any] = set()
    seen: set[Any] = set()
    stack = [t.grad_fn for t in results if isinstance(t, torch.Tensor)]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "CompiledFunctionBackward":
            found.add(node)
        else:
            stack.extend(before for before, _ in node.next_functions)
    return found


def notes_of_running_node() -> dict[str, Any]:
    """A dict that belongs to the autograd node that is running, or about to; empty without one."""
    node = torch._C._current_autograd_node()
    return {} if node is None else node.metadata


def leaves_behind(tensors: Iterable[torch.Tensor], ends: str = "") -> list[torch.Tensor]:
    """The leaves that tensors are computed from, as far as gradients reach, in order of discovery.

    Args:
        tensors: each has a `grad_fn`, or is a leaf.
        ends: name of nodes behind which nothing is looked at.
    """
    todo = [x.grad_fn for x in tensors if x.grad_fn is not None]
    found = [x for x in tensors if x.grad_fn is None and x.requires_grad]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node in seen or (ends and node.name() == ends):
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, torch.Tensor) and not any(variable is x for x in found):
            found.append(variable)
        todo += [before for before, _ in node.next_functions if before is not None]
    return found
