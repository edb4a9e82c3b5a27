"""Memory that cuBLAS keeps from its first matrix product on, out of PyTorch's allocator."""

from __future__ import annotations

import torch

from memfit.pytorch.compat.eager import clear_cublas_workspaces, plain_mode

__all__ = ["kept_workspace_bytes"]

_THREADS = 2  # the one that runs the forward pass, and autograd's own for the backward pass


def kept_workspace_bytes(device: torch.device) -> int:
    """Bytes that cuBLAS holds all through a step; 0 where the device is no CUDA device.

    Each thread's handle has a workspace for each stream, cuBLASLt's (products with a bias) one more
    unless both share one. They are found by products of small matrices, with the workspaces given
    back before.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    with plain_mode(), torch.cuda.device(device):
        matrix = torch.ones(16, 16, device=device)
        torch.cuda.synchronize(device)
        clear_cublas_workspaces()
        before = torch.cuda.memory_allocated(device)
        torch.addmm(matrix[0], matrix, matrix @ matrix)
        torch.cuda.synchronize(device)
        return _THREADS * max(0, torch.cuda.memory_allocated(device) - before)
