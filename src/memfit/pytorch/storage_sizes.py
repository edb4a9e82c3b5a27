"""Bytes that an allocator really hands out, where fake tensors or a storage's size say less."""

from __future__ import annotations

import math

import torch
from torch import fx

from memfit.pytorch.compat_symbols import size_hint

__all__ = ["CUDA_BLOCK_BYTES", "allocated_bytes", "block_bytes"]

CUDA_BLOCK_BYTES = 512
"""What PyTorch's CUDA allocator rounds every request up to."""

aten = torch.ops.aten
# Normalisations whose second and third output, the statistics, have the type of the weight on the
# CPU and are float32 at least on CUDA; fake tensors give them the type of the input.
_WEIGHT_OF = {
    aten._native_batch_norm_legit_functional.default: 1,
    aten._native_batch_norm_legit.no_stats: 1,
    aten.native_batch_norm.default: 1,
    aten.native_layer_norm.default: 2,
    aten.native_group_norm.default: 1,
}
# Losses that are summed up inside of the storage of what they return.
_LOSSES = frozenset(
    {
        aten.mse_loss.default,
        aten.smooth_l1_loss.default,
        aten.soft_margin_loss.default,
        aten.binary_cross_entropy.default,
    }
)


def block_bytes(size_bytes: int, device: torch.device) -> int:
    """What a request takes of the memory of a device."""
    if device.type != "cuda":
        return size_bytes
    return -(-size_bytes // CUDA_BLOCK_BYTES) * CUDA_BLOCK_BYTES


def allocated_bytes(node: fx.Node, position: int, tensor: torch.Tensor) -> int:
    """Memory behind one of the (fake) tensors that a node yields.

    Args:
        node: the node.
        position: which of its tensors.
        tensor: the tensor.
    """
    size = int(size_hint(tensor.untyped_storage().nbytes()))
    if node.target in _WEIGHT_OF and position in (1, 2):
        size = _elements(tensor) * max(tensor.dtype.itemsize, _statistics_itemsize(node, tensor))
    elif node.target in _LOSSES:
        unreduced = torch.broadcast_shapes(*(_value(node.args[i]).shape for i in (0, 1)))
        size = max(size, math.prod(int(size_hint(n)) for n in unreduced) * tensor.dtype.itemsize)
    return block_bytes(size, tensor.device)


def _statistics_itemsize(node: fx.Node, tensor: torch.Tensor) -> int:
    if tensor.device.type != "cpu":
        return torch.float32.itemsize
    place = _WEIGHT_OF[node.target]
    weight = node.args[place] if place < len(node.args) else None
    return _value(weight).dtype.itemsize if isinstance(weight, fx.Node) else 0


def _elements(tensor: torch.Tensor) -> int:
    return math.prod(int(size_hint(n)) for n in tensor.shape)


def _value(node: fx.Node) -> torch.Tensor:
    return node.meta["val"]
