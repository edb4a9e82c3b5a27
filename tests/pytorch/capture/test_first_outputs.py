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


@pytest.mark.sampled(6)
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


class WrittenAfterwards(nn.Module):
    """What batch norm has read is written once it is no longer needed."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.written = written
        self.norm = nn.BatchNorm1d(24, affine=False)
        self.last = nn.Linear(24, 24)
        self.register_buffer("scale", torch.full((24,), 0.5))
        if written == "statistics":
            self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.scale if self.written == "buffer" else None
        norm = self.norm
        mean, var = norm.running_mean, norm.running_var
        made = F.batch_norm(x, mean, var, scale, None, norm.training, 0.1)
        made = self.last(made).tanh()
        with torch.no_grad():
            if self.written == "input":
                x.mul_(3.0)
            elif self.written == "buffer":
                self.scale.mul_(3.0)
            elif self.written == "statistics":
                var.mul_(3.0)
        return made


@pytest.mark.sampled(3)
@pytest.mark.parametrize("written", ["input", "buffer", "statistics"])
@pytest.mark.parametrize("planner", ["auto", "exact"])
def test_what_it_reads_is_read_before_it_is_written(written: str, planner: str) -> None:
    torch.manual_seed(0)
    model, x = WrittenAfterwards(written), torch.randn(40, 24)
    plain = copy.deepcopy(model)
    wanted = two_steps(plain, plain, x.clone())
    start = copy.deepcopy(model.state_dict())
    with pytest.raises(memfit.InfeasibleBudgetError) as caught:
        memfit.plan(model, (x.clone(),), budget=1, planner=planner, cost="analytic")
    for budget in (caught.value.minimum_bytes, 2 * caught.value.minimum_bytes):
        model.load_state_dict(start)
        model.zero_grad()
        fitted = memfit.fit(model, budget=budget, planner=planner, cost="analytic")
        for mine, theirs in zip(two_steps(fitted, model, x.clone()), wanted, strict=True):
            assert torch.equal(mine, theirs)
