"""Keeps Inductor's patterns from moving what a plan has placed.

Inductor turns `add(mm(a, b), c)` into one `addmm(c, a, b)` at the place of the addition. Where
other ops run in between, `a` and `b` would have to live until then: the logits' gradient, for one,
until the gradient of a tied embedding is there, at the end of the backward pass.
"""

from __future__ import annotations

import torch
from torch import fx

from memfit.pytorch.fusible_ops import is_pointwise

__all__ = ["keep_products_in_place"]

aten = torch.ops.aten


def keep_products_in_place(module: fx.GraphModule) -> None:
    """Have products whose sum is taken later computed where they are.

    An addition with its `alpha` written out is the same to Inductor, but not one of the pattern.
    """
    kernels = 0
    place: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            if node.target is aten.add.Tensor and not node.kwargs:
                products = [a for a in node.all_input_nodes if a.target is aten.mm.default]
                if any(kernels > place[a] for a in products):
                    node.kwargs = {"alpha": 1}
            if not (node.target.is_view or is_pointwise(node)):
                kernels += 1
        place[node] = kernels
    module.recompile()
