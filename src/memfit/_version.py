"""The version, from the metadata of the installed package: pyproject.toml is the one place."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("memfit")
except PackageNotFoundError:  # a checkout on the path that nobody installed
    __version__ = "0+unknown"
