"""Make a plan, save it, and train from the file.

    python examples/save_and_load_plan.py [PLAN.json]

Planning runs no training step, and with `cost="analytic"` it measures nothing either, so a plan can
be made on another machine than the one that trains.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import memfit
from memfit.units import format_bytes


def make_model() -> nn.Module:
    """A deep multilayer perceptron."""
    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [nn.Linear(256, 256), nn.GELU(), nn.LayerNorm(256)]
    return nn.Sequential(*layers, nn.Linear(256, 1))


def main(path: str) -> None:
    """Plan, save, load, train one step."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(2048, 256), torch.randn(2048, 1)
    loss_fn = nn.MSELoss()

    made = memfit.plan(make_model(), (inputs, targets), loss_fn, budget="50%", cost="analytic")
    made.save(path)
    print(f"{path}: {format_bytes(made.peak_bytes)} of {format_bytes(made.plain_peak_bytes)}")
    print("at the peak:")
    for part, size_bytes in made.peak_parts.items():
        if size_bytes:
            print(f"  {part.replace('_', ' '):<22} {format_bytes(size_bytes)}")
    print(f"smallest feasible: {format_bytes(made.smallest_feasible_budget_bytes)}")

    model = make_model()
    fitted = memfit.fit(model, loss_fn, plan=memfit.Plan.load(path), cost="analytic")
    loss = fitted(inputs, targets)
    loss.backward()
    print(f"trained from the file: loss {loss.item():.4f}")

    # A plan belongs to one graph: other shapes are refused, not trained on wrongly.
    other = memfit.fit(make_model(), loss_fn, plan=memfit.Plan.load(path), cost="analytic")
    try:
        other(inputs[:100], targets[:100])
    except memfit.PlanMismatchError as error:
        print(f"refused for another batch size: {error}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(str(Path(folder) / "plan.json"))
