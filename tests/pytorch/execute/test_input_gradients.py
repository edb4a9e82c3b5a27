"""Gradients of inputs: where autograd would copy them, the plan has the copy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import memfit
from memfit.pytorch.cost.measure import measure_step

Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]

ROWS, COLUMNS = 64, 48

LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: torch.ones(ROWS, COLUMNS),
    "transposed": lambda: torch.ones(COLUMNS, ROWS).mT,
    "with gaps": lambda: torch.ones(ROWS, 2 * COLUMNS)[:, ::2],
    "expanded": lambda: torch.ones(1, COLUMNS).expand(ROWS, COLUMNS),
}

# Gradients that are expanded, transposed, shared by two inputs, or fine as they are.
LOSSES: dict[str, Loss] = {
    "sum": lambda m, x, y: m(x.detach()).mean() + x.sum() + y.mean(),
    "sum of rows": lambda m, x, y: (m(x.detach()).sum(0) + x.sum(0) + y.sum(0)).sin().sum(),
    "transposed": lambda m, x, y: (m(x.detach()).mT * (x.mT + y.mT).sin().contiguous()).sum(),
    "shared": lambda m, x, y: (m(x.detach()) * (x + y)).sum(),
    "one of two": lambda m, x, y: (m(x) * y).sum(),
    "sliced": lambda m, x, y: (m(x)[::2] * y[1::2]).sum(),
    "read": lambda m, x, y: m(x * y).tanh().sum(),
}


class Reader(nn.Module):
    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.layer = nn.Linear(COLUMNS, COLUMNS)
        self.loss = loss

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.loss(self.layer, x, y)


def _leaves(layout: str) -> list[torch.Tensor]:
    torch.manual_seed(1)
    made = [LAYOUTS[layout](), LAYOUTS["contiguous"]()]
    return [x.detach().requires_grad_() for x in made]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_their_copies_are_planned(name: str, layout: str) -> None:
    model = Reader(LOSSES[name])
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    mine, theirs = _leaves(layout), _leaves(layout)

    plain(*theirs).backward()
    fitted(*mine).backward()
    for x, wanted in zip(mine, theirs, strict=True):
        assert x.grad is not None
        assert wanted.grad is not None
        assert torch.equal(x.grad, wanted.grad)
        assert x.grad.stride() == wanted.grad.stride()
    assert torch.equal(model.layer.weight.grad, plain.layer.weight.grad)

    def forget() -> None:
        for x in (*mine, *model.parameters()):
            x.grad = None

    measured = measure_step(lambda: fitted(*mine).backward(), reset=forget).peak_bytes
    assert fitted.plan is not None
    resident = fitted.graph.resident_bytes
    assert resident + measured <= fitted.plan.peak_bytes
    assert resident + measured >= 0.9 * fitted.plan.peak_bytes
