"""The examples of README and documentation run, and print what the pages show.

`python tests/docs/test_examples.py PAGE.md …` writes what they print into the pages.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support.doc_examples import LANGUAGES, Page, blocks_of, check_command, not_run, write_page

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "benchmarks").glob("*.md")),
]
SETUP = {
    "docs/integrations.md": """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
tokens = torch.randint(64, (8, 16))
data = [{"input_ids": row, "labels": row} for row in tokens]
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, bos_token_id=0, eos_token_id=0,
))
args = TrainingArguments(
    output_dir="out", max_steps=1, per_device_train_batch_size=4, use_cpu=True, report_to="none",
    save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
)
""",
    "docs/shapes.md": """
import torch
from torch import nn
model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 50))
loss_fn = lambda output, target: nn.functional.cross_entropy(output.mT, target)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batches = [(torch.randint(50, (8, n)), torch.randint(50, (8, n))) for n in (16, 64, 16)]
""",
}
"""For names that a page takes as known."""

SLOW_COMMANDS = {
    "docs/cli.md": ("memfit explain my_model", "memfit max-batch", "memfit sweep", "memfit verify"),
    "docs/out-of-memory.md": ("memfit verify",),
}
"""Left out by the quick run of a page."""

ELSEWHERE = {"docs/budgets-and-units.md": ("memfit demo",), "docs/quickstart.md": ("memfit demo",)}
"""Left out where another page, README.md, has the same command."""

SLOW = {
    "README.md",
    "docs/budgets-and-units.md",
    "docs/correctness.md",
    "docs/integrations.md",
    "docs/quickstart.md",
    "docs/report.md",
    "docs/shapes.md",
}
"""Pages whose examples take more than a few seconds: they run with the slow tests."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cost cache that the pages share, as several use the same networks."""
    return tmp_path_factory.mktemp("costs")


@pytest.mark.parametrize("path", [p for p in PAGES if _name(p) not in SLOW], ids=_name)
def test_quick_examples(path: Path, tmp_path: Path) -> None:
    Page(path, tmp_path, SETUP.get(_name(path), ""), SLOW_COMMANDS.get(_name(path), ())).run()


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in PAGES if _name(p) in SLOW or _name(p) in SLOW_COMMANDS], ids=_name
)
@pytest.mark.filterwarnings("default")  # other libraries' own
def test_all_examples(path: Path, tmp_path: Path, costs: Path) -> None:
    if _name(path) == "docs/integrations.md":
        pytest.importorskip("transformers", reason="transformers is not installed")
        pytest.importorskip("lightning", reason="lightning is not installed")
    skip = ELSEWHERE.get(_name(path), ())
    assert Page(path, tmp_path, SETUP.get(_name(path), ""), skip, costs).run() > 0


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_blocks_say_what_they_are(path: Path) -> None:
    for block in blocks_of(path.read_text(encoding="utf-8")):
        place = f"{path.name}:{block.line}"
        assert block.language in LANGUAGES, f"{place}: a block of language {block.language!r}"
        reason = not_run(block)
        assert reason is None or len(reason.split()) >= 3, f"{place}: say why it is not run"
        if reason is None and block.language in ("console", "sh"):
            for command, _ in block.commands:
                check_command(command)
        if block.language == "python":
            ast.parse(block.text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(name).resolve()
            write_page(page, Path(folder).resolve(), SETUP.get(_name(page), ""))
