"""Stands in for packages that others import, and that no architecture here needs.

The zoo installs no torchvision, for its releases choose PyTorch's, and no trainers.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["stubs"]


class _Named(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class Placeholder(metaclass=_Named):
    """What is imported from a stub: may be named, subclassed, decorated with, but not used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Stub(ModuleType):
    """A module in which every name is a placeholder, and every submodule is one of these."""

    __path__: list[str] = []  # noqa: RUF012
    __version__ = "0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (Placeholder,), {"__module__": self.__name__})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, stubbed: Sequence[str]) -> None:
        self.stubbed = stubbed

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A stub for what is stubbed."""
        if fullname.partition(".")[0] not in self.stubbed:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The stub."""
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run."""


@contextmanager
def stubs(*packages: str) -> Iterator[None]:
    """Inside, these packages can be imported though they are not there; afterwards nothing is left.

    Args:
        packages: names to import; torchvision and torchaudio where there are none.
    """
    finder = _Finder(packages or ("torchvision", "torchaudio"))
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, module in sys.modules.items() if isinstance(module, _Stub)]:
            del sys.modules[name]
