"""What a size that depends on data is at most, as its model says."""

from __future__ import annotations

import logging
from typing import Any

import torch

from memfit.errors import UsageError

__all__ = ["bound_size"]

logger = logging.getLogger("memfit")
_told: set[int] = set()


def bound_size(size: Any, most: int) -> Any:
    """Say in a model what a size that depends on data is at most.

    A plan counts memory at the largest size that can be. Where an op says what that is, as for
    `x[mask]`, `nonzero` or `unique`, nothing needs to be said; a smaller bound makes plans that
    compute less again. In a step whose size is larger, the step runs as plain PyTorch, without a
    plan, and a warning says so.

    Example:
        >>> import torch, memfit
        >>> mask = torch.tensor([True, False, True])
        >>> memfit.bound_size(int(mask.sum()), 2)
        2

    Args:
        size: the size, such as `int(mask.sum())`, `lengths.max().item()` or `x[mask].shape[0]`.
        most: what it is at most.

    Returns:
        The size, as it was given.

    Raises:
        UsageError: `most` is no whole number, or is negative.
    """
    if torch.compiler.is_compiling():
        torch._check(size >= 0)
        torch._check(size <= most)
        return size
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise UsageError(f"a size is at most some whole number from 0 on, got {most!r}")
    if size > most and most not in _told:
        _told.add(most)
        logger.warning(
            "a size is %d, more than its bound of %d (memfit.bound_size); such steps run without a "
            "plan and may be over the budget; raise the bound",
            size,
            most,
        )
    return size
