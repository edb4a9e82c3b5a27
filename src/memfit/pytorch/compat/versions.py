"""The versions of PyTorch that memfit is written for; nothing private is imported to find out."""

from __future__ import annotations

import re

import torch

from memfit.errors import UnsupportedTorchError

__all__ = ["SUPPORTED", "check_torch_version", "torch_version"]

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
