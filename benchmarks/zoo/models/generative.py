"""Flows, adversaries and codes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.step import Step
from benchmarks.zoo.stubs import stubs

__all__ = ["ARCHITECTURES"]

FEATURES = 16


class _Likelihood(nn.Module):
    """How unlikely a flow finds what it is given."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.flow.log_prob(x) if hasattr(self.flow, "log_prob") else self.flow().log_prob(x)
        return -found.mean()


def _points() -> tuple[torch.Tensor]:
    return (torch.randn(512, FEATURES),)


def _nflows(name: str, **sizes: Any) -> Step:
    with stubs("matplotlib"):
        from nflows import flows

    model = getattr(flows, name)(
        FEATURES, hidden_features=64, num_layers=4, num_blocks_per_layer=2, **sizes
    )
    return Step(_Likelihood(model).train(), _points)


def _spline_coupling() -> Step:
    with stubs("matplotlib"):
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow
        from nflows.nn.nets import ResidualNet
        from nflows.transforms import (
            CompositeTransform,
            LULinear,
            PiecewiseRationalQuadraticCouplingTransform,
        )

    def coupling(number: int) -> Any:
        return PiecewiseRationalQuadraticCouplingTransform(
            (torch.arange(FEATURES) + number) % 2,
            lambda inputs, outputs: ResidualNet(inputs, outputs, hidden_features=32, num_blocks=1),
            tails="linear",
            tail_bound=5.0,
        )

    layers = [part for n in range(2) for part in (coupling(n), LULinear(FEATURES))]
    model = Flow(CompositeTransform(layers), StandardNormal([FEATURES]))
    return Step(_Likelihood(model).train(), _points)


def _zuko(name: str, **sizes: Any) -> Step:
    from zuko import flows

    model = getattr(flows, name)(FEATURES, hidden_features=(64, 64), **sizes)
    return Step(_Likelihood(model).train(), _points)


class _Codebook(nn.Module):
    """An autoencoder of images with a code out of a book."""

    def __init__(self, book: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1)
        )
        self.book = book
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = self.encoder(x)
        tokens = code.flatten(2).transpose(1, 2)
        found = self.book(tokens)
        loss = found[2].sum() if len(found) > 2 else 0.0
        made = self.decoder(found[0].transpose(1, 2).reshape(code.shape))
        return nn.functional.mse_loss(made, x) + loss


def _codebook(name: str, **sizes: Any) -> Step:
    import vector_quantize_pytorch as books

    model = _Codebook(getattr(books, name)(**sizes))
    return Step(model.train(), lambda: (torch.randn(32, 3, 32, 32),))


def _generator() -> nn.Module:
    """DCGAN's generator."""
    return nn.Sequential(
        nn.ConvTranspose2d(32, 64, 4, 1, 0, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(True),
        nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(True),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
        nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def _critic(normalised: bool = False) -> nn.Module:
    """DCGAN's discriminator; with its spectral norms bounded, SNGAN's."""
    bound = torch.nn.utils.parametrizations.spectral_norm if normalised else lambda layer: layer
    return nn.Sequential(
        bound(nn.Conv2d(3, 16, 4, 2, 1)),
        nn.LeakyReLU(0.2, inplace=True),
        bound(nn.Conv2d(16, 32, 4, 2, 1)),
        nn.LeakyReLU(0.2, inplace=True),
        bound(nn.Conv2d(32, 64, 4, 2, 1)),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Flatten(),
        bound(nn.Linear(64 * 4 * 4, 1)),
    )


class _OfGenerator(nn.Module):
    """The generator's loss, under a critic that does not learn from it."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = _generator(), _critic().requires_grad_(False)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(-self.critic(self.generator(noise))).mean()


class _OfCritic(nn.Module):
    """The critic's loss, with a penalty on its gradient between true and made pictures."""

    def __init__(self, penalty: bool = True, normalised: bool = False) -> None:
        super().__init__()
        self.generator, self.critic = _generator().requires_grad_(False), _critic(normalised)
        self.penalty = penalty

    def forward(self, real: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fake = self.generator(noise)
        loss = self.critic(fake).mean() - self.critic(real).mean()
        if not self.penalty:
            return loss
        share = torch.rand(len(real), 1, 1, 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        return loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()


def _noise() -> torch.Tensor:
    return torch.randn(64, 32, 1, 1)


def _critic_step(**kind: bool) -> Step:
    return Step(_OfCritic(**kind).train(), lambda: (torch.randn(64, 3, 32, 32), _noise()))


class _Variational(nn.Module):
    """A variational autoencoder of flat pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 40))
        self.decoder = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 784))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, spread = self.encoder(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        found = nn.functional.binary_cross_entropy_with_logits(self.decoder(code), x)
        return found - 5e-4 * (1 + spread - mean.square() - spread.exp()).sum(1).mean()


BOOK: dict[str, Any] = {"dim": 32, "codebook_size": 64}

ARCHITECTURES = {
    "real-nvp": partial(_nflows, "SimpleRealNVP"),
    "masked-autoregressive-flow": partial(_nflows, "MaskedAutoregressiveFlow"),
    "neural-spline-coupling": _spline_coupling,
    "neural-spline-flow": partial(_zuko, "NSF", transforms=2),
    "neural-autoregressive-flow": partial(_zuko, "NAF", transforms=1, signal=8),
    "vq-vae": partial(_codebook, "VectorQuantize", **BOOK),
    "vq-vae-kmeans": partial(_codebook, "VectorQuantize", kmeans_init=True, **BOOK),
    "residual-vq": partial(_codebook, "ResidualVQ", num_quantizers=3, **BOOK),
    "finite-scalar": partial(_codebook, "FSQ", levels=[8, 5, 5], dim=32),
    "variational-autoencoder": lambda: Step(
        _Variational().train(), lambda: (torch.rand(512, 784),)
    ),
    "dcgan-generator": lambda: Step(_OfGenerator().train(), lambda: (_noise(),)),
    "wgan-gp-critic": _critic_step,
    "sngan-critic": partial(_critic_step, penalty=False, normalised=True),
}
