"""The workspace of known CPU kernels, told from the tensors of a call.

An op without a rule, or a call that its rule says nothing of, is not known: what libraries take
(oneDNN's layouts, packed matrices) depends on the processor. Every rule is measured by a test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memfit.pytorch.cost import workspace_rules as R
from memfit.pytorch.cost.op_calls import OpCall, TensorSpec

__all__ = ["RULES", "known_workspace_bytes"]

aten = torch.ops.aten


def known_workspace_bytes(call: OpCall, made: Sequence[TensorSpec]) -> int | None:
    """Most bytes alive during a call beside its inputs and outputs; None where not known.

    Args:
        call: of an op on CPU tensors.
        made: the tensors with storages of their own that it returns.
    """
    if call.device.type != "cpu" or any(s.dtype.is_complex for s in call.tensors):
        return None
    target = call.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    rule = RULES.get(target.overloadpacket)
    if rule is None and torch.Tag.pointwise in target.tags:
        rule = R.pointwise
    return None if rule is None else rule(call, made)


def _table(rule: R.Rule, *packets: Any) -> dict[Any, R.Rule]:
    return dict.fromkeys(packets, rule)


RULES: Mapping[Any, R.Rule] = {
    **_table(
        R.nothing,
        aten._unsafe_view,
        aten.alias,
        aten.as_strided,
        aten.arange,
        aten.bernoulli,
        aten.cat,
        aten.constant_pad_nd,
        aten.detach,
        aten.empty,
        aten.empty_like,
        aten.empty_strided,
        aten.expand,
        aten.eye,
        aten.flip,
        aten.full,
        aten.full_like,
        aten.grid_sampler_2d,
        aten.lift_fresh,
        aten.lift_fresh_copy,
        aten.new_empty,
        aten.new_empty_strided,
        aten.new_full,
        aten.new_ones,
        aten.new_zeros,
        aten.nll_loss2d_backward,
        aten.nll_loss2d_forward,
        aten.nll_loss_backward,
        aten.nll_loss_forward,
        aten.ones,
        aten.ones_like,
        aten.permute,
        aten.rand,
        aten.rand_like,
        aten.roll,
        aten.scalar_tensor,
        aten.select,
        aten.select_backward,
        aten.slice,
        aten.slice_backward,
        aten.split,
        aten.split_with_sizes,
        aten.squeeze,
        aten.stack,
        aten.t,
        aten.transpose,
        aten.unsqueeze,
        aten.view,
        aten.zeros,
        aten.zeros_like,
    ),
    **_table(R.copy_rule, aten._to_copy, aten.clone),
    **_table(
        R.converted(),
        aten.add,
        aten.div,
        aten.eq,
        aten.floor_divide,
        aten.fmod,
        aten.ge,
        aten.gt,
        aten.le,
        aten.lt,
        aten.maximum,
        aten.minimum,
        aten.mul,
        aten.ne,
        aten.remainder,
        aten.rsub,
        aten.sub,
    ),
    **_table(R.converted(1), aten.where),
    **_table(
        R.of_one_type,
        aten._prelu_kernel,
        aten._prelu_kernel_backward,
        aten.elu_backward,
        aten.glu,
        aten.glu_backward,
        aten.hardshrink_backward,
        aten.hardsigmoid_backward,
        aten.hardswish,
        aten.hardswish_backward,
        aten.hardtanh_backward,
        aten.huber_loss_backward,
        aten.leaky_relu_backward,
        aten.log_sigmoid_backward,
        aten.mish_backward,
        aten.mse_loss_backward,
        aten.smooth_l1_loss_backward,
        aten.softplus_backward,
        aten.softshrink_backward,
    ),
    aten.gelu_backward: R.gelu_backward,
    aten.log_sigmoid_forward: R.copies(0),
    **_table(
        R.reduced,
        aten.all,
        aten.amax,
        aten.amin,
        aten.any,
        aten.argmax,
        aten.argmin,
        aten.linalg_vector_norm,
    ),
    **_table(R.deviation, aten.std, aten.var, aten.var_mean),
    aten.sum: R.sum_rule,
    aten.mean: R.mean,
    aten.prod: R.reduced,
    **_table(R.cumulated, aten.cumprod, aten.cumsum),
    **_table(R.extreme, aten.max, aten.min),
    aten._safe_softmax: R.safe_softmax,
    aten.lerp: R.of_one_type,
    aten.logsumexp: R.logsumexp,
    aten.binary_cross_entropy_with_logits: R.logits_loss,
    **_table(R.loss, aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss),
    **_table(R.product, aten.addmm, aten.baddbmm, aten.bmm, aten.mm),
    **_table(R.vector_product, aten.dot, aten.mv),
    **_table(R.copies(0), aten._softmax, aten._log_softmax),
    **_table(R.copies(0, 1), aten._softmax_backward_data, aten._log_softmax_backward_data),
    aten.native_layer_norm: R.copies(0),
    aten.native_layer_norm_backward: R.layer_norm_backward,
    aten.native_group_norm: R.group_norm,
    aten.native_group_norm_backward: R.group_norm_backward,
    **_table(R.batch_norm(5), aten.native_batch_norm, aten._native_batch_norm_legit_functional),
    aten.native_batch_norm_backward: R.batch_norm_backward,
    **_table(R.indexed, aten.gather, aten.index_select, aten.scatter, aten.scatter_add),
    **_table(R.filled, aten.copy, aten.copy_),
    aten.embedding: R.nothing,
    aten.masked_fill: R.overwritten,
    aten.embedding_dense_backward: R.copies(0),
    **_table(R.by_integers, aten.index, aten.index_put),
    aten.index_add: R.index_added,
    aten.repeat: R.repeated,
    **_table(R.triangle, aten.tril, aten.triu),
    aten.upsample_bicubic2d: R.cubic,
    **_table(
        R.in_format(0, 0),
        aten._adaptive_avg_pool2d,
        aten.adaptive_max_pool2d,
        aten.avg_pool2d,
        aten.max_pool2d_with_indices,
        aten.pixel_shuffle,
        aten.pixel_unshuffle,
        aten.reflection_pad2d,
        aten.replication_pad2d,
    ),
    **_table(
        R.copies(0),
        aten.col2im,
        aten.upsample_bicubic2d_backward,
    ),
    **_table(R.upsampled, aten.upsample_nearest2d, aten.upsample_bilinear2d),
    **_table(
        R.in_format(0, 0),
        aten.upsample_bilinear2d_backward,
        aten.upsample_nearest2d_backward,
    ),
    **_table(
        R.both_in_format(1, 0),
        aten._adaptive_avg_pool2d_backward,
        aten.adaptive_max_pool2d_backward,
        aten.avg_pool2d_backward,
        aten.max_pool2d_with_indices_backward,
        aten.reflection_pad2d_backward,
        aten.replication_pad2d_backward,
    ),
}
"""For each op whose kernels are known, what they allocate."""
