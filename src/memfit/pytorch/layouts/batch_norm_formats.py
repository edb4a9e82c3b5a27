"""Batch norm's backward kernel is not left to guess a memory format.

At a batch of one, the strides of an image that is channels last may be those of a view, which leave
open what its memory format is. Given such an image and one in another format, PyTorch's CPU kernel
reads one of them in the wrong order (2.13), and its numbers are wrong. Eager seldom meets such a
pair, but traced gradients of outputs are laid out like the outputs, and then it may come about.
"""

from __future__ import annotations

import torch
from torch import fx

from memfit.pytorch.layouts import strides as S

__all__ = ["settle_formats"]

aten = torch.ops.aten
_READ = (0, 1)  # the gradient and the input


def settle_formats(joint: fx.GraphModule) -> None:
    """Give both images of each `native_batch_norm_backward` plain strides, through views."""
    target = aten.native_batch_norm_backward.default
    for node in joint.graph.find_nodes(op="call_function", target=target):
        for place in _READ:
            _settle(joint.graph, node, place)


def _settle(graph: fx.Graph, node: fx.Node, place: int) -> None:
    given = node.args[place]
    assert isinstance(given, fx.Node)
    value = given.meta["val"]
    layout = tuple(value.shape), tuple(value.stride())
    if any(isinstance(n, torch.SymInt) for n in (*layout[0], *layout[1])):
        return
    strides = S.settled(layout)
    if strides == layout[1]:
        return
    arguments = (list(layout[0]), list(strides), value.storage_offset())
    with graph.inserting_before(node):
        plain = graph.call_function(aten.as_strided.default, (given, *arguments))
    with value.fake_mode:
        plain.meta = {**given.meta, "val": value.as_strided(*arguments)}
    node.update_arg(place, plain)
