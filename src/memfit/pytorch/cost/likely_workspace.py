"""The workspace of an op as it most likely is, where `analytic_cost` gives an upper bound.

A budget has to hold whatever happens; a prediction should be near. What oneDNN's convolutions take
was measured (PyTorch 2.13, float32): they copy their operands to a layout in blocks of 8 channels,
one phase after the other, and each phase gives its copies back. Which convolutions go to oneDNN is
decided by PyTorch's `ConvParams::use_mkldnn` (aten/src/ATen/native/Convolution.cpp).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.cost.analytic import output_specs
from memfit.pytorch.cost.cost_step import call_of
from memfit.pytorch.cost.op_calls import OpCall, TensorSpec

__all__ = ["likely_workspace_bytes", "with_likely_workspace"]

aten = torch.ops.aten
_FORWARD, _BACKWARD = aten.convolution.default, aten.convolution_backward.default
_KNOWN = (_FORWARD, _BACKWARD)
_BLOCK = 8
_SMALL = 20_480  # elements of an input of batch 1 that oneDNN is not asked for


def with_likely_workspace(step: CapturedStep) -> CapturedStep:
    """The step with likely workspaces of its ops, where they are known and less."""
    ops = list(step.graph.ops)
    for i, op in enumerate(ops):
        if i in step.state_ops or step.node_of[i].target not in _KNOWN:
            continue
        likely = likely_workspace_bytes(call_of(step.node_of[i]))
        if likely is not None:
            ops[i] = replace(op, workspace_bytes=min(op.workspace_bytes, likely))
    return replace(step, graph=replace(step.graph, ops=tuple(ops)))


def likely_workspace_bytes(call: OpCall) -> int | None:
    """Workspace of a convolution or of its backward; None where it is not foreseen."""
    if call.device.type != "cpu" or call.target not in _KNOWN:
        return None
    return _convolution_bytes(call)


def _convolution_bytes(call: OpCall) -> int | None:
    """Workspace of a convolution in float32.

    With x, w and y for input, weight and output and all sizes in blocks: the forward pass holds x
    and w, then y; transposed, y twice. The backward pass holds the gradient of y and w for the
    gradient of x, then x and the gradient of y for that of w.
    """
    backward = call.target is _BACKWARD
    specs = call.tensors[:3] if backward else call.tensors[:2]
    if any(s.dtype is not torch.float32 for s in specs):
        return None
    arguments = call.args[4:] if backward else call.args[3:]
    stride, padding, dilation, transposed, _, groups = arguments[:6]
    if backward:
        gradient, x, weight = specs
        y = gradient
    else:
        x, weight = specs
        made = output_specs(call)
        if not made:
            return None
        y = made[0]
    kernel = weight.shape[2:]
    moved = transposed or max(stride) > 1 or max(dilation) > 1
    single = max(kernel) == 1 and not moved
    if single and x.shape[0] < 16 and torch.get_num_threads() == 1:
        return 0 if groups == 1 and max(padding) == 0 else None  # a matrix product
    if groups == 1 and min(kernel) <= 3 and x.shape[0] == 1 and x.elements <= _SMALL:
        return None
    bytes_x, bytes_y = _blocked(x, (1,)), _blocked(y, (1,))
    bytes_w = _blocked(weight, (0, 1) if groups == 1 else (0,))
    if backward:
        return max(bytes_x + bytes_y, bytes_y + bytes_w)
    return 2 * bytes_y if transposed else max(bytes_x + bytes_w, bytes_y)


def _blocked(spec: TensorSpec, axes: tuple[int, ...]) -> int:
    """Bytes with the sizes of these axes rounded up to blocks."""
    sizes = [
        -(-size // _BLOCK) * _BLOCK if axis in axes and size > 3 else size
        for axis, size in enumerate(spec.shape)
    ]
    return math.prod(sizes) * spec.dtype.itemsize
