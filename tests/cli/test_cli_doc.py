"""The examples of docs/cli.md print what the page shows.

`python tests/cli/test_cli_doc.py` writes what they print into the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from memfit.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
_BLOCK = re.compile(r"```console( figures vary)?\n(.*?)```\n", re.DOTALL)
_MODEL = re.compile(r"```python\n(.*?)```\n", re.DOTALL)
_TIME = re.compile(r"[\d.]+ s\b")
_NUMBER = re.compile(r"[+-]?\d[\d.]*(e-\d+)?%?( [KMG]iB| ns| us| ms| s\b)?")


def blocks(page: str) -> list[tuple[bool, list[tuple[str, str]]]]:
    """For each block of commands: whether its figures vary, and each command with its output."""
    found = []
    for varies, text in _BLOCK.findall(page):
        parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)[1:]
        found.append((bool(varies), list(zip(parts[::2], parts[1::2], strict=True))))
    return found


def printed(command: str) -> str:
    """What a command prints, stderr after stdout, without blanks at the ends of lines."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main(shlex.split(command)[1:])
    text = out.getvalue() + err.getvalue()
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def masked(text: str, varies: bool) -> list[str]:
    """Lines to compare: without times, and without any figure where they vary."""
    if not varies:
        return [" ".join(_TIME.sub("# s", line).split()) for line in text.splitlines()]
    return [" ".join(_NUMBER.sub("#", line).split()) for line in text.splitlines()]


@contextlib.contextmanager
def example_folder(folder: Path) -> Iterator[None]:
    """The files that the examples use, in the current folder, and one thread."""
    found = _MODEL.search(PAGE.read_text())
    assert found is not None
    (folder / "my_model.py").write_text(found[1])
    (folder / "chain.json").write_text(graph_text())
    before, threads = Path.cwd(), torch.get_num_threads()
    os.environ["MEMFIT_CACHE_DIR"] = str(folder / "cache")
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.path.insert(0, "")
    sys.modules.pop("my_model", None)
    try:
        yield
    finally:
        sys.path.remove("")
        torch.set_num_threads(threads)
        os.chdir(before)


def graph_text() -> str:
    """A chain of nine ops as JSON."""
    from memfit.graph_io import bare_graph, graph_to_json

    before = [[v - 1] if v else [] for v in range(9)]
    reads = [[*before[v], v] for v in range(9)]
    return graph_to_json(bare_graph(before, [100] * 9, [2] * 9, reads, name="chain"))


def test_the_page_shows_what_the_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", "")  # put back afterwards
    monkeypatch.setenv("COLUMNS", "100")
    found = blocks(PAGE.read_text())
    shown = {command.split()[1] for _, pairs in found for command, _ in pairs}
    assert shown >= {"inspect", "sweep", "plan", "verify", "max-batch", "explain", "solve"}
    with example_folder(tmp_path):
        for varies, pairs in found:
            for command, expected in pairs:
                assert masked(printed(command), varies) == masked(expected, varies), command


def write_page() -> None:
    """Put what the commands print into the page."""
    page = PAGE.read_text()
    with tempfile.TemporaryDirectory() as name, example_folder(Path(name)):

        def renewed(match: re.Match[str]) -> str:
            commands = re.findall(r"^\$ (.*)\n", match[2], flags=re.MULTILINE)
            text = "".join(f"$ {command}\n{printed(command)}" for command in commands)
            return f"```console{match[1] or ''}\n{text}```\n"

        PAGE.write_text(_BLOCK.sub(renewed, page))


if __name__ == "__main__":
    write_page()
