"""Nested plans in training: gradients are eager's to the bit, peaks as predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import memfit
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.pytorch.cost.measure import measure_step


class Noisy(nn.Module):
    """Layers with batch norm and dropout, deep enough to nest."""

    def __init__(self, width: int = 24, depth: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width),
                nn.BatchNorm1d(width),
                nn.Tanh(),
                nn.Dropout(0.3),
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Recurrent(nn.Module):
    """A loop over a cell, its loss from the last state."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.shape[1], self.cell.hidden_size)
        for step in x:
            h = self.cell(step, h)
        return self.head(h)


class TwoStates(nn.Module):
    """A loop over a cell that hands on two states, of which each step reads one late."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[1], x.shape[2])
        for step in x:
            h, c = self.cell(step, (h, c))
        return h


def loss_of(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(out, target)


def case(name: str) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    if name == "noisy":
        return Noisy(), (torch.randn(1024, 24), torch.randint(3, (1024,)))
    return Recurrent(), (torch.randn(28, 64, 8), torch.randint(2, (64,)))


def smallest_nested(model: nn.Module, args: Any) -> Plan:
    """A plan at the smallest budget of nested strategies."""
    with pytest.raises(InfeasibleBudgetError) as caught:
        memfit.plan(model, args, loss_of, budget=1, planner="auto", cost="analytic")
    return memfit.plan(
        model, args, loss_of, budget=caught.value.minimum_bytes, planner="auto", cost="analytic"
    )


@pytest.mark.parametrize("name", ["noisy", pytest.param("recurrent", marks=pytest.mark.slow)])
def test_gradients_are_eagers_and_peaks_as_predicted(name: str) -> None:
    model, args = case(name)
    plan = smallest_nested(model, args)
    assert plan.planner == "nested"
    assert plan.most_recomputations > 1

    def observe(step: Any) -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        loss = step()
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    reference, _ = case(name)
    wanted = []
    for _ in range(2):
        model_result = observe(lambda: loss_of(model(args[0]), args[1]))
        wanted.append([*model_result, *(b.clone() for b in model.buffers())])
    model.load_state_dict(reference.state_dict())
    fitted = memfit.fit(model, loss_of, budget=plan.budget_bytes, planner="auto", cost="analytic")
    for want in wanted:
        got = [*observe(lambda: fitted(*args)), *model.buffers()]
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert fitted.plan is not None
    assert fitted.plan.planner == "nested"
    assert fitted.plan.schedule == plan.schedule

    measured = measure_step(lambda: fitted(*args).backward(), reset=model.zero_grad).peak_bytes
    resident = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *args))
    assert resident + measured <= plan.budget_bytes
    assert measured == pytest.approx(plan.peak_bytes - resident, rel=0.005)


@pytest.mark.slow
def test_the_least_memory_of_an_lstm_does_not_grow_with_its_length() -> None:
    """Beside what is resident: no value is kept at every step, not even the cell's state."""
    least = []
    for steps in (32, 48):
        torch.manual_seed(0)
        model, x = TwoStates(32), torch.randn(steps, 16, 32)
        target = torch.zeros(16, 32)
        with pytest.raises(InfeasibleBudgetError) as caught:
            memfit.plan(model, (x, target), nn.functional.mse_loss, budget=1, cost="analytic")
        least.append(caught.value.minimum_bytes - x.nbytes)
    assert least[0] == least[1]
