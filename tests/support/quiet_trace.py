"""Keeps pytest from switching on PyTorch's structured trace."""

from __future__ import annotations

import logging

import torch  # noqa: F401  makes the logger

__all__ = ["no_structured_trace"]


def no_structured_trace() -> None:
    """Let `torch.__trace` have no handler, so that PyTorch does not render every graph for it.

    Recent pytest (9.2 does) puts a handler on each logger that does not propagate.
    """
    logging.getLogger("torch.__trace").propagate = True
