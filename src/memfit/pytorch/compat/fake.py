"""Private or experimental names of fake tensors (see `compat`)."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["FakeTensor", "FakeTensorMode", "fake_mode", "said_to_be_on"]


def fake_mode() -> FakeTensorMode:
    """Inside of it, tensors have shapes, types and devices, but no memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def said_to_be_on(tensor: Any, device: torch.device) -> Any:
    """A fake tensor of the same storage that says it is on `device`, which need not exist.

    For reading only: PyTorch cannot run ops on a device that it was not built for, fake or not.
    """
    if not isinstance(tensor, FakeTensor) or tensor.device == device:
        return tensor
    with tensor.fake_mode:
        alias = tensor.detach()
    alias.fake_device = device
    return alias
