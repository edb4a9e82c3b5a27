from __future__ import annotations

import pytest
import torch

from memfit.pytorch.api.demo_model import UNet, demo_case
from memfit.pytorch.cost.measure import measure_step


def test_the_case_is_the_same_every_time_and_draws_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, second = demo_case(batch=1, size=16), demo_case(batch=1, size=16)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.inputs[0], second.inputs[0])
    assert torch.equal(first.target, second.target)
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = demo_case(batch=1, size=16, seed=1)
    assert not torch.equal(first.inputs[0], other.inputs[0])


@pytest.mark.parametrize("bilinear", [True, False])
def test_it_trains(bilinear: bool) -> None:
    model, inputs, target, loss_fn = demo_case(batch=2, size=32, width=4, bilinear=bilinear)
    kinds = {type(module) for module in model.modules()}
    assert {torch.nn.BatchNorm2d, torch.nn.Dropout} <= kinds
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = loss_fn(model(*inputs), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < losses[0]


def test_scores_have_the_size_of_the_image() -> None:
    scores = UNet(channels=1, classes=5, width=4, levels=2)(torch.zeros(2, 1, 24, 40))
    assert scores.shape == (2, 5, 24, 40)


def test_a_default_step_has_the_size_it_says() -> None:
    case = demo_case()
    peak = measure_step(
        lambda: case.loss_fn(case.model(*case.inputs), case.target).backward(), warmup=0
    ).peak_bytes
    assert 150 * 2**20 < peak < 300 * 2**20
