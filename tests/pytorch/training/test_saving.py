"""Copies and files of fitted modules: they train on as if nothing had happened.

Every module is fitted at its smallest feasible budget, so that there is recomputation.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import memfit
from memfit.pytorch.api.fitted import FittedModule
from support.small_net import Net, assert_equal, made, mean_square, tight


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(64, 32), torch.randn(64, 32)


def train(module: nn.Module, call: Callable[..., Any], optimizer: Any, steps: int) -> None:
    torch.manual_seed(7)
    batches = [(torch.randn(64, 32), torch.randn(64, 32)) for _ in range(steps)]
    for x, target in batches:
        optimizer.zero_grad()
        call(x, target).backward()
        optimizer.step()


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def test_a_deep_copy_trains_by_itself(batch: Any) -> None:
    fitted = tight(made(Net), batch, mean_square)
    train(fitted, fitted, adam(fitted), 1)
    before = copy.deepcopy(fitted.state_dict())
    twin = copy.deepcopy(fitted)
    train(twin, twin, adam(twin), 2)
    assert_equal(dict(fitted.state_dict()), dict(before))
    train(fitted, fitted, adam(fitted), 2)
    assert_equal(dict(twin.state_dict()), dict(fitted.state_dict()))
    assert twin.plan is not None
    assert twin.plan.overhead > 0


@pytest.mark.parametrize("way", ["state", "module"])
def test_training_resumed_from_a_checkpoint(batch: Any, way: str) -> None:
    fitted = tight(made(Net), batch, mean_square)
    optimizer = adam(fitted)
    train(fitted, fitted, optimizer, 2)
    file = io.BytesIO()
    what = fitted.state_dict() if way == "state" else fitted
    torch.save({"model": what, "optimizer": optimizer.state_dict()}, file)
    train(fitted, fitted, optimizer, 3)

    torch._dynamo.reset()
    file.seek(0)
    saved = torch.load(file, weights_only=way == "state")
    if way == "state":
        resumed = tight(made(Net), batch, mean_square)
        resumed.load_state_dict(saved["model"])
    else:
        resumed = saved["model"]
        assert isinstance(resumed, FittedModule)
    optimizer = adam(resumed)
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, resumed, optimizer, 3)
    assert_equal(dict(resumed.state_dict()), dict(fitted.state_dict()))
    assert resumed.plan is not None
    assert resumed.plan.overhead > 0


def test_a_plain_model_reads_what_a_fitted_one_wrote(batch: Any) -> None:
    fitted = tight(made(Net), batch, mean_square)
    train(fitted, fitted, adam(fitted), 1)
    plain = Net()
    plain.load_state_dict(fitted.state_dict())
    fitted.eval()
    with torch.no_grad():
        assert torch.equal(plain.eval()(batch[0]), fitted._model(batch[0]))


def test_a_fitted_module_with_an_optimizer_is_saved_without_it(batch: Any) -> None:
    model = made(Net)
    optimizer = adam(model)
    fitted = memfit.fit(model, mean_square, budget="100%", cost="analytic", optimizer=optimizer)
    train(fitted, fitted, optimizer, 1)
    assert fitted.plan is not None
    counted = fitted.plan.peak_parts["optimizer_state"]
    twin = copy.deepcopy(fitted)
    train(twin, twin, adam(twin), 1)
    assert twin.plan is not None
    assert twin.plan.peak_parts["optimizer_state"] == counted > 0
    sizes = []
    for what in (model, fitted):
        file = io.BytesIO()
        torch.save(what, file)
        sizes.append(file.tell())
    assert sizes[1] - sizes[0] < counted / 4
