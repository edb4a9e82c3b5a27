"""Values of PyTorch's configuration for as long as something runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["config_values"]


@contextmanager
def config_values(config: Any, **values: Any) -> Iterator[None]:
    """Set values of a config module, and put the old ones back.

    What its own `patch` does; but `patch` makes a class each time, and this runs in every step.
    """
    before = {name: getattr(config, name) for name in values}
    try:
        for name, value in values.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
