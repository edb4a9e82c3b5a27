"""Which ops Inductor generates loops for, and can therefore fuse.

Inductor computes *pointwise* ops inside whatever loop reads them: their outputs need no memory
unless a kernel of a library, another pass or the caller reads them. *Reductions* write their
(smaller) output, but compute what they read as they go. All other ops are calls of kernels that
read and write whole tensors.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

__all__ = ["element_ns", "fuses", "is_heavy", "is_pointwise", "is_random_loop", "needs_layout"]

# Pointwise in Inductor, but not tagged so by PyTorch.
_POINTWISE = frozenset(
    {
        "aten.arange",
        "aten.clone",
        "aten.constant_pad_nd",
        "aten.copy",
        "aten.embedding",
        "aten.empty_strided",
        "aten.fill",
        "aten.flip",
        "aten.full",
        "aten.full_like",
        "aten.gather",
        "aten.index",
        "aten.lift_fresh_copy",
        "aten.masked_fill",
        "aten.new_full",
        "aten.new_zeros",
        "aten.ones",
        "aten.repeat",
        "aten.scalar_tensor",
        "aten.select_scatter",
        "aten.slice_scatter",
        "aten._to_copy",
        "aten._unsafe_index",
        "aten.where",
        "aten.zeros",
        "prims.convert_element_type",
        "prims.fma",
        "prims.inductor_lookup_seed",
        "prims.inductor_randint",
        "prims.inductor_random",
        "prims.iota",
    }
)
_REDUCTIONS = frozenset(
    {
        "aten.all",
        "aten.amax",
        "aten.amin",
        "aten.any",
        "aten.argmax",
        "aten.argmin",
        "aten.max",
        "aten.mean",
        "aten.min",
        "aten.prod",
        "aten.std",
        "aten.sum",
        "aten.var",
        "aten.var_mean",
        "prims.prepare_softmax_online",
    }
)
# Some nanoseconds an element and thread on a CPU, where plain arithmetic is hidden by the memory.
_HEAVY = frozenset(
    {
        "aten.cos",
        "aten.erf",
        "aten.exp",
        "aten.expm1",
        "aten.gelu",
        "aten.log",
        "aten.log1p",
        "aten.pow",
        "aten.sigmoid",
        "aten.sin",
        "aten.tanh",
    }
)
# Reads by computed positions, which Inductor does not vectorise on a CPU.
_GATHERS = frozenset({"aten.embedding", "aten.gather", "aten.index", "aten._unsafe_index"})
_RANDOM = frozenset({"prims.inductor_random", "prims.inductor_randint"})


def _name(node: fx.Node) -> str:
    """`aten.add` for `aten.add.Tensor`."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return ""
    return str(target.overloadpacket)


def is_pointwise(node: fx.Node) -> bool:
    """Whether Inductor can compute the node's value, element by element, where it is read."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return torch.Tag.pointwise in target.tags or _name(node) in _POINTWISE


def fuses(node: fx.Node) -> bool:
    """Whether Inductor writes the node as a loop that computes pointwise inputs as it goes."""
    return is_pointwise(node) or _name(node) in _REDUCTIONS


def is_heavy(node: fx.Node) -> bool:
    """Whether the node costs more than the memory traffic of its loop."""
    return _name(node) in _HEAVY


def is_random_loop(node: fx.Node) -> bool:
    """Whether the node computes random numbers from a seed and a position."""
    return _name(node) in _RANDOM


def needs_layout(node: fx.Node) -> bool:
    """Whether the node is a view that is defined by strides, so that its base must be in memory."""
    return node.target is not operator.getitem and _name(node) == "aten.as_strided"


def element_ns(node: fx.Node) -> float:
    """Time of a pointwise op inside of a loop, for each element and thread of a CPU."""
    if is_random_loop(node):
        return 4.0
    if _name(node) in _GATHERS:
        return 2.0
    return 0.6 if is_heavy(node) else 0.1
