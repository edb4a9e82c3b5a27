"""`torch._foreach_*_`, which writes a list of tensors in place, on views that have a gradient.

While AOTAutograd traces, such an op does not count as a write to the views: autograd goes on with
what they were before, and their gradients are wrong without a word. One op for each tensor, which
is what these ops run on the CPU, is traced rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["write_views_one_by_one"]

_PREFIX = "_foreach_"
_WITH_FACTOR = ("addcmul", "addcdiv")
_KEYWORDS = {"scalars": "value"}


def write_views_one_by_one(module: fx.GraphModule) -> None:
    """Replace the ops of a Dynamo graph, and of the graphs inside, that write views in place.

    Args:
        module: the graph; changed in place.
    """
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        nodes = [n for n in part.graph.nodes if _name(n) is not None and _writes_views(n)]
        for node in nodes:
            _take_apart(part, node)
        if nodes:
            part.recompile()


def _name(node: fx.Node) -> str | None:
    """The op that a node does to each tensor of a list in place: `mul` for `_foreach_mul_`."""
    if node.op != "call_function":
        return None
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = str(target._schema.name).rsplit("::", 1)[-1]
    else:
        name = str(getattr(target, "__name__", ""))
    if not (name.startswith(_PREFIX) and name.endswith("_")):
        return None
    return name.removeprefix(_PREFIX).rstrip("_")


def _value(node: Any) -> Any:
    meta = node.meta if isinstance(node, fx.Node) else {}
    return meta.get("example_value", meta.get("val"))


def _writes_views(node: fx.Node) -> bool:
    written = node.args[0] if node.args else ()
    values = [_value(n) for n in written] if isinstance(written, (list, tuple)) else []
    read = [_value(n) for n in node.all_input_nodes]
    return any(isinstance(v, torch.Tensor) and v._is_view() for v in values) and any(
        isinstance(v, torch.Tensor) and v.requires_grad for v in read
    )


def _one(argument: Any, index: int, count: int) -> Any:
    """The part of an argument that belongs to one tensor of the list."""
    several = isinstance(argument, (list, tuple)) and len(argument) == count
    return argument[index] if several else argument


def _apply(op: Callable[..., torch.Tensor], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """An op on what a tensor holds now, so that the tensor may be written afterwards."""
    return op(tensor.clone(), *args, **kwargs)


def _take_apart(module: fx.GraphModule, node: fx.Node) -> None:
    """Replace a node by one op for each tensor.

    Views of one memory are all computed before the first is written, as in the original op: a write
    makes invalid what autograd has saved of the others.
    """
    name = str(_name(node))
    written: Sequence[Any] = node.args[0]
    count = len(written)
    values = [_value(t) for t in written]
    memories = {v.untyped_storage()._cdata for v in values if isinstance(v, torch.Tensor)}
    in_place = len(memories) == count and hasattr(torch.Tensor, f"{name}_")
    made: list[fx.Node] = []
    with module.graph.inserting_before(node):
        for i, tensor in enumerate(written):
            args = [_one(a, i, count) for a in node.args[1:]]
            kwargs = {_KEYWORDS.get(k, k): _one(a, i, count) for k, a in node.kwargs.items()}
            if name in _WITH_FACTOR and len(args) > 2:
                kwargs["value"] = args.pop()
            if in_place:
                made.append(module.graph.call_method(f"{name}_", (tensor, *args), kwargs))
            else:
                op = getattr(torch, name)
                made.append(module.graph.call_function(_apply, (op, tensor, *args), kwargs))
        if not in_place:
            results = list(made)
            made += [
                module.graph.call_method("copy_", pair)
                for pair in zip(written, results, strict=True)
            ]
    for part, value in zip(made, values * 2, strict=False):
        part.meta = {**node.meta, "example_value": value}
    module.graph.erase_node(node)
