"""Smallest budgets without measuring: exact where kernels are known, else said to be bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan

AMPLE = 2**50
WORDS = 400


class Block(nn.Module):
    """Causal attention in plain ops, and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * 0.2
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        attended = scores.masked_fill(later, -1e9).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class SmallGPT(nn.Module):
    """Token logits."""

    def __init__(self, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, WORDS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) to (batch, tokens, words)."""
        return self.head(self.blocks(self.embed(ids)))


def token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gpt() -> tuple[nn.Module, tuple[Any, ...], Callable[..., Any]]:
    ids = torch.randint(0, WORDS, (4, 32))
    return SmallGPT(), (ids, ids), token_loss


def convolutions() -> tuple[nn.Module, tuple[Any, ...], None]:
    layers = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()) for _ in range(3)]
    return nn.Sequential(*layers), (torch.randn(2, 4, 8, 8),), None


def planned(case: Any, cost: str, budget: int = AMPLE) -> Plan:
    model, args, loss = case
    return memfit.plan(model, args, loss, budget=budget, cost=cost)


@pytest.fixture(autouse=True)
def _nothing_measured_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))


def bounds_in(plan: Plan) -> list[str]:
    return [note for note in plan.notes if "upper bound" in note]


@pytest.mark.slow
def test_a_small_gpt_has_the_same_smallest_budget_however_it_is_planned() -> None:
    case = gpt()
    plans = [planned(case, "measured"), planned(case, "analytic")]
    with torch.profiler.profile():
        plans.append(planned(case, "measured"))
    assert len({plan.smallest_feasible_budget_bytes for plan in plans}) == 1
    assert [bounds_in(plan) for plan in plans] == [[], [], []]


def test_a_plan_says_that_its_smallest_budget_is_a_bound_and_what_would_measure_it() -> None:
    case = convolutions()
    with torch.profiler.profile():
        (profiled,) = bounds_in(planned(case, "measured"))
    assert profiled.startswith("the smallest feasible budget is an upper bound: the workspace of 6")
    assert "(convolution, convolution_backward)" in profiled
    assert profiled.endswith("plan while no PyTorch profiler is running")
    (analytic,) = bounds_in(planned(case, "analytic"))
    assert 'cost="measured"' in analytic
    measured = planned(case, "measured")  # what was found under the profiler was not kept
    assert bounds_in(measured) == []
    assert measured.smallest_feasible_budget_bytes < planned(case, "analytic").peak_bytes


def test_an_infeasible_budget_says_so_too() -> None:
    model, args, _ = convolutions()
    fitted = memfit.fit(model, budget=1, cost="analytic")
    with pytest.raises(InfeasibleBudgetError) as caught:
        fitted(*args)
    message = str(caught.value)
    assert "an upper bound: the workspace of 6 ops" in message
    assert 'or measure it with cost="measured"' in message
    with pytest.raises(InfeasibleBudgetError) as caught:
        planned(convolutions(), "measured", budget=1)
    assert "upper bound" not in str(caught.value)
