"""Adapters for trainers of other libraries, each imported when it is first named.

`memfit.integrations.transformers` is for Hugging Face's `Trainer`, `memfit.integrations.lightning`
for Lightning's.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from memfit.errors import UsageError

__all__ = ["MissingLibraryError", "lightning", "transformers"]

_ADAPTERS = ("lightning", "transformers")


class MissingLibraryError(UsageError, ImportError):
    """A library that an adapter is for is not installed; the message names the extra."""


def import_library(*names: str, extra: str) -> ModuleType:
    """The first of these modules that is installed.

    Raises:
        MissingLibraryError: none is.
    """
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != name.split(".")[0]:
                raise  # it is installed and lacks something of its own
    raise MissingLibraryError(
        f"memfit.integrations.{extra} needs {names[0]}, which is not installed; "
        f"run: pip install 'memfit[{extra}]'"
    )


def __getattr__(name: str) -> Any:
    if name not in _ADAPTERS:
        raise AttributeError(f"module 'memfit.integrations' has no attribute {name!r}")
    return importlib.import_module(f"memfit.integrations.{name}")
