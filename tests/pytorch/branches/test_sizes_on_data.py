"""Sizes that depend on data are part of the one graph, and count at their bound."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.errors import CaptureError, UsageError
from memfit.pytorch.cost.measure import measure_step
from support.rows import ROWS, WIDTH, layers, row_batch

Body = Callable[["Net", torch.Tensor, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """Some layers and a way to use them."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.first, self.last = layers(), layers()
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("queue", torch.randn(WIDTH, 4 * ROWS))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))
        self.body = body

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return self.body(self, x, y)


def _mask(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    made = net.first(x)
    return made[x > 0].square().mean()


def _valid(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    keep = y % 3 != 0
    return F.cross_entropy(net.last(net.first(x)[keep]), y[keep])


def _selected(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.masked_select(net.first(x), x > 0).exp().mean()


def _experts(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weights, chosen = net.router(x).softmax(-1).topk(2)
    made = torch.zeros_like(x)
    for i, expert in enumerate(net.experts):
        rows, slot = torch.where(chosen == i)
        made = made.index_add(0, rows, expert(x[rows]) * weights[rows, slot, None])
    return net.last(made).square().mean()


def _experts_hit(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weights, chosen = net.router(x).softmax(-1).max(-1)
    made = torch.zeros_like(x)
    for i, expert in enumerate(net.experts):
        rows = (chosen == i).nonzero().squeeze(-1)
        if rows.numel() == 0:
            continue
        made[rows] += expert(x[rows]) * weights[rows, None]
    return net.last(made).square().mean()


def _sorted(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weights, chosen = net.router(x).softmax(-1).max(-1)
    order = chosen.argsort()
    parts = x[order].split(torch.bincount(chosen, minlength=4).tolist())
    made = torch.cat([expert(part) for expert, part in zip(net.experts, parts, strict=True)])
    return (torch.zeros_like(x).index_copy(0, order, made) * weights[:, None]).square().mean()


def _unique(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    kinds, kind = torch.unique(y, return_inverse=True)
    pooled = torch.zeros(len(kinds), WIDTH).index_add(0, kind, net.first(x))
    return net.last(pooled).square().mean()


def _slice(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return net.last(net.first(x)[: int(y.max())]).square().mean()


def _edges(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    edges = torch.stack([y * 3, y * 5 + 7]) % ROWS
    edges = edges[:, edges[0] != edges[1]]
    made = net.first(x)
    sent = made[edges[0]] - made[edges[1]]
    return net.last(torch.zeros_like(made).index_add(0, edges[1], sent)).square().mean()


def _queue(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    made = net.first(x)
    loss = (made @ net.queue.clone()).square().mean()
    at = int(net.place)
    net.queue[:, at : at + ROWS] = made.detach().t()
    net.place[0] = (at + ROWS) % net.queue.shape[1]
    return loss


BODIES: dict[str, Body] = {
    "a mask": _mask,
    "the loss of what is valid": _valid,
    "masked_select": _selected,
    "experts": _experts,
    "experts that are hit": _experts_hit,
    "tokens sorted by expert": _sorted,
    "unique": _unique,
    "a slice": _slice,
    "edges that are no loops": _edges,
    "a queue": _queue,
}


OFTEN = {"a mask", "experts that are hit", "tokens sorted by expert", "unique", "a queue"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in BODIES]
)
def test_one_plan_for_all_sizes_with_plain_gradients_within_the_budget(name: str) -> None:
    torch.manual_seed(0)
    plain = Net(BODIES[name])
    model = copy.deepcopy(plain)
    fitted = memfit.fit(model, budget="100%", fullgraph=True)
    for i in range(4):
        x, y = row_batch(i)
        for call, owner in ((plain, plain), (fitted, model)):
            owner.zero_grad(set_to_none=True)
            call(x, y).backward()
        for (path, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0, msg=path)
        torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()))
    assert len(fitted.plans) == 1
    model.zero_grad(set_to_none=True)
    x, y = row_batch(4)

    def step() -> None:
        fitted(x, y).backward()
        model.zero_grad(set_to_none=True)

    tensors = [*model.parameters(), *model.buffers(), x, y]
    resident = sum(t.untyped_storage().nbytes() for t in tensors)
    peak = measure_step(step, device=torch.device("cpu"), warmup=1).peak_bytes
    assert peak <= fitted.plan.peak_bytes - resident + 64


def _repeated(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    made = torch.repeat_interleave(net.first(x), y % 2 + 1, dim=0)
    return net.last(made).square().mean()


def _repeated_at_most(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    made = torch.repeat_interleave(net.first(x), y % 2 + 1, dim=0)
    memfit.bound_size(len(made), 2 * ROWS)
    return net.last(made).square().mean()


@pytest.mark.slow
def test_a_size_without_a_bound_wants_one() -> None:
    torch.manual_seed(0)
    fitted = memfit.fit(Net(_repeated), budget="100%", fullgraph=True)
    with pytest.raises(CaptureError, match=r"memfit\.bound_size"):
        fitted(*row_batch(0))
    fitted = memfit.fit(Net(_repeated_at_most), budget="100%", fullgraph=True)
    for i in range(3):
        fitted(*row_batch(i)).backward()
    assert len(fitted.plans) == 1


def _few(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    made = net.first(x)[y < WIDTH // 4]
    memfit.bound_size(len(made), ROWS // 2)
    return net.last(made).square().mean()


def test_a_smaller_bound_takes_less_and_a_larger_size_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def without(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return net.last(net.first(x)[y < WIDTH // 4]).square().mean()

    torch.manual_seed(0)
    x, y = row_batch(0)
    bounded, model = memfit.fit(Net(_few), budget="100%"), Net(without)
    bounded(x, y).backward()
    unbounded = memfit.plan(model, (x, y), budget="100%")
    assert bounded.plan.plain_peak_bytes < unbounded.plain_peak_bytes
    with caplog.at_level(logging.WARNING, logger="memfit"):
        loss = bounded(x, torch.zeros_like(y))
    torch.testing.assert_close(loss, without(bounded, x, torch.zeros_like(y)), rtol=0, atol=0)
    assert f"more than its bound of {ROWS // 2}" in caplog.text
    assert "runs as plain PyTorch" in caplog.text


def test_bounds_are_whole_numbers() -> None:
    assert memfit.bound_size(3, 4) == 3
    for most in (-1, 2.5, True, "4"):
        with pytest.raises(UsageError, match="whole number"):
            memfit.bound_size(3, most)  # type: ignore[arg-type]
