"""Costs of a fused step: kernels of libraries as measured, loops by their memory traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from memfit.planners.base import Progress
from memfit.pytorch.capture import joint as J
from memfit.pytorch.compat.eager import plain_mode
from memfit.pytorch.compat.inductor import prefers_channels_last
from memfit.pytorch.cost.analytic import device_rates
from memfit.pytorch.cost.cost_step import call_of, cost_step
from memfit.pytorch.cost.on_disk import open_cost_cache
from memfit.pytorch.cost.op_calls import OpCall, TensorSpec
from memfit.pytorch.cost.profile import profile_calls
from memfit.pytorch.inductor.conv_layout import copied_bytes, gradient_bytes
from memfit.pytorch.inductor.fusible_ops import element_ns, fuses, is_heavy, is_random_loop
from memfit.pytorch.inductor.fusion import FusedStep

__all__ = ["cost_fused"]

_LOOP_NS = 2_000  # to start a loop
_SAMPLE_ELEMENTS = 1 << 22
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def cost_fused(
    fused: FusedStep,
    cost: str,
    progress: Progress | None = None,
    times: Mapping[int, int] | None = None,
) -> FusedStep:
    """The fused step with the time and the workspace of each op.

    A loop takes the time to read its sources and write its outputs once, at the device's memory
    bandwidth, and more for heavy functions and random numbers; it has no workspace.

    Args:
        fused: without costs.
        cost: `measured` (kernels of libraries, and the memory bandwidth) or `analytic`.
        progress: called with a label and the share done.
        times: for each op of `fused.graph` an estimate of its time, as for `cost_step`; loops are
            reckoned all the same.
    """
    step = fused.step
    loops = {i for i, node in enumerate(step.node_of) if fuses(node)}
    # What only virtual ops, which are loops, write is not in the fused graph.
    known = None if times is None else {fused.ops[k]: t for k, t in times.items()}
    costed = cost_step(step, cost, progress, skip=loops, call=_call, times=known).graph.ops
    rate = _bytes_per_ns(step.node_of, cost)
    channels_last = prefers_channels_last(step.joint)
    costs: list[tuple[int, int]] = []
    for k, op_id in enumerate(fused.ops):
        if op_id not in loops:
            workspace = costed[op_id].workspace_bytes
            if channels_last:
                node = step.node_of[op_id]
                workspace = max(workspace + copied_bytes(node), gradient_bytes(node))
            costs.append((costed[op_id].cost, workspace))
            continue
        op = fused.graph.ops[k]
        traffic = sum(fused.graph.values[v].size_bytes for v in (*op.inputs, *op.outputs))
        work = sum(_work_ns(step.node_of[i]) for i in fused.loops[k])
        costs.append((_LOOP_NS + int(max(traffic / rate, 0.0) + work), 0))
    estimates = {
        k: why
        for k, op_id in enumerate(fused.ops)
        if (why := costed[op_id].workspace_estimate) is not None
    }
    return fused.with_costs(costs, estimates)


def _work_ns(node: fx.Node) -> float:
    """Time of a node in a loop beyond the memory traffic."""
    found = J.tensors(node)
    if not found or found[0].device.type != "cpu":
        return 0.0
    if not (is_heavy(node) or is_random_loop(node)):
        return 0.0  # hidden by the memory traffic
    return element_ns(node) * TensorSpec.of(found[0]).elements / max(1, torch.get_num_threads())


def _bytes_per_ns(nodes: tuple[fx.Node, ...], cost: str) -> float:
    """Memory bandwidth of a loop on the device of the step."""
    device = next((t.device for n in nodes for t in J.tensors(n)), torch.device("cpu"))
    analytic = device_rates(device).bytes_per_ns
    if cost == "analytic":
        return analytic
    spec = TensorSpec(
        (_SAMPLE_ELEMENTS,), (1,), torch.float32, device, storage_bytes=4 * _SAMPLE_ELEMENTS
    )
    with plain_mode():
        profile = profile_calls(
            [OpCall(torch.ops.aten.add.Tensor, (spec, spec), name="memory bandwidth")],
            cache=open_cost_cache(),
        )
    measured = profile.costs[0]
    return 3 * 4 * _SAMPLE_ELEMENTS / max(1, measured.time_ns)


def _call(node: fx.Node) -> OpCall:
    """The node as Inductor calls it: results as they come, convolutions on CPU channels last."""
    call = replace(call_of(node), forms=(), copied=False)
    if node.target not in _CONVOLUTIONS or call.device.type != "cpu":
        return call
    last = tuple(_channels_last(a) if isinstance(a, TensorSpec) else a for a in call.args)
    return replace(call, args=last)


def _channels_last(spec: TensorSpec) -> TensorSpec:
    if len(spec.shape) != 4:
        return spec
    _, c, h, w = spec.shape
    return replace(spec, stride=(h * w * c, 1, w * c, c), storage_offset=0)
