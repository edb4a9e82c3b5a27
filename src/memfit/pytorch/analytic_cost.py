"""Op costs without running anything: for planning without measuring, or without the device.

Time is a roofline: the larger of arithmetic over arithmetic rate and bytes moved over memory
bandwidth, plus a fixed cost per call. The constants are round figures for a machine of today, not
of this machine: a plan needs the costs of ops relative to each other. Arithmetic is counted by
`torch.utils.flop_counter`, which knows matrix products, convolutions and attention; all other ops
count as memory traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from memfit.pytorch.as_traced import copied_bytes
from memfit.pytorch.compat import plain_mode, tree_leaves, tree_map
from memfit.pytorch.op_calls import OpCall, OpCost, TensorSpec

__all__ = ["DeviceRates", "analytic_cost", "output_specs", "workspace_estimate_bytes"]


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Constants of the roofline.

    Attributes:
        flops_per_ns: float32 arithmetic (GFLOP/s); 16-bit types are taken as twice as fast on
            CUDA, float64 as half as fast.
        bytes_per_ns: memory bandwidth (GB/s).
        call_ns: fixed cost of a call.
    """

    flops_per_ns: float
    bytes_per_ns: float
    call_ns: int


_CPU_CORE = DeviceRates(flops_per_ns=40.0, bytes_per_ns=6.0, call_ns=3_000)
_ACCELERATOR = DeviceRates(flops_per_ns=20_000.0, bytes_per_ns=1_000.0, call_ns=5_000)
_MAX_CPU_BYTES_PER_NS = 40.0  # cores share the memory bus
_VIEW_NS = 1_000


def device_rates(device: torch.device) -> DeviceRates:
    """Roofline constants; on CPU for the number of threads that PyTorch uses."""
    if device.type != "cpu":
        return _ACCELERATOR
    threads = torch.get_num_threads()
    bandwidth = min(_MAX_CPU_BYTES_PER_NS, threads * _CPU_CORE.bytes_per_ns)
    return DeviceRates(threads * _CPU_CORE.flops_per_ns, bandwidth, _CPU_CORE.call_ns)


def analytic_cost(call: OpCall) -> OpCost:
    """Estimated cost of a call; needs neither its device nor any memory to speak of.

    A call that cannot run on meta tensors is taken to write as much as it reads. One whose outputs
    are known to be copied takes the memory of the copy.
    """
    found = _run_on_meta(call)
    inputs = sum(spec.extent_bytes for spec in call.tensors)
    if found is None:
        made, flops = inputs, 0
    else:
        made, flops = sum(spec.storage_bytes for spec in found.made), found.flops
        if found.view:
            return OpCost(_VIEW_NS, 0, 0, "analytic")
    rates = device_rates(call.device)
    arithmetic = flops / (rates.flops_per_ns * _type_speed(call))
    traffic = (inputs + made) / rates.bytes_per_ns
    workspace = workspace_estimate_bytes(call, made)
    if call.copied:
        workspace = max(workspace, copied_bytes(call.forms))
    return OpCost(int(max(arithmetic, traffic)) + rates.call_ns, workspace, made, "analytic")


def output_specs(call: OpCall) -> tuple[TensorSpec, ...] | None:
    """The tensors with storages of their own that the call returns; None where meta cannot tell."""
    found = _run_on_meta(call)
    return None if found is None else found.made


@dataclass(frozen=True)
class _MetaRun:
    made: tuple[TensorSpec, ...]
    flops: int
    view: bool


def _run_on_meta(call: OpCall) -> _MetaRun | None:
    def to_meta(leaf: Any) -> Any:
        if isinstance(leaf, TensorSpec):
            span = leaf.storage_offset + leaf.extent_bytes // leaf.dtype.itemsize
            span = max(span, leaf.storage_bytes // leaf.dtype.itemsize)
            base = torch.empty(span, dtype=leaf.dtype, device="meta")
            return torch.as_strided(base, leaf.shape, leaf.stride, leaf.storage_offset)
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    with plain_mode():
        try:
            args, kwargs = tree_map(to_meta, (call.args, dict(call.kwargs)))
            result = call.target(*args, **kwargs)
            flops = _flops(call.target, args, kwargs, result)
        except Exception:  # whatever an op does not support on meta tensors
            return None
        given = {_storage_id(t) for t in _tensors((args, kwargs))}
        results = _tensors(result)
        made: dict[int, torch.Tensor] = {}
        for tensor in results:
            if _storage_id(tensor) not in given:
                made.setdefault(_storage_id(tensor), tensor)
        changes = _is_mutable(call.target)
        view = bool(results) and not made and not changes
        return _MetaRun(tuple(TensorSpec.of(t) for t in made.values()), flops, view)


def _storage_id(tensor: torch.Tensor) -> int:
    """Identity of a tensor's storage; meta storages have no address."""
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_mutable(target: Callable[..., Any]) -> bool:
    return isinstance(target, torch._ops.OpOverload) and bool(target._schema.is_mutable)


def _flops(target: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], result: Any) -> int:
    packet = getattr(target, "overloadpacket", None)
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _type_speed(call: OpCall) -> float:
    types = {spec.dtype for spec in call.tensors}
    if torch.float64 in types or torch.complex128 in types:
        return 0.5
    half = types & {torch.float16, torch.bfloat16}
    return 2.0 if half and call.device.type != "cpu" else 1.0


# What the CPU kernels copy or buffer beyond inputs and outputs, seen from above.
_CONVOLUTIONS = frozenset({"convolution", "convolution_backward"})
_CHANNEL_BLOCK = 16  # floats of the widest vector
_SCRATCH_BYTES = 32 * 2**10  # of each thread
_INPUTS = frozenset(
    {
        "_log_softmax_backward_data",
        "_safe_softmax",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "_softmax_backward_data",
        "native_dropout",
        "native_dropout_backward",
    }
)
_PRODUCTS = frozenset({"addmm", "baddbmm", "bmm", "mm"})
_LARGEST_INPUT = frozenset({"native_batch_norm_backward", "native_group_norm_backward"})


def workspace_estimate_bytes(call: OpCall, output_bytes: int) -> int:
    """Workspace of a call on CPU, an estimate that means to err on the high side.

    Convolutions and their backward convert every operand and result to a layout in blocks of 16
    channels: as much again as all of them, channels rounded up; transposed ones twice that.
    Interpolation converts input and output. Matrix products copy operands that are contiguous along
    neither axis, the backward of batch norm one activation, dropout draws its mask in floats.
    Normalisations buffer sums for each channel and thread. Other ops: none.

    Args:
        call: the call.
        output_bytes: bytes that it returns.
    """
    target = call.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return 0
    name = str(target._schema.name).removeprefix("aten::")
    inputs = [spec.extent_bytes for spec in call.tensors]
    if name in _CONVOLUTIONS:
        return _convolution_workspace_bytes(call)
    if name == "cumsum" or name.startswith("upsample_"):
        return sum(inputs) + output_bytes
    if name in _INPUTS:
        return sum(inputs)
    if name in _PRODUCTS:
        return sum(spec.extent_bytes for spec in call.tensors if 1 not in spec.stride[-2:])
    estimate = max(inputs, default=0) if name in _LARGEST_INPUT else 0
    if "_norm" in name:
        channels = sum(spec.extent_bytes for spec in call.tensors if len(spec.shape) == 1)
        estimate += 2 * channels * torch.get_num_threads()
    return estimate


def _convolution_workspace_bytes(call: OpCall) -> int:
    # Tensors are (gradient,) input, weight, …; the weight has channels on its first two axes.
    backward = "backward" in str(call.target)
    weight = call.tensors[2 if backward else 1].shape
    transposed = call.args[7 if backward else 6] is True
    padded = 0
    for spec in (*call.tensors, *(output_specs(call) or ())):
        channel_axes = (0, 1) if spec.shape == weight else (1,)
        lengths = [
            -(-length // _CHANNEL_BLOCK) * _CHANNEL_BLOCK if axis in channel_axes else length
            for axis, length in enumerate(spec.shape)
        ]
        padded += math.prod(lengths) * spec.dtype.itemsize
    return padded * (1 + transposed) + _SCRATCH_BYTES * torch.get_num_threads()
