"""Random numbers of all generators are eager's, which are left as eager leaves them."""

# ruff: noqa: NPY002 (the numbers of models that exist)

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import memfit
from memfit.errors import CaptureError
from memfit.pytorch.failures.first_run import random_states

WIDTH = 8
Use = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A layer, dropout, and a way to draw numbers between them."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)
        self.use = use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return self.drop(self.use(self, self.layer(x))).square().sum()

    def untraceable(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled by what cannot be traced."""
        try:
            return x * torch.tensor(np.random.permutation(WIDTH))
        finally:
            random.random()


def _seed(net: Net, x: torch.Tensor) -> torch.Tensor:
    np.random.seed(3)
    return x


def _seed_of_what_draws(net: Net, x: torch.Tensor) -> torch.Tensor:
    np.random.seed(3)
    return net.untraceable(x)


def _uniform(net: Net, x: torch.Tensor) -> torch.Tensor:
    return x * torch.as_tensor(np.random.rand(WIDTH).astype(np.float32))


def _normal(net: Net, x: torch.Tensor) -> torch.Tensor:
    return x + torch.as_tensor(np.random.normal(size=WIDTH).astype(np.float32))


def _choice(net: Net, x: torch.Tensor) -> torch.Tensor:
    return x * float(np.random.randint(1, 5))


def _own_generator(net: Net, x: torch.Tensor) -> torch.Tensor:
    return x * torch.as_tensor(np.random.default_rng(1).random(WIDTH)).float()


def _python(net: Net, x: torch.Tensor) -> torch.Tensor:
    random.seed(5)
    return net.untraceable(x) * random.random()


def _torch(net: Net, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(7)
    return x


USES = {
    use.__name__: use
    for use in (
        _seed,
        _seed_of_what_draws,
        _uniform,
        _normal,
        _choice,
        _own_generator,
        _python,
        _torch,
    )
}


def _seeded(number: int) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(number)


@pytest.mark.parametrize("name", USES)
def test_numbers_and_generators_are_eagers(name: str) -> None:
    torch._dynamo.reset()
    plain = Net(USES[name])
    model = copy.deepcopy(plain)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    for number in range(2):
        found: list[Any] = []
        for module, call in ((plain, plain), (model, fitted)):
            module.zero_grad(set_to_none=True)
            _seeded(number)
            loss = call(torch.full([4, WIDTH], number + 1.0))
            loss.backward()
            gradient = module.layer.weight.grad
            assert gradient is not None
            found.append((loss.detach(), gradient, random_states()))
        (loss, gradient, states), (our_loss, our_gradient, ours) = found
        assert torch.equal(loss, our_loss)
        assert torch.equal(gradient, our_gradient)
        assert not states.differs(ours)


def test_where_nothing_may_be_opaque_the_remedy_fits() -> None:
    torch._dynamo.reset()
    fitted = memfit.fit(Net(_uniform), budget="100%", cost="analytic", fullgraph=True)
    with pytest.raises(CaptureError, match="NumPy's random numbers before the step"):
        fitted(torch.ones(4, WIDTH))
