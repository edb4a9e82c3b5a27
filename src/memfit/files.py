"""Files are written whole or not at all; where memfit's own lie."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from memfit.errors import UsageError

__all__ = ["PACKAGE_FOLDER", "write_bytes_whole", "write_text_whole"]

PACKAGE_FOLDER = Path(__file__).parent
"""The folder of memfit's own code."""


def write_bytes_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary file beside it, so that a failure leaves no half.

    What is no file, such as `/dev/null` or a pipe, is written to and not replaced; of a link, what
    it points to is.

    Raises:
        UsageError: the folder is missing or cannot be written.
    """
    if path.exists() and not path.is_file():
        _write_through(path, data)
        return
    path = Path(os.path.realpath(path))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that exists "
            "and can be written"
        ) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}; choose another file, in a folder "
            "with room"
        ) from None
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _write_through(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}; choose another file, in a folder "
            "with room"
        ) from None


def write_text_whole(path: Path, text: str) -> None:
    """Write `text` as UTF-8; see `write_bytes_whole`."""
    write_bytes_whole(path, text.encode("utf-8"))
