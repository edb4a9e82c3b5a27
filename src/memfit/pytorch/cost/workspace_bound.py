"""Upper bounds on the workspace of ops, where it is neither measured nor known of the kernel.

They mean to err on the high side. What oneDNN takes depends on the processor; the bounds hold what
was measured with AVX-512 and AMX. Of an op that nothing is known of, a copy of every operand and
every result is reckoned, and one more of the largest. Custom ops are taken to need none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from memfit.pytorch.cost.op_calls import OpCall, TensorSpec
from memfit.pytorch.cost.workspace_rules import is_matrix
from memfit.pytorch.layouts.strides import is_contiguous

__all__ = ["workspace_bound_bytes"]

_CHANNEL_BLOCK = 16  # floats of the widest vector
_TILE = 64  # rows and columns of a 16-bit matrix that oneDNN packs together
_TRANSPOSE_BYTES = 60 * 60 * 8  # of the block in which a matrix is copied into rows
_NUMBERS_BYTES = 64  # a few of them as tensors
_SCRATCH_BYTES = 32 * 2**10  # of each thread
_CONVOLUTIONS = frozenset({"convolution", "convolution_backward"})
_PRODUCTS = frozenset({"addmm", "baddbmm", "bmm", "mm", "mv", "addmv", "dot"})
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_LOSSES = frozenset({"binary_cross_entropy", "binary_cross_entropy_backward"})
_LARGEST_INPUT = frozenset({"native_batch_norm_backward", "native_group_norm_backward"})


def workspace_bound_bytes(call: OpCall, made: Sequence[TensorSpec] | None) -> int:
    """Bytes that a call's workspace is not expected to exceed.

    Args:
        call: the call.
        made: the tensors with storages of their own that it returns; None where not known.
    """
    target = call.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return 0
    name = str(target._schema.name).removeprefix("aten::")
    tensors = [*call.tensors, *(made or ())]
    if name in _CONVOLUTIONS:
        return _convolution_bytes(call, tensors)
    if name in _PRODUCTS:
        return _product_bytes(call)
    if name in _LARGEST_INPUT or "_norm" in name:
        return _norm_bytes(call, name)
    if name in _LOSSES and all(_is_plain(spec) for spec in call.tensors):
        return _NUMBERS_BYTES
    if call.device.type != "cpu" and not _copies_on_devices(name):
        return 0
    sizes = [_full_bytes(spec) for spec in tensors]
    return sum(sizes) + max(sizes, default=0) + _TRANSPOSE_BYTES + _NUMBERS_BYTES


def _copies_on_devices(name: str) -> bool:
    """Whether a kernel of other devices may copy what it reads, too."""
    return "softmax" in name or "dropout" in name or name.startswith((_ATTENTION, "upsample_"))


def _is_plain(spec: TensorSpec) -> bool:
    """Whether elements lie one after the other, and sums over them need no wider ones."""
    return spec.dtype.itemsize >= torch.float32.itemsize and is_contiguous(
        (spec.shape, spec.stride)
    )


def _full_bytes(spec: TensorSpec) -> int:
    """Of a copy of what a tensor shows, 16-bit floats in 32 bits."""
    wide = spec.dtype.itemsize == 2 and spec.dtype.is_floating_point
    return spec.elements * (torch.float32.itemsize if wide else spec.dtype.itemsize)


def _scratch_bytes() -> int:
    return _SCRATCH_BYTES * torch.get_num_threads()


def _padded(lengths: Iterable[int], block: int) -> int:
    return math.prod(-(-length // block) * block for length in lengths)


def _convolution_bytes(call: OpCall, tensors: Sequence[TensorSpec]) -> int:
    """Every operand and result in a layout in blocks of channels; transposed ones twice that."""
    # Tensors are (gradient,) input, weight, …; the weight has channels on its first two axes.
    backward = "backward" in str(call.target)
    weight = call.tensors[2 if backward else 1].shape
    transposed = call.args[7 if backward else 6] is True
    padded = 0
    for spec in tensors:
        channels = (0, 1) if spec.shape == weight else (1,)
        block = _CHANNEL_BLOCK * max(1, torch.float32.itemsize // spec.dtype.itemsize)
        inside = _padded((n for axis, n in enumerate(spec.shape) if axis in channels), block)
        outside = math.prod(n for axis, n in enumerate(spec.shape) if axis not in channels)
        padded += inside * outside * spec.dtype.itemsize
    scratch = _scratch_bytes() * (2 if call.tensors[0].dtype.itemsize == 2 else 1)
    return padded * (1 + transposed) + scratch + _columns_bytes(tensors, weight)


def _columns_bytes(tensors: Sequence[TensorSpec], weight: Sequence[int]) -> int:
    """Of an image for each place of the kernel: 64-bit convolutions are products of matrices."""
    images = [s for s in tensors if s.shape != weight and len(s.shape) == len(weight)]
    if not images or images[0].dtype.itemsize < 8:
        return 0
    channels = max(s.shape[1] for s in images)
    places = max(math.prod(s.shape[2:]) for s in images)
    batch = images[0].shape[0]
    return batch * channels * places * math.prod(weight[2:]) * images[0].dtype.itemsize


def _product_bytes(call: OpCall) -> int:
    """Operands that are contiguous along neither axis are copied; 16-bit ones are packed."""
    copied = 0
    for spec in call.tensors[-2:]:
        rows = spec.shape[-2:]
        if spec.dtype.itemsize == 2:
            stack = math.prod(spec.shape[:-2])
            vector = _TILE if len(rows) == 1 else 1
            copied += stack * vector * _padded(rows, _TILE) * spec.dtype.itemsize
        elif len(rows) == 2 and not is_matrix(spec):
            copied += spec.elements * spec.dtype.itemsize
    packs = any(spec.dtype.itemsize == 2 for spec in call.tensors)
    return copied + (2 * _scratch_bytes() if packs else 0)


def _norm_bytes(call: OpCall, name: str) -> int:
    """Copies of activations that are not contiguous or of 16-bit floats; sums for channels."""
    activations = [spec for spec in call.tensors if len(spec.shape) > 1]
    if call.device.type != "cpu":
        copied = max((s.extent_bytes for s in activations), default=0)
        copied = copied if name in _LARGEST_INPUT else 0
    else:
        copied = sum(_full_bytes(spec) for spec in activations)
    channels = sum(spec.extent_bytes for spec in call.tensors if len(spec.shape) == 1)
    return copied + _TRANSPOSE_BYTES + 2 * max(channels, 256) * torch.get_num_threads()
