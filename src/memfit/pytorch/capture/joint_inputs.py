"""What each placeholder of a joint graph stands for: the one place that reads their order.

AOTAutograd's order is not that of the inputs it was given. In front of them it puts tokens for ops
with effects (the checks of `torch.linalg`); inputs that share memory become one, their base, and
that stands first. Gradients are returned in the order of the placeholders, without tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from memfit.graph.training_graph import ValueKind
from memfit.pytorch.compat.descriptions import input_position, is_effect_token

__all__ = [
    "SPARSE",
    "forward_inputs",
    "is_primal",
    "is_tangent",
    "kinds_of",
    "positions",
    "primals",
]

SPARSE = "memfit_sparse"
"""Of a node's `meta`: its value is sparse when it runs, and autograd takes it as it is."""


def is_primal(node: fx.Node) -> bool:
    """Whether a placeholder, in either pass, is a parameter, buffer or input of the step."""
    return node.op == "placeholder" and "primals" in str(node.target) and not is_effect_token(node)


def is_tangent(node: fx.Node) -> bool:
    """Whether a placeholder belongs to the backward pass: a gradient that it receives, a token."""
    return node.op == "placeholder" and "tangents" in str(node.target)


def forward_inputs(joint: fx.GraphModule) -> list[fx.Node]:
    """What the forward pass is called with, in order: tokens, parameters, buffers and inputs."""
    return [p for p in joint.graph.find_nodes(op="placeholder") if not is_tangent(p)]


def primals(joint: fx.GraphModule) -> list[fx.Node]:
    """Parameters, buffers and inputs, in the order in which gradients are returned."""
    return [p for p in forward_inputs(joint) if not is_effect_token(p)]


def positions(joint: fx.GraphModule) -> list[int | None]:
    """Which of the inputs that AOTAutograd was given each primal stands for."""
    return [input_position(p) for p in primals(joint)]


def kinds_of(joint: fx.GraphModule, given: Mapping[int, ValueKind]) -> dict[fx.Node, ValueKind]:
    """What the primals are.

    Args:
        joint: the graph.
        given: kinds by position among the inputs that AOTAutograd was given; those that are left
            out are inputs of the step.
    """
    found = zip(primals(joint), positions(joint), strict=True)
    return {p: ValueKind.INPUT if i is None else given.get(i, ValueKind.INPUT) for p, i in found}
