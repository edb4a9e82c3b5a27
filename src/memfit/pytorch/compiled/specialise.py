"""A Dynamo graph with symbolic sizes, made into one of fixed sizes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import fx

from memfit.pytorch.compat.symbols import SYMBOLIC

__all__ = ["has_symbols", "key_of_sizes", "specialised"]


def _example(node: fx.Node) -> Any:
    return node.meta.get("example_value")


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return list(module.graph.find_nodes(op="placeholder"))


def _is_number(placeholder: fx.Node) -> bool:
    """Whether an input stands for a number.

    Dynamo hands integers, such as the sizes of tensors, to the graph as they are, and floats as
    tensors of one element, of which the graph takes the item.
    """
    if isinstance(_example(placeholder), SYMBOLIC):
        return True
    return bool(placeholder.users) and all(
        user.op == "call_method" and user.target == "item" and isinstance(_example(user), SYMBOLIC)
        for user in placeholder.users
    )


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def has_symbols(module: fx.GraphModule) -> bool:
    """Whether a graph takes sizes and other numbers that are known when it runs only."""
    return any(_is_number(p) for p in _placeholders(module))


def key_of_sizes(module: fx.GraphModule) -> Callable[[Sequence[Any]], Hashable]:
    """A function of a symbolic graph's arguments, equal where one specialised graph serves both.

    Sizes, strides and offsets that are fixed are left out: Dynamo guards them. Which arguments lie
    in one storage is part of it: AOTAutograd's code depends on that for inputs written in place.
    """

    def symbolic(value: Any) -> bool:
        if not isinstance(value, torch.Tensor):
            return False
        parts = (*value.size(), *value.stride(), value.storage_offset())
        return any(isinstance(part, torch.SymInt) for part in parts)

    numeric = [i for i, p in enumerate(_placeholders(module)) if _is_number(p)]
    shaped = [i for i, p in enumerate(_placeholders(module)) if symbolic(_example(p))]

    def key(args: Sequence[Any]) -> Hashable:
        numbers = tuple(_number(args[i]) for i in numeric)
        shapes = tuple((args[i].shape, args[i].stride(), args[i].storage_offset()) for i in shaped)
        storages: dict[int, int] = {}
        places = [
            storages.setdefault(x.untyped_storage()._cdata, i)
            for i, x in enumerate(args)
            if isinstance(x, torch.Tensor)
        ]
        shared = () if len(storages) == len(places) else tuple(places)
        return numbers, shapes, shared

    return key


def specialised(
    module: fx.GraphModule, args: Sequence[Any]
) -> tuple[fx.GraphModule, Callable[[Sequence[Any]], list[Any]]]:
    """The graph for the numbers among some arguments.

    Returns:
        The graph, which takes the arguments that are no numbers, and what picks these out.
    """
    graph = fx.Graph()
    known: dict[fx.Node, Any] = {}
    taken = []
    for i, (placeholder, value) in enumerate(zip(_placeholders(module), args, strict=True)):
        if not _is_number(placeholder):
            taken.append(i)
            continue
        known[placeholder] = _number(value)
        if isinstance(value, torch.Tensor):
            known.update((item, known[placeholder]) for item in placeholder.users)
    for node in module.graph.nodes:
        if node in known:
            continue
        if node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], known.__getitem__))
        else:
            made = graph.node_copy(node, known.__getitem__)
            for symbols in ("example_value", "grapharg"):
                made.meta.pop(symbols, None)
            known[node] = made
    graph.lint()
    return fx.GraphModule(module, graph), lambda given: [given[i] for i in taken]
