"""Ops with effects: AOTAutograd puts tokens in front of the parameters, and inputs into their base.

What is a parameter, a buffer or an input, and which gradient belongs to which, is then no longer a
matter of positions. The parameters here have shapes of their own, and some tie or share memory, so
that every exchange shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op
from torch._higher_order_ops.scan import scan

import memfit
from memfit.errors import CaptureError
from memfit.pytorch.api.entry import capture

WIDTH = 12


def matrix(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Well-conditioned matrices, made of what the layers give."""
    h = net.last(torch.tanh(net.first(torch.tanh(x)))).view(-1, 4, 4)
    return h @ h.mT / 4 + torch.eye(4)


def solve(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(matrix(net, x), net.right(x).view(-1, 4, 1))


def several(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    m = matrix(net, x)
    lower = torch.linalg.cholesky(m)
    u, s, vh = torch.linalg.svd(m)
    found = (
        torch.linalg.lu_factor(m + lower).LU + torch.linalg.inv(m).tanh() + torch.logdet(m).sum()
    )
    return found + torch.linalg.eigh(m).eigenvalues.mean() + s.sin().sum() + (u @ vh).mean()


STEPS: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "inv": lambda net, x: torch.linalg.inv(matrix(net, x)),
    "solve": solve,
    "several": several,
}


class Decomposed(nn.Module):
    """Layers of unlike shapes, the input read first, and a matrix function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.first = nn.Linear(WIDTH, 20)
        self.last = nn.Linear(20, 16, bias=False)
        self.right = nn.Linear(WIDTH, 4)
        self.register_buffer("seen", torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x.mean(0))
        return STEPS[self.name](self, x).pow(2).mean()


def build(name: str) -> tuple[Decomposed, torch.Tensor]:
    torch.manual_seed(0)
    return Decomposed(name), torch.randn(64, WIDTH)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def after(net: nn.Module, call: Callable[..., torch.Tensor], x: torch.Tensor) -> dict[str, Any]:
    """Loss, gradients of two passes added up, and buffers."""
    losses = []
    for factor in (1.0, 0.5):
        loss = call(x * factor)
        loss.backward()
        losses.append(loss.detach())
    return {
        "losses": torch.stack(losses),
        **{n: p.grad for n, p in net.named_parameters()},
        **dict(net.named_buffers()),
    }


def same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key] is None if value is None else torch.equal(got[key], value), key


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "accumulate"), [("inv", False), ("solve", True), ("several", False)]
)
def test_gradients_are_those_of_eager(name: str, accumulate: bool) -> None:
    net, x = build(name)
    plain = copy.deepcopy(net)
    want = after(plain, plain, x)
    start = copy.deepcopy(net.state_dict())
    budget: int | str = "100%"
    for _ in range(2):
        net.load_state_dict(start)
        net.zero_grad()
        fitted = memfit.fit(net, budget=budget, cost="analytic", accumulate=accumulate)
        same(after(net, fitted, x), want)
        assert fitted.plan is not None
        budget = fitted.plan.smallest_feasible_budget_bytes


runs: list[tuple[int, ...]] = []


@torch.library.custom_op("memfit_tokens::noted", mutates_args=())
def noted(x: torch.Tensor) -> torch.Tensor:
    runs.append(tuple(x.shape))
    return x.clone()


@noted.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


noted.register_autograd(lambda ctx, gradient: torch.ops.memfit_tokens.noted(gradient))
_register_effectful_op(torch.ops.memfit_tokens.noted.default, _EffectType.ORDERED)


class Noted(nn.Module):
    """Ops that were registered with an effect, in both passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 6)
        self.last = nn.Linear(6, 5)
        self.register_buffer("seen", torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x.mean(0))
        h = noted(self.first(torch.tanh(x)).tanh())
        return noted(self.last(h).tanh()).sin().sum()


EXECUTORS: dict[str, Callable[[nn.Module], Any]] = {
    "eager graph": lambda net: memfit.fit(net, budget="100%", cost="analytic"),
    "overlap": lambda net: memfit.fit(net, budget="100%", cost="analytic", overlap=True),
    "inductor": lambda net: memfit.fit(net, budget="100%", cost="analytic", executor="inductor"),
    "torch.compile": lambda net: torch.compile(
        net, backend="memfit", options={"budget": "1GiB", "cost": "analytic"}
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "inductor")) for n in EXECUTORS]
)
def test_effects_happen_once_and_in_order_in_both_passes(name: str) -> None:
    torch.manual_seed(0)
    net, x = Noted(), torch.randn(64, WIDTH)
    plain = copy.deepcopy(net)
    runs.clear()
    want = after(plain, plain, x)
    wanted = list(runs)
    runs.clear()
    got = after(net, EXECUTORS[name](net), x)
    assert runs == wanted
    if name != "inductor":
        same(got, want)
    for key, value in want.items():  # Inductor's kernels round otherwise
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-5)


def test_a_rolled_loop_refuses_them_with_a_remedy() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def step(carry: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                made = torch.linalg.inv(carry + shift * torch.eye(4)).contiguous()
                return made, made.sum()

            last, sums = scan(step, self.layer(x), torch.linspace(3, 4, 5))
            return last.sum() + sums.sum()

    net, x = Loop(), torch.randn(4, 4)
    with pytest.raises(CaptureError, match=r"op with an effect.*unroll"):
        memfit.fit(net, budget="100%", cost="analytic", loops="roll")(x)


def test_every_tensor_is_of_its_own_kind() -> None:
    net, x = build("solve")
    graph = capture(net, (x,), cost="analytic").graph
    sizes: dict[str, list[int]] = {}
    for value in graph.values:
        if value.size_bytes:
            sizes.setdefault(value.kind.value, []).append(value.size_bytes)
    assert sorted(sizes["parameter"]) == sorted(p.nbytes for p in net.parameters())
    assert sizes["buffer"] == [net.seen.nbytes]
    assert sizes["input"] == [x.nbytes]


def test_kinds_hold_for_inputs_that_share_memory() -> None:
    """One input is written to and another looks into it: AOTAutograd puts their base in front."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, 7)
            self.register_buffer("scale", torch.ones(WIDTH))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            y.add_(1)
            return self.layer(x * self.scale).tanh().sum() + y.sum()

    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        base = torch.linspace(-1, 1, 10 * WIDTH).view(10, WIDTH)
        return base[:8], base[2:]

    net = Shared()
    plain = copy.deepcopy(net)
    plain(*inputs()).backward()
    fitted = memfit.fit(net, budget="100%", cost="analytic")
    fitted(*inputs()).backward()
    same(
        {n: p.grad for n, p in net.named_parameters()},
        {n: p.grad for n, p in plain.named_parameters()},
    )
    assert fitted.graph is not None
    kinds = {v.kind.value: v.size_bytes for v in fitted.graph.values if v.kind.resident}
    assert kinds["buffer"] == net.scale.nbytes
    assert kinds["input"] == inputs()[0].untyped_storage().nbytes()
