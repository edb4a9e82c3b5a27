"""Numbers, lists and branches that are computed with tensors, of nothing but constants, are known.

Gradients are plain PyTorch's, bit for bit; what depends on data stays refused.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import memfit
from support.models import Net, Step

AMPLE = 2**50
X = torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(0))


def _dims(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.trunk(x)
    dims = torch.arange(1, y.dim()).tolist()
    sizes = torch.tensor(y.shape).mul(2).tolist()
    y = y.sum(dim=dims) * sizes[0] + y.mean(dim=[int(i) for i in torch.arange(1, 3)])
    return y * torch.tensor([1, 5]).prod().item()


def _positions(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.trunk(x)
    total = y.sum()
    for i in torch.arange(3):
        total = total + y[i].sum() * y[:, i].mean()
    ends = torch.tensor([1, 2, 1]).cumsum(0)
    starts = [0, *ends[:-1].tolist()]
    parts = [y[a:b].sum(0) for a, b in zip(starts, ends.tolist(), strict=True)]
    chosen = y[:, torch.where(torch.arange(4) > 1)[0]]
    repeated = y.repeat_interleave(torch.tensor([1, 0, 2, 1, 1, 1]), dim=0)
    return total + torch.stack(parts).sum() + chosen.mean() + repeated.mean()


def _weights(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.trunk(x)
    for weight in torch.linspace(0.1, 0.9, 3).tolist():
        y = y * weight
    return y + y.new_full((16,), torch.tensor([1.0, 2.0])[1])


def _arrays(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.trunk(x)
    if y.shape[0] % np.lcm(4, 6) != 0:
        y = -y
    y = y.reshape(int(np.prod(y.shape[:2])), -1)
    return y[int(np.cumsum([1, 1])[1]) :].sum(dim=np.arange(0, 2).tolist()) / float(np.sqrt(16))


def _branches(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.trunk(x)
    y = y if torch.arange(3).sum() > 2 else -y
    assert (torch.tensor(y.shape) > 0).all()
    return 2 * y if (torch.tensor([1, 2]) == y.dim()).any() else y


def _written(net: Net, x: torch.Tensor) -> torch.Tensor:
    places = torch.arange(3)
    places[0] = 2
    places.add_(1)
    return net.trunk(x).narrow(0, places.tolist()[0], 2)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "step",
    [_dims, _positions, _weights, _arrays, _branches, _written],
    ids=lambda step: step.__name__.strip("_"),
)
def test_what_constants_decide_is_known(step: Step) -> None:
    torch.manual_seed(0)
    net = Net(step)
    wanted = net(X).pow(2).mean()
    wanted.backward()
    gradients = [p.grad for p in net.parameters()]
    net.zero_grad()
    result = memfit.fit(net, budget=AMPLE, cost="analytic")(X).pow(2).mean()
    result.backward()
    assert torch.equal(result, wanted)
    for p, right in zip(net.parameters(), gradients, strict=True):
        assert p.grad is not None
        assert right is not None
        assert torch.equal(p.grad, right)


def _by_data(net: Net, x: torch.Tensor) -> torch.Tensor:
    places = torch.arange(3)
    places.add_(x.argmax() % 2)
    return net.trunk(x).sum(dim=places.tolist()[0])


def _draws(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.trunk(x)[: torch.randint(1, 3, (1,)).tolist()[0]]


def _buffer(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.trunk(x)[: net.count.tolist()[0]]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("step", [_by_data, _draws, _buffer])
def test_what_may_change_is_not_taken_for_a_constant(step: Step) -> None:
    net = Net(step, 16, count=lambda: torch.tensor([2]))
    fitted = memfit.fit(net, budget=AMPLE, cost="analytic", fullgraph=True)
    for count in (2, 1, 3, 1):
        with torch.no_grad():
            net.count.fill_(count)
        x = torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(count))
        torch.manual_seed(count)
        ours = fitted(x)
        torch.manual_seed(count)
        assert torch.equal(ours, net(x))


def test_a_new_size_has_its_own_constants() -> None:
    net = Net(_dims)
    fitted = memfit.fit(net, budget=AMPLE, cost="analytic")
    for rows in (6, 3, 6):
        assert torch.equal(fitted(X[:rows]), net(X[:rows]))
    assert len(fitted.plans) == 2
