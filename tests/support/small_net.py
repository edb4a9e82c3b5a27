"""A small model, fitted at its smallest budget, for tests of what people do around a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.pytorch.api.fitted import FittedModule

__all__ = ["Net", "assert_equal", "made", "mean_square", "tight"]


class Net(nn.Module):
    """Linear layers with GELU, dropout, batch norm."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, width)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """All but the head."""
        for layer in self.layers:
            x = F.dropout(F.gelu(layer(x)), 0.1, self.training)
        return self.norm(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The head's output."""
        return self.head(self.trunk(x))


def mean_square(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (y.float() - target).square().mean()


def made(kind: Callable[..., nn.Module], *args: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(*args)


def tight(
    model: nn.Module,
    args: Sequence[Any],
    loss: Callable[..., Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> FittedModule:
    """The model fitted at its smallest feasible budget."""
    plan = memfit.plan(
        model, args, loss, budget=2**50, cost="analytic", example_kwargs=dict(kwargs or {})
    )
    return memfit.fit(model, loss, budget=plan.smallest_feasible_budget_bytes, cost="analytic")


def assert_equal(ours: Any, theirs: Any) -> None:
    a, b = torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(theirs)
    for x, y in zip(a, b, strict=True):
        assert type(x) is type(y)
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
        else:
            assert x == y
