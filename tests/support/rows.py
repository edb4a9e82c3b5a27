"""Rows with labels, and layers that keep their width."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["ROWS", "WIDTH", "layers", "row_batch"]

WIDTH, ROWS = 32, 512


def layers(count: int = 4) -> nn.Sequential:
    """So many linear layers, each with a GELU."""
    return nn.Sequential(*(m for _ in range(count) for m in (nn.Linear(WIDTH, WIDTH), nn.GELU())))


def row_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of numbers, and a label below `WIDTH` for each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    return x, torch.randint(0, WIDTH, (ROWS,), generator=generator)
