"""Masks drawn into memory that is not in the order of its dimensions.

Eager's dropout fills an empty tensor laid out like its input, in the order of memory. Tracing makes
of that an op that draws a contiguous tensor, with the numbers in other places. Here the op draws in
the order of memory again, through views.
"""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["draw_in_memory_order"]

aten = torch.ops.aten


def draw_in_memory_order(joint: fx.GraphModule) -> None:
    """Let `empty_like(x).bernoulli_(p)`, as traced, draw what it draws in eager.

    Only draws into `empty_like` are meant: what `torch.bernoulli(x, p)` returns is contiguous in
    eager too.
    """
    for node in joint.graph.find_nodes(op="call_function", target=aten.bernoulli.p):
        empty = node.args[0]
        if not isinstance(empty, fx.Node) or empty.target is not aten.empty_like.default:
            continue
        like = empty.meta["val"]
        order = sorted(range(like.ndim), key=lambda d: (-like.stride(d), d))
        if like.is_contiguous() or not torch.empty_like(like).permute(order).is_contiguous():
            continue
        back = [order.index(d) for d in range(like.ndim)]
        with like.fake_mode:
            turned_value = like.permute(order)
            drawn_value = torch.empty_like(turned_value)
        with joint.graph.inserting_before(node):
            turned = joint.graph.call_function(aten.permute.default, (empty, order))
        with joint.graph.inserting_after(node):
            turned_back = joint.graph.call_function(aten.permute.default, (node, back))
        node.replace_all_uses_with(turned_back, lambda user, made=turned_back: user is not made)
        node.args = (turned, *node.args[1:])
        turned.meta = {**empty.meta, "val": turned_value}
        node.meta = {**node.meta, "val": drawn_value}
        with like.fake_mode:
            turned_back.meta = {**node.meta, "val": drawn_value.permute(back)}
    joint.graph.lint()
