"""Models as they train: what is frozen in evaluation mode stays so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["as_it_trains", "put_in_training_mode"]


def put_in_training_mode(model: nn.Module) -> None:
    """Put a model that is in evaluation mode in training mode.

    One that is in training mode is left alone: its modules in evaluation mode are meant to be.
    """
    if not model.training:
        model.train()


@contextmanager
def as_it_trains(model: nn.Module) -> Iterator[None]:
    """The model in training mode; afterwards each of its modules in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    put_in_training_mode(model)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
