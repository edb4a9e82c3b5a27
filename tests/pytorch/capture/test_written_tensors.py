"""Tensors that a step overwrites: inputs, parameters and views of what has a gradient.

Each program runs for two steps with every planner, at an ample and at its smallest budget, and is
compared with plain PyTorch: losses, what was written, gradients, parameters and buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.*should not be instantiated"
)
PLANNERS = ("auto", "exact", "chen", "nested")
WIDTH = 8
Program = Callable[..., torch.Tensor]


class Written(nn.Module):
    """What the programs read and write."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.table = nn.Embedding(20, WIDTH, max_norm=1.0)
        self.bag = nn.EmbeddingBag(20, WIDTH, max_norm=1.0)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.program(self, *args)


def tokens() -> torch.Tensor:
    return torch.randint(0, 20, (4, 3))


def rows() -> torch.Tensor:
    return torch.randn(4, WIDTH)


def rows_with_gradient() -> torch.Tensor:
    return torch.randn(4, WIDTH, requires_grad=True)


def mixed(net: Written, v: torch.Tensor) -> torch.Tensor:
    return (net.layer(v * torch.tanh(v)).tanh() + v).sum()


def counted(net: Written, i: torch.Tensor) -> torch.Tensor:
    net.count += 1
    return mixed(net, net.table(i))


def unread(net: Written, i: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    net.table(i)
    net.bag(i)
    return net.layer(x).sum()


def set_rows(net: Written, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    v = y - x
    x[:] = v
    return torch.sigmoid(net.layer(v * 2)).sin().mean()


def added(net: Written, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y.add_(x * net.scale)
    net.count += 1
    return net.layer(y * 1.01).sin().mean()


def indexed(net: Written, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x.index_copy_(0, torch.tensor([1, 3]), net.layer(y)[:2])
    return (net.layer(x).tanh() * x).sum()


def all_at_once(net: Written, i: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y.add_(x * net.scale)
    net.count += 1
    return mixed(net, net.table(i)) + mixed(net, net.bag(i)) + y.sin().sum()


class Gate(torch.autograd.Function):
    """Its second output has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x, y)
        return torch.sigmoid(x) * y, x.detach().sign()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * y * s * (1 - s), g * s


def dropped(net: Written, x: torch.Tensor) -> torch.Tensor:
    """The loss reads the output whose gradient the function drops."""
    return Gate.apply(*net.layer(x).chunk(2, 1))[1].sin().mean()


PROGRAMS: dict[str, tuple[Program, tuple[Callable[[], torch.Tensor], ...]]] = {
    "renormalised": (lambda net, i: mixed(net, net.table(i)), (tokens,)),
    "renormalised bag": (lambda net, i: mixed(net, net.bag(i)), (tokens,)),
    "renormalised and tied": (
        lambda net, i: F.linear(net.table(i).tanh(), net.table.weight).tanh().sum(),
        (tokens,),
    ),
    "renormalised and unread": (unread, (tokens, rows)),
    "renormalised beside a counter": (counted, (tokens,)),
    "input set": (set_rows, (rows, rows_with_gradient)),
    "input added to, beside a counter": (added, (rows, rows)),
    "input indexed": (indexed, (rows, rows)),
    "everything": (all_at_once, (tokens, rows, rows)),
    "gradient dropped": (dropped, (rows,)),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def observe(
    net: Written, call: Any, inputs: tuple[Callable[[], torch.Tensor], ...]
) -> list[torch.Tensor | None]:
    seen: list[torch.Tensor | None] = []
    for step in range(2):
        torch.manual_seed(step)
        given = [make() for make in inputs]
        loss = call(*given)
        loss.backward()
        seen.append(loss.detach())
        seen += [x.detach().clone() for x in (*given, *net.buffers(), *net.parameters())]
        seen += [x.grad for x in given if x.is_leaf]
    return seen + [p.grad for p in net.parameters()]


def build(program: Program) -> Written:
    torch.manual_seed(0)
    return Written(program)


def same(got: list[torch.Tensor | None], want: list[torch.Tensor | None]) -> None:
    for g, w in zip(got, want, strict=True):
        assert g is w is None or (g is not None and w is not None and torch.equal(g, w))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_everything_is_as_in_plain_pytorch(name: str, planner: str) -> None:
    if planner in ("chen", "nested") and name not in ("everything", "gradient dropped"):
        pytest.skip("with two planners only")
    program, inputs = PROGRAMS[name]
    plain = build(program)
    want = observe(plain, plain, inputs)
    budget: int | str = "100%"
    for _ in range(2):
        net = build(program)
        fit = memfit.fit(net, budget=budget, planner=planner, cost="analytic", accumulate=True)
        try:
            same(observe(net, fit, inputs), want)
        except memfit.InfeasibleBudgetError as error:
            budget = error.minimum_bytes
            continue
        assert fit.plan is not None
        budget = fit.plan.smallest_feasible_budget_bytes


# Lists of views


Foreach = Callable[[list[torch.Tensor], torch.Tensor], Any]
FOREACH: dict[str, Foreach] = {
    "mul": lambda v, x: torch._foreach_mul_(v, [x, x * 2]),
    "mul by numbers": lambda v, x: torch._foreach_mul_(v, [1.5, 2.5]),
    "mul by a scalar": lambda v, x: torch._foreach_mul_(v, torch.tensor(1.5)),
    "add of themselves": lambda v, x: torch._foreach_add_(v, [v[0] * 2, v[1] * 3], alpha=2),
    "tanh": lambda v, x: torch._foreach_tanh_(v),
    "clamp_min": lambda v, x: torch._foreach_clamp_min_(v, 0.2),
    "maximum": lambda v, x: torch._foreach_maximum_(v, [x, x]),
    "addcmul": lambda v, x: torch._foreach_addcmul_(v, [x * v[0], x], [x, x * v[1]], [0.1, 0.2]),
    "addcdiv": lambda v, x: torch._foreach_addcdiv_(v, [x, v[1] * x], [x + 9, x + 9], value=0.3),
}


def foreach_step(op: Foreach, *, one_memory: bool) -> Program:
    def step(net: Written, x: torch.Tensor) -> torch.Tensor:
        h = net.layer(x) * 1
        k = h if one_memory else net.layer(x.cos())
        op([h[:2], k[2:]], x[:2].detach())
        return h.sin().sum() + k.cos().sum()

    return step


@pytest.mark.sampled(3)
@pytest.mark.parametrize("one_memory", [False, True])
@pytest.mark.parametrize("name", FOREACH)
def test_lists_of_views_written_in_place_have_eagers_gradients(name: str, one_memory: bool) -> None:
    program = foreach_step(FOREACH[name], one_memory=one_memory)
    plain = build(program)
    want = observe(plain, plain, (rows,))
    net = build(program)
    fit = memfit.fit(net, budget="100%", cost="analytic", accumulate=True)
    same(observe(net, fit, (rows,)), want)
