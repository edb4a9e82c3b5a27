"""Scalars that a step is given and writes: buffers and inputs of no dimension, of every type.

Dynamo drops writes to float64 scalars when AOTAutograd has it trace twice; nothing else tells.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import memfit

Write = Callable[[torch.Tensor, torch.Tensor], Any]
WRITES: dict[str, Write] = {
    "add_": lambda state, v: state.add_(v),
    "copy_": lambda state, v: state.copy_(v * 2),
    "lerp_": lambda state, v: state.lerp_(v, 0.25),
    "fill_": lambda state, v: state.fill_(0.5),
    "[()] =": lambda state, v: state.__setitem__((), v),
    "out=": lambda state, v: torch.add(state, v, out=state),
}


class Scaled(nn.Module):
    """A layer whose output is scaled by a number that each step changes."""

    def __init__(self, write: Write, *, read_number: bool = False) -> None:
        super().__init__()
        self.write = write
        self.read_number = read_number
        self.layer = nn.Linear(6, 6, dtype=torch.float64)
        self.register_buffer("state", torch.ones((), dtype=torch.float64))

    def forward(self, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        state = self.state if given is None else given
        h = self.layer(x)
        if self.read_number:
            h = h * state.item()
        self.write(state, h.detach().mean())
        return (h * state).sin().sum()


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def planned(net: nn.Module) -> Any:
    return memfit.fit(net, budget="100%", cost="analytic", accumulate=True)


def compiled(net: nn.Module) -> Any:
    options = {"budget": "1GiB", "cost": "analytic"}
    return torch.compile(net, backend="memfit", options=options, fullgraph=True)


def after(net: Scaled, call: Any, *, as_input: bool) -> list[Any]:
    """Losses, the scalar after each of two steps, and gradients."""
    seen: list[Any] = []
    for shift in range(2):
        x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6) + shift
        given = [torch.full((), 0.3, dtype=torch.float64)] if as_input else []
        loss = call(x, *given)
        loss.backward()
        seen += [loss.detach(), given[0] if as_input else net.state.clone()]
    return seen + [p.grad for p in net.parameters()]


def same(net: Scaled, make: Callable[[nn.Module], Any], *, as_input: bool = False) -> None:
    plain = copy.deepcopy(net)
    want = after(plain, plain, as_input=as_input)
    got = after(net, make(net), as_input=as_input)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not torch.equal(want[1], want[3] if not as_input else torch.tensor(0.3))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", WRITES)
def test_a_buffer_keeps_what_is_written(name: str) -> None:
    if name == "fill_":  # the same number in both steps
        net = Scaled(lambda state, v: state.mul_(3).fill_(0.5).add_(v))
    else:
        net = Scaled(WRITES[name])
    same(net, planned)


def test_an_input_keeps_what_is_written() -> None:
    same(Scaled(WRITES["add_"]), planned, as_input=True)


def test_a_number_that_the_step_reads_is_the_one_of_that_step() -> None:
    same(Scaled(WRITES["add_"], read_number=True), planned)


@pytest.mark.parametrize("make", [planned, compiled])
def test_what_others_compiled_before_drops_nothing(make: Callable[[nn.Module], Any]) -> None:
    """Their compilation leaves notes that Dynamo goes by from then on."""
    other = Scaled(WRITES["add_"])
    torch.compile(other, backend="aot_eager")(torch.ones(2, 6, dtype=torch.float64))
    same(Scaled(WRITES["add_"]), make)
    same(Scaled(WRITES["copy_"]), make)
