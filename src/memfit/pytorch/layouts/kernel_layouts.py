"""Strides of what real kernels return, where fake tensors say others.

PyTorch traces on tensors without data, and what an op returns there is told by a function beside
the kernel. For some ops the two differ in strides. Then autograd's formulas take a `view` that the
kernel's result refuses, batch norm sums in another order than eager's, and workspaces are measured
for the wrong layout. Here is, op by op, what kernels do.

A rule holds for CPU kernels only, or for all devices where the code is the same for all: ops that
iterate over their operands elementwise, and formulas written in terms of other ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from memfit.pytorch.compat.eager import tree_leaves
from memfit.pytorch.compat.layouts import FakeTensor, corrected_fakes, in_place_layouts
from memfit.pytorch.layouts import strides as S

__all__ = ["RULES", "Rule", "corrected", "kernel_strides", "real_layouts"]

aten = torch.ops.aten
Strides = tuple[int, ...]
ON_CPU = frozenset({"cpu"})


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an op, and the shape of one of its outputs.

    Attributes:
        args: positional arguments; tensors real, fake or on the device `meta`.
        kwargs: keyword arguments.
        shape: of the output.
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    shape: S.Ints

    def operand(self, place: int) -> S.Operand:
        """An argument as it is in the kernel: a number is a tensor of no dimensions."""
        value = self.args[place]
        return (value.shape, value.stride()) if isinstance(value, torch.Tensor) else ((), ())


Layout = Callable[[Call], Strides | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """Strides of one output of an op.

    Attributes:
        strides: from a call to the output's strides; None where the fake result is right.
        output: which of the outputs.
        devices: types of the devices whose kernels do so; None for all.
    """

    strides: Layout
    output: int = 0
    devices: frozenset[str] | None = None


def _contiguous(call: Call) -> Strides:
    return S.contiguous(call.shape)


def _elementwise(*places: int) -> Layout:
    """Iterates over these arguments; the first ones decide."""
    return lambda call: S.elementwise(*(call.operand(i) for i in places))


def _like(place: int) -> Layout:
    return lambda call: S.like(call.operand(place))


def _suggested(place: int) -> Layout:
    return lambda call: S.suggested(call.operand(place), call.shape)


def _preserved(call: Call) -> Strides | None:
    """A new tensor like another; only dimensions of one element are told wrongly."""
    wanted = call.kwargs.get("memory_format") or torch.preserve_format
    if 1 not in call.shape or wanted is not torch.preserve_format:
        return None
    return S.like(call.operand(0))


def _viewed(call: Call) -> Strides | None:
    return S.viewed(call.operand(0), call.shape) if 1 in call.shape else None


def _expanded(call: Call) -> Strides | None:
    return S.expanded(call.operand(0), call.shape) if 1 in call.shape else None


def _batch_norm(call: Call, place: int = 0) -> Strides:
    x = call.operand(place)
    if S.is_contiguous(x):
        return S.contiguous(call.shape)
    return S.channels_last(call.shape) if S.is_channels_last(x) else S.suggested(x, call.shape)


def _batch_norm_backward(call: Call) -> Strides:
    gradient, x = call.operand(0), call.operand(1)
    formats = {S.suggests_channels_last(gradient), S.suggests_channels_last(x)}
    if len(formats) == 1 and all(
        S.is_contiguous(one) or S.is_channels_last(one) for one in (gradient, x)
    ):
        return _batch_norm(call, 1)
    return S.suggested(x, call.shape)


def _scaled_mask(call: Call) -> Strides:
    """The gradient by a product of the mask and a number."""
    shape, strides = call.operand(1)
    mask = S.elementwise((shape, S.like((shape, strides))), ((), ()))
    return S.elementwise(call.operand(0), (shape, mask))


def _power_of_two(call: Call) -> Strides:
    """`ldexp`: the first argument by a power, which is contiguous."""
    shape, _ = call.operand(1)
    return S.elementwise(call.operand(0), (shape, S.contiguous(shape)))


def _unreduced(call: Call) -> Strides | None:
    """A loss of each element, as the input is; a sum or mean has no strides."""
    return S.like(call.operand(0)) if call.shape else None


def _limited(call: Call) -> Strides:
    """`clamp` by tensors, of which one may be missing."""
    given = [i for i, value in enumerate(call.args) if isinstance(value, torch.Tensor)]
    return S.elementwise(*(call.operand(i) for i in given))


def _rolled(call: Call) -> Strides:
    """Two slices put together, dimension for dimension; an empty one decides for row-major."""
    (shape, strides), shifts = call.operand(0), call.args[1]
    dims = call.args[2] if len(call.args) > 2 else ()
    if not dims:
        return S.contiguous(shape)
    for shift, dim in zip(shifts, dims, strict=True):
        whole = shape[dim] == 0 or shift % shape[dim] == 0
        strides = S.contiguous(shape) if whole else S.suggested((shape, strides), shape)
    return tuple(strides)


def _rrelu_backward(call: Call) -> Strides:
    """In training the noise by the gradient, otherwise as for `leaky_relu`."""
    training = call.args[5]
    return S.elementwise(call.operand(2 if training else 1), call.operand(0))


def _all(rule: Rule, *ops: Any) -> dict[Any, tuple[Rule, ...]]:
    return dict.fromkeys(ops, (rule,))


RULES: Mapping[Any, tuple[Rule, ...]] = {
    **_all(
        Rule(_elementwise(0, 1)),
        aten.complex.default,
        aten.copysign.Tensor,
        aten.div.Tensor_mode,
        aten.floor_divide.default,
        aten.hardsigmoid_backward.default,
        aten.hardswish_backward.default,
        aten.hardtanh_backward.default,
        aten.heaviside.default,
        aten.logaddexp.default,
        aten.logical_and.default,
        aten.logical_or.default,
        aten.logical_xor.default,
        aten.logit_backward.default,
        aten.polar.default,
        aten.softplus_backward.default,
        aten.special_xlog1py.default,
        aten.xlogy.Tensor,
    ),
    **_all(
        Rule(_elementwise(1, 0)), aten.leaky_relu_backward.default, aten.threshold_backward.default
    ),
    aten.native_layer_norm_backward.default: tuple(
        Rule(_contiguous, output, ON_CPU) for output in range(3)
    ),
    aten._prelu_kernel_backward.default: (
        Rule(_elementwise(1, 2, 0), 0),
        Rule(_elementwise(1, 2, 0), 1),
    ),
    **_all(Rule(_elementwise(0, 5)), aten.elu_backward.default),
    **_all(Rule(_limited), aten.clamp.Tensor),
    **_all(
        Rule(_unreduced, devices=ON_CPU),
        aten.binary_cross_entropy.default,
        aten.huber_loss.default,
    ),
    **_all(Rule(_like(0), devices=ON_CPU), aten.log_sigmoid_backward.default),
    **_all(Rule(_elementwise(2), devices=ON_CPU), aten.soft_margin_loss_backward.default),
    **_all(Rule(_rolled, devices=ON_CPU), aten.roll.default),
    **_all(Rule(_elementwise(0)), aten.neg.default),
    **_all(Rule(_elementwise(0, 1)), aten.div.Scalar),
    **_all(Rule(_power_of_two), aten.ldexp.Tensor),
    **_all(Rule(_scaled_mask), aten.native_dropout_backward.default),
    **_all(
        Rule(_contiguous),
        aten._log_softmax_backward_data.default,
        aten.huber_loss_backward.default,
        aten.mse_loss_backward.default,
        aten.normal.Tensor_Tensor,
        aten.pow.Scalar,
        aten.smooth_l1_loss_backward.default,
    ),
    **_all(Rule(_like(1)), aten.binary_cross_entropy_backward.default),
    **_all(Rule(_viewed), aten._unsafe_view.default, aten.view.default),
    **_all(Rule(_expanded), aten.expand.default),
    **_all(
        Rule(_preserved),
        aten.clone.default,
        aten.empty_like.default,
        aten.full_like.default,
        aten.ones_like.default,
        aten.rand_like.default,
        aten.randn_like.default,
        aten.zeros_like.default,
    ),
    **_all(Rule(_like(0)), aten.uniform.default),
    aten.log_sigmoid_forward.default: (
        Rule(_contiguous, 0, ON_CPU),
        Rule(_contiguous, 1, ON_CPU),
    ),
    aten.rrelu_with_noise_backward.default: (Rule(_rrelu_backward),),
    aten.rrelu_with_noise_functional.default: (
        Rule(_like(0), 0, ON_CPU),
        Rule(_like(1), 1, ON_CPU),
    ),
    **_all(
        Rule(_contiguous, devices=ON_CPU),
        aten._weight_norm_interface.default,
        aten.glu_backward.default,
        aten.nll_loss2d_forward.default,
    ),
    **_all(
        Rule(_suggested(0), devices=ON_CPU),
        aten.channel_shuffle.default,
        aten.max_unpool2d.default,
        aten.reflection_pad3d.default,
        aten.replication_pad3d.default,
    ),
    **_all(
        Rule(_suggested(1), devices=ON_CPU),
        aten.reflection_pad2d_backward.default,
        aten.reflection_pad3d_backward.default,
        aten.replication_pad2d_backward.default,
        aten.replication_pad3d_backward.default,
    ),
    **_all(
        Rule(_batch_norm, devices=ON_CPU),
        aten._batch_norm_no_update.default,
        aten._batch_norm_with_update.default,
        aten._batch_norm_with_update_functional.default,
        aten._native_batch_norm_legit.default,
        aten._native_batch_norm_legit.no_stats,
        aten._native_batch_norm_legit_functional.default,
        aten._native_batch_norm_legit_no_training.default,
        aten.native_batch_norm.default,
    ),
    **_all(
        Rule(_batch_norm_backward, devices=ON_CPU),
        aten.batch_norm_backward.default,
        aten.native_batch_norm_backward.default,
    ),
}
"""For each op whose fake results have other strides than a kernel's, what the kernel does."""


def kernel_strides(
    op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Any]
) -> dict[int, Strides]:
    """Strides that the kernel gives to outputs, by position, where there is a rule for them.

    Args:
        op: an `OpOverload`.
        args, kwargs: its arguments; tensors real, fake or on the device `meta`.
        outputs: tensors that it is said to return; None where it returns none.
    """
    found = {}
    for rule in RULES.get(op, ()):
        made = outputs[rule.output] if rule.output < len(outputs) else None
        if not isinstance(made, torch.Tensor):
            continue
        if rule.devices is None or made.device.type in rule.devices:
            strides = rule.strides(Call(args, kwargs, made.shape))
            if strides is not None:
                found[rule.output] = strides
    return found


def corrected(
    mode: Any, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> Any:
    """What an op returns on fake tensors, with the strides of its kernel."""
    if op not in RULES:
        return result
    many = isinstance(result, (tuple, list))
    outputs = result if many else (result,)
    if any(_has_symbols(value) for value in tree_leaves((args, kwargs, outputs))):
        return result
    strides = kernel_strides(op, args, kwargs, outputs)
    changed = [
        _laid_out(mode, made, strides[i], args[0]) if i in strides else made
        for i, made in enumerate(outputs)
    ]
    if all(a is b for a, b in zip(changed, outputs, strict=True)):
        return result
    if not many:
        return changed[0]
    return type(result)(*changed) if hasattr(result, "_fields") else type(result)(changed)


def _has_symbols(value: Any) -> bool:
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return True
    return isinstance(value, torch.Tensor) and any(
        isinstance(n, torch.SymInt) for n in (*value.shape, *value.stride())
    )


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _laid_out(mode: Any, made: Any, strides: Strides, given: Any) -> Any:
    """The same fake tensor with other strides; what lies in the memory of `given` stays there."""
    if not isinstance(made, FakeTensor) or tuple(made.stride()) == strides:
        return made
    if made.constant is not None or made.layout is not torch.strided:
        return made
    with mode:
        if isinstance(given, torch.Tensor) and _storage(made) == _storage(given):
            return torch.as_strided(given, made.shape, strides, made.storage_offset())
        return torch.empty_strided(made.shape, strides, dtype=made.dtype, device=made.device)


def _as_before(made: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """What an op made in place of a tensor, with that tensor's strides.

    Strides with gaps are left to the op: a copy would have to make the gaps, too.
    """
    shape, strides = written.shape, written.stride()
    if any(isinstance(n, torch.SymInt) for n in (*shape, *strides, *made.stride())):
        return made
    pairs = zip(shape, made.stride(), strides, strict=True)
    if made.numel() == 0 or all(n == 1 or a == b for n, a, b in pairs):
        return made
    if not S.is_dense((shape, strides)):
        return made
    order = sorted(range(len(shape)), key=lambda dim: (-strides[dim], dim))
    copy = made.permute(order).clone(memory_format=torch.contiguous_format)
    return copy.permute([order.index(dim) for dim in range(len(shape))])


@contextmanager
def real_layouts() -> Iterator[None]:
    """While on, tracing sees the strides that eager's tensors have."""
    with corrected_fakes(corrected), in_place_layouts(_as_before):
        yield
