"""Files are written whole; what is no file is written to and stays what it is."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from memfit.budget import parse_budget
from memfit.errors import InvalidBudgetError, UsageError
from memfit.files import write_text_whole


def test_a_file_is_exchanged(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    write_text_whole(path, "after")
    assert path.read_text() == "after"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_text_whole(path, "text")
    reader.join(timeout=30)
    assert read == ["text"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    file.write_text("before")
    link.symlink_to(file)
    write_text_whole(link, "after")
    assert link.is_symlink()
    assert file.read_text() == "after"


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(28, "No space")]
)
def test_what_cannot_be_written_is_told(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UsageError, match=r"cannot write .*file: .*; choose another file"):
        write_text_whole(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="cannot write"):
        write_text_whole(tmp_path, "text")


@pytest.mark.parametrize(
    "budget", ["9" * 5000, "9" * 5000 + "GiB", 10**5000], ids=["digits", "GiB", "int"]
)
def test_sizes_of_many_digits(budget: str | int) -> None:
    with pytest.raises(InvalidBudgetError, match="write bytes") as caught:
        parse_budget(budget)
    assert len(str(caught.value)) < 300
