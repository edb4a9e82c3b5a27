"""Ops whose operands are laid out each in its own way return what tracing is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from memfit.pytorch.prepare.tracing import trace_settings

aten = torch.ops.aten
SHAPE = (2, 3, 4, 5)
LAYOUTS: tuple[Callable[[], torch.Tensor], ...] = (
    lambda: torch.rand(SHAPE) * 0.8 + 0.1,
    lambda: (torch.rand(SHAPE[::-1]) * 0.8 + 0.1).permute(3, 2, 1, 0),
    lambda: (torch.rand(2, 3, 4, 10) * 0.8 + 0.1)[..., ::2],
    lambda: (torch.rand(3, 4, 5) * 0.8 + 0.1).expand(SHAPE),
    lambda: (torch.rand(SHAPE) * 0.8 + 0.1).to(memory_format=torch.channels_last),
)

# X: a tensor in each of the layouts. MASK: one of bools.
X, MASK = "X", "MASK"
CALLS: dict[Any, tuple[Any, ...]] = {
    aten.elu_backward.default: (X, 0.7, 1, 1, False, X),
    aten.hardtanh_backward.default: (X, X, -1, 1),
    aten.hardsigmoid_backward.default: (X, X),
    aten.hardswish_backward.default: (X, X),
    aten.softplus_backward.default: (X, X, 1, 20),
    aten.softshrink_backward.default: (X, X, 0.5),
    aten.hardshrink_backward.default: (X, X, 0.5),
    aten.leaky_relu_backward.default: (X, X, 0.1, False),
    aten.threshold_backward.default: (X, X, 0),
    aten.gelu_backward.default: (X, X),
    aten.silu_backward.default: (X, X),
    aten.mish_backward.default: (X, X),
    aten.log_sigmoid_backward.default: (X, X, X),
    aten.sigmoid_backward.default: (X, X),
    aten.tanh_backward.default: (X, X),
    aten.logit_backward.default: (X, X, 1e-6),
    aten._prelu_kernel.default: (X, X),
    aten._prelu_kernel_backward.default: (X, X, X),
    aten.rrelu_with_noise_backward.default: (X, X, X, 0.1, 0.3, True, False),
    aten.mse_loss.default: (X, X, 0),
    aten.mse_loss_backward.default: (X, X, X, 0),
    aten.smooth_l1_loss.default: (X, X, 0, 1.0),
    aten.smooth_l1_loss_backward.default: (X, X, X, 0, 1.0),
    aten.huber_loss.default: (X, X, 0, 1.0),
    aten.huber_loss_backward.default: (X, X, X, 0, 1.0),
    aten.soft_margin_loss.default: (X, X, 0),
    aten.soft_margin_loss_backward.default: (X, X, X, 0),
    aten.binary_cross_entropy.default: (X, X, None, 0),
    aten.binary_cross_entropy_backward.default: (X, X, X, None, 0),
    aten.native_dropout_backward.default: (X, MASK, 2.0),
    aten._softmax_backward_data.default: (X, X, 1, torch.float32),
    aten._log_softmax_backward_data.default: (X, X, 1, torch.float32),
    aten.add.Tensor: (X, X),
    aten.mul.Tensor: (X, X),
    aten.div.Tensor: (X, X),
    aten.maximum.default: (X, X),
    aten.fmin.default: (X, X),
    aten.atan2.default: (X, X),
    aten.pow.Tensor_Tensor: (X, X),
    aten.where.self: (MASK, X, X),
    aten.lerp.Tensor: (X, X, X),
    aten.lerp.Scalar: (X, X, 0.3),
    aten.addcmul.default: (X, X, X),
    aten.addcdiv.default: (X, X, X),
    aten.remainder.Tensor: (X, X),
    aten.hypot.default: (X, X),
    aten.copysign.Tensor: (X, X),
    aten.xlogy.Tensor: (X, X),
    aten.logaddexp.default: (X, X),
    aten.masked_fill.Scalar: (X, MASK, 1.0),
    aten.masked_scatter.default: (X, MASK, X),
    aten.eq.Tensor: (X, X),
    aten.clamp.Tensor: (X, X, X),
    aten.clamp_min.Tensor: (X, X),
    aten.heaviside.default: (X, X),
    aten.ldexp.Tensor: (X, X),
    aten.bitwise_and.Tensor: (MASK, MASK),
    aten.logical_and.default: (X, X),
    aten.complex.default: (X, X),
    aten.polar.default: (X, X),
    aten.cat.default: ([X, X], 1),
    aten.stack.default: ([X, X], 1),
    aten.roll.default: (X, [1], [1]),
    aten.flip.default: (X, [1]),
}


def made(layouts: tuple[int, ...], arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments, each tensor in its layout."""
    left = iter(layouts)

    def one(argument: Any) -> Any:
        if isinstance(argument, list) and X in argument:
            return [one(a) for a in argument]
        if argument == X:
            return LAYOUTS[next(left)]()
        return LAYOUTS[next(left)]() > 0.5 if argument == MASK else argument

    return [one(a) for a in arguments]


def layouts_of(result: Any) -> list[tuple[torch.Size, tuple[int, ...], int]]:
    """What is compared."""
    tensors = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
    return [(t.shape, t.stride(), t.storage_offset()) for t in tensors]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("op", CALLS, ids=str)
def test_results_are_laid_out_as_traced(op: Any) -> None:
    arguments = CALLS[op]
    count = sum(a in (X, MASK) for a in tree_leaves(list(arguments)))
    # Of a third operand three layouts are enough.
    many = [c for c in itertools.product(range(len(LAYOUTS)), repeat=count) if sum(c[2:]) < 3]
    given = [made(layouts, arguments) for layouts in many]
    with trace_settings(), FakeTensorMode() as mode:
        fakes = [op(*tree_map_only(torch.Tensor, mode.from_tensor, one)) for one in given]
    for layouts, one, fake in zip(many, given, fakes, strict=True):
        assert layouts_of(fake) == layouts_of(op(*one)), layouts
