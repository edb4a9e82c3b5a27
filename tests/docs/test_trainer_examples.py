"""The adapters' examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "libraries"),
    [
        ("huggingface_trainer.py", ("transformers", "accelerate")),
        ("lightning_trainer.py", ("lightning",)),
    ],
)
def test_example(example: str, libraries: tuple[str, ...], tmp_path: Path) -> None:
    for library in libraries:
        pytest.importorskip(library, reason=f"{library} is not installed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MEMFIT_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"(?<!eval_)loss'?:? '?(\d+\.\d+)", done.stdout)]
    assert len(losses) >= 6
    assert losses[-1] < losses[0]
    sizes = dict(re.findall(r"^([a-z ]+): +([\d.]+) MiB$", done.stdout, re.MULTILINE))
    assert float(sizes["planned step"]) <= float(sizes["budget"]) < float(sizes["plain step"])
