"""Bytes of an optimizer's state, also before its first step."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import nn

from memfit.errors import UsageError
from memfit.graph.training_graph import ValueKind
from memfit.pytorch.capture.cuda_workspace import kept_workspace_bytes
from memfit.pytorch.capture.storage_sizes import block_bytes
from memfit.pytorch.compat.eager import TorchDispatchMode, tree_leaves
from memfit.pytorch.layouts.sparse import parts

__all__ = ["gradient_bytes", "optimizer_state_bytes", "resident_values"]

_CPU = torch.device("cpu")
_KINDS = ("fused", "capturable", "foreach")


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state that the optimizer holds once it has stepped.

    Before the first step, the same optimizer is stepped once on `meta` copies of its parameters,
    which allocates nothing.

    Raises:
        UsageError: it cannot be stepped that way.
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
    twin = copy.copy(optimizer)
    own = {k: v for k, v in vars(optimizer).items() if k != "step"}
    twin.__dict__ = {**own, "param_groups": groups}  # without `step` as a scheduler wraps it
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        twin.__dict__[hooks] = OrderedDict()
    twin.state = type(optimizer.state)(optimizer.state.default_factory)
    if isinstance(optimizer, torch.optim.LBFGS):
        return _lbfgs_bytes(groups, device)
    try:
        with _MadeUpNumbers(), torch.no_grad():
            type(optimizer).step(twin)
    except Exception as error:
        kind, said = type(optimizer).__name__, " ".join(str(error).split()).rstrip(".")
        raise UsageError(
            f"what state {kind} will keep cannot be found out before its first step "
            f"({type(error).__name__}: {said}); step it once before memfit.fit, or leave optimizer "
            "out and lower the budget by what its state takes"
        ) from None
    return _bytes(twin, device, counted_there)


class _MadeUpNumbers(TorchDispatchMode):
    """While on, a number that is read out of a `meta` tensor is one: which one does not matter."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        return func(*args, **(kwargs or {}))


def _lbfgs_bytes(groups: Sequence[Mapping[str, Any]], device: torch.device) -> int:
    """Bytes that LBFGS comes to keep: two vectors for each step of its history, and three more."""
    return sum(
        block_bytes(sum(p.numel() * p.element_size() for p in group["params"]), device)
        * (2 * group["history_size"] + 3)
        for group in groups
    )


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
        for value in tree_leaves(state)
        if isinstance(value, torch.Tensor)
    )


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of the gradients of all parameters that are trained, in one step or another."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(block_bytes(p.numel() * p.element_size(), p.device) for p in trained)


def resident_values(model: nn.Module, optimizer_bytes: int) -> dict[ValueKind, int]:
    """Bytes of a model's parameters and buffers and of the optimizer's state.

    With the buffers counts what cuBLAS keeps on the model's devices.
    """

    def total(tensors: Sequence[torch.Tensor]) -> int:
        sizes = {
            t.untyped_storage()._cdata: block_bytes(int(t.untyped_storage().nbytes()), t.device)
            for tensor in tensors
            for t in parts(tensor)
        }
        return sum(sizes.values())

    kept = sum(kept_workspace_bytes(device) for device in {p.device for p in model.parameters()})
    return {
        ValueKind.PARAMETER: total(list(model.parameters())),
        ValueKind.BUFFER: total(list(model.buffers())) + kept,
        ValueKind.OPTIMIZER: optimizer_bytes,
    }
