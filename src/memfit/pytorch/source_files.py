"""Whose file a line of a traceback is in."""

from __future__ import annotations

from pathlib import Path

__all__ = ["OWN_FOLDER", "is_own"]

OWN_FOLDER = f"{Path(__file__).parents[1]}/"
_MODELS = f"{Path(__file__).parent}/demo_model.py"  # a model like any other


def is_own(path: str) -> bool:
    """Whether a file is part of memfit, models that it brings left aside."""
    return path.startswith(OWN_FOLDER) and path != _MODELS
