"""Refined plans in training: gradients are eager's to the bit, peaks as predicted."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import memfit
from memfit.graph.simulator import simulate
from memfit.planners import PlannerOptions, get_planner
from memfit.pytorch.api.entry import plan_step
from memfit.pytorch.cost.measure import measure_step


class Hourglass(nn.Module):
    """Layers that get narrower and wider again, with skip connections, batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 48, 32, 16]

        def layer(inside: int, out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(inside, out), nn.BatchNorm1d(out), nn.Tanh(), nn.Dropout(0.2)
            )

        self.down = nn.ModuleList(layer(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(layer(2 * b, a) for a, b in reversed(list(pairwise(widths))))
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        for layer in self.up:
            x = layer(torch.cat([x.tanh(), skips.pop()], 1))
        return self.head(x)


def loss_of(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(out, target)


def case() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return Hourglass(), (torch.randn(512, 64), torch.randint(4, (512,)))


@pytest.mark.slow
def test_gradients_are_eagers_and_peaks_as_predicted() -> None:
    model, args = case()
    settings: dict[str, Any] = {"budget": "75%", "cost": "analytic"}
    step, plan = plan_step(model, args, loss_of, planner="refined", **settings)
    unrefined = get_planner("auto")(step.graph, plan.budget_bytes, PlannerOptions())
    assert plan.planner == "refined"
    assert plan.overhead < unrefined.overhead, "the search has something to show here"
    assert simulate(step.graph, plan.schedule).peak_bytes <= plan.budget_bytes

    def observe(run: Any) -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        loss = run()
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    reference, _ = case()
    wanted = []
    for _ in range(2):
        found = observe(lambda: loss_of(model(args[0]), args[1]))
        wanted.append([*found, *(b.clone() for b in model.buffers())])
    model.load_state_dict(reference.state_dict())
    fitted = memfit.fit(model, loss_of, planner="refined", **settings)
    for want in wanted:
        got = [*observe(lambda: fitted(*args)), *model.buffers()]
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert fitted.plan is not None
    assert fitted.plan.schedule == plan.schedule

    measured = measure_step(lambda: fitted(*args).backward(), reset=model.zero_grad).peak_bytes
    resident = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *args))
    assert resident + measured <= plan.budget_bytes
    assert measured == pytest.approx(plan.peak_bytes - resident, rel=0.005)


@pytest.mark.slow
def test_the_bound_of_a_model() -> None:
    pytest.importorskip("highspy")
    model, args = case()
    bound = memfit.bound(model, args, loss_of, budget="70%", cost="analytic", time_limit_s=20)
    plan = memfit.plan(model, args, loss_of, budget="70%", cost="analytic")
    assert bound.cost_unit == "ns"
    assert bound.overhead is not None
    assert 0 < bound.overhead <= plan.overhead
    assert bound.budget_bytes == plan.budget_bytes
    with pytest.raises(memfit.UsageError, match="example_inputs are missing"):
        memfit.bound(model, budget="70%")
