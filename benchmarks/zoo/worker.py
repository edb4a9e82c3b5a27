"""A process that trains one architecture and prints its row as JSON.

`python -m benchmarks.zoo.worker NAME`; `pool` starts it, and the row is its last line.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(words: list[str]) -> int:
    """Train the architecture that is named."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what packages print is not for the reader
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    warnings.simplefilter("ignore")
    # A cache of its own, so that planning is timed as a first user meets it.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEMFIT_CACHE_DIR"] = folder
        row = _row(words[0])
    out.write(json.dumps(row) + "\n")
    out.flush()
    return 0


def _row(name: str) -> dict[str, Any]:
    import torch

    from benchmarks.zoo.registry import make_of
    from benchmarks.zoo.step import seed
    from benchmarks.zoo.training import PlainFails, refusal, row_of

    torch.set_num_threads(1)
    try:
        seed(0)
        step = make_of(name)()
        gc.freeze()  # what was imported need not be looked through again and again
        return _without_folders(row_of(step))
    except ImportError as error:
        return {"outcome": "not installed", **refusal(error)}
    except PlainFails as error:
        return _without_folders({"outcome": "plain fails", **refusal(error)})


def _without_folders(value: Any) -> Any:
    """The value with no folder of this machine in its texts."""
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"[^\s'\"]*(site-packages/|(?=python3\.\d+/))", "", value)
    return value.replace(f"{Path(__file__).parents[2]}{os.sep}", "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
