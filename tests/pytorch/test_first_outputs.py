"""Running statistics that an op reads on their way from batch norm: updated once by any plan."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit

PLANNERS = ("auto", "nested", "exact", "approximate", "chen", "salimans-memory")


def norm_in_bfloat16() -> tuple[nn.Module, torch.Tensor]:
    """The updated statistics are cast before they are written."""
    layers = [
        m for _ in range(2) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    return nn.Sequential(*layers).bfloat16(), torch.randn(2, 8, 12, 12, dtype=torch.bfloat16)


def instance_norm() -> tuple[nn.Module, torch.Tensor]:
    """The updated statistics are averaged over the images before they are written."""
    norms = (nn.InstanceNorm2d(8, affine=True, track_running_stats=True) for _ in range(2))
    layers = [m for norm in norms for m in (nn.Conv2d(8, 8, 3, padding=1), norm, nn.Tanh())]
    return nn.Sequential(*layers), torch.randn(2, 8, 12, 12)


class ReadInBackward(nn.Module):
    """The updated statistics scale what follows: ops of the backward pass read them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.batch_norm(self.first(x), self.mean, self.var, None, None, True, 0.1)
        scale = (self.mean * self.first.bias).exp().view(1, -1, 1, 1)
        return self.last(torch.relu(x * scale))


def read_in_backward() -> tuple[nn.Module, torch.Tensor]:
    return ReadInBackward(), torch.randn(2, 8, 12, 12)


def two_steps(
    step: Callable[[torch.Tensor], torch.Tensor], model: nn.Module, x: torch.Tensor
) -> list[torch.Tensor]:
    """Gradients and buffers after two steps that accumulate."""
    for _ in range(2):
        step(x).float().square().sum().backward()
    return [*(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


@pytest.mark.parametrize("make", [norm_in_bfloat16, instance_norm, read_in_backward])
@pytest.mark.parametrize("planner", PLANNERS)
def test_statistics_are_updated_once(
    make: Callable[[], tuple[nn.Module, torch.Tensor]], planner: str
) -> None:
    torch.manual_seed(0)
    model, x = make()
    wanted = two_steps(plain := copy.deepcopy(model), plain, x)
    start = copy.deepcopy(model.state_dict())
    with pytest.raises(memfit.InfeasibleBudgetError) as caught:
        memfit.plan(model, (x,), budget=1, planner=planner, cost="analytic")
    for budget in ("100%", caught.value.minimum_bytes):
        model.load_state_dict(start)
        model.zero_grad()
        fitted = memfit.fit(model, budget=budget, planner=planner, cost="analytic")
        for mine, theirs in zip(two_steps(fitted, model, x), wanted, strict=True):
            assert torch.equal(mine, theirs)
