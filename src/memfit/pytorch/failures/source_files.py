"""Whose file a line of a traceback is in."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

from memfit.files import PACKAGE_FOLDER

__all__ = ["OWN_FOLDER", "is_own", "is_users"]

OWN_FOLDER = f"{PACKAGE_FOLDER}/"
_MODELS = f"{PACKAGE_FOLDER}/pytorch/api/demo_model.py"  # a model like any other
_TORCH = f"{Path(torch.__file__).parent}/"
_PYTHON = f"{sysconfig.get_path('stdlib')}/"


def is_own(path: str) -> bool:
    """Whether a file is part of memfit, models that it brings left aside."""
    return path.startswith(OWN_FOLDER) and path != _MODELS


def is_users(path: str) -> bool:
    """Whether a file is the user's, or a library's that is not PyTorch, Python or memfit."""
    pythons = path.startswith(_PYTHON) and "/site-packages/" not in path
    return not (path.startswith(("<", _TORCH)) or pythons or is_own(path))
