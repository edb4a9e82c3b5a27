"""The programs that the default tests run, in two files that run side by side."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from programs.check import check, pairs_for
from programs.generate import generate
from programs.program import source

__all__ = ["PER_FILE", "frozen", "outcome"]

PER_FILE = 110
MOST = 4  # statements


@contextmanager
def frozen() -> Iterator[None]:
    """Garbage is looked for among new objects only: each measurement begins with a search."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def outcome(seed: int, counts: Counter[str]) -> str:
    """What is wrong with a seed's program, with its source; empty where nothing is."""
    program = generate(seed, MOST)
    if program is None:
        return ""
    pairs = pairs_for(seed, others=1)
    verdict = check(program, pairs, measured=seed % 10 == 0, fresh=seed % 20 == 1)
    counts[verdict.status] += 1
    return f"{verdict.findings}\n{source(program)}" if verdict.findings else ""
