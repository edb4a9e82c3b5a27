"""Convolutions whose kernels want other strides than their parameters have.

Where Inductor prefers channels last, it copies each weight and each input image once, and keeps the
copy for the backward pass: all weights of a network twice, through the whole step. Given a copy of
its own, made right before it, each convolution frees it at once; the plan counts it as workspace.

A weight's gradient has its channels last too, and autograd makes a copy with the strides of the
parameter when the backward pass is over and holds all gradients. Made as soon as the gradient is,
the copy is there instead of it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from memfit.pytorch.capture import joint as J

__all__ = [
    "CHANNELS_LAST",
    "copied_bytes",
    "copy_just_in_time",
    "gradient_bytes",
    "lay_out_gradients",
]

aten = torch.ops.aten
# Where the input and the weight are among the arguments.
_PLACES = {aten.convolution.default: (0, 1), aten.convolution_backward.default: (1, 2)}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The memory format by the number of dimensions."""


def _wanted(node: fx.Node) -> torch.memory_format | None:
    """What Inductor would copy a tensor to that is given to the step; None if nothing."""
    if not J.tensors(node):
        return None
    value = J.tensors(node)[0]
    wanted = CHANNELS_LAST.get(value.dim())
    return None if wanted is None or value.is_contiguous(memory_format=wanted) else wanted


def _copied(node: fx.Node) -> list[fx.Node]:
    """Arguments that are given to the step, or views of such, and have to be copied.

    What one pass keeps for the other has the strides that its kernel gave it.
    """
    found = []
    for place in _PLACES.get(node.target, ()):
        arg = node.args[place]
        if isinstance(arg, fx.Node) and J.is_primal(_given(arg)) and _wanted(arg) is not None:
            found.append(arg)
    return found


def _given(node: fx.Node) -> fx.Node:
    return node.args[0] if node.target is aten.as_strided.default else node


def copied_bytes(node: fx.Node) -> int:
    """Bytes of the copies that a convolution reads instead of its arguments."""
    return sum(J.tensors(a)[0].nbytes for a in _copied(node))


def copy_just_in_time(module: fx.GraphModule) -> None:
    """Put a copy, channels last, in front of each convolution that needs one.

    Everything reads the original by its strides: Inductor then leaves it as it is, to be handed on,
    where it would copy it in front of a cast that a convolution reads.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if J.is_primal(node) and _wanted(node) is not None:
            _read_by_strides(node)
    for node in list(graph.nodes):
        for original in _copied(node):
            value = original.meta["val"]
            wanted = CHANNELS_LAST[value.dim()]
            with graph.inserting_before(node):
                copy = graph.call_function(
                    aten.clone.default, (original,), {"memory_format": wanted}
                )
            with value.fake_mode:
                copy.meta = {
                    **original.meta,
                    "val": aten.clone.default(value, memory_format=wanted),
                }
            node.args = tuple(copy if a is original else a for a in node.args)
    module.recompile()


def _read_by_strides(primal: fx.Node) -> None:
    """Give each reader of an input a view of its own that is taken by strides."""
    value = primal.meta["val"]
    for user in list(primal.users):
        if user.op == "output" or user.target is aten.as_strided.default:
            continue
        with primal.graph.inserting_before(user):
            view = primal.graph.call_function(
                aten.as_strided.default, (primal, list(value.shape), list(value.stride()))
            )
        view.meta = dict(primal.meta)
        user.replace_input_with(primal, view)


def gradient_bytes(node: fx.Node) -> int:
    """Bytes of the copy of a weight's gradient, if the node is what makes the gradient."""
    if node.target is not aten.convolution_backward.default:
        return 0
    return sum(
        J.tensors(part)[0].nbytes
        for part in _weight_gradients(node)
        if any(user.op == "output" for user in part.users)
    )


def lay_out_gradients(module: fx.GraphModule, primals: Sequence[fx.Node]) -> None:
    """Give gradients of weights that convolutions make the strides of contiguous parameters.

    Args:
        module: the backward pass.
        primals: what its outputs are the gradients of, in order.
    """
    graph = module.graph
    (output,) = graph.find_nodes(op="output")
    own = {
        gradient
        for gradient, primal in zip(output.args[0], primals, strict=False)
        if isinstance(gradient, fx.Node) and J.tensors(primal)[0].is_contiguous()
    }
    for node in graph.find_nodes(op="call_function", target=aten.convolution_backward.default):
        for part in _weight_gradients(node):
            if not own & {part, *part.users}:
                continue
            with graph.inserting_after(part):
                copy = graph.call_function(
                    aten.clone.default, (part,), {"memory_format": torch.contiguous_format}
                )
            copy.meta = dict(part.meta)
            part.replace_all_uses_with(copy, lambda user, copy=copy: user is not copy)
    module.recompile()


def _weight_gradients(node: fx.Node) -> list[fx.Node]:
    return [u for u in node.users if u.target is operator.getitem and u.args[1] == 1]
