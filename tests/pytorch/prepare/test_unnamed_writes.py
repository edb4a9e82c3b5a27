"""Ops that write to running statistics without saying so: what they write is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import memfit
from memfit.pytorch.prepare.unnamed_writes import OPS

# What PyTorch exchanges itself while it traces, what calls that, and what never writes.
OTHERS = {
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "batch_norm",
    "instance_norm",
    "_batch_norm_impl_index",
    "_batch_norm_impl_index_backward",
    "_batch_norm_no_update",
    "_batch_norm_with_update_functional",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "_fused_moving_avg_obs_fq_helper_functional",
}


def test_all_ops_with_running_statistics_are_known() -> None:
    found = set()
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        if space != "aten" or overload or "backward" in base:
            continue
        for argument in torch._C._get_schema(f"aten::{base}", "").arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if argument.name.startswith("running_") and not written:
                found.add(base)
    assert found - OTHERS == set(OPS)


class Statistics(nn.Module):
    """Normalises by statistics that are written in between."""

    def __init__(self, update: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(8))
        self.update = update

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A loss that depends on the statistics after the update."""
        h = self.first(x)
        h = h + self.update(h, self.mean, self.variance)
        h = (h - self.mean) / (self.variance + 1e-5).sqrt()
        return self.last(torch.tanh(h)).sum()


class Normalise(torch.autograd.Function):
    """As `nn.SyncBatchNorm` does it: inside of a custom function."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *statistics: torch.Tensor) -> torch.Tensor:
        mean, _ = torch.batch_norm_update_stats(x, *statistics, 0.1)
        return x - mean

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, None, None


def ignored(h: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
    torch.batch_norm_update_stats(h.detach(), mean, variance, 0.1)
    return 0.0


def read(h: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
    with torch.no_grad():
        return torch.ops.aten.batch_norm_update_stats(h, mean, variance, momentum=0.2)[1]


def inside(h: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
    return Normalise.apply(h, mean, variance)


def exchanged(h: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
    return torch.native_batch_norm(h, None, None, mean, variance, True, 0.1, 1e-5)[0]


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("update", "budget"),
    [(ignored, "smallest"), (inside, "smallest"), (read, "100%"), (exchanged, "100%")],
)
def test_what_they_write_is_kept(update: Callable[..., Any], budget: str) -> None:
    torch.manual_seed(0)
    plain, model = Statistics(update), Statistics(update)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(16, 8)
    least: Any = budget
    if budget == "smallest":
        made = memfit.plan(model, (x,), budget="1GiB", cost="analytic")
        least = made.smallest_feasible_budget_bytes
    fitted = memfit.fit(model, budget=least, cost="analytic")
    for _ in range(2):
        plain.zero_grad()
        model.zero_grad()
        losses = [call(x) for call in (plain, fitted)]
        for loss in losses:
            loss.backward()
        assert torch.equal(*losses)
        for a, b in zip(plain.parameters(), model.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        for a, b in zip(plain.buffers(), model.buffers(), strict=True):
            assert torch.equal(a, b)
    assert float(model.mean.abs().max()) > 0
