"""Keeps Inductor's patterns from moving what a plan has placed.

Inductor turns `add(mm(a, b), c)` into one `addmm(c, a, b)` at the place of the addition. Where
other ops run in between, `a` and `b` would have to live until then: the logits' gradient, for one,
until the gradient of a tied embedding is there, at the end of the backward pass.
"""

from __future__ import annotations

import torch
from torch import fx

from memfit.pytorch.inductor.fusible_ops import is_pointwise

__all__ = ["keep_products_in_place"]

aten = torch.ops.aten


def keep_products_in_place(module: fx.GraphModule) -> None:
    """Have products whose sum is taken later computed where they are.

    x - (-1) * y is x + y to the bit, but not the pattern.
    """
    kernels = 0
    place: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            if node.target is aten.add.Tensor and not node.kwargs:
                bases = [_base(a) for a in node.all_input_nodes]
                if any(b.target is aten.mm.default and kernels > place[b] for b in bases):
                    node.target, node.kwargs = aten.sub.Tensor, {"alpha": -1}
            if not (node.target.is_view or is_pointwise(node)):
                kernels += 1
        place[node] = kernels
    module.recompile()


def _base(node: fx.Node) -> fx.Node:
    """What a view is a view of; Inductor takes out views that cancel each other."""
    while isinstance(node.target, torch._ops.OpOverload) and node.target.is_view:
        node = node.all_input_nodes[0]
    return node
