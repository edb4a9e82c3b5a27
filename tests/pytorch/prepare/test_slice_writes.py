"""Writes into parts of tensors: eager's gradients, the peak that is predicted, no idle copies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.pytorch.api.entry import capture
from memfit.pytorch.cost.measure import measure_step
from support.models import Net, Step

aten = torch.ops.aten
WIDTH = 16


def _rows(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Each row of a fresh tensor, as recurrent models fill their output."""
    out = torch.zeros(3, *x.shape)
    for i, layer in enumerate(net.layers):
        out[i] = layer(x).tanh()
    return net.layers[0](out).sin()


def _parts_of_parts(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.layers[0](x) * 2
    part = y.transpose(0, 1)[2:9]
    part[:, 1] = net.layers[1](x)[0, 2:9]
    part[::2].mul_(2)
    part.diagonal()[:] = x[0, 0]
    return net.layers[2](y)


def _parts_of_what_is_given(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = torch.select_scatter(x[:, 4:12], net.layers[0](x)[0, 4:12], 0, 1)
    z = torch.slice_scatter(x[1:3], net.layers[1](x)[:1], 0, 0, 1)
    w = torch.diagonal_scatter(x.T[3:9], net.layers[2](x)[:6, 0])
    return torch.cat([y.flatten(), z.flatten(), w.flatten()]).sin()


def _expanded(net: Net, x: torch.Tensor) -> torch.Tensor:
    row = net.layers[0](x[:1]).expand(8, 8, WIDTH)
    return net.layers[1](torch.select_scatter(row, net.layers[2](x), 0, 3)).tanh()


def _folds(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        x = layer(x).tanh()
        windows = F.unfold(x[None, None], 3, padding=1)
        x = F.fold(windows.tanh(), (8, WIDTH), 3, padding=1)[0, 0]
    return x


def _shuffled(net: Net, x: torch.Tensor) -> torch.Tensor:
    """A part is written with what was read from another one, of another type."""
    y = net.layers[0](x)
    y[0] = y[1].double().tanh()
    y[:, 0] = y[:, 1]
    y[2:4] = y[4:5].clone()
    return net.layers[1](y).tanh()


STEPS: list[Step] = [
    _rows,
    _parts_of_parts,
    _parts_of_what_is_given,
    _expanded,
    _folds,
    _shuffled,
]


def _model(step: Step) -> Net:
    return Net(lambda net, x: step(net, x).square().mean(), WIDTH)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__.strip("_"))
def test_the_smallest_budget_holds_with_eagers_gradients(step: Step) -> None:
    torch.manual_seed(0)
    model, x = _model(step), torch.randn(8, WIDTH)

    def gradients(call: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        call(x).backward()
        return [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]

    wanted = gradients(model)
    with pytest.raises(memfit.InfeasibleBudgetError) as error:
        memfit.plan(model, (x,), budget=1)
    fitted = memfit.fit(model, budget=error.value.minimum_bytes)
    assert all(torch.equal(a, b) for a, b in zip(gradients(fitted), wanted, strict=True))
    found = measure_step(lambda: gradients(fitted), reset=model.zero_grad)
    peak = fitted.graph.resident_bytes + found.peak_bytes
    assert peak <= fitted.plan.budget_bytes
    assert peak == fitted.plan.peak_bytes


def _targets(step: Step) -> list[object]:
    captured = capture(_model(step), (torch.randn(8, WIDTH),), cost="analytic")
    return [node.target for node in captured.joint.graph.nodes]


def test_a_write_is_one_op() -> None:
    """Three rows are three ops, and two in the backward pass; parts of parts are joined."""
    found = _targets(_rows)
    assert aten.copy.default not in found
    assert aten.new_empty_strided.default not in found
    assert found.count(aten.select_scatter.default) == 5

    found = _targets(_parts_of_parts)
    assert aten.copy.default not in found
    assert found.count(aten.as_strided_scatter.default) >= 3
    assert aten.select_scatter.default not in found


class Window(nn.Module):
    """Writes what it is given into a buffer, which it overwrites at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("window", torch.ones(4, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = torch.empty(4, WIDTH)
        before.copy_(self.window.view(4, WIDTH))
        self.window[1:].copy_(self.window[:-1].clone())
        self.window[0] = x[0]
        return self.layer(before * self.layer(x)).tanh()


def test_a_copy_of_a_buffer_that_is_overwritten_stays() -> None:
    torch.manual_seed(0)
    plain, x = Window(), torch.randn(4, WIDTH)
    model = Window()
    model.load_state_dict(plain.state_dict())
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    for _ in range(3):
        plain(x).sum().backward()
        fitted(x).sum().backward()
    assert torch.equal(plain.window, model.window)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
