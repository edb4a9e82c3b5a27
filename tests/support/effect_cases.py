"""Steps with side effects and random draws, of every kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from support.models import Net, Step, each

WIDTH = 16
runs: Counter[str] = Counter()


@dataclass(frozen=True)
class Case:
    """A step, what its module holds, its inputs, and ops that must run as often as in eager."""

    step: Step
    parts: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    inputs: Callable[[], tuple[torch.Tensor, ...]] = lambda: (torch.randn(64, WIDTH),)
    once: tuple[str, ...] = ()
    state: Callable[[Net], Any] = lambda net: None


def through(net: Net, x: torch.Tensor) -> torch.Tensor:
    """A step that passes the part `norm` after each layer."""
    for layer in net.layers:
        x = torch.tanh(net.norm(layer(x)))
    return x


# Custom ops and functions


@torch.library.custom_op("memfit_effects::logged", mutates_args=())
def logged(x: torch.Tensor, factor: float) -> torch.Tensor:
    runs["logged"] += 1  # an effect that no schema mentions
    return x * factor


@logged.register_fake
def _(x: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.empty_like(x)


def _logged_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.factor = inputs[1]
    ctx.save_for_backward(output)


def _logged_backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    (output,) = ctx.saved_tensors
    return gradient * ctx.factor + 0 * output, None


logged.register_autograd(_logged_backward, setup_context=_logged_context)


@torch.library.custom_op("memfit_effects::into", mutates_args={"log"})
def into(x: torch.Tensor, log: torch.Tensor) -> torch.Tensor:
    runs["into"] += 1
    log.add_(1)
    return x + log


@into.register_fake
def _(x: torch.Tensor, log: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("memfit_effects::pure_noise", mutates_args=())
def pure_noise(x: torch.Tensor) -> torch.Tensor:
    runs["pure_noise"] += 1
    return torch.rand_like(x)


@pure_noise.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Cubed(torch.autograd.Function):
    """Saves its input and an intermediate; its backward is not autograd's formula."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        square = x * x
        ctx.save_for_backward(x, square)
        ctx.scale = scale
        return scale * square * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        _, square = ctx.saved_tensors
        return (3 * ctx.scale * square * gradient).clamp(-0.5, 0.5), None


class StraightThrough(torch.autograd.Function):
    """Draws a bit for each entry; passes the gradient on where the bit is set."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bits = torch.bernoulli(x.sigmoid())
        ctx.mark_non_differentiable(bits)
        ctx.save_for_backward(bits)
        return x * bits, bits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        (bits,) = ctx.saved_tensors
        return gradient * (bits + 0.1)


def straight(h: torch.Tensor) -> torch.Tensor:
    kept, bits = StraightThrough.apply(h)
    return kept + bits


# Steps


def metrics(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.trunk(x)
    net.buffer_count += 1
    net.buffer_ema.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
    net.buffer_best.copy_(torch.maximum(net.buffer_best, h.detach().amax(0)))
    return torch.tanh(net.layers[0](h))


def factors(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Products that eager's kernels round once, with what is added to them."""
    for layer in net.layers:
        h = torch.tanh(layer(x))
        wide = h.detach().abs().amax(0) + 1
        net.buffer_sum.add_(h.detach().mean(0), alpha=0.1)
        net.buffer_sum.addcmul_(h.detach().mean(0), wide, value=0.3)
        net.buffer_sum.addcdiv_(h.detach().mean(0), wide, value=0.7)
        x = torch.addcmul(h.clone().addcmul_(h, h * 0.3, value=0.1), h, wide, value=0.2)
        x = x.mul(2).addcdiv_(x, wide, value=0.6).sub_(wide, alpha=0.1)
    return x


def attributes(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.trunk(x)
    net.plain_mean += h.detach().mean()  # a tensor that is no buffer
    net.plain_last = h.detach().mean(0)
    net.seen.append(h.detach().amax())
    return torch.tanh(net.layers[0](h)) * h


def in_place(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        y = layer(x)
        x = F.relu_(y * 1) * 1
        x += y
        x[:, 2:4].mul_(2)
        x.masked_fill_(x > 1.5, 0.5)
        x = F.dropout(x, 0.2, True, True)
    return x


def view_of_input(net: Net, x: torch.Tensor) -> torch.Tensor:
    x[:, :4].add_(1)
    x.view(-1)[::3].mul_(0.5)
    return net.trunk(x) * x


def input_with_gradient(net: Net, x: torch.Tensor) -> torch.Tensor:
    x.mul_(2)
    return net.trunk(x) + x.sin()


def aliased_inputs(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x.mul_(2)
    return net.trunk(y) + x


def input_as_output(net: Net, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    h = net.trunk(x)
    return h, x, x[:3], x.t(), h[1:]


def reduced(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        h = torch.tanh(layer(x))
        x = h + funcol.all_reduce(h.detach(), "sum", dist.group.WORLD)
    return x


# By the name that it has before 2.13, and by the one it has from then on.
all_gather = getattr(funcol, "all_gather_single_autograd", funcol.all_gather_tensor_autograd)


def gathered(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        h = all_gather(torch.tanh(layer(x)), 0, dist.group.WORLD)
        x = h * h
    return x


def checkpointed(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        x = checkpoint(
            lambda t, layer=layer: F.dropout(torch.tanh(net.norm(layer(t))), 0.3),
            x,
            use_reentrant=False,
        )
    return x


def attend(net: Net, x: torch.Tensor) -> torch.Tensor:
    q = x.view(2, 2, 16, WIDTH)
    for causal in (True, False):
        q = q + F.scaled_dot_product_attention(
            net.trunk(q), q, q * 2, dropout_p=0.1, is_causal=causal
        )
    return q


def sampled(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        noise = torch.distributions.Normal(0.0, 1.0, validate_args=False).rsample(x.shape)
        x = torch.tanh(layer(x)) + 0.1 * noise * torch.rand(WIDTH) + torch.randint(0, 3, (WIDTH,))
    return x


def image() -> tuple[torch.Tensor, ...]:
    return (torch.randn(4, 8, 6, WIDTH),)


def leaf() -> tuple[torch.Tensor, ...]:
    return (torch.randn(64, WIDTH, requires_grad=True),)


def zeros() -> torch.Tensor:
    return torch.zeros(WIDTH)


CASES: dict[str, Case] = {
    "dropout": Case(each(lambda h: F.dropout(h, 0.2))),
    "dropout2d": Case(each(nn.Dropout2d(0.3)), inputs=image),
    "alpha dropout": Case(each(nn.AlphaDropout(0.2))),
    "feature alpha dropout": Case(each(nn.FeatureAlphaDropout(0.2)), inputs=image),
    "attention dropout": Case(attend),
    "rand": Case(each(lambda h: h * torch.rand(h.shape) + torch.randn_like(h))),
    "bernoulli": Case(
        each(lambda h: h * torch.bernoulli(h.sigmoid()) + torch.empty(WIDTH).bernoulli_(0.4))
    ),
    "multinomial": Case(each(lambda h: h * h[torch.multinomial(torch.ones(64), 64)])),
    "distributions": Case(sampled),
    "rrelu": Case(each(nn.RReLU())),
    "batch norm": Case(through, {"norm": lambda: nn.BatchNorm1d(WIDTH)}),
    "batch norm, cumulative": Case(through, {"norm": lambda: nn.BatchNorm1d(WIDTH, momentum=None)}),
    "batch norm, no statistics": Case(
        through, {"norm": lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False)}
    ),
    "instance norm": Case(
        through,
        {"norm": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True)},
        image,
    ),
    "instance norm, no statistics": Case(through, {"norm": lambda: nn.InstanceNorm2d(8)}, image),
    "spectral norm": Case(
        through, {"norm": lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))}
    ),
    "spectral norm by hook": Case(
        through, {"norm": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))}
    ),
    "weight norm": Case(
        through, {"norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))}
    ),
    "running metrics": Case(
        metrics,
        {
            "buffer_count": lambda: torch.zeros((), dtype=torch.int64),
            "buffer_ema": zeros,
            "buffer_best": zeros,
        },
    ),
    "factors": Case(factors, {"buffer_sum": zeros}),
    "attributes": Case(
        attributes,
        {"plain_mean": lambda: torch.zeros(()), "plain_last": zeros, "seen": list},
        state=lambda net: [net.plain_mean, net.plain_last, *net.seen],
    ),
    "autograd function": Case(each(lambda h: Cubed.apply(h, 0.7))),
    "autograd function with draws": Case(each(straight)),
    "custom op": Case(each(lambda h: logged(h, 0.5) + h), once=("memfit_effects::logged",)),
    "custom op that writes": Case(
        lambda net, x: net.trunk(into(net.trunk(x).detach(), net.buffer_log) + net.trunk(x)),
        {"buffer_log": zeros},
        once=("memfit_effects::into",),
    ),
    "checkpoint": Case(checkpointed, {"norm": lambda: nn.LayerNorm(WIDTH)}),
    "in-place": Case(in_place),
    "view of input": Case(view_of_input),
    "input with gradient": Case(lambda net, x: input_with_gradient(net, x), inputs=leaf),
    "aliased inputs": Case(aliased_inputs),
    "input as output": Case(input_as_output, inputs=leaf),
    "all reduce": Case(reduced, once=("_c10d_functional::all_reduce",)),
    "all gather": Case(
        gathered,
        once=(
            "_c10d_functional::all_gather_into_tensor",
            "_c10d_functional::reduce_scatter_tensor",
        ),
    ),
}
