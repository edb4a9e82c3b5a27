"""Private names of autograd: what its nodes keep, where their gradients go, when they run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward

__all__ = [
    "accumulating_leaf",
    "before_backward",
    "compiled_nodes",
    "gradient_bytes",
    "is_compiled",
    "leaves_behind",
    "notes_of_running_node",
    "number_of",
    "saved_by",
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


def is_compiled(node: Any) -> bool:
    """Whether a node is one that AOTAutograd made, whatever backend asked for it."""
    return type(node).__name__ == "CompiledFunctionBackward"


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
        if is_compiled(node):
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


def number_of(node: Any) -> int:
    """The number of a node: later ones of a thread have higher ones."""
    return int(node._sequence_nr())


def gradient_bytes(node: Any) -> list[int]:
    """What the gradients take that a node is given, one for each tensor that it made."""
    sizes = []
    for made in node._input_metadata:
        try:
            sizes.append(math.prod(int(n) for n in made.shape) * made.dtype.itemsize)
        except (RuntimeError, TypeError):  # nested tensors have no such shape
            sizes.append(0)
    return sizes


def saved_by(node: Any) -> list[torch.Tensor]:
    """The tensors that a node keeps, as they lie there: no hooks run, no versions are compared.

    What hooks packed is found where it is a tensor, or a tuple or list with some. Of Python's
    autograd functions also what hangs on their context. C++'s own functions show nothing.
    """
    found: list[Any] = []
    for name in dir(type(node)):
        if not name.startswith("_raw_saved_"):
            continue
        raw = getattr(node, name)
        for saved in raw if isinstance(raw, (tuple, list)) else (raw,):
            try:
                found.append(getattr(saved, "data", None))
            except RuntimeError:  # freed by an earlier backward pass
                continue
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        found.extend(vars(node).values())
    lists = [x for x in found if isinstance(x, (tuple, list))]
    return [x for x in (*found, *(y for x in lists for y in x)) if isinstance(x, torch.Tensor)]


_watching: list[Callable[[Sequence[Any]], None]] = []


def _watched_backward(roots: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    for watch in list(_watching):
        watch(roots)
    return _engine_run_backward(roots, *args, **kwargs)


def before_backward(watch: Callable[[Sequence[Any]], None]) -> Callable[[], None]:
    """Have a function called with the roots of every backward pass that begins, in any thread.

    Nothing else sees the root of a graph before its first nodes free what they saved. Hooks on
    saved tensors would: but with them autograd compares no versions, and `torch.func` refuses them.
    Where something else stands in the place of PyTorch's own function, nothing is called.

    Returns:
        What ends it. When nobody watches, PyTorch's own function stands in its place again.
    """
    _watching.append(watch)
    if torch.autograd._engine_run_backward is _engine_run_backward:
        torch.autograd._engine_run_backward = _watched_backward

    def end() -> None:
        if watch in _watching:
            _watching.remove(watch)
        if not _watching and torch.autograd._engine_run_backward is _watched_backward:
            torch.autograd._engine_run_backward = _engine_run_backward

    return end
