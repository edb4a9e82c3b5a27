"""What an architecture gives: a model, its batches and its loss."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = [
    "Make",
    "Step",
    "call",
    "loss_of",
    "packages_of",
    "resident_bytes",
    "seed",
]

Inputs = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One training step: the model's own loss, or `loss_fn(model(*inputs), target)`.

    Attributes:
        model: the model, of random parameters, in training mode.
        batch: makes a batch from PyTorch's generator, of the same shapes each time: positional
            arguments (with a loss, the target last) or keyword arguments.
        loss_fn: the loss, as for `memfit.fit`; None where the model returns its own.
        learning_rate: of SGD.
    """

    model: nn.Module
    batch: Callable[[], Inputs]
    loss_fn: Callable[..., Any] | None = None
    learning_rate: float = 1e-3


Make = Callable[[], Step]


def seed(number: int) -> None:
    """Seed every generator that a model may draw from."""
    torch.manual_seed(number)
    random.seed(number)
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(number)  # noqa: NPY002 (models draw from the global one)


def call(module: Callable[..., Any], inputs: Inputs) -> Any:
    """What a module returns for a batch."""
    return module(**inputs) if isinstance(inputs, dict) else module(*inputs)


def loss_of(result: Any) -> torch.Tensor:
    """The loss in what a step returns: the scalar that it is, or its field `loss`.

    Raises:
        ValueError: there is none.
    """
    loss = result if isinstance(result, torch.Tensor) else getattr(result, "loss", None)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise ValueError(f"{type(result).__name__} is no loss and has none")
    return loss.reshape(())


def packages_of(model: nn.Module) -> list[str]:
    """The packages whose modules a model is made of; `torch` where it is PyTorch's own."""
    found = {type(module).__module__.partition(".")[0] for module in model.modules()}
    return sorted(found - {"torch", "benchmarks"}) or ["torch"]


def resident_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Bytes of parameters, buffers and a batch, memory that is shared counted once."""
    leaves = torch.utils._pytree.tree_leaves((list(model.state_dict().values()), inputs))
    leaves += [*model.parameters(), *model.buffers()]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in leaves
        if isinstance(t, torch.Tensor)
    }
    return sum(storages.values())
