"""A custom function that returns None for an input: nothing behind that input has a gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit

SLOW = pytest.mark.slow  # seconds of compiling


class Dropped(torch.autograd.Function):
    """The sum of two tensors; the second one gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.sin() + y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * x.cos(), None


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def normalised(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.group_norm(F.layer_norm(q, q.shape[-1:]) + k.cumsum(-1), 2) * v.softmax(-1)


def convolved(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.conv2d(q, k[:2, :2, :1, :3], padding=(0, 1)) + v.flip(-1).logsumexp(-1, keepdim=True)


class Net(nn.Module):
    """What is dropped depends on parts that other outputs depend on, too."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 18)
        self.only = nn.Linear(6, 6)
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.layer(x.tanh()).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        inner = self.inner(q, k, v).transpose(1, 2).flatten(2)
        first = Dropped.apply(x, inner + self.only(x))
        return first.square().mean() + k.square().mean() + q.sin().mean()


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("executor", ["eager-graph", pytest.param("inductor", marks=SLOW)])
@pytest.mark.parametrize("inner", [attention, normalised, convolved])
def test_gradients_are_eagers(inner: Any, executor: str) -> None:
    torch.manual_seed(0)
    model = Net(inner)
    plain = copy.deepcopy(model)
    x = torch.randn(2, 6, 6)
    wanted = plain(x)
    wanted.backward()
    fitted = memfit.fit(model, budget="1GiB", cost="analytic", executor=executor)
    loss = fitted(x)
    loss.backward()
    assert torch.allclose(loss, wanted)
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None and theirs.grad is not None:
            assert torch.allclose(mine.grad, theirs.grad, atol=1e-6), name
