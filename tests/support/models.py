"""Models that several test files train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Logits", "Net", "Step", "asserting", "each", "token_loss"]

Step = Callable[..., Any]


class Net(nn.Module):
    """Three layers, and a forward pass given by a function of the module and its inputs.

    Args:
        step: called with the module and its inputs.
        width: of the layers.
        parts: what makes each further attribute. A tensor becomes a buffer, unless its name begins
            with `plain_`.
    """

    def __init__(self, step: Step, width: int = 16, /, **parts: Callable[[], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.step = step
        for name, part in parts.items():
            made = part()
            tensor = isinstance(made, torch.Tensor) and not isinstance(made, nn.Parameter)
            if tensor and not name.startswith("plain_"):
                self.register_buffer(name, made)
            else:
                setattr(self, name, made)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """The layers, with tanh after each."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

    def forward(self, *args: Any) -> Any:
        """The given function."""
        return self.step(self, *args)


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    """A step that changes the hidden state after each layer."""

    def step(net: Net, x: torch.Tensor) -> torch.Tensor:
        for layer in net.layers:
            x = change(torch.tanh(layer(x)))
        return x

    return step


def asserting(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A step that asserts that labels are 1 to 7; in a test file pytest would rewrite it."""
    assert (y > 0).all()
    assert (y > 0).all().item()
    assert y.max() < 8, "labels"
    assert y.max().item() < 8
    return net.trunk(x).pow(2).mean()


class Logits(nn.Module):
    """A language model of the transformers library that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits for each token."""
        return self.model(ids).logits


def token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each token's logits with the next token, in float32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
