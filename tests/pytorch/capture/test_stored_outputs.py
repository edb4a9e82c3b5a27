"""What forward stores without returning it, and what the loss leaves out, has no gradient.

Plain PyTorch leaves None, and takes neither memory nor time for it. Whoever reads a stored tensor
in the loss gets its gradient all the same.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.errors import ExecutionError
from memfit.pytorch.cost.measure import measure_step

WIDTH = 16
cache: dict[str, torch.Tensor] = {}


def weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def planned(net: nn.Module, **options: Any) -> Any:
    return memfit.fit(net, **{"budget": "100%", "cost": "analytic", "accumulate": True, **options})


def compiled(net: nn.Module) -> Any:
    return torch.compile(net, backend="memfit", options={"budget": "1GiB", "cost": "analytic"})


def gradients(net: nn.Module) -> dict[str, torch.Tensor | None]:
    return {n: p.grad for n, p in net.named_parameters()}


def same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for key, value in want.items():
        equal = got[key] is None if value is None else torch.equal(got[key], value)
        assert equal, key


class Storing(nn.Module):
    """Layers that hooks and the forward pass store things of; the loss reaches `last` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, WIDTH)
        self.side = nn.Linear(WIDTH, WIDTH)
        self.normed = weight_norm(nn.Linear(WIDTH, WIDTH))
        self.spectral = nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))
        self.seen: list[torch.Tensor] = []
        self.last.register_forward_hook(lambda _, inputs, output: self.seen.append(output * 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.clear()
        side = self.side(x)
        self.attribute = side.sin()
        self.seen.append(side.cos())
        cache["side"] = side.tanh()
        self.part = side.pow(2).mean()
        self.spectral(self.normed(x))
        return self.last(x).pow(2).mean()


def after(make: Callable[[nn.Module], Any], loss: Callable[[Storing, Any], Any]) -> dict[str, Any]:
    """Gradients of the last of three steps, with what the generator and the buffers became."""
    torch.manual_seed(0)
    net = Storing()
    call = make(net)
    for shift in range(3):
        net.zero_grad()
        loss(net, call(torch.linspace(-1, 1, 4 * WIDTH).view(4, WIDTH) + shift)).backward()
    return {**gradients(net), **dict(net.named_buffers()), "state": torch.get_rng_state()}


MAKERS = [planned, compiled]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("make", MAKERS)
def test_what_is_stored_alone_has_no_gradient(make: Callable[[nn.Module], Any]) -> None:
    want = after(lambda net: net, lambda net, loss: loss)
    assert {n.split(".")[0] for n, g in want.items() if g is None} == {"side", "normed", "spectral"}
    same(after(make, lambda net, loss: loss), want)


READS: dict[str, Callable[[Storing, torch.Tensor], torch.Tensor]] = {
    "attribute": lambda net, loss: loss + net.attribute.mean(),
    "list": lambda net, loss: loss + net.seen[0].mean(),
    "dict": lambda net, loss: loss + cache["side"].mean(),
    "scalar": lambda net, loss: loss + net.part,
    "hook's": lambda net, loss: net.seen[1].mean(),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", READS)
def test_a_loss_that_reads_it_has_its_gradient(name: str) -> None:
    read = READS[name]
    same(after(planned, read), after(lambda net: net, read))


def test_under_torch_compile_too() -> None:
    same(after(compiled, READS["attribute"]), after(lambda net: net, READS["attribute"]))


class Features(nn.Module):
    """Keeps a hidden state; draws, and has running statistics that each step moves once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = F.dropout(self.norm(self.first(x)).tanh(), 0.4)
        return self.last(self.hidden)


def test_the_step_in_which_it_is_first_read_is_right_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Everything as in eager, but that two sums of gradients are added up in another order."""
    steps = []
    for fits in (False, True):
        torch.manual_seed(0)
        net = Features()
        call = planned(net) if fits else net
        seen = []
        for step in range(2):
            net.zero_grad()
            torch.manual_seed(step)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
                output = call(torch.linspace(-1, 1, 8 * WIDTH).view(8, WIDTH) + step)
            with caplog.at_level(logging.WARNING, "memfit"):
                (output.pow(2).mean() + net.hidden.sin().mean()).backward()
            left = {**gradients(net), **dict(net.named_buffers()), "state": torch.get_rng_state()}
            seen.append({k: None if v is None else v.clone() for k, v in left.items()})
        steps.append(seen)
    (want_first, want_second), (first, second) = steps
    for key, value in want_first.items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-7)
    same(second, want_second)
    assert [r.message for r in caplog.records if "'hidden'" in r.message]
    assert len([r for r in caplog.records if r.name == "memfit"]) == 1


def test_what_cannot_be_computed_again_is_refused_with_a_remedy() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.hidden = self.layer(x)
            return self.hidden.pow(2)

    net = Changed()
    output = planned(net)(torch.randn(4, WIDTH))
    with pytest.raises(ExecutionError, match=r"reads 'hidden'.*changed in place.*return it"):
        (output.mean() + net.hidden.mean()).backward()


def test_a_backward_pass_of_its_own_comes_too_late() -> None:
    net = Features()
    planned(net)(torch.randn(4, WIDTH)).mean().backward()
    with pytest.raises(ExecutionError, match=r"'hidden'.*after the backward pass of its step"):
        net.hidden.mean().backward()


class Codec(nn.Module):
    """An encoder that no gradient reaches, in front of a decoder; both with normed weights."""

    def __init__(self) -> None:
        super().__init__()
        layers = [weight_norm(nn.Linear(128, 128)) for _ in range(6)]
        self.encoder = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
        self.decoder = nn.Sequential(layers[3], nn.Tanh(), layers[4], nn.Tanh(), layers[5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x).detach().round()).pow(2).mean()


def test_normed_weights_take_no_more_memory_than_plain() -> None:
    net, x = Codec(), torch.randn(64, 128)

    def peak(call: Any) -> int:
        def step() -> None:
            net.zero_grad()
            call(x).backward()

        return measure_step(step).peak_bytes

    plain = peak(net)
    reached = [n for n, g in gradients(net).items() if g is not None]
    fitted = memfit.fit(net, budget="100%", cost="analytic")
    assert peak(fitted) <= plain
    assert [n for n, g in gradients(net).items() if g is not None] == reached
    assert fitted.graph is not None
    tangents = [v.size_bytes for v in fitted.graph.values if v.kind.value == "tangent"]
    assert tangents == [4]


# Outputs that the loss leaves out


class Heads(nn.Module):
    """Several outputs, one of them a view of another, one that everything hangs on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.third, self.fourth = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.first(x).tanh()
        return self.second(h), self.third(h).sin(), self.fourth(h)[1:], h


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": False}, {"overlap": True, "accumulate": False}]
)
def test_outputs_that_the_loss_leaves_out_have_none(options: dict[str, bool]) -> None:
    """In every combination, two passes added up, one after the other with one fitted module."""
    torch.manual_seed(0)
    net, plain = Heads(), Heads()
    plain.load_state_dict(net.state_dict())
    call = planned(net, **options)
    x = torch.linspace(-1, 1, 4 * WIDTH).view(4, WIDTH)
    for used in [(0,), (0, 1), (2,), (3,), (1, 2, 3)]:
        for module, run in ((net, call), (plain, plain)):
            module.zero_grad()
            for _ in range(2):
                outputs = run(x)
                sum(outputs[i].sum() for i in used).backward()
        same(gradients(net), gradients(plain))


# Optimizers, after steps of a model whose loss leaves out a part


def _optimizers() -> list[type[torch.optim.Optimizer]]:
    found = (getattr(torch.optim, name) for name in sorted(dir(torch.optim)))
    kinds = [c for c in found if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)]
    return [c for c in kinds if c is not torch.optim.Optimizer]


class Normed(nn.Module):
    """Normed layers without biases (Muon takes matrices only), and one that the loss leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            weight_norm(nn.Linear(WIDTH, WIDTH, bias=False)) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layers[2](x)
        return self.layers[1](self.layers[0](x).tanh()).pow(2).mean()


def _trained(
    net: Normed, call: Any, kind: type[torch.optim.Optimizer], start: dict[str, Any]
) -> dict[str, torch.Tensor]:
    net.load_state_dict(start)
    net.zero_grad()
    decay = {"weight_decay": 0.1} if kind not in _WITHOUT_DECAY else {}
    optimizer = kind(net.parameters(), lr=0.01, **decay)
    x = torch.linspace(-1, 1, 4 * WIDTH).view(4, WIDTH)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = call(x)
        loss.backward()
        return loss

    for _ in range(5):
        if kind is torch.optim.LBFGS:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return {n: p.detach().clone() for n, p in net.named_parameters()}


_WITHOUT_DECAY = {torch.optim.LBFGS, torch.optim.Rprop, torch.optim.SparseAdam}
# SparseAdam takes sparse gradients only, which memfit refuses.
DENSE = [c for c in _optimizers() if c is not torch.optim.SparseAdam]


@pytest.fixture(scope="module")
def fitted() -> tuple[Normed, Any, dict[str, Any]]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Normed()
    start = {n: t.clone() for n, t in net.state_dict().items()}
    return net, memfit.fit(net, budget="100%", cost="analytic"), start


def test_every_optimizer_is_here() -> None:
    names = {c.__name__ for c in _optimizers()}
    assert {"AdamW", "LBFGS", "Adafactor", "Muon", "SparseAdam", "SGD"} <= names


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", DENSE, ids=lambda c: c.__name__)
def test_parameters_after_five_steps_are_those_of_eager(
    fitted: tuple[Normed, Any, dict[str, Any]], kind: type[torch.optim.Optimizer]
) -> None:
    net, call, start = fitted
    plain = Normed()
    want = _trained(plain, plain, kind, start)
    got = _trained(net, call, kind, start)
    same(got, want)
    assert not torch.equal(want["layers.0.weight_v"], start["layers.0.weight_v"])
    assert torch.equal(want["layers.2.weight_v"], start["layers.2.weight_v"])
