"""Op costs without running anything: for planning without measuring, or without the device.

Time is a roofline: the larger of arithmetic over arithmetic rate and bytes moved over memory
bandwidth, plus a fixed cost per call. The constants are round figures for a machine of today, not
of this machine: a plan needs the costs of ops relative to each other. Arithmetic is counted by
`torch.utils.flop_counter`, which knows matrix products, convolutions and attention; all other ops
count as memory traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from memfit.pytorch.compat.eager import plain_mode, tree_leaves, tree_map
from memfit.pytorch.cost.kernel_workspace import known_workspace_bytes
from memfit.pytorch.cost.op_calls import OpCall, OpCost, TensorSpec
from memfit.pytorch.cost.workspace_bound import workspace_bound_bytes
from memfit.pytorch.layouts.as_traced import copied_bytes

__all__ = ["DeviceRates", "analytic_cost", "device_rates", "output_specs"]


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

    A call that cannot run on meta tensors is taken to write as much as it reads. The workspace is
    that of the kernel where that is known, an upper bound where not. A call whose outputs are known
    to be copied takes the memory of the copy.
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
    known = known_workspace_bytes(call, found.made) if found is not None else None
    bound = workspace_bound_bytes(call, found.made if found else None) if known is None else known
    if call.copied:
        bound = max(bound, copied_bytes(call.forms))
    exact = (known is not None or _is_custom(call)) and not call.copied
    time_ns = int(max(arithmetic, traffic)) + rates.call_ns
    return OpCost(time_ns, bound, made, "analytic", workspace_known=exact)


def _is_custom(call: OpCall) -> bool:
    """Of an op that is not PyTorch's no estimate would be a bound."""
    return isinstance(call.target, torch._ops.OpOverload) and call.target.namespace != "aten"


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
