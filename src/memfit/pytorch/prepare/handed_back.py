"""Inputs that a step writes and returns, beside other inputs that it writes with a gradient.

A buffer counted up by `self.n += 1` is an output of the captured graph, and an input. AOTAutograd
puts it among the outputs by its position, and forgets that the new values of inputs with a gradient
(`nn.Embedding(max_norm=...)` renormalises its weight) stand in front: the loss is then lost. Here
such an output is taken out of the graph, and the input itself is returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["hand_back", "take_out_inputs"]

_KEY = "memfit_handed_back"


def take_out_inputs(module: fx.GraphModule) -> dict[int, int]:
    """Return None in the place of written inputs, where others with a gradient are written too.

    Args:
        module: Dynamo's graph; changed in place.

    Returns:
        For positions among the outputs, the input that belongs there.
    """
    if _KEY in module.meta:  # compiled once more
        known: dict[int, int] = module.meta[_KEY]
        return known
    inputs = [n.meta.get("example_value") for n in module.graph.find_nodes(op="placeholder")]
    written = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor) and x._version]
    if not any(inputs[i].requires_grad for i in written):
        return {}
    (end,) = module.graph.find_nodes(op="output")
    outputs = list(end.args[0])
    found: dict[int, int] = {}
    for place, node in enumerate(outputs):
        value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
        given = next((i for i in written if inputs[i] is value), None)
        if given is not None:
            found[place] = given
            outputs[place] = None
    if found:
        end.args = (tuple(outputs),)
        module.recompile()
        module.meta[_KEY] = found
    return found


def hand_back(results: Sequence[Any], args: Sequence[Any], places: Mapping[int, int]) -> list[Any]:
    """The results of a graph, with the inputs that were taken out."""
    made = list(results)
    for place, given in places.items():
        made[place] = args[given]
    return made
