"""Numbers that a step reads out of tensors: checks, factors, positions, and sizes known by a check.

Each case runs at its smallest feasible budget for two steps, beside the plain model:
outputs, gradients and buffers are the same, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.errors import CaptureError
from memfit.pytorch.api.entry import capture
from support.models import Net, Step, asserting

AMPLE = 2**50
WIDTH, BATCH = 16, 64


def _inputs(first: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(first)
    x = torch.randn(BATCH, WIDTH, generator=made)
    return x, torch.randint(1, 8, (BATCH,), generator=made)


def _net(step: Step) -> Net:
    torch.manual_seed(0)
    return Net(
        step,
        WIDTH,
        flag=lambda: torch.tensor(3),
        rate=lambda: torch.tensor(0.5),
        scales=lambda: torch.tensor([8.0, 16.0, 32.0]),
    )


def _steps(model: nn.Module, net: Net) -> list[Any]:
    seen: list[Any] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net.zero_grad()
        results = model(*_inputs(seed))
        first, *others = results if isinstance(results, tuple) else (results,)
        first.backward()
        gradients = {n: p.grad for n, p in net.named_parameters()}
        seen.append((first.detach(), others, gradients, copy.deepcopy(dict(net.named_buffers()))))
    return seen


def _check(step: Step) -> None:
    plain, net = _net(step), _net(step)
    with pytest.raises(memfit.InfeasibleBudgetError) as caught:
        memfit.plan(_net(step), _inputs(1), budget=1, cost="analytic")
    fitted = memfit.fit(net, budget=caught.value.minimum_bytes, cost="analytic")
    wanted, got = _steps(plain, plain), _steps(fitted, net)
    for mine, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=0)


def _loss(value: torch.Tensor) -> torch.Tensor:
    return value.pow(2).mean()


# What a check leaves one value is no size that depends on data.


def _size_of_a_checked_count(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    count = (y > 0).sum().item()
    torch._check(count == BATCH)
    return _loss(net.trunk(x)[:count])


def _features_in_place_of_tokens(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    marked = torch.arange(BATCH) < BATCH // 4
    features = net.trunk(x[: BATCH // 4])
    torch._check_tensor_all(marked.sum() * WIDTH == features.numel())
    return _loss(net.trunk(x.masked_scatter(marked[:, None], features)))


def _assertions(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    torch._check_tensor_all((y > 0).sum() * WIDTH == x.numel())
    most = y.max().item()
    torch._check(most >= 0)
    torch._check(most < 8)
    torch._check_with(ValueError, (y > 0).all().item(), lambda: "labels")
    torch._assert_async((y > 0).all())
    return asserting(net, x, y)


def _as_many_as_rows(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    chosen = net.trunk(x)[y > 0]
    torch._check(chosen.shape[0] == BATCH)
    return _loss(chosen)


# Numbers that change from step to step.


def _factors(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    hidden = net.trunk(x)
    hidden = hidden * (hidden.abs().mean().item() * 3.7 / 2.1) + float(hidden.detach().std())
    counts = y[:4].tolist()
    hidden = hidden * sum(counts) * (max(counts) // 2 + 1) / max(int((y > 3).sum()), 1)
    return _loss(hidden) / hidden.detach().abs().sum().item() ** 0.5


def _positions(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    hidden = net.trunk(x)
    at = int(y[0])
    return _loss(hidden[at]) + _loss(torch.narrow(hidden, 1, at, 4)) + _loss(hidden.roll(at, 0))


def _buffer_as_a_number(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    net.flag += 1
    return _loss(net.trunk(x) * net.flag.item())


def _returned(net: Net, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    loss = _loss(net.trunk(x))
    return loss, 2 * loss.detach().item(), int(y.sum()) + 1


def _drawn(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    hidden = F.dropout(net.trunk(x), 0.5)
    return _loss(hidden * hidden.abs().max().item())


# A tensor of one element where an op takes a number.


def _filled(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    hidden = net.trunk(x)
    parts = [hidden.new_full((BATCH // 4, 1), net.scales[i], dtype=x.dtype) for i in range(3)]
    like = torch.full_like(hidden, net.rate) + torch.full((WIDTH,), net.rate)
    like = like + hidden.new_full((WIDTH,), net.flag, dtype=x.dtype)
    most = hidden.detach().max()
    like = like + torch.full_like(x, most) + torch.eye(WIDTH).fill_diagonal_(most).sum(0)
    return _loss(hidden[: len(parts) * (BATCH // 4)] * torch.cat(parts)) + _loss(hidden * like)


def _factor_as_a_tensor(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    hidden = net.trunk(x).add(x, alpha=net.rate)
    hidden = torch.addcmul(hidden, x, hidden, value=net.rate)
    return _loss(F.leaky_relu(hidden.clamp(-1.0, net.rate), net.rate) + F.elu(hidden, net.rate))


def _activations(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    hidden = F.threshold(net.trunk(x), net.rate, 0.0)
    return _loss(F.softplus(hidden, net.rate)) + _loss(hidden.masked_fill(hidden > 0, net.rate))


CASES: list[Callable[..., Any]] = [
    _size_of_a_checked_count,
    _features_in_place_of_tokens,
    _assertions,
    _as_many_as_rows,
    _factors,
    _positions,
    _buffer_as_a_number,
    _returned,
    _drawn,
    _filled,
    _factor_as_a_tensor,
    _activations,
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("step", CASES, ids=lambda step: step.__name__.strip("_"))
def test_numbers_are_eagers(step: Step) -> None:
    _check(step)


def test_numbers_are_kept_for_the_backward_pass() -> None:
    """Recomputing what a number was read from would not change what it was."""
    step = capture(_net(_factors), _inputs(1), cost="analytic")
    writers = {v: op for op in step.graph.ops for v in op.outputs}
    read = [v for op in step.graph.ops if "backward" in op.phase.value for v in op.inputs]
    numbers = [v for v in read if v in writers and "scalar_dense" in writers[v].target]
    assert numbers
    for v in numbers:
        assert not writers[v].recomputable
        assert step.graph.values[v].size_bytes == 0


@pytest.mark.parametrize("step", [_size_of_a_checked_count, _assertions])
def test_a_check_that_fails_says_so_in_every_step(step: Step) -> None:
    net = _net(step)
    fitted = memfit.fit(net, budget=AMPLE, cost="analytic")
    x, y = _inputs(1)
    fitted(x, y).backward()
    with pytest.raises((RuntimeError, AssertionError)):
        fitted(x, torch.zeros_like(y))
    fitted(x, y).backward()


def test_a_plan_with_numbers_predicts_its_peak() -> None:
    result = memfit.verify(_net(_factors), _inputs(1), budget="90%", rounds=1)
    assert result.ok
    assert result.plain_gradients_equal
    assert result.planned_peak_bytes == result.predicted_peak_bytes


@pytest.mark.slow
def test_numbers_under_inductor() -> None:
    net = _net(_factors)
    x, y = _inputs(1)
    net(x, y).backward()
    wanted = [p.grad for p in net.parameters()]
    net.zero_grad()
    memfit.fit(net, budget=AMPLE, executor="inductor", cost="analytic")(x, y).backward()
    for p, right in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, right)


def test_a_size_without_a_bound_is_refused() -> None:
    def step(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return _loss(net.trunk(x).repeat_interleave(y, dim=0))

    with pytest.raises(CaptureError, match=r"depends on the data .* \(test_scalars.py:\d+\)"):
        memfit.plan(_net(step), _inputs(1), budget=AMPLE, cost="analytic", fullgraph=True)
