"""Random numbers drawn in place: eager's numbers, in eager's places, whatever the layout."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import memfit

LAYOUTS: tuple[Callable[[], torch.Tensor], ...] = (
    lambda: torch.zeros(6, 8),
    lambda: torch.zeros(6, 8).mT,
    lambda: torch.zeros(6, 16)[:, ::2],
    lambda: torch.zeros(6, 16)[:, :9],
    lambda: torch.zeros(6, 16)[:, ::2].mT,
    lambda: torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    lambda: torch.zeros(2, 3, 4, 5).permute(1, 3, 0, 2),
    lambda: torch.zeros(40)[3:35],
    lambda: torch.zeros(4, 3)[:, ::2],
    lambda: torch.zeros(6, 16, dtype=torch.bfloat16)[:, ::2],
    lambda: torch.zeros(6, 8, dtype=torch.float64).mT,
)

DRAWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "normal": lambda t: t.normal_(1.0, 2.0),
    "uniform": lambda t: t.uniform_(-1.0, 1.0),
    "bernoulli": lambda t: t.bernoulli_(0.4),
    "bernoulli of a tensor": lambda t: t.bernoulli_(torch.full(t.shape, 0.4)),
    "exponential": lambda t: t.exponential_(2.0),
    "cauchy": lambda t: t.cauchy_(),
    "log_normal": lambda t: t.log_normal_(),
    "geometric": lambda t: t.geometric_(0.3),
    "dropout": lambda t: nn.functional.dropout(t.add_(1.0), 0.5, inplace=True),
    "rrelu": lambda t: nn.functional.rrelu(t.sub_(1.0), training=True, inplace=True),
}


class Drawing(nn.Module):
    """Draws into views of its inputs and of a tensor that it makes."""

    def __init__(self, draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1))
        self.draw = draw

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        total = self.scale.new_zeros(())
        for x in inputs:
            self.draw(x)
            total = total + (x * self.scale).sigmoid().sum()
        made = torch.zeros(8, 12)
        self.draw(made[:, :5])
        self.draw(made[:, 6::2].mT)
        self.draw(torch.zeros(6, 16)[:, ::2])  # nobody reads it, but the generator moves
        return total + (made * torch.arange(12) * self.scale).sin().sum()


def trained(
    step: Callable[..., torch.Tensor], model: nn.Module
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The loss, the gradient, the random state and the inputs after a step."""
    inputs = [make() for make in LAYOUTS]
    torch.manual_seed(3)
    loss = step(*inputs)
    loss.backward()
    return [loss.detach(), model.scale.grad, torch.get_rng_state()], inputs


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", DRAWS)
def test_numbers_are_eagers(name: str) -> None:
    model = Drawing(DRAWS[name])
    plain = copy.deepcopy(model)
    wanted, inputs = trained(plain, plain)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    found, written = trained(fitted, model)
    for number, (mine, theirs) in enumerate(zip(written, inputs, strict=True)):
        assert torch.equal(mine, theirs), number
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)
