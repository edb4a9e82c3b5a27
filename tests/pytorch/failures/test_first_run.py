"""Fresh models that prepare themselves in their first forward pass train as in plain PyTorch.

What a first pass does once (takes a lock, installs hooks, fills a cache) is done before the
capture; buffers and random states are what they would be without.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import memfit
from memfit.errors import CaptureError
from memfit.pytorch.api.unallocated import without_memory

LOCK = threading.Lock()
AMPLE = 2**50
POSITIONS: dict[int, torch.Tensor] = {}


class Lazy(nn.Module):
    """Prepares itself under a lock; `prepare` is what else it does then, `then` changes the state.

    Batch norm and dropout have it change buffers and draw in each pass.
    """

    def __init__(self, prepare: Callable[[Any], None] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
        self.register_buffer("table", torch.zeros(16))
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.prepare = prepare
        self.ready = False
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        if not self.ready:
            with LOCK:
                self.ready = True
                self.calls.append(1)
                if self.prepare is not None:
                    self.prepare(self)
        self.passes += 1
        return (self.layers(x) + self.table).pow(2).mean()


def _install_hooks(model: Lazy) -> None:
    model.layers[0].register_forward_hook(lambda module, given, result: result * 2)


def _positions(width: int) -> torch.Tensor:
    if width not in POSITIONS:
        with LOCK:
            POSITIONS[width] = torch.arange(width).float()
    return POSITIONS[width]


class Cached(Lazy):
    """Takes a table out of a cache whose first filling cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return super().forward(x + _positions(16))


def _trained(call: nn.Module, model: nn.Module, x: torch.Tensor) -> Any:
    torch.manual_seed(1)
    random.seed(1)
    losses = []
    for _ in range(2):
        model.zero_grad()
        loss = call(x)
        loss.backward()
        losses.append(loss.detach())
    gradients = {n: p.grad for n, p in model.named_parameters()}
    return losses, gradients, dict(model.named_buffers()), torch.get_rng_state(), random.random()


@pytest.mark.parametrize(
    "make",
    [Lazy, lambda: Lazy(_install_hooks), Cached],
    ids=["flag", "hooks", "cache"],
)
def test_a_fresh_model_trains(make: Callable[[], Lazy]) -> None:
    x = torch.randn(64, 16)
    plain = make()
    POSITIONS.clear()
    wanted = _trained(plain, plain, x)
    POSITIONS.clear()
    model = make()
    got = _trained(memfit.fit(model, budget=AMPLE, cost="analytic"), model, x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert len(model.calls) == 1


@pytest.mark.slow
def test_plan_inspect_verify_and_shapes_take_fresh_models() -> None:
    x = torch.randn(64, 16)
    model = Lazy()
    before = copy.deepcopy(model.state_dict())
    assert memfit.plan(model, (x,), budget="100%", cost="analytic").peak_bytes > 0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert memfit.trade_off(Lazy(), (x,), cost="analytic").points
    assert memfit.verify(Lazy(), (x,), budget="100%", cost="analytic", rounds=1).ok
    shapes = [(torch.empty(n, 16, device="meta"),) for n in (32, 64)]
    fitted = memfit.fit(Lazy(), budget=AMPLE, cost="analytic", shapes=shapes)
    fitted(x).backward()
    assert len(fitted.plans) == 2
    whole = without_memory()
    with whole.building:
        unallocated, given = Lazy(), torch.randn(64, 16)
    assert whole.capture(unallocated, (given,)).graph.ops


def _fill_table(model: Lazy) -> None:
    model.table += 1


def test_what_a_first_run_changes_for_good_is_not_undone() -> None:
    """With the table put back the model would believe it to be filled: it is refused, as it is."""
    x = torch.randn(64, 16)
    model, plain = Lazy(_fill_table), Lazy(_fill_table)
    torch.manual_seed(1)
    with torch.no_grad():
        plain(x)
    torch.manual_seed(1)
    fitted = memfit.fit(model, budget=AMPLE, cost="analytic", fullgraph=True)
    with pytest.raises(CaptureError, match="lock"):
        fitted(x)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
    fitted(x).backward()  # it has had its first pass


def test_a_branch_on_data_runs_without_gradients() -> None:
    runs = []

    class Branch(Lazy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            runs.append(torch.is_grad_enabled())
            return super().forward(x) if torch.rand([]) > 0.5 else super().forward(-x)

    with pytest.raises(CaptureError, match="data-dependent"):
        memfit.fit(Branch(), budget=AMPLE, cost="analytic", fullgraph=True)(torch.randn(64, 16))
    assert not any(runs)
