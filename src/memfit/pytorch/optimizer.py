"""Bytes of an optimizer's state, also before its first step."""

from __future__ import annotations

import copy
from collections.abc import Set

import torch

from memfit.pytorch.storage_sizes import block_bytes

__all__ = ["optimizer_state_bytes"]

_CPU = torch.device("cpu")
_KINDS = ("fused", "capturable", "foreach")


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state that the optimizer holds once it has stepped.

    Before the first step, the same optimizer is stepped once on `meta` copies of its parameters,
    which allocates nothing.
    """
    device = next((p.device for g in optimizer.param_groups for p in g["params"]), _CPU)
    if optimizer.state:
        return _bytes(optimizer, device)
    groups = []
    counted_there: set[torch.Tensor] = set()
    for group in optimizer.param_groups:
        params = []
        for p in group["params"]:
            twin = torch.nn.Parameter(
                torch.empty_like(p, device="meta"), requires_grad=p.requires_grad
            )
            if p.requires_grad:
                twin.grad = torch.empty_like(twin)
            params.append(twin)
        options = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
        if options.get("fused") or options.get("capturable"):
            # Both refuse meta tensors. Without, the state is the same, but for its step counters,
            # which are then on the CPU.
            options.update({k: False for k in _KINDS if k in options})
            if isinstance(options.get("lr"), torch.Tensor):
                options["lr"] = float(options["lr"])
            counted_there.update(params)
        groups.append({**options, "params": params})
    twin_optimizer = copy.copy(optimizer)
    twin_optimizer.__dict__ = dict(optimizer.__dict__)
    twin_optimizer.param_groups = groups
    twin_optimizer.state = type(optimizer.state)(optimizer.state.default_factory)
    twin_optimizer.step()
    return _bytes(twin_optimizer, device, counted_there)


def _bytes(
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    counted_there: Set[torch.Tensor] = frozenset(),
) -> int:
    """Bytes of all state; `meta` tensors, and all of some parameters, are taken to be on `device`.

    Args:
        counted_there: these parameters.
    """
    return sum(
        block_bytes(
            value.numel() * value.element_size(),
            device if value.device.type == "meta" or parameter in counted_there else value.device,
        )
        for parameter, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
