"""Batch norm's gradients at a batch of one in channels last: the format may be left open."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import memfit

NORMS: dict[str, Callable[[], nn.Module]] = {
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance, running": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "batch": lambda: nn.BatchNorm2d(4),
}


class Residual(nn.Module):
    """The norm's output is added to an image of another format."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), norm, nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("train", [True, False])
def test_gradients_are_those_of_plain_strides(norm: str, train: bool) -> None:
    torch.manual_seed(0)
    model = Residual(NORMS[norm]()).double().train(train)
    x = torch.randn(1, 4, 8, 5, dtype=torch.float64)
    plain = copy.deepcopy(model)
    plain(x).float().sum().backward()
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    fitted(x.to(memory_format=torch.channels_last)).float().sum().backward()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)
