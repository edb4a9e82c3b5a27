"""Train a small convolutional network within a memory budget.

    python examples/train_within_budget.py [BUDGET]

BUDGET is the peak of the whole step: a share of the plain step's peak ("60%", the default) or bytes
("80MiB").
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import memfit
from memfit.units import format_bytes


def make_model() -> nn.Module:
    """Ten convolutions with batch normalisation and dropout, then a classifier."""
    layers: list[nn.Module] = []
    channels = 3
    for width in [32] * 10:
        layers += [
            nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(channels, 10)]
    return nn.Sequential(*layers, *head)


def main(budget: str = "60%") -> None:
    """Train for a few steps on random images."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, labels = torch.randn(8, 3, 64, 64), torch.randint(10, (8,))

    # The loss is given to `fit`, so that it is part of what is planned.
    fitted = memfit.fit(model, nn.CrossEntropyLoss(), budget=budget, optimizer=optimizer)
    for step in range(10):
        optimizer.zero_grad()
        loss = fitted(images, labels)
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.4f}")

    plan = fitted.plan
    assert plan is not None
    print(f"plain step:   {format_bytes(plan.plain_peak_bytes)}")
    print(f"budget:       {format_bytes(plan.budget_bytes)}")
    print(f"planned step: {format_bytes(plan.peak_bytes)}")
    print(f"recomputation: {plan.overhead_percent:.1f}% of a step, {len(plan.stages)} stages")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except memfit.MemfitError as error:
        sys.exit(f"error: {error}")
