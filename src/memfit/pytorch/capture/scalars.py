"""Numbers in a joint graph: what a step reads out of tensors (`item`) and computes from that.

A number has no memory, but what reads it has to run after it, and in the backward pass it has to be
what it was in the forward pass.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from memfit.pytorch.capture.effects import may_have_effect
from memfit.pytorch.compat.symbols import SYMBOLIC, constant_value

__all__ = ["fold_constants", "is_arithmetic", "is_number"]


def is_number(node: fx.Node) -> bool:
    """Whether a node yields a number that is known when it runs only."""
    return isinstance(node.meta.get("val"), SYMBOLIC)


def is_arithmetic(node: fx.Node) -> bool:
    """Whether a node computes a number from numbers, in Python."""
    plain = not isinstance(node.target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator))
    return node.op == "call_function" and is_number(node) and plain


def fold_constants(joint: fx.GraphModule) -> None:
    """Give ops that compute tensors those numbers as constants that can have one value only.

    Assertions go on reading the number itself: they are what makes it a constant.

    Args:
        joint: the joint graph; changed in place.
    """
    for node in joint.graph.nodes:
        if node.op != "call_function" or is_arithmetic(node) or may_have_effect(node.target):
            continue
        if node.target is operator.getitem:
            continue
        node.args = fx.node.map_arg(node.args, _folded)
        node.kwargs = fx.node.map_arg(node.kwargs, _folded)


def _folded(node: fx.Node) -> object:
    if not is_number(node):
        return node
    value = constant_value(node.meta["val"])
    return node if value is None else value
