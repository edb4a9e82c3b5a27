"""Gradients that are not there: what a backward op is given no tensor for, it gives none for.

A custom function may return None for an input. Autograd passes that on as an undefined tensor, and
where a kernel (of attention, for one) is called with it all the same, it returns undefined tensors.
In a traced graph this is an op with None in the place of a tensor, which cannot be run.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

__all__ = ["drop_undefined"]

aten = torch.ops.aten
_SUMS = (aten.add.Tensor, aten.add_.Tensor)  # by which autograd adds gradients up


def drop_undefined(joint: fx.GraphModule) -> None:
    """Take ops out of a joint graph that are given None where they need a tensor; in place."""
    undefined: set[fx.Node] = set()

    def is_undefined(value: Any) -> bool:
        return isinstance(value, fx.Node) and value in undefined

    for node in list(joint.graph.nodes):
        if node.op == "output":
            node.args = fx.node.map_arg(node.args, lambda n: None if n in undefined else n)
        if node.op != "call_function":
            continue
        if node.target in _SUMS and sum(map(is_undefined, node.args[:2])) == 1:
            other = node.args[0] if is_undefined(node.args[1]) else node.args[1]
            if isinstance(other, fx.Node):
                node.replace_all_uses_with(other)
                undefined.add(node)
                continue
        if _lacks_a_tensor(node) or any(n in undefined for n in node.all_input_nodes):
            undefined.add(node)
    for node in reversed(list(joint.graph.nodes)):
        if node in undefined:
            joint.graph.erase_node(node)
    if undefined:
        joint.recompile()


def _lacks_a_tensor(node: fx.Node) -> bool:
    """Whether None stands where the op's schema says that there is a tensor."""
    if node.target is operator.getitem or not isinstance(node.target, torch._ops.OpOverload):
        return False
    pairs = zip(node.args, node.target._schema.arguments, strict=False)
    return any(given is None and isinstance(a.type, torch.TensorType) for given, a in pairs)
