"""A step is planned as the model trains: modules frozen in evaluation mode stay frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import memfit
from memfit.pytorch.api.entry import capture

X = torch.randn(4, 3, 8, 8)


def fine_tuned() -> nn.Sequential:
    """The usual way to fine-tune: batch norm keeps its statistics, dropout in a part is off."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 8, 3), nn.Dropout(0.5)
    )
    model[1].eval()
    model[2].eval()
    return model


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


DOORS: dict[str, Callable[[nn.Module, Any], object]] = {
    "plan": lambda m, args: memfit.plan(m, args, loss, budget="100%", cost="analytic"),
    "trade_off": lambda m, args: memfit.trade_off(m, args, loss, cost="analytic"),
    "capture": lambda m, args: capture(m, args, loss, cost="analytic"),
    "verify": lambda m, args: memfit.verify(m, args, loss, budget="100%", cost="analytic"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("as_a_whole", ["train", "eval"])
def test_modes_are_left_as_they_were(door: str, as_a_whole: str) -> None:
    model = fine_tuned()
    model.training = as_a_whole == "train"
    before = [m.training for m in model.modules()]
    DOORS[door](model, (X, torch.zeros(4, 8, 4, 4)))
    assert [m.training for m in model.modules()] == before


def test_modes_are_left_as_they_were_after_an_error() -> None:
    model = fine_tuned()
    before = [m.training for m in model.modules()]
    with pytest.raises(memfit.MemfitError):
        memfit.plan(model, (X,), lambda output, target: output, budget="100%", cost="analytic")
    assert [m.training for m in model.modules()] == before


def test_what_is_frozen_is_planned_as_frozen() -> None:
    model = fine_tuned()
    planned = capture(model, (X,), cost="analytic").graph
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    fitted(X).sum().backward()
    assert [op.target for op in planned.ops] == [op.target for op in fitted.graph.ops]
    draws = [op for op in planned.ops if op.target == "memfit.rng_state"]
    assert len(draws) == 1
    assert torch.equal(model[1].running_mean, torch.zeros(8))


def test_a_model_in_evaluation_mode_is_planned_in_training_mode() -> None:
    model = fine_tuned().eval()
    planned = capture(model, (X,), cost="analytic").graph
    assert len([op for op in planned.ops if op.target == "memfit.rng_state"]) == 2
