"""The versions of PyTorch that memfit is written for, and values that are set for a while.

Nothing private is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from memfit.errors import UnsupportedTorchError

__all__ = ["SUPPORTED", "check_torch_version", "config_values", "torch_version"]

SUPPORTED = ((2, 11), (2, 13))
"""The first and the last supported version; tests run on each (docs/correctness.md)."""


def torch_version() -> tuple[int, int]:
    """Major and minor version of the installed PyTorch."""
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def check_torch_version() -> None:
    """Refuse a PyTorch that memfit was not written against.

    Raises:
        UnsupportedTorchError: the version is outside of `SUPPORTED`.
    """
    low, high = SUPPORTED
    if not low <= torch_version() <= high:
        raise UnsupportedTorchError(
            f"torch {torch.__version__} is not supported; memfit runs with torch "
            f"{low[0]}.{low[1]} to {high[0]}.{high[1]}; install one of these"
        )


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
