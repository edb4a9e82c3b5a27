"""Runs the examples of a documentation page.

A page is Markdown. Its fenced blocks are taken by language:

- `python`: all of a page run in one namespace, in order. A block that begins with a comment such as
  `# my_model.py` is that file, and is written to the folder that the page's commands run in. Where
  the word `prints` and a `text` block follow, the block has to print that text.
- `console`: commands after `$`, and what they print, which has to be the same but for times. After
  a command that ends in `# figures vary`, no figure is compared.
- `sh`: commands. `memfit …` is run and has to succeed; after `# exit code N`, to exit so.
- `text`, `json`, …: not run.

Commands other than `memfit …` are not run: what they name has to exist (see `CHECKS`). A block that
says `# Not run by the tests: REASON` is not run either.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch

from memfit.cli import build_parser, main
from memfit.graph.graph_file import graph_to_json
from memfit.graph.published import bare_graph

__all__ = ["LANGUAGES", "Block", "Page", "blocks_of", "check_command", "not_run", "write_page"]

ROOT = Path(__file__).parents[2]
LANGUAGES = ("console", "json", "python", "sh", "text")
_NOT_RUN = re.compile(r"^# Not run by the tests: (.*)$", re.MULTILINE)
_FILE = re.compile(r"# (\w+\.py)\n")
_TIME = re.compile(r"[\d.]+ s\b")
_PLACE = re.compile(r"\.py:\d+|\b[0-9a-f]{32}\b")  # lines, fingerprints of graphs
_NUMBER = re.compile(r"[+-]?\d[\d.]*(e-\d+)?%?( [KMG]iB| ns| us| ms| s\b)?")
_VARIES = "# figures vary"
_EXIT_CODE = re.compile(r"# exit code (\d+)$")


def _exit_code(command: str) -> int:
    """What a command in a block of language `sh` has to exit with."""
    told = _EXIT_CODE.search(command)
    return int(told[1]) if told else 0


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what stands after the opening fence.
        text: what is inside.
        line: number of its first line in the page, from 1.
        printed: it shows what the Python block before it prints.
    """

    language: str
    text: str
    line: int
    printed: bool = False

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a `console` or `sh` block, each with the output that is shown."""
        if self.language == "console":
            parts = re.split(r"^\$ (.*)\n", self.text, flags=re.MULTILINE)[1:]
            return list(zip(parts[::2], parts[1::2], strict=True))
        lines = self.text.replace("\\\n", " ").splitlines()
        return [(line, "") for line in lines if line.strip() and not line.startswith("#")]


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page.

    Raises:
        ValueError: a fence is not closed.
    """
    found: list[Block] = []
    lines = page.splitlines()
    at = after = 0
    while at < len(lines):
        opening = re.fullmatch(r"( *)```(.*)", lines[at])
        at += 1
        if opening is None:
            continue
        begin, fence = at, opening[1] + "```"
        while lines[at : at + 1] != [fence]:
            if at == len(lines):
                raise ValueError(f"the fence in line {begin} is not closed")
            at += 1
        between = " ".join(lines[after : begin - 1]).strip()
        follows = bool(found) and found[-1].language == "python"
        text = "".join(f"{line}\n" for line in lines[begin:at])
        printed = follows and between == "prints" and opening[2] == "text"
        found.append(Block(opening[2], text, begin + 1, printed))
        at += 1
        after = at
    return found


def not_run(block: Block) -> str | None:
    """The reason why a block says that it is not run."""
    found = _NOT_RUN.search(block.text)
    return found[1] if found else None


def _masked(text: str, varies: bool) -> list[str]:
    """Lines to compare: without times, lines of code and fingerprints; without any figure where
    they vary."""
    text = _PLACE.sub("#", text)
    return [
        " ".join((_NUMBER.sub("#", line) if varies else _TIME.sub("# s", line)).split())
        for line in text.splitlines()
    ]


# --- commands that are not run --------------------------------------------------------------------


def _make(words: Sequence[str]) -> bool:
    lines = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = " ".join(lines).split()
    return all(word in targets for word in words if "=" not in word)


def _scripts(words: Sequence[str]) -> bool:
    if words[0] == "-m":
        return words[1] in sys.stdlib_module_names
    names = [word for word in words if word.endswith(".py")]
    for name in names:
        ast.parse((ROOT / name).read_text(encoding="utf-8"))
    return bool(names)


def _folders(words: Sequence[str]) -> bool:
    names = [word for word in words if "/" in word and not word.startswith("build")]
    return all((ROOT / name).exists() for name in names)


def _pip(words: Sequence[str]) -> bool:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = re.findall(r"(?:memfit|\.)\[([\w,]+)\]", " ".join(words))
    return words[0] == "install" and all(
        extra in extras["optional-dependencies"] for names in wanted for extra in names.split(",")
    )


CHECKS: dict[str, Callable[[Sequence[str]], bool]] = {
    "make": _make,  # targets that exist; CI runs `make test`
    "python": _scripts,  # files that exist and can be read (benchmarks take long), or `-m venv`
    "torchrun": _scripts,  # starts processes; tests/pytorch/ranks/test_distributed.py does
    "pytest": _folders,
    "cmake": _folders,
    "pip": _pip,  # extras that exist; installing asks the network
    "pre-commit": lambda words: (ROOT / ".pre-commit-config.yaml").is_file(),
    "git": lambda words: words[0] == "clone",
    "cd": lambda words: len(words) == 1,
    "echo": lambda words: words == ["$?"],
}
"""For each program that is not run, whether what stands after it can be right."""


def check_command(command: str) -> None:
    """Whether a command can be right, without running it.

    Raises:
        AssertionError: it cannot, or nothing says how to check it.
    """
    words = shlex.split(command, comments=True)
    program = Path(words[0]).name
    if program == "memfit":
        unknown = build_parser().parse_known_args(words[1:])[1]
        assert unknown == [], command
        return
    assert program in CHECKS, f"nothing says how to check {command!r}"
    assert CHECKS[program](words[1:]), command


# --- a page ---------------------------------------------------------------------------------------


def _chain_graph() -> str:
    """A chain of nine ops as JSON."""
    before = [[v - 1] if v else [] for v in range(9)]
    reads = [[*before[v], v] for v in range(9)]
    return graph_to_json(bare_graph(before, [100] * 9, [2] * 9, reads, name="chain"))


@dataclass
class Page:
    """A page whose examples run in a folder of their own.

    Attributes:
        path: the page.
        folder: an empty folder.
        setup: Python that runs before the first block, for names that the page takes as known.
        skip: commands that contain one of these are left out.
        cache: folder of measured costs; one of its own where None.
    """

    path: Path
    folder: Path
    setup: str = ""
    skip: tuple[str, ...] = ()
    cache: Path | None = None
    code: int = 0
    module: ModuleType = field(init=False)

    def __post_init__(self) -> None:
        self.module = ModuleType(self.path.stem.replace("-", "_").lower() + "_page")
        self.module.__file__ = str(self.folder / f"{self.module.__name__}.py")

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """In the folder, with one thread; modules are forgotten."""
        before, threads, known = Path.cwd(), torch.get_num_threads(), set(sys.modules)
        environment = dict(os.environ)
        for name in ("chain.json", "graph.json"):  # which pages take as known
            (self.folder / name).write_text(_chain_graph())
        cache = self.cache or self.folder / "cache"
        os.environ.update(MEMFIT_CACHE_DIR=str(cache), COLUMNS="100")
        os.environ.pop("MEMFIT_DEBUG", None)
        os.chdir(self.folder)
        torch.set_num_threads(1)
        torch.compiler.reset()
        sys.path.insert(0, "")
        sys.modules[self.module.__name__] = self.module  # Dynamo looks globals up there
        try:
            exec(self.setup, self.module.__dict__)
            yield
        finally:
            sys.path.remove("")
            for name in set(sys.modules) - known:
                place = getattr(sys.modules[name], "__file__", None) or ""
                if place.startswith(str(self.folder)) or sys.modules[name] is self.module:
                    del sys.modules[name]
            torch.set_num_threads(threads)
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)

    def python(self, block: Block) -> str:
        """Run a Python block; what it prints."""
        named = _FILE.match(block.text)
        if named:
            (self.folder / named[1]).write_text(block.text)
        # Lines are numbered as in the page, and the source can be found by `inspect`.
        file = Path(str(self.module.__file__))
        lines = file.read_text().splitlines() if file.exists() else []
        lines += [""] * (block.line - 1 - len(lines))
        file.write_text("\n".join(lines) + "\n" + block.text)
        code = compile("\n" * (block.line - 1) + block.text, str(file), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, self.module.__dict__)
        return self._stripped(out.getvalue())

    def command(self, text: str) -> str:
        """Run a `memfit` command; what it prints, stderr after stdout."""
        out, err = io.StringIO(), io.StringIO()
        words = shlex.split(text, comments=True)
        torch.compiler.reset()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.code = main(words[1:])
        return self._stripped(out.getvalue() + err.getvalue())

    def _stripped(self, text: str) -> str:
        """Without blanks at the ends of lines, and without the folder before its files."""
        text = text.replace(f"{self.folder}/", "")
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())

    def printed(self, command: str, shown: str) -> str | None:
        """What a command prints; None where it is not run.

        Raises:
            AssertionError: it is not run, and cannot be right either.
        """
        words = shlex.split(command, comments=True)
        program = Path(words[0]).name
        if program == "memfit":
            if any(part in command for part in self.skip):
                return None
            return self.command(command)
        check_command(command)
        return f"{self.code}\n" if program == "echo" else None

    def run(self) -> int:
        """Run all blocks; how many commands and Python blocks ran.

        Raises:
            AssertionError: something is printed that the page does not show.
        """
        count = 0
        said = ""
        with self.opened():
            for block in blocks_of(self.path.read_text(encoding="utf-8")):
                place = f"{self.path.name}:{block.line}"
                if block.printed:
                    assert _masked(said, False) == _masked(block.text, False), place
                elif not_run(block) is not None:
                    continue
                elif block.language == "python":
                    said = self.python(block)
                    count += 1
                elif block.language in ("console", "sh"):
                    count += self._commands(block, place)
        return count

    def _commands(self, block: Block, place: str) -> int:
        count = 0
        for command, shown in block.commands:
            said = self.printed(command, shown)
            if said is None:
                continue
            count += 1
            if block.language == "sh":
                assert self.code == _exit_code(command), f"{place}: {command}\n{said}"
            else:
                varies = _VARIES in command
                assert _masked(said, varies) == _masked(shown, varies), f"{place}: {command}"
        return count

    def renewed(self) -> str:
        """The page with what its examples print now."""
        text = self.path.read_text(encoding="utf-8")
        lines, given = text.splitlines(keepends=True), blocks_of(text)
        changes: list[tuple[Block, str]] = []
        said = ""
        with self.opened():
            for block in given:
                new = block.text
                if block.printed:
                    new = said
                elif not_run(block) is None and block.language == "python":
                    said = self.python(block)
                elif block.language == "console":
                    new = ""
                    for command, shown in block.commands:
                        now = self.printed(command, shown)
                        new += f"$ {command}\n{shown if now is None else now}"
                changes.append((block, new))
        for block, new in reversed(changes):  # so that lines before stay where they are
            at = block.line - 1
            lines[at : at + block.text.count("\n")] = [new]
        return "".join(lines)


def write_page(path: Path, folder: Path, setup: str = "") -> None:
    """Put what the examples print into the page."""
    path.write_text(Page(path, folder, setup).renewed(), encoding="utf-8")
