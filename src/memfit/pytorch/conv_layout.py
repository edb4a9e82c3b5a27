"""Convolutions whose kernels want other strides than their parameters have.

Where Inductor prefers channels last, it copies each weight and each input image once, and keeps the
copy for the backward pass: all weights of a network twice, through the whole step. Given a copy of
its own, made right before it, each convolution frees it at once; the plan counts it as workspace.
"""

from __future__ import annotations

import torch
from torch import fx

from memfit.pytorch import joint as J

__all__ = ["copied_bytes", "copy_just_in_time"]

aten = torch.ops.aten
# Where the input and the weight are among the arguments.
_PLACES = {aten.convolution.default: (0, 1), aten.convolution_backward.default: (1, 2)}
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _copied(node: fx.Node) -> list[fx.Node]:
    """Arguments that are given to the step and have to be copied.

    What one pass keeps for the other has the strides that its kernel gave it.
    """
    found = []
    for place in _PLACES.get(node.target, ()):
        arg = node.args[place]
        if not isinstance(arg, fx.Node) or not J.is_primal(arg) or not J.tensors(arg):
            continue
        value = J.tensors(arg)[0]
        wanted = _FORMATS.get(value.dim())
        if wanted is not None and not value.is_contiguous(memory_format=wanted):
            found.append(arg)
    return found


def copied_bytes(node: fx.Node) -> int:
    """Bytes of the copies that a convolution reads instead of its arguments."""
    return sum(J.tensors(a)[0].nbytes for a in _copied(node))


def copy_just_in_time(module: fx.GraphModule) -> None:
    """Put a copy, channels last, in front of each convolution that needs one.

    It is a copy of the original taken by its strides, which Inductor then leaves as it is, to be
    handed on.
    """
    graph = module.graph
    for node in list(graph.nodes):
        for arg in _copied(node):
            value = arg.meta["val"]
            wanted = _FORMATS[value.dim()]
            with graph.inserting_before(node):
                original = graph.call_function(
                    aten.as_strided.default, (arg, list(value.shape), list(value.stride()))
                )
                copy = graph.call_function(
                    aten.clone.default, (original,), {"memory_format": wanted}
                )
            original.meta = dict(arg.meta)
            with value.fake_mode:
                copy.meta = {**arg.meta, "val": aten.clone.default(value, memory_format=wanted)}
            node.args = tuple(copy if a is arg else a for a in node.args)
    module.recompile()
