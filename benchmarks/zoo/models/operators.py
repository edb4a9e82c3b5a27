"""Maps between functions, and differential equations inside of networks."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]


def _operator(name: str, size: int = 32, **sizes: Any) -> Step:
    """An operator of neuralop's by its name."""
    from neuralop import models

    model = getattr(models, name)(in_channels=2, out_channels=1, **sizes)
    return Step(
        model.train(),
        lambda: (torch.randn(4, 2, size, size), torch.randn(4, 1, size, size)),
        nn.functional.mse_loss,
    )


def _uno() -> Step:
    return _operator(
        "UNO",
        hidden_channels=16,
        uno_out_channels=[16, 32, 16],
        uno_n_modes=[[8, 8], [4, 4], [8, 8]],
        uno_scalings=[[1.0, 1.0], [0.5, 0.5], [2.0, 2.0]],
        n_layers=3,
        channel_mlp_skip="linear",
    )


def _codano() -> Step:
    from neuralop.models import CODANO

    model = CODANO(
        output_variable_codimension=1,
        hidden_variable_codimension=8,
        lifting_channels=16,
        n_layers=3,
        n_heads=[2, 2, 2],
        n_modes=[[8, 8]] * 3,
        attention_scaling_factors=[1, 1, 1],
        per_layer_scaling_factors=[[1, 1]] * 3,
        use_positional_encoding=False,
        variable_ids=[],
    )
    return Step(
        model.train(),
        lambda: (torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)),
        nn.functional.mse_loss,
    )


class _Flow(nn.Module):
    """Follows a field over time."""

    def __init__(self, solve: Any, **options: Any) -> None:
        super().__init__()
        self.solve, self.options = solve, options
        self.field = _Field()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        times = torch.linspace(0.0, 1.0, 5, device=x.device)
        return self.solve(self.field, x, times, **self.options)[-1]


class _Field(nn.Module):
    """The speed at a place and a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(33, 64), nn.Tanh(), nn.Linear(64, 32))

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x, t.expand(len(x), 1)], dim=1))


def _neural_ode(adjoint: bool = False, **options: Any) -> Step:
    import torchdiffeq

    solve = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
    return Step(
        _Flow(solve, **options).train(),
        lambda: (torch.randn(512, 32), torch.randn(512, 32)),
        nn.functional.mse_loss,
    )


class _DeepONet(nn.Module):
    """A function's values at sensors times features of the place where the result is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(100, 128), nn.Tanh(), nn.Linear(128, 64))
        self.trunk = nn.Sequential(nn.Linear(2, 128), nn.Tanh(), nn.Linear(128, 64))

    def forward(self, values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bf,bpf->bp", self.branch(values), self.trunk(places))


def _deeponet() -> Step:
    return Step(
        _DeepONet().train(),
        lambda: (torch.randn(16, 100), torch.rand(16, 256, 2), torch.randn(16, 256)),
        nn.functional.mse_loss,
    )


class _PhysicsInformed(nn.Module):
    """The residual of Burgers' equation, of derivatives of the network by its inputs."""

    def __init__(self) -> None:
        super().__init__()
        widths = [2, 64, 64, 64, 1]
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        u = self.layers(places)
        (first,) = torch.autograd.grad(u.sum(), places, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), places, create_graph=True)
        return (first[:, 1:] + u * first[:, :1] - 0.01 * second[:, :1]).square().mean()


def _physics_informed() -> Step:
    return Step(_PhysicsInformed().train(), lambda: (torch.rand(2048, 2).requires_grad_(),))


FNO: dict[str, Any] = {"n_modes": (8, 8), "hidden_channels": 16, "n_layers": 3}

ARCHITECTURES = {
    "fno": partial(_operator, "FNO", **FNO),
    "tfno": partial(_operator, "TFNO", factorization="Tucker", rank=0.5, **FNO),
    "uno": _uno,
    "codano": _codano,
    "deeponet": _deeponet,
    "physics-informed-network": _physics_informed,
    "neural-ode-rk4": partial(_neural_ode, method="rk4"),
    "neural-ode-dopri5": partial(_neural_ode, method="dopri5", rtol=1e-3, atol=1e-4),
    "neural-ode-adjoint": partial(_neural_ode, adjoint=True, method="rk4"),
}
