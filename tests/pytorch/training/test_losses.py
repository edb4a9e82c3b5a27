"""Losses whose result holds more memory than its one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import memfit

LOSSES = [
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.L1Loss(),
    nn.SmoothL1Loss(),
    nn.HuberLoss(),
    nn.BCELoss(),
    nn.BCEWithLogitsLoss(),
    nn.SoftMarginLoss(),
    nn.KLDivLoss(reduction="batchmean"),
    nn.PoissonNLLLoss(),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("loss_fn", LOSSES, ids=lambda loss: f"{type(loss).__name__}")
def test_the_loss_is_counted_as_it_is_held(loss_fn: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()) for _ in range(3)))
    inputs, targets = torch.rand(2048, 64), torch.rand(2048, 64)
    # Backward of the soft margin loss takes workspace, which measuring finds.
    cost = "measured" if isinstance(loss_fn, nn.SoftMarginLoss) else "analytic"
    result = memfit.verify(model, (inputs, targets), loss_fn, budget="90%", cost=cost, rounds=1)
    assert result.ok
    assert result.planned_peak_bytes <= result.budget_bytes
    # Nothing is held that the plan does not know of: a value of the model takes 512 KiB.
    assert abs(result.planned_peak_bytes - result.predicted_peak_bytes) < 4096
