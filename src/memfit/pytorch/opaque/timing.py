"""How long a call of opaque code takes, forward and backward, without a profiler beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from memfit.pytorch.opaque.call import OpaqueCall

__all__ = ["times_of"]


def times_of(
    call: OpaqueCall, tensors: Sequence[torch.Tensor], gated: Sequence[bool], device: torch.device
) -> tuple[int, int]:
    """Times in ns of one run of a call.

    Args:
        call: the call, which has been looked at.
        tensors: its arguments.
        gated: which of them get gradients.
        device: where it runs.
    """
    began = _now(device)
    with torch.enable_grad():
        found, _, edges = call.run(tensors, gated)
    made = [x for x in found if x.requires_grad]
    del found
    between = _now(device)
    wanted = [*call.leaves, *edges]
    if made and wanted:
        torch.autograd.grad(made, wanted, [torch.ones_like(x) for x in made], allow_unused=True)
    return _took(began, between), _took(between, _now(device))


def _now(device: torch.device) -> tuple[int, int]:
    """Elapsed time, and processor time of all threads, which no other process disturbs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter_ns(), time.perf_counter_ns()
    return time.perf_counter_ns(), time.process_time_ns()


def _took(began: tuple[int, int], ended: tuple[int, int]) -> int:
    return min(b - a for a, b in zip(began, ended, strict=True))
