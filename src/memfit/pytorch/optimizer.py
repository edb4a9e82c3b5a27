"""Bytes of an optimizer's state, also before its first step."""

from __future__ import annotations

import copy

import torch

from memfit.pytorch.storage_sizes import block_bytes

__all__ = ["optimizer_state_bytes"]

_CPU = torch.device("cpu")


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state that the optimizer holds once it has stepped.

    Before the first step, the same optimizer is stepped once on `meta` copies of its parameters,
    which allocates nothing.
    """
    device = next((p.device for g in optimizer.param_groups for p in g["params"]), _CPU)
    if optimizer.state:
        return _bytes(optimizer, device)
    groups = []
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
        if options.get("fused"):  # fused kernels refuse meta tensors; the state is the same without
            options["fused"] = False
        groups.append({**options, "params": params})
    twin_optimizer = copy.copy(optimizer)
    twin_optimizer.__dict__ = dict(optimizer.__dict__)
    twin_optimizer.param_groups = groups
    twin_optimizer.state = type(optimizer.state)(optimizer.state.default_factory)
    twin_optimizer.step()
    return _bytes(twin_optimizer, device)


def _bytes(optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Bytes of all state, `meta` tensors taken to be on `device`."""
    return sum(
        block_bytes(
            value.numel() * value.element_size(),
            device if value.device.type == "meta" else value.device,
        )
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
