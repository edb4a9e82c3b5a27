"""Bytes that an allocator really hands out, where fake tensors or a storage's size say less."""

from __future__ import annotations

import math
import operator
from contextlib import suppress

import torch
from torch import fx

from memfit.errors import CaptureError
from memfit.pytorch.compat.symbols import size_hint

__all__ = [
    "CLONES_OF_STORAGES",
    "CUDA_BLOCK_BYTES",
    "allocated_bytes",
    "block_bytes",
    "enlarge_fake_storages",
]

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
# Bags are counted with one entry more, which is cut off afterwards but stays in the storage.
_BAGS = frozenset({aten._embedding_bag.default, aten._embedding_bag_forward_only.default})
# Made as large as their argument, then given their shape.
_LIKE_ARGUMENT = frozenset({aten.col2im.default, aten.im2col.default})
# What writes into a copy of its first argument and keeps that one's strides, and with them all of
# the memory that the argument is a part of; fake results have the part alone.
CLONES_OF_STORAGES = frozenset(
    {
        aten.copy.default,
        aten.slice_scatter.default,
        aten.select_scatter.default,
        aten.diagonal_scatter.default,
        aten.as_strided_scatter.default,
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
    return block_bytes(_real_bytes(node, position, tensor), tensor.device)


def _real_bytes(node: fx.Node, position: int, tensor: torch.Tensor) -> int:
    size = int(size_hint(tensor.untyped_storage().nbytes()))
    if node.target in _WEIGHT_OF and position in (1, 2):
        size = _elements(tensor) * max(tensor.dtype.itemsize, _statistics_itemsize(node, tensor))
    elif node.target in _LOSSES:
        unreduced = torch.broadcast_shapes(*(_value(node.args[i]).shape for i in (0, 1)))
        size = max(size, math.prod(int(size_hint(n)) for n in unreduced) * tensor.dtype.itemsize)
    elif node.target in _LIKE_ARGUMENT:
        size = max(size, _elements(_value(node.args[0])) * tensor.dtype.itemsize)
    elif node.target in _BAGS and position in (1, 2) and tensor.device.type == "cpu":
        size += tensor.dtype.itemsize
    return size


def enlarge_fake_storages(joint: fx.GraphModule) -> None:
    """Give fake results the storages that real ones have, so that what copies these shows it.

    Args:
        joint: a graph that PyTorch's own kernels will run, not code that a compiler generates.
    """
    for node in joint.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        given = {t.untyped_storage()._cdata for n in node.all_input_nodes for t in _dense(n)}
        for position, tensor in enumerate(_dense(node)):
            storage = tensor.untyped_storage()
            if storage._cdata in given:
                continue
            with suppress(CaptureError):  # a size without a value: told where the graph is read
                size = _real_bytes(node, position, tensor)
                if node.target in CLONES_OF_STORAGES:
                    size = _cloned_bytes(_value(node.args[0]))
                if size > int(size_hint(storage.nbytes())):
                    storage.resize_(size)


def _cloned_bytes(tensor: torch.Tensor) -> int:
    """What a clone that keeps strides takes: where elements share memory, it does not keep them."""
    shared = any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    if shared and _elements(tensor):
        return _elements(tensor) * tensor.dtype.itemsize
    return int(size_hint(tensor.untyped_storage().nbytes()))


def _dense(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    items = value if isinstance(value, (tuple, list)) else [value]
    return [t for t in items if isinstance(t, torch.Tensor) and t.layout is torch.strided]


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
