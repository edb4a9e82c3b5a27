"""Random ops drawn once: their generator's state is read before they draw, and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

__all__ = ["device_of", "read_state", "replay", "state_bytes", "write_state"]


def device_of(node: fx.Node) -> torch.device:
    """Device whose default generator a random node draws from."""
    value = node.meta.get("val")
    items = value if isinstance(value, (tuple, list)) else [value]
    for item in items:
        if isinstance(item, torch.Tensor):
            return item.device
    return torch.device("cpu")


def state_bytes(device: torch.device) -> int:
    """Size of a default generator's state."""
    return 16 if device.type == "cuda" else 5056


def read_state(device: torch.device) -> torch.Tensor:
    """State of the device's default generator, a uint8 tensor on the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def replay(
    state: torch.Tensor,
    device: torch.device,
    target: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a random op from a state read before; the generator is left as it was found."""
    now = read_state(device)
    write_state(state, device)
    try:
        return target(*args, **kwargs)
    finally:
        write_state(now, device)


def write_state(state: torch.Tensor, device: torch.device) -> None:
    """Set the device's default generator."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
