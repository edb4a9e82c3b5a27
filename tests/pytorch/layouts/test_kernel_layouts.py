"""What `kernel_layouts` says of strides is what kernels do, and fake results say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from memfit.pytorch.compat.eager import tree_map_only
from memfit.pytorch.compat.fake import FakeTensorMode
from memfit.pytorch.layouts.kernel_layouts import RULES, kernel_strides, real_layouts

aten = torch.ops.aten
ONE = torch.tensor(1.0)
Shape = tuple[int, ...]
Make = Callable[[torch.Tensor, torch.Tensor], tuple[Any, ...]]
MATRIX, ROWS, IMAGE, VOLUME = (3, 4), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 4, 3)
SHAPES = (MATRIX, ROWS, IMAGE, (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1))
CALLS: dict[Any, tuple[Make, tuple[Shape, ...]]] = {}
"""For each op with a rule, how arguments are made of two tensors, and the shapes to try."""
KEYWORDS = {aten.div.Tensor_mode: {"rounding_mode": "floor"}}


def calls(make: Make, *ops: Any, shapes: tuple[Shape, ...] = SHAPES) -> None:
    CALLS.update(dict.fromkeys(ops, (make, shapes)))


def per_channel(x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.ones(x.shape[1]) for _ in range(4)]


def norm_backward(g: torch.Tensor, x: torch.Tensor) -> tuple[Any, ...]:
    return (g, x, torch.ones(x.shape[1]), *per_channel(x), True, 1e-5, [True] * 3)


def layer_norm_backward(g: torch.Tensor, x: torch.Tensor) -> tuple[Any, ...]:
    rows, last = torch.ones(*x.shape[:-1], 1), torch.ones(x.shape[-1])
    return (g, x, [x.shape[-1]], rows, rows, last, last, [True] * 3)


calls(
    lambda a, b: (a, b),
    aten.complex.default,
    aten.copysign.Tensor,
    aten.div.Tensor_mode,
    aten.floor_divide.default,
    aten.hardsigmoid_backward.default,
    aten.hardswish_backward.default,
    aten.heaviside.default,
    aten.ldexp.Tensor,
    aten.logaddexp.default,
    aten.logical_and.default,
    aten.logical_or.default,
    aten.logical_xor.default,
    aten.normal.Tensor_Tensor,
    aten.polar.default,
    aten.special_xlog1py.default,
    aten.xlogy.Tensor,
)
calls(
    lambda a, b: (a,),
    aten.clone.default,
    aten.empty_like.default,
    aten.log_sigmoid_forward.default,
    aten.neg.default,
    aten.ones_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.uniform.default,
    aten.zeros_like.default,
)
calls(lambda a, b: (a, 2.0), aten.div.Scalar, aten.full_like.default)
calls(lambda a, b: (2.0, a), aten.pow.Scalar)
calls(lambda a, b: (a, b, -1.0, 1.0), aten.hardtanh_backward.default)
calls(lambda a, b: (a, b, 0.1, False), aten.leaky_relu_backward.default)
calls(lambda a, b: (a, b, 0.5), aten.threshold_backward.default)
calls(lambda a, b: (a, b, ONE.reshape([1] * a.dim())), aten._prelu_kernel_backward.default)
calls(lambda a, b: (a, b, None, 0), aten.binary_cross_entropy.default)
calls(lambda a, b: (a, b, None), aten.logit_backward.default)
calls(lambda a, b: (a, b, 1.0, 20.0), aten.softplus_backward.default)
calls(lambda a, b: (a, b > 0.5, 2.0), aten.native_dropout_backward.default)
calls(lambda a, b: (a, b, 0, torch.float32), aten._log_softmax_backward_data.default)
calls(lambda a, b: (ONE, a, b, 1), aten.mse_loss_backward.default)
calls(
    lambda a, b: (ONE, a, b, 1, 1.0),
    aten.huber_loss_backward.default,
    aten.smooth_l1_loss_backward.default,
)
calls(lambda a, b: (a, b, b, None, 0), aten.binary_cross_entropy_backward.default)
calls(lambda a, b: (a, 0.7, 1, 1, False, b), aten.elu_backward.default)
calls(lambda a, b: (a, None, b), aten.clamp.Tensor)
calls(lambda a, b: (a, b, 0, 1.0), aten.huber_loss.default)
calls(lambda a, b: (a, b, b), aten.log_sigmoid_backward.default)
calls(lambda a, b: (b, b, a, 0), aten.soft_margin_loss_backward.default)
calls(lambda a, b: (a, [1, 3], [0, 1]), aten.roll.default)
calls(
    lambda a, b: (a, a.new_ones(len(a), *[1] * (a.ndim - 1)), 0),
    aten._weight_norm_interface.default,
)
calls(lambda a, b: (a, a, b, 0.1, 0.3, True, False), aten.rrelu_with_noise_backward.default)
calls(lambda a, b: (a, b.clone(), 0.1, 0.3, True), aten.rrelu_with_noise_functional.default)
calls(lambda a, b: (a, [1, *a.shape]), aten._unsafe_view.default, aten.view.default)
calls(lambda a, b: (a, [1, *a.shape]), aten.expand.default)
calls(
    lambda a, b: (a, *per_channel(a), True, 0.1, 1e-5),
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit_functional.default,
    aten.native_batch_norm.default,
)
calls(
    lambda a, b: (a, *per_channel(a)[:2], True, 0.1, 1e-5), aten._native_batch_norm_legit.no_stats
)
calls(
    lambda a, b: (a, *per_channel(a), 0.1, 1e-5),
    aten._batch_norm_no_update.default,
    aten._batch_norm_with_update.default,
    aten._batch_norm_with_update_functional.default,
    aten._native_batch_norm_legit_no_training.default,
)
calls(norm_backward, aten.native_batch_norm_backward.default)
calls(
    lambda a, b: (*norm_backward(a, b), torch.empty(0, dtype=torch.uint8)),
    aten.batch_norm_backward.default,
)
calls(layer_norm_backward, aten.native_layer_norm_backward.default)
calls(lambda a, b: (a[:, :, :2], b, 2), aten.glu_backward.default, shapes=(IMAGE,))
calls(
    lambda a, b: (a, b[:, 0].to(torch.long), None, 0, -100),
    aten.nll_loss2d_forward.default,
    shapes=(IMAGE, (1, 3, 4, 5)),
)
calls(lambda a, b: (a, a.shape[1]), aten.channel_shuffle.default, shapes=(IMAGE, ROWS))
calls(
    lambda a, b: (a, torch.zeros_like(a, dtype=torch.long), [9, 9]),
    aten.max_unpool2d.default,
    shapes=(ROWS, IMAGE, (1, 3, 4, 5)),
)
calls(
    lambda a, b: (a, [1] * 6),
    aten.reflection_pad3d.default,
    aten.replication_pad3d.default,
    shapes=(IMAGE, VOLUME),
)
calls(
    lambda a, b: (a, b, [0] * 6),
    aten.reflection_pad3d_backward.default,
    aten.replication_pad3d_backward.default,
    shapes=(VOLUME,),
)
calls(
    lambda a, b: (a, b, [0] * 4),
    aten.reflection_pad2d_backward.default,
    aten.replication_pad2d_backward.default,
    shapes=(IMAGE,),
)


def layouts(shape: Shape) -> list[torch.Tensor]:
    """A shape row-major, channels last, transposed, and reversed; the last also with gaps."""
    dims = len(shape)
    orders = {tuple(range(dims)), (0, *range(2, dims), 1), tuple(range(dims))[::-1]}
    orders.add((*range(dims - 2), dims - 1, dims - 2))
    found = []
    for order in sorted(orders):
        memory = torch.rand([shape[dim] for dim in order] + [2])[..., 0]
        back = [order.index(dim) for dim in range(dims)]
        found.append(memory.clone().permute(back))
    return [*found, memory.permute(back)]


def pairs(shape: Shape) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each layout with itself, and with its neighbours."""
    found = layouts(shape)
    turned = [*found[1:], found[0]]
    return [
        *zip(found, found, strict=True),
        *zip(found, turned, strict=True),
        *zip(turned, found, strict=True),
    ]


def outputs(result: Any) -> Sequence[Any]:
    return result if isinstance(result, (tuple, list)) else (result,)


def test_every_rule_is_tried() -> None:
    assert CALLS.keys() == RULES.keys()


@pytest.mark.parametrize("op", RULES, ids=str)
def test_rules_say_what_kernels_do(op: Any) -> None:
    make, shapes = CALLS[op]
    keywords = KEYWORDS.get(op, {})
    said = 0
    for a, b in (pair for shape in shapes for pair in pairs(shape)):
        args = make(a, b)
        real = outputs(op(*args, **keywords))
        for place, strides in kernel_strides(op, args, keywords, real).items():
            said += 1
            assert strides == real[place].stride(), (a.shape, a.stride(), b.stride())
    assert said


FAKED = (
    aten._native_batch_norm_legit_functional.default,
    aten._unsafe_view.default,
    aten.log_sigmoid_forward.default,
    aten.mse_loss_backward.default,
    aten.pow.Scalar,
    aten.softplus_backward.default,
    aten.view.default,
)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("op", FAKED, ids=str)
def test_fake_results_follow_the_rules(op: Any) -> None:
    make, _ = CALLS[op]
    differ = 0
    for a, b in (pair for shape in (ROWS, (1, 3, 4, 5)) for pair in pairs(shape)):
        args = make(a, b)
        real = outputs(op(*args))
        plain, mended = faked(op, args), faked(op, args, real_layouts())
        assert [t.stride() for t in mended] == [t.stride() for t in real]
        differ += [t.stride() for t in plain] != [t.stride() for t in real]
    assert differ


def faked(op: Any, args: tuple[Any, ...], rules: Any = None) -> Sequence[Any]:
    with rules or nullcontext(), FakeTensorMode() as mode:
        return outputs(op(*tree_map_only(torch.Tensor, mode.from_tensor, args)))


def test_views_stay_views_of_their_base() -> None:
    with real_layouts(), FakeTensorMode() as mode:
        base = mode.from_tensor(torch.zeros(1, 3, 4).transpose(1, 2))
        for view in (base.view(1, 4, 1, 3), base.expand(1, 1, 4, 3)):
            assert view.untyped_storage()._cdata == base.untyped_storage()._cdata


def test_rules_are_put_away() -> None:
    transposed = torch.zeros(4, 3).t()

    def traced() -> tuple[int, ...]:
        with FakeTensorMode() as mode:
            fake = mode.from_tensor(transposed)
            return aten.mse_loss_backward(mode.from_tensor(ONE), fake, fake, 1).stride()

    before = traced()
    with real_layouts():
        with real_layouts():
            assert traced() == (4, 1)
        assert traced() == (4, 1)
    assert traced() == before
