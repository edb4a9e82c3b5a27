"""The examples of README and documentation run, and print what the pages show.

`python tests/docs/test_examples.py PAGE.md …` writes what they print into the pages.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support.doc_examples import LANGUAGES, Page, blocks_of, not_run, write_page

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "benchmarks").glob("*.md")),
]
SETUP = {
    "integrations.md": """
from torch import nn
model, args, data = nn.Linear(4, 4), None, None
""",
}
"""For names that a page takes as known."""

SLOW_COMMANDS = {"cli.md": ("memfit max-batch", "memfit verify")}
"""Left out by the quick run of a page."""

SLOW = {
    "README.md",
    "budgets-and-units.md",
    "integrations.md",
    "out-of-memory.md",
    "quickstart.md",
    "report.md",
    "shapes.md",
}
"""Pages whose examples take more than a few seconds: they run with the slow tests."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in PAGES if p.name not in SLOW], ids=_name)
def test_quick_examples(path: Path, tmp_path: Path) -> None:
    Page(path, tmp_path, SETUP.get(path.name, ""), SLOW_COMMANDS.get(path.name, ())).run()


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in PAGES if p.name in SLOW or p.name in SLOW_COMMANDS], ids=_name
)
def test_all_examples(path: Path, tmp_path: Path) -> None:
    assert Page(path, tmp_path, SETUP.get(path.name, "")).run() > 0


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_blocks_say_what_they_are(path: Path) -> None:
    for block in blocks_of(path.read_text(encoding="utf-8")):
        place = f"{path.name}:{block.line}"
        assert block.language in LANGUAGES, f"{place}: a block of language {block.language!r}"
        reason = not_run(block)
        assert reason is None or len(reason.split()) >= 3, f"{place}: say why it is not run"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(name).resolve()
            write_page(page, Path(folder).resolve(), SETUP.get(page.name, ""))
